"""ONNX files -> the commands that build TensorRT engines of them.

TensorRT needs an NVIDIA GPU, so nothing here runs it: the files are checked, and the lines of `trtexec` are written for
the names and shapes found in them. The options are those of TensorRT 10; its version 11 has no `--fp16` and `--bf16`
and wants files already cast, for example by NVIDIA's ModelOpt AutoCast. This project has built no engine: neither speed
nor accuracy in 16 bits is known.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from autodistill_sam3.convert.graph_files import GraphFile, TensorInfo, read_folder
from autodistill_sam3.errors import CheckpointError, SettingError

EnginePrecision = Literal["fp16", "bf16", "fp32"]

# bf16 has 8 bits of a coordinate: up to two pixels of 1008.
_NEVER_BF16 = ("box_decoder",)


def trtexec_commands(
    folder: Path,
    *,
    precision: EnginePrecision = "fp16",
    max_batch: int = 8,
    max_pairs: int = 16,
    max_boxes: int = 32,
) -> list[str]:
    """Check the graphs of a folder and write the lines of `trtexec` 10 that build an engine of each beside it.

    The engines take any size from one to the largest and are tuned for the largest. Not run here; see the module.

    Args:
        folder: What `export_onnx` wrote.
        precision: What `trtexec` may compute in besides 32 bits. With "bf16", which needs an Ampere GPU or newer, the
            box decoder stays in 32 bits.
        max_batch: The most images at once.
        max_pairs: The most (image, prompt) pairs, and the most prompts, at once.
        max_boxes: The most boxes of each image at once.

    Returns:
        One line for a POSIX shell per graph.

    Raises:
        CheckpointNotFoundError: The folder has no `graphs.json`.
        CheckpointError: A file is missing, damaged or no valid ONNX.
        SettingError: A setting is out of its range.
        MissingPackageError: The package onnx is not installed.
    """
    if precision not in get_args(EnginePrecision):
        raise SettingError(f"Expected precision to be one of {get_args(EnginePrecision)}, received {precision!r}")
    largest = {"batch": max_batch, "prompts": max_pairs, "pairs": max_pairs, "boxes": max_boxes}
    for axis, size in largest.items():
        if size < 1:
            raise SettingError(f"Expected at least 1 as the largest size of {axis}, received {size}")
    return [_command(graph, precision, largest) for graph in read_folder(folder)]


def _command(graph: GraphFile, precision: EnginePrecision, largest: Mapping[str, int]) -> str:
    smallest = dict.fromkeys(largest, 1)
    arguments = ["trtexec", f"--onnx={graph.path}", f"--saveEngine={graph.path.with_suffix('.engine')}"]
    if precision == "fp16" or (precision == "bf16" and graph.path.stem not in _NEVER_BF16):
        arguments.append(f"--{precision}")
    arguments += [
        f"--{profile}Shapes={_shapes(graph, sizes)}"
        for profile, sizes in (("min", smallest), ("opt", largest), ("max", largest))
    ]
    arguments.append("--skipInference")
    return shlex.join(arguments)


def _shapes(graph: GraphFile, sizes: Mapping[str, int]) -> str:
    """The shapes of all inputs in trtexec's notation, such as `input:1x3x8x8,mask:1x32`."""
    return ",".join(f"{info.name}:{'x'.join(_sizes(graph, info, sizes))}" for info in graph.inputs)


def _sizes(graph: GraphFile, info: TensorInfo, sizes: Mapping[str, int]) -> list[str]:
    unknown = [axis for axis in info.shape if isinstance(axis, str) and axis not in sizes]
    if unknown:
        raise CheckpointError(
            f"Expected {info.name} of {graph.path} to have free axes out of {sorted(sizes)}, received {unknown}. "
            "Export it again with this version."
        )
    return [str(sizes[axis] if isinstance(axis, str) else axis) for axis in info.shape]
