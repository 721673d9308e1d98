"""Detections against truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import supervision as sv

from autodistill_sam3.errors import LabelingError

MATCH_IOU = 0.5


@dataclass(frozen=True)
class ClassScore:
    """How well one class was found.

    Attributes:
        class_name: The class, or "all".
        objects: True objects.
        detections: Objects found, right or wrong.
        matched: Pairs of the two with a mask IoU of 0.5 or more, each used once.
        mean_iou: Mean mask IoU of the pairs; NaN without any.
    """

    class_name: str
    objects: int
    detections: int
    matched: int
    mean_iou: float

    @property
    def precision(self) -> float:
        """Share of the detections that are right; NaN without any."""
        return self.matched / self.detections if self.detections else float("nan")

    @property
    def recall(self) -> float:
        """Share of the objects that were found; NaN without any."""
        return self.matched / self.objects if self.objects else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 2 TP / (objects + detections); NaN without either."""
        total = self.objects + self.detections
        return 2 * self.matched / total if total else float("nan")


def match_masks(predicted: sv.Detections, truth: sv.Detections) -> npt.NDArray[np.float64]:
    """Mask IoU of the pairs (prediction, object), each used once, best confidence first, IoU at least 0.5.

    Args:
        predicted: Detections with masks and confidence, of one class in one image.
        truth: The objects, with masks.
    """
    if not (len(predicted) and len(truth)):
        return np.zeros(0)
    iou = sv.mask_iou_batch(np.asarray(truth.mask), np.asarray(predicted.mask))
    pairs: list[float] = []
    confidence = predicted.confidence if predicted.confidence is not None else np.ones(len(predicted))
    for column in np.argsort(-confidence, kind="stable"):
        row = int(iou[:, column].argmax())
        if iou[row, column] >= MATCH_IOU:
            pairs.append(float(iou[row, column]))
            iou[row] = 0
    return np.asarray(pairs)


def evaluate_detections(
    predicted: Mapping[str, sv.Detections], truth: Mapping[str, sv.Detections], classes: Sequence[str]
) -> list[ClassScore]:
    """Score detections per class and overall.

    Args:
        predicted: Image name -> detections, `class_id` counting in `classes`.
        truth: Image name -> objects. An image that is only on one side counts as empty on the other.
        classes: Class names.

    Returns:
        One score per class and a last one, "all".
    """
    empty = sv.Detections.empty()
    totals = np.zeros((len(classes), 3), dtype=np.int64)
    ious: list[list[float]] = [[] for _ in classes]
    for name in sorted(truth.keys() | predicted.keys()):
        detections, objects = predicted.get(name, empty), truth.get(name, empty)
        for class_id in range(len(classes)):
            own, true = _of_class(detections, class_id), _of_class(objects, class_id)
            matched = match_masks(own, true)
            totals[class_id] += len(true), len(own), len(matched)
            ious[class_id] += matched.tolist()
    overall = [value for values in ious for value in values]
    rows = [*zip(classes, totals, ious, strict=True), ("all", totals.sum(axis=0), overall)]
    return [
        ClassScore(name, int(true), int(found), int(matched), float(np.mean(values)) if values else float("nan"))
        for name, (true, found, matched), values in rows
    ]


def load_truth(annotations: Path, images: Path) -> tuple[list[str], dict[str, sv.Detections]]:
    """Read a COCO file of masks.

    Args:
        annotations: The COCO file.
        images: The folder that its `file_name` entries are relative to.

    Returns:
        Class names and, by the image's file name, its objects.

    Raises:
        LabelingError: There is no such file.
    """
    if not annotations.is_file():
        raise LabelingError(f"Expected COCO annotations at {annotations}, received nothing there")
    dataset = sv.DetectionDataset.from_coco(str(images), str(annotations), force_masks=True)
    return dataset.classes, {Path(path).name: objects for path, objects in dataset.annotations.items()}


def format_table(scores: Sequence[ClassScore]) -> str:
    """A plain-text table, one row per score."""
    header = f"{'class':<16} {'objects':>8} {'found':>8} {'precision':>10} {'recall':>8} {'mask IoU':>9}"
    rows = [
        f"{score.class_name:<16} {score.objects:>8} {score.detections:>8} "
        f"{_number(score.precision):>10} {_number(score.recall):>8} {_number(score.mean_iou):>9}"
        for score in scores
    ]
    return "\n".join([header, "-" * len(header), *rows])


def _of_class(detections: sv.Detections, class_id: int) -> sv.Detections:
    if detections.class_id is None:
        return detections
    selected = detections[detections.class_id == class_id]
    assert isinstance(selected, sv.Detections)
    return selected


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"
