"""Detections and labelled folders against truth."""

from autodistill_sam3.evaluation.average_precision import AP_NAMES
from autodistill_sam3.evaluation.calibration import Calibration, CalibrationBin, ClassThreshold
from autodistill_sam3.evaluation.concepts import CONCEPT_SCORE
from autodistill_sam3.evaluation.dataset import evaluate_dataset
from autodistill_sam3.evaluation.detections import (
    MATCH_IOU,
    ClassScore,
    evaluate_detections,
    format_table,
    load_truth,
    match_masks,
)
from autodistill_sam3.evaluation.output import default_evaluation_folder, write_evaluation
from autodistill_sam3.evaluation.report import format_report
from autodistill_sam3.evaluation.results import Evaluation, KindResult

__all__ = [
    "AP_NAMES",
    "CONCEPT_SCORE",
    "MATCH_IOU",
    "Calibration",
    "CalibrationBin",
    "ClassScore",
    "ClassThreshold",
    "Evaluation",
    "KindResult",
    "default_evaluation_folder",
    "evaluate_dataset",
    "evaluate_detections",
    "format_report",
    "format_table",
    "load_truth",
    "match_masks",
    "write_evaluation",
]
