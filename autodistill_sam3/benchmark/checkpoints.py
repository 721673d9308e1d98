"""The checkpoints of a benchmark: random ones of full size, or those that are given, in every layout that is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from autodistill_sam3.benchmark.random_florence2 import write_random_florence2
from autodistill_sam3.benchmark.random_sam3 import write_random_sam3
from autodistill_sam3.convert import convert
from autodistill_sam3.errors import CheckpointNotFoundError, MissingPackageError
from autodistill_sam3.weights import FLORENCE2, SAM3, find_checkpoint
from autodistill_sam3.weights.paths import expanded
from autodistill_sam3.weights.places import florence2_argument

_PUBLISHED_NAME = "sam3.pt"


def random_checkpoints(folder: Path, bpe_path: str | Path | None, *, echo: Callable[[str], None]) -> dict[str, Any]:
    """Write random weights of full size, or find those that an earlier call wrote: 10 GB.

    Args:
        folder: Where they go.
        bpe_path: The vocabulary `bpe_simple_vocab_16e6.txt.gz`.
        echo: Told of what is written.

    Returns:
        The keywords of `Settings` that name checkpoints.

    Raises:
        MissingPackageError: The vocabulary was not given, or Meta's package is not installed.
    """
    if bpe_path is None:
        raise MissingPackageError("Random weights need a vocabulary. Pass --bpe-path bpe_simple_vocab_16e6.txt.gz")
    vocabulary = expanded(bpe_path, "bpe_path").absolute()
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    file, converted, florence2 = folder / _PUBLISHED_NAME, folder / "sam3", folder / "florence2"
    for place, write in (
        (file, lambda: write_random_sam3(file, vocabulary)),
        (converted, lambda: convert(file, "transformers", converted, bpe_path=vocabulary)),
        (florence2, lambda: write_random_florence2(florence2)),
    ):
        if not place.exists():
            echo(f"writing random weights: {place}")
            write()
    return {
        "sam3_file": file, "sam3_folder": converted, "checkpoint": str(file), "florence2": florence2,
        "bpe_path": vocabulary,
    }  # fmt: skip


def given_checkpoints(checkpoint: str, florence2_checkpoint: str | None, bpe_path: str | Path | None) -> dict[str, Any]:
    """Find checkpoints where `GroundedSAM3` would.

    Args:
        checkpoint: "shapes", a folder, a file or a models root.
        florence2_checkpoint: A Florence-2 folder, if it lies elsewhere.
        bpe_path: The vocabulary, if it lies elsewhere.

    Returns:
        The keywords of `Settings` that name checkpoints; engines for which there is none leave their rows out.

    Raises:
        CheckpointNotFoundError: There is no SAM 3.
        CheckpointError: What was found cannot be used.
    """
    found = find_checkpoint(SAM3, checkpoint)
    places: dict[str, Any] = {"checkpoint": checkpoint, "sam3_folder": found if found.is_dir() else None}
    if checkpoint != "shapes":
        places["checkpoint"] = str(expanded(checkpoint, "checkpoint").absolute())
    try:
        places["sam3_file"] = find_checkpoint(SAM3, checkpoint, official=True)
    except CheckpointNotFoundError:
        places["sam3_file"] = None
    places["florence2"] = find_checkpoint(FLORENCE2, florence2_argument(checkpoint, florence2_checkpoint))
    places["bpe_path"] = None if bpe_path is None else expanded(bpe_path, "bpe_path").absolute()
    return {name: value.absolute() if isinstance(value, Path) else value for name, value in places.items()}
