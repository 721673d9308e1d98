"""How much an image's labels are to be doubted, and why.

Doubt is the sum of the points of an image's reasons. A reason gives its weight times its strength, which is in 0..1.
Points only order images; they are not a probability.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autodistill_sam3.labeling.records import Annotation, ImageRecord, found_by_models
from autodistill_sam3.labeling.review.shapes import mask_bands

LOW_CONFIDENCE = 0.7
OVERLAP_IOU = 0.1
BOX_OVERLAP_IOU = 0.3
_MAX_PAIRS = 64
_BOX_ROWS = 512

LOW = "low_confidence"
DISAGREE = "disagree"
OVERLAPS = "overlaps"
BORDER = "border"
EMPTY = "empty"


@dataclass(frozen=True)
class ReasonKind:
    """A reason to doubt an image.

    Attributes:
        label: Its name for people.
        weight: The most points it gives.
        strength: What share of the weight it gives, in words.
    """

    label: str
    weight: float
    strength: str


REASONS = {
    LOW: ReasonKind(
        "low confidence", 1.0, f"how far the lowest confidence is below {LOW_CONFIDENCE:g}, as a share of that"
    ),
    DISAGREE: ReasonKind(
        "text and boxes disagree",
        0.5,
        "share of objects that boxes alone found, and half the share that text alone found; only where both looked",
    ),
    OVERLAPS: ReasonKind(
        "overlaps",
        0.4,
        f"share of objects that overlap another: masks by an IoU of {OVERLAP_IOU:g} or more, "
        f"boxes without masks {BOX_OVERLAP_IOU:g}",
    ),
    EMPTY: ReasonKind("no objects", 0.3, "whole, if nothing was found"),
    BORDER: ReasonKind("cut by the border", 0.15, "share of objects that touch the image's border"),
}


@dataclass(frozen=True)
class Reason:
    """Why one image is to be doubted: a key of `REASONS`, its points, and the finding in words."""

    key: str
    points: float
    detail: str


@dataclass(frozen=True)
class Doubt:
    """The reasons to doubt an image, those with most points first."""

    reasons: tuple[Reason, ...]

    @property
    def score(self) -> float:
        """The sum of the points."""
        return sum(reason.points for reason in self.reasons)

    def without(self, key: str) -> Doubt:
        """The same without one reason."""
        return Doubt(tuple(reason for reason in self.reasons if reason.key != key))


def assess(record: ImageRecord) -> Doubt:
    """Find the reasons to doubt an image, as if text and boxes had both looked.

    Example:
        >>> record = {"source": "a.jpg", "file": "a.jpg", "split": "train", "width": 9, "height": 9, "annotations": []}
        >>> assess(record).reasons
        (Reason(key='empty', points=0.3, detail='no objects'),)
    """
    annotations = found_by_models(record["annotations"])
    if not annotations:
        return Doubt((Reason(EMPTY, REASONS[EMPTY].weight, REASONS[EMPTY].label),))
    found = [_low(annotations), _disagree(annotations), _overlaps(annotations), _border(annotations, record)]
    reasons = [reason for reason in found if reason is not None]
    return Doubt(tuple(sorted(reasons, key=lambda reason: (-reason.points, reason.key))))


@dataclass(frozen=True, order=True)
class _Ranked:
    """Among equals a hash decides, so that not the first names alone are shown but a fixed choice of all."""

    score: float
    tie: bytes
    index: int


class Ranking:
    """Keeps the most doubtful of any number of images; memory grows with `limit` only.

    Whether text and boxes both looked is known only once all images are, so that both outcomes are kept. Images
    without objects are all alike: they take a quarter of the places, more only if places are left.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._sources: set[str] = set()
        self._kept: dict[str, list[_Ranked]] = {"both": [], "one": [], EMPTY: []}

    def add(self, record: ImageRecord, doubt: Doubt) -> None:
        """Take the next image of the stream into account."""
        index, self._count = self._count, self._count + 1
        tie = hashlib.sha256(record["source"].encode("utf-8", "surrogatepass")).digest()[:8]
        self._sources.update(annotation["data"].get("source", "") for annotation in record["annotations"])
        if not found_by_models(record["annotations"]):
            self._keep(EMPTY, _Ranked(doubt.score, tie, index))
            return
        self._keep("both", _Ranked(doubt.score, tie, index))
        self._keep("one", _Ranked(doubt.without(DISAGREE).score, tie, index))

    @property
    def both_looked(self) -> bool:
        """Whether the objects say that text and boxes both looked."""
        return "both" in self._sources or {"text", "boxes"} <= self._sources

    def chosen(self) -> frozenset[int]:
        """The places in the stream of the images to show."""
        filled = sorted(self._kept["both" if self.both_looked else "one"], reverse=True)
        empty = sorted(self._kept[EMPTY], reverse=True)
        room = max(self._limit // 4, self._limit - len(filled))
        best = sorted([*filled, *empty[:room]], reverse=True)[: self._limit]
        return frozenset(ranked.index for ranked in best)

    def _keep(self, name: str, ranked: _Ranked) -> None:
        kept = self._kept[name]
        if len(kept) < self._limit:
            heapq.heappush(kept, ranked)
        else:
            heapq.heappushpop(kept, ranked)


def _reason(key: str, strength: float, detail: str) -> Reason | None:
    return Reason(key, round(REASONS[key].weight * strength, 4), detail) if strength > 0 else None


def _low(annotations: list[Annotation]) -> Reason | None:
    lowest = min(annotation["confidence"] for annotation in annotations)
    return _reason(LOW, max(0.0, 1 - lowest / LOW_CONFIDENCE), f"lowest confidence {lowest:.2f}")


def _disagree(annotations: list[Annotation]) -> Reason | None:
    sources = [annotation["data"].get("source") for annotation in annotations]
    boxes, text = sources.count("boxes"), sources.count("text")
    words = [f"{count} by {name} alone" for count, name in ((boxes, "boxes"), (text, "text")) if count]
    return _reason(DISAGREE, (boxes + text / 2) / len(sources), ", ".join(words))


def _border(annotations: list[Annotation], record: ImageRecord) -> Reason | None:
    boxes = _xyxy(annotations)
    inside = (boxes[:, :2] > 0).all(axis=1) & (boxes[:, 2:] < [record["width"], record["height"]]).all(axis=1)
    cut = len(boxes) - int(inside.sum())
    return _reason(BORDER, cut / len(boxes), f"{cut} of {len(boxes)} cut by the border")


def _overlaps(annotations: list[Annotation]) -> Reason | None:
    boxes = _xyxy(annotations)
    involved: set[int] = set()
    # The strongest pairs of a crowd will do: by then the share is high anyway.
    for iou, first, second in heapq.nlargest(_MAX_PAIRS, _box_pairs(boxes)):
        own = annotations[first], annotations[second]
        if _is_overlap(own, boxes[[first, second]], iou):
            involved |= {first, second}
    return _reason(OVERLAPS, len(involved) / len(annotations), f"{len(involved)} of {len(annotations)} overlap")


def _box_pairs(boxes: npt.NDArray[np.float64]) -> Iterator[tuple[float, int, int]]:
    """Pairs of boxes that overlap enough to look at their masks, a block of rows at a time."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for start in range(0, len(boxes), _BOX_ROWS):
        block = boxes[start : start + _BOX_ROWS, None]
        sides = np.minimum(block[..., 2:], boxes[None, :, 2:]) - np.maximum(block[..., :2], boxes[None, :, :2])
        shared = np.clip(sides, 0, None).prod(axis=2)
        iou = shared / np.maximum(areas[start : start + _BOX_ROWS, None] + areas[None] - shared, 1e-9)
        for row, column in zip(*np.nonzero(iou >= OVERLAP_IOU), strict=True):
            if start + row < column:
                yield float(iou[row, column]), int(start + row), int(column)


def _is_overlap(pair: tuple[Annotation, Annotation], boxes: npt.NDArray[np.float64], box_iou: float) -> bool:
    first, second = pair[0]["segmentation"], pair[1]["segmentation"]
    if first is None or second is None:
        return box_iou >= BOX_OVERLAP_IOU
    x, y = (int(value) for value in boxes[:, :2].max(axis=0))
    right, bottom = (int(value) for value in boxes[:, 2:].min(axis=0))
    shared_box = x, y, right - x, bottom - y
    bands = zip(mask_bands(first, shared_box), mask_bands(second, shared_box), strict=True)
    shared = sum(int((own & other).sum()) for (_, own), (_, other) in bands)
    return shared >= OVERLAP_IOU * (pair[0]["area"] + pair[1]["area"] - shared)


def _xyxy(annotations: list[Annotation]) -> npt.NDArray[np.float64]:
    xywh = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
