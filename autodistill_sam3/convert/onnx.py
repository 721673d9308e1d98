"""A loaded SAM 3 -> ONNX files, each compared with PyTorch as soon as it is written.

A graph is two files, `name.onnx` and its weights `name.onnx.data`, since the full-size vision encoder comes close to
the 2 GB that one ONNX file can hold. `graphs.json` describes inputs, outputs and preprocessing.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from autodistill_sam3 import __version__
from autodistill_sam3.convert.folder import new_folder
from autodistill_sam3.convert.graph_files import MANIFEST, TensorInfo, read_graph, require
from autodistill_sam3.convert.graphs import Graph, Port, build_graphs
from autodistill_sam3.convert.samples import resized, sample_inputs
from autodistill_sam3.errors import CheckpointError, SettingError
from autodistill_sam3.segmentation.transformers_segmenter import MAX_PROMPT_TOKENS
from autodistill_sam3.weights.loading import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Sam3VideoModel

OPSET = 18  # what torch's exporter is written for; TensorRT 10 reads 9 to 20
MAX_DEVIATION = 1e-3

# Sizes of the free axes. Traced at ones that no check uses, so that a size frozen into a graph is found.
_TRACED = {"batch": 3, "prompts": 3, "pairs": 3, "boxes": 5}
_CHECKED = ({"batch": 1, "prompts": 1, "pairs": 1, "boxes": 1}, {"batch": 2, "prompts": 2, "pairs": 2, "boxes": 4})
# Elements. Enough to fold the angles of the rotary embedding, which 16 bits cannot hold, into their sines.
_FOLD_INPUTS, _FOLD_OUTPUTS = 2**20, 2**22


@dataclass(frozen=True)
class GraphCheck:
    """How far an exported graph is from PyTorch.

    Attributes:
        graph: The graph's name.
        output: The output's name.
        deviation: The largest difference, divided by the spread of what PyTorch says.
    """

    graph: str
    output: str
    deviation: float


def export_onnx(
    model: Sam3VideoModel,
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    with_boxes: bool = True,
) -> list[GraphCheck]:
    """Write vision encoder, text encoder, detector and box decoder, each compared with PyTorch by ONNX Runtime.

    Batch sizes and the number of boxes stay free; image size and prompt length are the model's.

    Args:
        model: In ``float32`` on the CPU, as `weights` loads it.
        folder: Where to; it must not exist, or be empty. It appears when every graph is written and agrees.
        tokenizer: Of the model, whose files are put beside the graphs.
        with_boxes: Whether the model has a tracker, and so a box decoder.

    Returns:
        The deviation of every output.

    Raises:
        CheckpointError: A graph cannot be exported, or differs from PyTorch by more than `MAX_DEVIATION`.
        OutputFolderError: The folder is there and not empty, or cannot be written.
        MissingPackageError: One of the packages of the extra `onnx` is not installed.
        SettingError: The model is not on the CPU, or in 16 bits.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package)
    _require_float32_on_cpu(model)
    checks: list[GraphCheck] = []
    with new_folder(folder) as partial:
        graphs = build_graphs(model, with_boxes=with_boxes)
        samples = sample_inputs(model, graphs)
        for graph in graphs:
            path = partial / f"{graph.name}.onnx"
            write_graph(graph, samples[graph.name], path)
            checks += check_graph(graph, samples[graph.name], path)
        if tokenizer is not None:
            with quiet_transformers():
                tokenizer.save_pretrained(partial)
        manifest = json.dumps(_manifest(model, graphs, partial), indent=2)
        (partial / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
    return checks


def write_graph(graph: Graph, sample: Sequence[torch.Tensor], path: Path) -> None:
    """Export one graph and its weights.

    Args:
        graph: What to export.
        sample: Its inputs, of any size along the free axes.
        path: The file; the weights go beside it.

    Raises:
        CheckpointError: torch's exporter cannot.
    """
    try:
        with _quiet(), torch.no_grad():
            _program(graph, resized(graph.inputs, sample, _TRACED)).save(path, external_data=True)
    except OSError:
        raise
    # torch and onnxscript raise nearly anything.
    except Exception as error:
        raise CheckpointError(
            f"Expected to export {graph.name} with torch {torch.__version__}, received {_reason(error)}. "
            "Try the versions in constraints.txt."
        ) from error
    finally:
        gc.collect()


def _program(graph: Graph, inputs: tuple[torch.Tensor, ...]) -> Any:
    """The graph as torch's exporter makes it, folded and cleaned."""
    optimizer, passes = require("onnxscript.optimizer"), require("onnx_ir.passes.common")
    export: Any = torch.onnx.export
    program = export(
        graph.module.eval(),
        inputs,
        dynamo=True,
        dynamic_shapes=[dict(enumerate(port.axes)) for port in graph.inputs],
        input_names=[port.name for port in graph.inputs],
        output_names=[port.name for port in graph.outputs],
        opset_version=OPSET,
        optimize=False,  # below, with other limits
        verbose=False,
    )
    optimizer.optimize(program.model, num_iterations=1, input_size_limit=_FOLD_INPUTS, output_size_limit=_FOLD_OUTPUTS)
    passes.IdentityEliminationPass()(program.model)
    # They hold paths of the machine that exports.
    passes.ClearMetadataAndDocStringPass()(program.model)
    return program


def check_graph(graph: Graph, sample: Sequence[torch.Tensor], path: Path) -> list[GraphCheck]:
    """Compare a file with the module that it was exported from, at two sizes of each free axis.

    Args:
        graph: What was exported.
        sample: Its inputs, of any size along the free axes.
        path: The file.

    Returns:
        The deviation of each output.

    Raises:
        CheckpointError: The file is no valid ONNX, cannot be run, or deviates by more than `MAX_DEVIATION`.
    """
    read_graph(path)
    expected = [_run_torch(graph, resized(graph.inputs, sample, sizes)) for sizes in _CHECKED]
    worst = dict.fromkeys((port.name for port in graph.outputs), 0.0)
    for sizes, ours, theirs in zip(_CHECKED, expected, _run_onnx(graph, sample, path), strict=True):
        for name, one, other in zip(worst, ours, theirs, strict=True):
            deviation = _deviation(one, other)
            if not deviation <= MAX_DEVIATION:  # nor is NaN
                shown = ", ".join(f"{axis} {sizes[axis]}" for axis in graph.inputs[-1].axes)
                raise CheckpointError(
                    f"Expected {name} of {path.name} within {MAX_DEVIATION:g} of PyTorch's, received a deviation of "
                    f"{deviation:.2g} ({shown}). Try the versions in constraints.txt."
                )
            worst[name] = max(worst[name], deviation)
    return [GraphCheck(graph.name, name, deviation) for name, deviation in worst.items()]


def _run_torch(graph: Graph, inputs: Sequence[torch.Tensor]) -> list[npt.NDArray[Any]]:
    with torch.no_grad():
        return [value.numpy() for value in graph.module(*inputs)]


def _run_onnx(graph: Graph, sample: Sequence[torch.Tensor], path: Path) -> Iterator[list[npt.NDArray[Any]]]:
    """ONNX Runtime's outputs at each of the sizes to check."""
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is raised as well
    # A pool of memory would keep several of the full-size attention matrices, 1.7 GB an image each.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for sizes in _CHECKED:
            inputs = resized(graph.inputs, sample, sizes)
            feed = {port.name: value.numpy() for port, value in zip(graph.inputs, inputs, strict=True)}
            yield session.run([port.name for port in graph.outputs], feed)
    # Its exceptions have no common base but this.
    except Exception as error:
        raise CheckpointError(
            f"Expected ONNX Runtime {runtime.__version__} to run {path.name}, received: {error}. "
            "Try the versions in constraints.txt."
        ) from error


def _deviation(expected: npt.NDArray[Any], received: npt.NDArray[Any]) -> float:
    """Largest difference by spread; infinite if the arrays are not even alike.

    Example:
        >>> _deviation(np.array([-1.0, 3.0]), np.array([-1.0, 3.1])) < 0.026
        True
    """
    if expected.shape != received.shape or expected.dtype != received.dtype:
        return float("inf")
    if expected.dtype == np.bool_:
        return float((expected != received).any())
    # Zero counts as a value, or a single one would have no spread.
    spread = max(float(expected.max()), 0.0) - min(float(expected.min()), 0.0)
    return float(np.abs(expected - received).max()) / (spread or 1.0)


def _reason(error: BaseException) -> str:
    """The first line of what began it; the exporter wraps that in advice for its developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _manifest(model: Sam3VideoModel, graphs: Sequence[Graph], folder: Path) -> dict[str, Any]:
    """What whoever runs the graphs must know."""
    config: Any = model.config.detector_config
    size = config.image_size
    return {
        "version": __version__,
        "opset": OPSET,
        "preprocessing": {
            "channels": "RGB",
            "resize": {"height": size, "width": size, "mode": "bilinear, antialiased, aspect ratio ignored, on uint8"},
            "scale": 1 / 255,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "tokenizer": {"length": MAX_PROMPT_TOKENS, "padding": "right", "file": "tokenizer.json"},
        "graphs": [_described(graph, folder / f"{graph.name}.onnx") for graph in graphs],
    }


def _described(graph: Graph, path: Path) -> dict[str, Any]:
    file = read_graph(path)
    return {
        "name": graph.name,
        "file": path.name,
        "inputs": _ports(graph.inputs, file.inputs),
        "outputs": _ports(graph.outputs, file.outputs),
    }


def _ports(ports: Sequence[Port], infos: Sequence[TensorInfo]) -> list[Mapping[str, Any]]:
    return [
        {"name": info.name, "dtype": info.dtype, "shape": list(info.shape), "meaning": port.meaning}
        for port, info in zip(ports, infos, strict=True)
    ]


def _require_float32_on_cpu(model: Sam3VideoModel) -> None:
    kinds = {f"{tensor.dtype} on {tensor.device.type}" for tensor in model.parameters()}
    if kinds != {"torch.float32 on cpu"}:
        raise SettingError(f"Expected a model in torch.float32 on cpu, received {sorted(kinds)}. Load it anew.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch's exporter prints, logs and warns of off the user's screen."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
