"""What passes between a video engine and the rest: prompts for objects in, tracked instances per frame out."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
from supervision import CompactMask

from autodistill_sam3.instances import compact_masks
from autodistill_sam3.video.clip import Clip

# The prompt of objects that a person pointed at.
NO_TEXT = -1


@dataclass(frozen=True, eq=False)
class FrameTracks:
    """The instances tracked in one frame.

    Attributes:
        frame_index: Which frame.
        object_ids: (N,) ``int64``, unique within a clip.
        masks: N masks of the frame's size, each with at least one pixel.
        scores: (N,) ``float32`` in 0..1.
        prompt_index: (N,) ``int64``, which text prompt each instance answers; `NO_TEXT` for objects pointed at.
        source: (N,) text, "text", "boxes", "both" or "prompt": what found the object first, "both" when text and boxes
            agree on it in this frame.
    """

    frame_index: int
    object_ids: npt.NDArray[np.int64]
    masks: CompactMask
    scores: npt.NDArray[np.float32]
    prompt_index: npt.NDArray[np.int64]
    source: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.object_ids)

    @classmethod
    def empty(cls, frame_index: int, image_hw: tuple[int, int]) -> FrameTracks:
        """A frame of this height and width in which nothing is tracked."""
        whole = np.zeros(0, dtype=np.int64)
        scores, source = np.zeros(0, dtype=np.float32), np.zeros(0, dtype="<U6")
        return cls(frame_index, whole, compact_masks([], image_hw), scores, whole, source)

    def select(self, index: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> FrameTracks:
        """The instances at these positions, or where this (N,) mask is true."""
        at = np.arange(len(self))[index]
        return FrameTracks(
            self.frame_index, self.object_ids[at], self.masks[at], self.scores[at], self.prompt_index[at],
            self.source[at],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class ObjectPrompt:
    """Where a person says an object is, in pixels of the upright frame.

    Attributes:
        frame_index: Which frame.
        points_xy: (P, 2) ``float32``.
        labels: (P,) ``int64``, 1 for a point on the object, 0 for one beside it.
        box_xyxy: (4,) ``float32``, or None.
    """

    frame_index: int
    points_xy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    box_xyxy: npt.NDArray[np.float32] | None = None


class TrackingSession(Protocol):
    """One clip being tracked. Leaving its `with` block, or `close`, gives back all it holds."""

    def set_texts(self, prompts: Sequence[str]) -> None:
        """Look for these text prompts from now on, and forget all that was tracked."""
        ...

    def prompt_object(
        self, prompt: ObjectPrompt, object_id: int | None = None, *, replace: bool = False
    ) -> tuple[int, FrameTracks]:
        """Add an object, or refine the one with this id.

        Args:
            prompt: Where it is.
            object_id: Of an object to refine, or the id for a new one; by default the next free one for a new one.
            replace: Whether the object's earlier prompts on this frame are forgotten; else they count, too.

        Returns:
            The object's id, and what the frame shows of it.

        Raises:
            SettingError: There is no such frame, or it cannot be read.
        """
        ...

    def remove_object(self, object_id: int) -> None:
        """Stop tracking an object.

        Raises:
            SettingError: There is no such object.
        """
        ...

    def reset(self) -> None:
        """Forget prompts and objects; the clip stays open."""
        ...

    def propagate(
        self, start_frame: int = 0, max_frames: int | None = None, *, reverse: bool = False
    ) -> Generator[FrameTracks, None, None]:
        """Track from a frame on, at most so many frames, the first one included."""
        ...

    def close(self) -> None:
        """Give back memory; closing twice is harmless."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


class VideoEngine(Protocol):
    """A model that tracks; several clips may be open, as sessions hold what is theirs."""

    def open(self, clip: Clip) -> TrackingSession:
        """Begin with a clip, which stays the caller's to close."""
        ...

    def close(self) -> None:
        """Close what is open and give back memory; closing twice is harmless."""
        ...
