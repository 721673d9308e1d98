"""What an evaluation says, as values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from autodistill_sam3.evaluation.calibration import Calibration, ClassThreshold
from autodistill_sam3.evaluation.comparison import Kind
from autodistill_sam3.evaluation.detections import ClassScore

FORMAT = "autodistill_sam3 evaluation"
ALL = "all"


@dataclass(frozen=True)
class KindResult:
    """All measures with one kind of overlap.

    Attributes:
        kind: "mask" or "box".
        scores: Per class, and a last one "all" over all objects: precision, recall, F1 at IoU 0.5 and the mean IoU of
            what was matched.
        average_precision: COCO's twelve numbers, :data:`AP_NAMES`, over all classes.
        class_average_precision: The same, in the order of the classes.
        concepts: cgF1 with its parts, over all classes.
        class_concepts: The same, in the order of the classes.
        calibration: Confidence against how often it is right.
        thresholds: Per class, the best one.
    """

    kind: Kind
    scores: tuple[ClassScore, ...]
    average_precision: dict[str, float]
    class_average_precision: tuple[dict[str, float], ...]
    concepts: dict[str, float]
    class_concepts: tuple[dict[str, float], ...]
    calibration: Calibration
    thresholds: tuple[ClassThreshold, ...]


@dataclass(frozen=True)
class Evaluation:
    """A dataset compared with ground truth.

    Attributes:
        dataset: What was evaluated.
        ground_truth: Against what.
        dataset_files: What was read of it.
        ground_truth_files: What was read of it.
        images: Images of the ground truth; all of them count.
        images_missed: Those of them that the dataset does not have; their objects count as missed.
        images_left_out: Images of the dataset that the ground truth does not have; they do not count.
        images_in_other_folders: Images that were matched although the folders in their names contradict.
        classes: Classes that both have.
        classes_left_out: Classes of the dataset that the ground truth does not have; they do not count.
        classes_not_asked: Classes of the ground truth that the dataset does not have; they do not count.
        crowds: Crowds in the ground truth, which are neither to be found nor wrong to be found.
        without_mask: Objects with a box alone, in the dataset and in the ground truth.
        without_confidence: Objects of the dataset without a confidence, taken as 1.
        mask: The measures by mask IoU; None if an object on either side has no mask.
        box: The measures by box IoU.
    """

    dataset: str
    ground_truth: str
    dataset_files: tuple[str, ...]
    ground_truth_files: tuple[str, ...]
    images: int
    images_missed: int
    images_left_out: int
    images_in_other_folders: int
    classes: tuple[str, ...]
    classes_left_out: tuple[str, ...]
    classes_not_asked: tuple[str, ...]
    crowds: int
    without_mask: tuple[int, int]
    without_confidence: int
    mask: KindResult | None
    box: KindResult

    @property
    def best(self) -> KindResult:
        """By mask where there are masks, else by box."""
        return self.mask if self.mask is not None else self.box

    @property
    def thresholds(self) -> dict[str, float]:
        """By class, the confidence threshold with the best F1; without classes that have none."""
        return {item.class_name: item.threshold for item in self.best.thresholds if item.threshold is not None}

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON holds it; numbers that are not defined are None."""
        content = {**asdict(self), "mask": _kind_dict(self.mask), "box": _kind_dict(self.box)}
        defined: dict[str, Any] = _without_nan({"format": FORMAT, **content})
        return defined


def _kind_dict(result: KindResult | None) -> dict[str, Any] | None:
    if result is None:
        return None
    *scores, overall = [_score_dict(score) for score in result.scores]
    parts = (scores, result.class_average_precision, result.class_concepts, result.thresholds)
    return {
        "overall": overall | {"average_precision": result.average_precision, "concepts": result.concepts},
        "classes": {
            threshold.class_name: score
            | {"average_precision": precision, "concepts": concepts}
            | {"best": {key: value for key, value in asdict(threshold).items() if key != "class_name"}}
            for score, precision, concepts, threshold in zip(*parts, strict=True)
        },
        "calibration": asdict(result.calibration),
    }


def _score_dict(score: ClassScore) -> dict[str, Any]:
    return {
        "objects": score.objects,
        "detections": score.detections,
        "matched": score.matched,
        "precision": score.precision,
        "recall": score.recall,
        "f1": score.f1,
        "mean_iou": score.mean_iou,
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
