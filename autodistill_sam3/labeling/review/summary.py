"""Counts over all records, taken one record at a time: memory grows with the number of classes, not of images."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autodistill_sam3.labeling.records import SPLITS, Annotation, ImageRecord, found_by_models
from autodistill_sam3.labeling.review.shapes import class_name

CONFIDENCE_BINS = 20
# Side of a square of the object's area, in pixels: below 4, 4 to 8, ... from 1024 on.
SIZE_BINS = 10
SMALLEST_SIZE = 4
POLYGON_IOU = 0.99
WORST_POLYGONS = 10


@dataclass(order=True, frozen=True)
class WorstPolygon:
    """An object that its polygon does not keep well; the worst sorts last, as the heap needs it."""

    negative_iou: float
    split: str
    file: str
    source: str
    class_id: int

    @property
    def iou(self) -> float:
        """IoU of the polygon with the mask."""
        return -self.negative_iou


class ClassSummary:
    """What is known of the objects of one class."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.images = 0
        self.by_split: Counter[str] = Counter()
        self.confidences: npt.NDArray[np.int64] = np.zeros(CONFIDENCE_BINS, dtype=np.int64)
        self.sizes: npt.NDArray[np.int64] = np.zeros(SIZE_BINS, dtype=np.int64)
        self.confidence_range = _Range()
        self.size_range = _Range()
        self.polygon_range = _Range()
        self.polygons_below = 0

    @property
    def objects(self) -> int:
        """Objects in all splits."""
        return sum(self.by_split.values())

    def add(self, annotation: Annotation, split: str) -> None:
        """Count an object."""
        self.by_split[split] += 1
        confidence, side = annotation["confidence"], math.sqrt(max(0.0, annotation["area"]))
        self.confidences[min(max(int(confidence * CONFIDENCE_BINS), 0), CONFIDENCE_BINS - 1)] += 1
        self.sizes[size_bin(side)] += 1
        self.confidence_range.add(confidence)
        self.size_range.add(side)
        iou = polygon_iou(annotation)
        if iou is not None:
            self.polygon_range.add(iou)
            self.polygons_below += iou < POLYGON_IOU


class Summary:
    """Counts of a whole run.

    Attributes:
        splits: Splits that hold images, in their usual order.
        images: Images by split.
        empty: Images without objects by split.
        objects: Objects by split.
        sources: Objects by what found them.
        removed: Objects that were removed, by reason.
        removed_images: Images that objects were removed from, by reason.
        classes: One summary per class; classes that no record has included.
        everything: One summary of all objects.
        worst_polygons: Objects whose polygons keep least, the worst first.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._names = classes
        self._by_class = {index: ClassSummary(name) for index, name in enumerate(classes)}
        self._worst: list[WorstPolygon] = []
        self.everything = ClassSummary("all")
        self.images: Counter[str] = Counter()
        self.empty: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.removed: Counter[str] = Counter()
        self.removed_images: Counter[str] = Counter()

    def add(self, record: ImageRecord) -> None:
        """Count an image."""
        split = record["split"]
        self.images[split] += 1
        self.empty[split] += not found_by_models(record["annotations"])
        for reason, count in removed_from(record).items():
            self.removed[reason] += count
            self.removed_images[reason] += 1
        for annotation in record["annotations"]:
            self._add_object(annotation, record)
        for class_id in {annotation["class_id"] for annotation in record["annotations"]}:
            self._by_class[class_id].images += 1
        self.everything.images += bool(record["annotations"])

    @property
    def splits(self) -> list[str]:
        """Splits that hold images, in their usual order."""
        usual = [split for split in SPLITS if split in self.images]
        return [*usual, *sorted(set(self.images) - set(usual))]

    @property
    def classes(self) -> list[tuple[int, ClassSummary]]:
        """Class ids with their summaries, by id."""
        return sorted(self._by_class.items())

    @property
    def worst_polygons(self) -> list[WorstPolygon]:
        """Objects whose polygons keep least of them, the worst first."""
        return sorted(self._worst, reverse=True)

    def _add_object(self, annotation: Annotation, record: ImageRecord) -> None:
        class_id = annotation["class_id"]
        if class_id not in self._by_class:
            self._by_class[class_id] = ClassSummary(class_name(self._names, class_id))
        self._by_class[class_id].add(annotation, record["split"])
        self.everything.add(annotation, record["split"])
        self.sources[annotation["data"].get("source", "")] += 1
        iou = polygon_iou(annotation)
        if iou is not None and iou < POLYGON_IOU:
            worst = WorstPolygon(-iou, record["split"], record["file"], record["source"], class_id)
            heapq.heappush(self._worst, worst)
            if len(self._worst) > WORST_POLYGONS:
                heapq.heappop(self._worst)


class _Range:
    """Lowest, highest and mean of a stream of values."""

    def __init__(self) -> None:
        self.lowest, self.highest, self._sum, self._count = math.inf, -math.inf, 0.0, 0

    def add(self, value: float) -> None:
        self.lowest, self.highest = min(self.lowest, value), max(self.highest, value)
        self._sum += value
        self._count += 1

    def __len__(self) -> int:
        return self._count

    @property
    def mean(self) -> float:
        return self._sum / self._count if self._count else math.nan


def size_bin(side: float) -> int:
    """The bin of an object as large as a square of this side in pixels.

    Example:
        >>> [size_bin(side) for side in (0.5, 4, 7.9, 8, 1023, 20000)]
        [0, 1, 1, 2, 8, 9]
    """
    return min(max(int(math.log2(max(side, 1)) - math.log2(SMALLEST_SIZE) + 1), 0), SIZE_BINS - 1)


def removed_from(record: ImageRecord) -> Mapping[str, int]:
    """How many objects were removed from an image, by reason; nothing for records that do not say."""
    return record.get("removed", {})


def polygon_iou(annotation: Annotation) -> float | None:
    """IoU of the written polygon with the mask; None without either, or for records that do not say."""
    return annotation.get("polygon_iou")
