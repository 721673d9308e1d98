"""A labelled dataset against ground truth: one image at a time through all measures."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autodistill_sam3.evaluation.average_precision import AveragePrecision
from autodistill_sam3.evaluation.calibration import best_threshold, calibrate
from autodistill_sam3.evaluation.comparison import Comparison, Kind, compare, match
from autodistill_sam3.evaluation.concepts import ConceptCounts
from autodistill_sam3.evaluation.detections import ClassScore
from autodistill_sam3.evaluation.labeled_folder import labeling_floors
from autodistill_sam3.evaluation.labels import LabeledImage, LabeledObject, LabelSet
from autodistill_sam3.evaluation.output import check_evaluation_folder, write_evaluation
from autodistill_sam3.evaluation.pairing import agreed_hw, folders_contradict, pair_images, shared_classes
from autodistill_sam3.evaluation.reading import read_labels
from autodistill_sam3.evaluation.results import ALL, Evaluation, KindResult


def evaluate_dataset(
    dataset: Path, ground_truth: Path, *, output: Path | None = None, progress: bool = False
) -> Evaluation:
    """Measure how good the labels of a dataset are.

    Either side is a labelled folder or one split of it, a COCO file, or a YOLO dataset (its folder or `data.yaml`).
    Images are matched by relative name, classes by name, objects at IoU 0.5 with the best confidence first. Each class
    name counts as a noun phrase that was asked of each image.

    Everything in the dataset counts as found. What lay below the threshold it was labelled with is not in it: precision
    at lower thresholds, and best thresholds below that one, cannot be known from it. Which one that was is taken from
    the `run.json` of its folder, if there is one.

    Args:
        dataset: What to measure.
        ground_truth: What is true.
        output: A new, empty or earlier evaluation's folder for `evaluation.json`, `thresholds.json`, `calibration.png`
            and `report.md`; None writes nothing.
        progress: Show a progress bar.

    Raises:
        InputFolderError: There is nothing at one of the paths.
        LabelingError: Labels are damaged, or the two sides cannot be compared.
        OutputFolderError: The output folder holds something else.
    """
    if output is not None:
        check_evaluation_folder(output)
    evaluation = _evaluate(read_labels(dataset), read_labels(ground_truth), progress)
    if output is not None:
        write_evaluation(evaluation, output)
    return evaluation


class _Measures:
    """The measures with one kind of overlap, fed one class of one image at a time."""

    def __init__(self, kind: Kind, classes: Sequence[str]) -> None:
        self._kind = kind
        self._classes = classes
        self._average_precision = AveragePrecision(len(classes), kind)
        self._concepts = [ConceptCounts() for _ in classes]
        self._objects = [0] * len(classes)
        self._confidence = [array("d") for _ in classes]
        self._iou = [array("d") for _ in classes]

    def add(self, index: int, comparison: Comparison) -> None:
        """Take in one class of one image."""
        self._average_precision.add(index, comparison)
        self._concepts[index].add(comparison)
        matches = match(comparison)
        self._objects[index] += int((~comparison.crowd).sum())
        self._confidence[index].extend(comparison.scores[~matches.ignored])
        self._iou[index].extend(matches.iou[~matches.ignored])

    def result(self, images: int, floors: Mapping[str, float]) -> KindResult:
        """Summarise, with images * classes datapoints in all; `floors` has what the labelling let through."""
        for counts in self._concepts:
            counts.add_empty(images - counts.outcomes.total())
        overall, per_class = self._average_precision.summary()
        confidence = [np.array(values) for values in self._confidence]
        right = [np.array(values) > 0 for values in self._iou]
        return KindResult(
            kind=self._kind,
            scores=self._scores(),
            average_precision=overall,
            class_average_precision=tuple(per_class),
            concepts=sum(self._concepts, ConceptCounts()).summary(),
            class_concepts=tuple(counts.summary() for counts in self._concepts),
            calibration=calibrate(np.concatenate(confidence), np.concatenate(right)),
            thresholds=tuple(
                best_threshold(*row, floors.get(row[0]))
                for row in zip(self._classes, confidence, right, self._objects, strict=True)
            ),
        )

    def _scores(self) -> tuple[ClassScore, ...]:
        everything = np.concatenate([np.array(values) for values in self._iou])
        rows = [
            _class_score(name, objects, np.array(iou))
            for name, objects, iou in zip(self._classes, self._objects, self._iou, strict=True)
        ]
        return (*rows, _class_score(ALL, sum(self._objects), everything))


def _class_score(name: str, objects: int, iou: npt.NDArray[np.float64]) -> ClassScore:
    matched = iou[iou > 0]
    return ClassScore(name, objects, len(iou), len(matched), float(matched.mean()) if len(matched) else math.nan)


class _Comparer:
    """Goes through the images and keeps the sums."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._index = {name: index for index, name in enumerate(classes)}
        self.measures: dict[Kind, _Measures] = {"mask": _Measures("mask", classes), "box": _Measures("box", classes)}
        self.without_confidence = self.crowds = 0
        self.without_mask = [0, 0]

    def add(self, truth: LabeledImage, found: LabeledImage | None) -> None:
        """Take in one image."""
        image_hw = agreed_hw(truth, found)
        sides = [found.objects(image_hw) if found is not None else [], truth.objects(image_hw)]
        groups: dict[int, tuple[list[LabeledObject], list[LabeledObject]]] = {}
        for side, objects in enumerate(sides):
            for item in objects:
                if item.class_name in self._index:
                    groups.setdefault(self._index[item.class_name], ([], []))[side].append(item)
        for index, (own, true) in groups.items():
            self._count(own, true)
            for kind, measures in self.measures.items():
                measures.add(index, compare(own, true, kind))

    def _count(self, found: Sequence[LabeledObject], truth: Sequence[LabeledObject]) -> None:
        self.without_confidence += sum(item.score is None for item in found)
        self.crowds += sum(item.crowd for item in truth)
        for side, objects in enumerate((found, truth)):
            self.without_mask[side] += sum(item.rle is None for item in objects)
        # Masks cannot be compared with boxes, and a part of the objects says nothing of all.
        if any(self.without_mask):
            self.measures.pop("mask", None)


def _evaluate(found: LabelSet, truth: LabelSet, progress: bool) -> Evaluation:
    from tqdm import tqdm

    classes = shared_classes(found, truth)
    partner = pair_images(truth.images, found.images)
    comparer = _Comparer(classes)
    for image, index in tqdm(list(zip(truth.images, partner, strict=True)), unit="image", disable=not progress):
        comparer.add(image, None if index is None else found.images[index])
    floors = labeling_floors(found.path, classes)
    results = {kind: measures.result(len(truth.images), floors) for kind, measures in comparer.measures.items()}
    missed = partner.count(None)
    return Evaluation(
        dataset=str(found.path),
        ground_truth=str(truth.path),
        dataset_files=found.files,
        ground_truth_files=truth.files,
        images=len(truth.images),
        images_missed=missed,
        images_left_out=len(found.images) - (len(truth.images) - missed),
        images_in_other_folders=sum(
            folders_contradict(image, found.images[index])
            for image, index in zip(truth.images, partner, strict=True)
            if index is not None
        ),
        classes=tuple(classes),
        classes_left_out=tuple(name for name in found.classes if name not in classes),
        classes_not_asked=tuple(name for name in truth.classes if name not in classes),
        crowds=comparer.crowds,
        without_mask=(comparer.without_mask[0], comparer.without_mask[1]),
        without_confidence=comparer.without_confidence,
        mask=results.get("mask"),
        box=results["box"],
    )
