"""What a clip offers, wherever its frames come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

from autodistill_sam3.images import RGBImage


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a clip.

    Attributes:
        index: Its place in the clip, from 0, in the order of presentation; frames that cannot be read keep theirs.
        image: (H, W, 3) RGB ``uint8``, upright.
        time: Seconds from the clip's first frame; None where frames have no times.
    """

    index: int
    image: RGBImage
    time: float | None = None


@dataclass(frozen=True)
class SkippedFrame:
    """A frame that could not be read.

    Attributes:
        index: Its place in the clip.
        reason: What was wrong with it.
    """

    index: int
    reason: str


class Clip(Protocol):
    """Frames of one size, read when they are asked for.

    Attributes:
        name: For messages and names of files: the file's or folder's stem, or "clip".
        hw: Height and width in pixels of the upright frames.
        num_frames: How many there are, with those that cannot be read; None for a stream.
        frame_rate: Mean frames per second; None where that is not known.
        skipped: What could not be read so far.
    """

    name: str
    hw: tuple[int, int]
    num_frames: int | None
    frame_rate: float | None
    skipped: list[SkippedFrame]

    def frames(self, start: int = 0, stop: int | None = None, *, backward: bool = False) -> Iterator[Frame]:
        """Frames `start` up to but without `stop`, or all that follow, in falling order if `backward`.

        Raises:
            SettingError: The clip is a stream, and a frame is asked for that has gone by.
        """
        ...

    def time_of(self, index: int) -> float | None:
        """Seconds from the first frame to this one; None where frames have no times."""
        ...

    def close(self) -> None:
        """Let go of the source; what was read stays valid. Closing twice is harmless."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...
