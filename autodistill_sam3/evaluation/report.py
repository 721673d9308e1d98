"""An evaluation as text: tables that read well in a terminal and are Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autodistill_sam3.evaluation.calibration import Calibration, ClassThreshold
from autodistill_sam3.evaluation.concepts import CONCEPT_SCORE
from autodistill_sam3.evaluation.pairing import case_hints
from autodistill_sam3.evaluation.results import Evaluation, KindResult

_AP_SHOWN = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100")
_SHOWN_NAMES = 10


def format_report(evaluation: Evaluation) -> str:
    """Everything worth reading, as Markdown; numbers that are not defined are "-"."""
    best = evaluation.best
    parts = [
        "# Evaluation",
        "\n".join(f"- {line}" for line in _notes(evaluation)),
        f"## Objects found, by {best.kind} IoU of 0.5 or more",
        _scores_table(best),
        "## COCO average precision",
        _precision_table(evaluation),
        f"## SA-Co, confidence {CONCEPT_SCORE} or more",
        _concepts_table(evaluation),
        *_concept_notes(best),
        "## Calibration",
        _calibration_table(best.calibration),
        f"Expected calibration error: {_number(best.calibration.expected_error)}",
        "## Best threshold per class",
        _thresholds_table(best.thresholds),
        *_threshold_notes(best.thresholds),
    ]
    return "\n\n".join(parts) + "\n"


def _notes(evaluation: Evaluation) -> list[str]:
    notes = [
        f"dataset: {evaluation.dataset} ({_names(evaluation.dataset_files)})",
        f"ground truth: {evaluation.ground_truth} ({_names(evaluation.ground_truth_files)})",
        f"images: {evaluation.images}",
    ]
    notes += _counts(evaluation)
    if evaluation.classes_left_out:
        notes.append(f"classes that the ground truth does not have, left out: {_names(evaluation.classes_left_out)}")
    if evaluation.classes_not_asked:
        notes.append(f"classes that the dataset does not have, left out: {_names(evaluation.classes_not_asked)}")
    notes += map(_escaped, case_hints(evaluation.classes_left_out, evaluation.classes_not_asked))
    return notes


def _counts(evaluation: Evaluation) -> list[str]:
    found, truth = evaluation.without_mask
    said = [
        (
            evaluation.images_missed,
            "image is not in the dataset; its objects count as missed",
            "images are not in the dataset; their objects count as missed",
        ),
        (
            evaluation.images_left_out,
            "image of the dataset is not in the ground truth and was left out",
            "images of the dataset are not in the ground truth and were left out",
        ),
        (
            evaluation.images_in_other_folders,
            "image was matched by its name alone: the folders on both sides differ",
            "images were matched by their names alone: the folders on both sides differ",
        ),
        (
            evaluation.crowds,
            "crowd in the ground truth counts neither as an object nor, where found, as wrong",
            "crowds in the ground truth count neither as objects nor, where found, as wrong",
        ),
        (
            evaluation.without_confidence,
            "object of the dataset has no confidence and was taken as certain",
            "objects of the dataset have no confidence and were taken as certain",
        ),
        *(
            (
                count,
                f"object of the {side} has no mask: only boxes were compared",
                f"objects of the {side} have no mask: only boxes were compared",
            )
            for count, side in ((found, "dataset"), (truth, "ground truth"))
        ),
    ]
    return [f"{count} {one if count == 1 else several}" for count, one, several in said if count]


def _scores_table(result: KindResult) -> str:
    overall = result.average_precision["AP"]
    precisions = [*(item["AP"] for item in result.class_average_precision), overall]
    rows = [
        [
            score.class_name,
            str(score.objects),
            str(score.detections),
            str(score.matched),
            *map(_number, (score.precision, score.recall, score.f1, score.mean_iou, precision)),
        ]
        for score, precision in zip(result.scores, precisions, strict=True)
    ]
    header = ["class", "objects", "found", "right", "precision", "recall", "F1", "mean IoU", f"{result.kind} AP"]
    return _table(header, rows)


def _precision_table(evaluation: Evaluation) -> str:
    rows = [
        [kind, *(_number(result.average_precision[name]) if result else "-" for name in _AP_SHOWN)]
        for kind, result in (("mask", evaluation.mask), ("box", evaluation.box))
    ]
    return _table(["", *(name.replace("_", " ") for name in _AP_SHOWN)], rows)


def _concepts_table(evaluation: Evaluation) -> str:
    names = ("cgF1", "pmF1", "IL_MCC", "cgF1@0.5", "pmF1@0.5")
    rows = [
        [kind, *(_number(result.concepts[name]) if result else "-" for name in names)]
        for kind, result in (("mask", evaluation.mask), ("box", evaluation.box))
    ]
    return _table(["", *names], rows)


def _concept_notes(result: KindResult) -> list[str]:
    scores = result.scores[-1]
    if result.concepts["IL_FPR"] or result.concepts["IL_MCC"] or not scores.objects:
        return []
    return [
        "IL_MCC needs images in which a class is found, or is, and others without it. If each class is in each image, "
        "it is 0, and so is cgF1; then look at pmF1."
    ]


def _calibration_table(calibration: Calibration) -> str:
    rows = [
        [f"{item.low:.1f} to {item.high:.1f}", str(item.count), _number(item.mean_confidence), _number(item.right)]
        for item in calibration.bins
    ]
    return _table(["confidence", "found", "mean confidence", "share right"], rows)


def _thresholds_table(thresholds: Sequence[ClassThreshold]) -> str:
    rows = [
        [
            item.class_name,
            "-" if item.threshold is None else f"{item.threshold:.6g}",
            *map(_number, (item.f1, item.precision, item.recall, item.f1_without)),
        ]
        for item in thresholds
    ]
    return _table(["class", "threshold", "F1", "precision", "recall", "F1 without"], rows)


def _threshold_notes(thresholds: Sequence[ClassThreshold]) -> list[str]:
    notes = []
    if keeping := [item.class_name for item in thresholds if item.keeps_all]:
        notes.append(
            f"Everything found is worth keeping for: {_names(keeping)}. What lay below the threshold of the labelling "
            "is not in the dataset; to learn whether a lower one is better, label with a lower one."
        )
    if unknown := [item.class_name for item in thresholds if item.keeps_all and item.threshold is None]:
        notes.append(
            f"With which threshold the dataset was labelled is not known, as no run.json says it: {_names(unknown)} "
            "cannot have one in thresholds.json."
        )
    if without := [item.class_name for item in thresholds if item.threshold is None and not item.keeps_all]:
        notes.append(f"Nothing to learn a threshold from for: {_names(without)}. They are not in thresholds.json.")
    return notes


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[_escaped(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in cells]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(_escaped(name) for name in names[:_SHOWN_NAMES])
    return f"{shown} and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else shown


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
