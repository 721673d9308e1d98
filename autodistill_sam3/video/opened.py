"""What all clips have in common: one list of what could not be read, one way to ask for frames, one way to end."""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

from autodistill_sam3.errors import SettingError, VideoError
from autodistill_sam3.video.clip import Frame, SkippedFrame


class OpenedClip(ABC):
    """A clip of known size; see :class:`autodistill_sam3.video.clip.Clip` for its attributes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.hw = (0, 0)
        self.num_frames: int | None = None
        self.frame_rate: float | None = None
        self.skipped: list[SkippedFrame] = []
        self._is_closed = False

    def frames(self, start: int = 0, stop: int | None = None, *, backward: bool = False) -> Iterator[Frame]:
        """Frames `start` up to but without `stop`, or all that follow, in falling order if `backward`.

        Frames that cannot be read are left out and listed in `skipped`; a range that reaches behind the end is cut.

        Raises:
            SettingError: The range is none, or the clip is a stream and a frame is asked for that has gone by.
            VideoError: The clip is closed; while iterating, a frame is of another size.
        """
        if self._is_closed:
            raise VideoError(f"Expected an open clip, but {self.name!r} is closed. Open it again.")
        if start < 0 or (stop is not None and stop < start):
            raise SettingError(f"Expected 0 <= start <= stop, received start={start}, stop={stop}.")
        return self._backward(start, stop) if backward else self._forward(start, stop)

    def time_of(self, index: int) -> float | None:
        """Seconds from the first frame to this one; None where frames have no times."""
        return None

    def close(self) -> None:
        """Let go of the source; what was read stays valid. Closing twice is harmless."""
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @abstractmethod
    def _forward(self, start: int, stop: int | None) -> Iterator[Frame]: ...

    @abstractmethod
    def _backward(self, start: int, stop: int | None) -> Iterator[Frame]: ...

    def _range(self, start: int, stop: int | None) -> tuple[int, int]:
        """The part of a range that the clip has."""
        length = self.num_frames or 0
        return min(start, length), length if stop is None else min(stop, length)

    def _skip(self, index: int, reason: str) -> None:
        """List a frame that cannot be read, once, in the order of frames."""
        at = bisect.bisect_left(self.skipped, index, key=lambda skipped: skipped.index)
        if at == len(self.skipped) or self.skipped[at].index != index:
            self.skipped.insert(at, SkippedFrame(index, reason))
