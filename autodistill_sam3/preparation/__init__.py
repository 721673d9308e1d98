"""A labelled folder -> training-ready data: images, crops or cut-outs, without what is useless."""

from autodistill_sam3.preparation.result import PreparationReport, format_preparation
from autodistill_sam3.preparation.run import prepare_dataset, read_preparation

__all__ = ["PreparationReport", "format_preparation", "prepare_dataset", "read_preparation"]
