"""One function behind the command `convert`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from autodistill_sam3.convert.folder import require_new, save_folder
from autodistill_sam3.errors import SettingError
from autodistill_sam3.weights import SAM3, find_checkpoint, load_sam3, load_sam3_tokenizer
from autodistill_sam3.weights.paths import expanded

ConversionFormat = Literal["transformers", "fp16", "bf16", "onnx", "tensorrt"]
FORMATS: tuple[str, ...] = get_args(ConversionFormat)


def convert(
    source: str | Path,
    file_format: ConversionFormat,
    output: str | Path | None = None,
    *,
    bpe_path: str | Path | None = None,
) -> Sequence[str]:
    """Write a checkpoint in another layout.

    Args:
        source: A SAM 3 checkpoint as `find_checkpoint` takes it; for "tensorrt" a folder that "onnx" wrote.
        file_format: "transformers": a folder in 32 bits. "fp16", "bf16": the same with weights of half the size, to be
            stored and sent; they are computed with as any other. "onnx": a graph for each part, compared with PyTorch.
            "tensorrt": checks the graphs and writes nothing.
        output: The folder to write; "tensorrt" needs none.
        bpe_path: The vocabulary, if it is not with the checkpoint.

    Returns:
        What to tell the user, in lines: what was written and compared; for "tensorrt" the commands that build engines.

    Raises:
        CheckpointError: The source cannot be used, or a graph differs from PyTorch.
        OutputFolderError: The output is there and not empty.
        MissingPackageError: A package for ONNX is not installed.
        SettingError: The format is unknown, or the output is missing.
    """
    if file_format not in FORMATS:
        raise SettingError(f"Expected format to be one of {FORMATS}, received {file_format!r}")
    if file_format == "tensorrt":
        from autodistill_sam3.convert.tensorrt import trtexec_commands

        return trtexec_commands(expanded(source, "source"))
    if output is None:
        raise SettingError(f"Expected output, the folder to write format {file_format!r} to, received none")
    folder = expanded(output, "output")
    require_new(folder)
    if file_format == "onnx":
        return _to_onnx(find_checkpoint(SAM3, source), folder, bpe_path)
    return _to_folder(find_checkpoint(SAM3, source), folder, file_format, bpe_path)


def _to_folder(checkpoint: Path, output: Path, file_format: str, bpe_path: str | Path | None) -> list[str]:
    import torch

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(file_format)
    model = load_sam3(checkpoint, boxes=False)
    save_folder(model, load_sam3_tokenizer(checkpoint, model, bpe_path), output, dtype)
    return [f"{checkpoint} -> {output} ({file_format})"]


def _to_onnx(checkpoint: Path, output: Path, bpe_path: str | Path | None) -> list[str]:
    from autodistill_sam3.convert.onnx import export_onnx

    model = load_sam3(checkpoint, boxes=False)
    tokenizer = load_sam3_tokenizer(checkpoint, model, bpe_path)
    has_boxes = model.tracker_model.no_memory_embedding is not None
    checks = export_onnx(model, output, tokenizer=tokenizer, with_boxes=has_boxes)
    return [
        *(f"{check.graph}: {check.output} deviates from PyTorch by {check.deviation:.1e}" for check in checks),
        f"{checkpoint} -> {output} (onnx)",
    ]
