"""A SAM 3 checkpoint -> another layout: transformers' folder, 16-bit weights, ONNX, TensorRT's command lines."""

from autodistill_sam3.convert.conversion import FORMATS, ConversionFormat, convert

__all__ = ["FORMATS", "ConversionFormat", "convert"]
