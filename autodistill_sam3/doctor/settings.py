"""What is asked about: the settings of a labelling run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autodistill_sam3.weights import SHAPES


@dataclass(frozen=True)
class RunSettings:
    """The keywords of `GroundedSAM3` that decide what is used, and where the dataset would go.

    Attributes:
        checkpoint: As in `GroundedSAM3`.
        bpe_path: As in `GroundedSAM3`.
        florence2_checkpoint: As in `GroundedSAM3`.
        backend: As in `GroundedSAM3`.
        prompting: As in `GroundedSAM3`.
        device: As in `GroundedSAM3`.
        precision: As in `GroundedSAM3`.
        output: The folder that would be written to, if it is known.
    """

    checkpoint: str | Path | None
    bpe_path: str | Path | None
    florence2_checkpoint: str | Path | None
    backend: str
    prompting: str
    device: str | None
    precision: str
    output: Path | None

    @property
    def with_boxes(self) -> bool:
        """Whether boxes are segmented, and Florence-2 used."""
        return self.prompting != "text"

    @property
    def official(self) -> bool:
        """Whether Meta's own code runs."""
        return self.backend == "sam3"

    @property
    def small(self) -> bool:
        """Whether the model is the small bundled one, to which speed and memory do not matter."""
        return str(self.checkpoint) == SHAPES


def gigabytes(count: float) -> str:
    """A number of bytes in words, decimal as on boxes of GPUs and disks."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def first_line(error: BaseException) -> str:
    """What an exception says, without the pages that some libraries append."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
