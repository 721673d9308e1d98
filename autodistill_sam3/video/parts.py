"""Frames of a clip -> parts of it that overlap, for code that takes whole clips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from PIL import Image

from autodistill_sam3.video.clip import Frame


@dataclass(frozen=True, eq=False)
class Part:
    """Neighbouring frames, in the order of tracking.

    Attributes:
        indices: Their places in the clip; frames that cannot be read are left out.
        images: RGB, of the frames' size.
        shared: How many of the first ones are the last ones of the part before.
    """

    indices: list[int]
    images: list[Image.Image]
    shared: int

    def __len__(self) -> int:
        return len(self.indices)


def parts_of(frames: Iterable[Frame], length: int, overlap: int) -> Iterator[Part]:
    """Parts of at most `length` frames, of which the first `overlap` repeat the last ones of the part before.

    Each frame is asked for once, and only when its part is.
    """
    indices: list[int] = []
    images: list[Image.Image] = []
    shared = 0
    for frame in frames:
        indices.append(frame.index)
        images.append(Image.fromarray(frame.image))
        if len(indices) == length:
            yield Part(indices, images, shared)
            indices, images, shared = indices[-overlap:], images[-overlap:], overlap
    if len(indices) > shared:
        yield Part(indices, images, shared)
