"""One checkpoint format -> another, checked after it was written."""

from autodistill_sam3.convert.conversion import FORMATS, ConversionFormat, convert

__all__ = ["FORMATS", "ConversionFormat", "convert"]
