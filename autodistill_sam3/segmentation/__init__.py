"""Images -> features; features and prompts -> instances; features and boxes -> instances."""

from autodistill_sam3.segmentation.segmenter import Segmenter, TextResult

__all__ = ["Segmenter", "TextResult"]
