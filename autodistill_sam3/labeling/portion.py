"""A part of an input, for a run that labels no more than that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from autodistill_sam3.labeling.attempts import Attempts
from autodistill_sam3.labeling.encoding import Processes
from autodistill_sam3.labeling.names import SourceImage


@dataclass(frozen=True)
class Portion:
    """Some of the images of an input.

    Attributes:
        images: A stretch of the sorted input that begins and ends where batches do.
        left: The names of those that are to be labelled; the others are finished elsewhere, and only fill their batch.
        attempts: Called before images are tried, and asked for suspects; None where nobody supervises the run.
        on_progress: Called with the number of images that are finished, each time that there are more.
        processes: To encode in, kept for the next portion; None has a run start and end its own.
        workers: How many runs share this machine.
    """

    images: Sequence[SourceImage]
    left: AbstractSet[str]
    attempts: Callable[[], Attempts] | None = None
    on_progress: Callable[[int], None] | None = None
    processes: Processes | None = None
    workers: int = 1
