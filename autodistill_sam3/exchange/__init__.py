"""Labelled folders -> other tools for people to look through and correct, and back."""

from autodistill_sam3.exchange.label_studio_export import LOCAL_FILES, Shape, to_label_studio
from autodistill_sam3.exchange.label_studio_import import from_label_studio
from autodistill_sam3.exchange.result import ExportReport, ImportReport, format_exchange

__all__ = [
    "LOCAL_FILES",
    "ExportReport",
    "ImportReport",
    "Shape",
    "format_exchange",
    "from_label_studio",
    "to_label_studio",
]
