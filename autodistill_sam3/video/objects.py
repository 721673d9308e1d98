"""One tracked object: what is remembered of it, and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from autodistill_sam3.segmentation.memory import Memory, Recall
from autodistill_sam3.video.association import Probation

# An object that is seen less surely than this is not worth remembering (Meta's `mf_threshold`, after SAM2Long).
WORTH_REMEMBERING = 0.01


@dataclass(frozen=True)
class MemoryLimits:
    """How much of an object is remembered.

    Attributes:
        frames: Tracked frames with their features.
        pointers: Tracked frames with pointers; the clip's length if that is less.
        conditioning: Frames in which the object was pointed at.
    """

    frames: int
    pointers: int
    conditioning: int


@dataclass(frozen=True, eq=False)
class _Kept:
    frame_index: int
    memory: Memory
    worth: bool


class ObjectMemory:
    """What is remembered of one object, bounded however long the clip is.

    Of tracked frames, those in which the object was seen count, and the last one, as in Meta's tracker
    (`frame_filter` of sam3/model/sam3_tracker_base.py): an object that is hidden for long does not forget its looks.
    """

    def __init__(self, limits: MemoryLimits) -> None:
        self.limits = limits
        self.conditioning: dict[int, Memory] = {}
        self._renewals: list[int] = []
        self._recent: list[_Kept] = []

    def condition(self, frame_index: int, memory: Memory, *, is_renewal: bool = False) -> None:
        """Remember a frame in which the object was pointed at, or was detected for sure."""
        self.conditioning[frame_index] = memory
        self._recent = [kept for kept in self._recent if kept.frame_index != frame_index]
        if is_renewal:
            self._renewals.append(frame_index)
            # Prompts of a person stay; renewals come for ever.
            if len(self._renewals) > self.limits.conditioning:
                self.conditioning.pop(self._renewals.pop(0), None)

    def keep(self, frame_index: int, memory: Memory, quality: float) -> None:
        """Remember a frame in which the object was tracked.

        Args:
            frame_index: Which.
            memory: What to remember.
            quality: In 0..1, how surely it was seen.
        """
        if self._recent and not self._recent[-1].worth:
            self._recent.pop()
        self._recent.append(_Kept(frame_index, memory, quality > WORTH_REMEMBERING))
        del self._recent[: -self.limits.pointers]
        if len(self._recent) > self.limits.frames:
            old = self._recent[-self.limits.frames - 1]
            # Of older frames the pointer alone is used.
            small = Memory(old.memory.spatial[:0], old.memory.pointer)
            self._recent[-self.limits.frames - 1] = _Kept(old.frame_index, small, old.worth)

    def forget_tracked(self) -> None:
        """Go back to what the object was pointed at."""
        self._recent.clear()

    def recall(self, frame_index: int, *, reverse: bool) -> Recall:
        """What the object remembers when a frame comes."""
        sign = -1 if reverse else 1
        chosen = self._closest(frame_index)
        ages = [(sign * (frame_index - at), at) for at in chosen]
        pointers = [(age, self.conditioning[at].pointer) for age, at in ages if age >= 0]
        recent = self._recent[::-1]
        # Their rank, not their age, is what tells them apart.
        pointers += [(rank, kept.memory.pointer) for rank, kept in enumerate(recent[: self.limits.pointers - 1], 1)]
        spatial = [(0, self.conditioning[at].spatial) for at in chosen]
        spatial += [(rank, kept.memory.spatial) for rank, kept in enumerate(recent[: self.limits.frames], 1)]
        return Recall(tuple(spatial), tuple(pointers))

    def _closest(self, frame_index: int) -> list[int]:
        """The frames pointed at that count: the closest before and behind, then others by distance."""
        frames = sorted(self.conditioning, key=lambda at: abs(at - frame_index))
        if len(frames) <= self.limits.conditioning:
            return frames
        before = [at for at in frames if at < frame_index][:1]
        behind = [at for at in frames if at >= frame_index][:1]
        first = before + behind
        return (first + [at for at in frames if at not in first])[: self.limits.conditioning]


@dataclass(eq=False)
class TrackedObject:
    """An object of a clip.

    Attributes:
        object_id: Unique within the clip.
        class_id: Its class, or `ANY_CLASS` for one that a person pointed at.
        prompt_index: The text prompt it answers, or `NO_TEXT`.
        source: What found it: "text", "boxes" or "prompt".
        memory: What is remembered of it.
        probation: While it may be a mistake; None for objects that were pointed at, and once it is over.
        confidence: Of the detection that supported it last, or the predicted IoU of the mask asked for.
        born: First frame, and whether frames came in falling order then; None if it was there from the start.
        shown: Mask logits (4g, 4g) of frames in which it was pointed at, on the CPU.
        prompts: Points (P, 2) in 0..1 and labels (P,) by frame, box corners included.
        last_hidden: The frame in which it was last not to be seen; -1 for never.
        last_seen: The last frame in which it was seen.
        unsupported: Frames since a detection supported it.
        last_xyxy: Where that was, in cells of the model's masks.
    """

    object_id: int
    class_id: int
    prompt_index: int
    source: str
    memory: ObjectMemory
    confidence: float
    born: tuple[int, bool] | None = None
    probation: Probation | None = None
    shown: dict[int, torch.Tensor] = field(default_factory=dict)
    prompts: dict[int, tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]] = field(default_factory=dict)
    last_hidden: int = -1
    last_seen: int = -1
    unsupported: int = 0
    last_xyxy: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(4, np.float32))

    @property
    def is_pointed(self) -> bool:
        """Whether a person pointed at it."""
        return bool(self.prompts)

    def lives_at(self, frame_index: int, *, reverse: bool) -> bool:
        """Whether the object is looked for in a frame: not before the frame in which detection found it first."""
        if self.is_pointed:
            places = np.array(list(self.memory.conditioning))
            return bool((places >= frame_index).any() if reverse else (places <= frame_index).any())
        if self.born is None:
            return True
        frame, was_reverse = self.born
        return frame_index <= frame if was_reverse else frame_index >= frame
