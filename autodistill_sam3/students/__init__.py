"""Small models that learn from a labelled folder, each as a target model of autodistill."""

from autodistill_sam3.students.data import TrainingData
from autodistill_sam3.students.distillation import Distilled, distill, read_distillation
from autodistill_sam3.students.registry import STUDENTS, find_student
from autodistill_sam3.students.results import Results, format_results
from autodistill_sam3.students.settings import DistillSettings
from autodistill_sam3.students.student import Student, Trained

__all__ = [
    "STUDENTS",
    "DistillSettings",
    "Distilled",
    "Results",
    "Student",
    "Trained",
    "TrainingData",
    "distill",
    "find_student",
    "format_results",
    "read_distillation",
]
