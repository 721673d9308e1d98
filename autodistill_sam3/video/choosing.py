"""Which frames of a clip become training images: every n-th, if it is sharp and unlike the one chosen before."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from autodistill_sam3.labeling.split import NEAR_DUPLICATE_BITS, perceptual_hash
from autodistill_sam3.preparation.choose import BLURRED, DUPLICATE
from autodistill_sam3.preparation.measure import sharpness_of
from autodistill_sam3.video.clip import Frame

# Track id -> x1, y1, x2, y2 in pixels.
BoxOfTrack: TypeAlias = Mapping[int, Sequence[float]]

# An object has moved if its box has a smaller IoU with the one before. Before a still background, a picture's hash
# hardly changes whatever small objects do.
SAME_PLACE_IOU = 0.7


@dataclass(frozen=True, slots=True)
class MeasuredFrame:
    """A frame that may be chosen.

    Attributes:
        index: Its place in the clip.
        sharpness: Variance of the Laplacian.
        phash: 16 hexadecimal digits.
    """

    index: int
    sharpness: float
    phash: str


def measure_frames(frames: Iterable[Frame], every: int) -> Iterator[MeasuredFrame]:
    """Measure the frames whose numbers `every` divides, one picture in memory at a time."""
    for frame in frames:
        if frame.index % every == 0:
            yield MeasuredFrame(frame.index, sharpness_of(frame.image), perceptual_hash(frame.image))


def choose_frames(
    measured: Sequence[MeasuredFrame], boxes_of: Callable[[int], BoxOfTrack], min_sharpness: float
) -> tuple[list[int], Counter[str]]:
    """Leave out what is blurred, and what shows what the frame chosen before it shows.

    Args:
        measured: In the order of the clip.
        boxes_of: A frame's number -> the boxes of its tracks.
        min_sharpness: Share of the median sharpness of all of them.

    Returns:
        The numbers of the chosen frames, and how many were left out, by reason.

    Example:
        >>> frames = [MeasuredFrame(index, sharpness, 16 * "0") for index, sharpness in ((0, 9.0), (5, 2.0), (10, 8.0))]
        >>> choose_frames(frames, lambda index: {}, 0.5)
        ([0], Counter({'blurred': 1, 'duplicate': 1}))
        >>> choose_frames(frames, lambda index: {1: (index, 0, index + 10, 10)}, 0.5)[0]
        [0, 10]
    """
    least = min_sharpness * statistics.median(frame.sharpness for frame in measured) if measured else 0.0
    chosen: list[int] = []
    left_out: Counter[str] = Counter()
    last: tuple[MeasuredFrame, BoxOfTrack] | None = None
    for frame in measured:
        if frame.sharpness < least:
            left_out[BLURRED] += 1
            continue
        boxes = boxes_of(frame.index)
        if last is not None and _is_near(frame.phash, last[0].phash) and _are_in_place(boxes, last[1]):
            left_out[DUPLICATE] += 1
            continue
        chosen.append(frame.index)
        last = frame, boxes
    return chosen, left_out


def _is_near(phash: str, other: str) -> bool:
    return (int(phash, 16) ^ int(other, 16)).bit_count() <= NEAR_DUPLICATE_BITS


def _are_in_place(boxes: BoxOfTrack, others: BoxOfTrack) -> bool:
    return boxes.keys() == others.keys() and all(
        _iou(box, others[track]) >= SAME_PLACE_IOU for track, box in boxes.items()
    )


def _iou(box: Sequence[float], other: Sequence[float]) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    common = max(width, 0.0) * max(height, 0.0)
    area, other_area = ((one[2] - one[0]) * (one[3] - one[1]) for one in (box, other))
    return common / (area + other_area - common)
