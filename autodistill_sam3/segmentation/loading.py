"""A checkpoint and the name of a back end -> a `Segmenter`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal, get_args

from autodistill_sam3.devices import Precision, autocast_dtype, select_device
from autodistill_sam3.errors import CheckpointError, SettingError
from autodistill_sam3.segmentation.segmenter import Segmenter
from autodistill_sam3.weights import (
    find_bpe,
    find_official_code,
    find_vocabulary,
    require_boxes,
    sha256_of,
    sha256_of_code,
)
from autodistill_sam3.weights.official import SAM3_1, read_official

Backend = Literal["transformers", "sam3"]
DEFAULT_BACKEND: Backend = "transformers"


def check_backend(backend: str) -> None:
    """Raise SettingError unless the back end is known."""
    if backend not in get_args(Backend):
        raise SettingError(f"Expected backend to be one of {get_args(Backend)}, received {backend!r}")


def load_segmenter(
    checkpoint: Path,
    *,
    backend: Backend = DEFAULT_BACKEND,
    bpe_path: str | Path | None = None,
    boxes: bool = True,
    device: str | None = None,
    precision: Precision = "auto",
) -> Segmenter[Any]:
    """Load SAM 3.

    Args:
        checkpoint: What `find_checkpoint` found; for "sam3" with `official=True`.
        backend: "transformers": this package's engine. "sam3": Meta's own code, from a clone beside the checkpoint if
            there is one, else the installed package.
        bpe_path: The vocabulary, if it lies elsewhere; see `find_vocabulary`.
        boxes: Whether boxes will be segmented, for which some checkpoints lack the weights.
        device: Such as "cuda:1"; by default the best one there is.
        precision: "auto", "bf16", "fp16" or "fp32".

    Raises:
        CheckpointError: The checkpoint cannot be used, or not by this back end.
        DeviceError: The device is not on this machine.
        SettingError: The back end or the precision is unknown.
    """
    check_backend(backend)
    # Before gigabytes are read.
    autocast_dtype(precision, select_device(device))
    if backend == "sam3":
        return _load_official(checkpoint, bpe_path, boxes, device, precision)
    from autodistill_sam3.segmentation.transformers_segmenter import TransformersSegmenter

    return TransformersSegmenter.load(checkpoint, bpe_path=bpe_path, boxes=boxes, device=device, precision=precision)


def _load_official(
    checkpoint: Path, bpe_path: str | Path | None, boxes: bool, device: str | None, precision: Precision
) -> Segmenter[Any]:
    from autodistill_sam3.segmentation.official_segmenter import OfficialSegmenter

    official = read_official(checkpoint)
    if official.title == SAM3_1:
        raise CheckpointError(
            f"Expected SAM 3 for backend='sam3', received SAM 3.1 in {checkpoint}. backend='transformers' reads it."
        )
    require_boxes(official.has_boxes or not boxes, checkpoint)
    return OfficialSegmenter.load(
        official.tensors,
        find_bpe(checkpoint, bpe_path),
        code=find_official_code(checkpoint),
        with_boxes=boxes,
        device=device,
        precision=precision,
    )


def segmenter_identity(checkpoint: Path, backend: Backend, bpe_path: str | Path | None) -> dict[str, str]:
    """What decides a segmenter's answers, as hashes of contents: it may lie elsewhere the next time.

    Args:
        checkpoint: Of a segmenter that :func:`load_segmenter` has loaded with these arguments.
        backend: What runs it.
        bpe_path: The vocabulary, if one was given.
    """
    identity = {"backend": backend, "checkpoint_sha256": sha256_of(checkpoint)}
    vocabulary = find_bpe(checkpoint, bpe_path) if backend == "sam3" else find_vocabulary(checkpoint, bpe_path)
    if vocabulary != checkpoint:
        identity["vocabulary_sha256"] = sha256_of(vocabulary)
    if backend == "sam3":
        identity["code_sha256"] = sha256_of_code(Path(next(iter(sys.modules["sam3"].__path__))))
    return identity
