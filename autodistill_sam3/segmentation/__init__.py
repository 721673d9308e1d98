"""Images -> features; features and prompts -> instances; features and boxes -> instances."""

from autodistill_sam3.segmentation.compiling import can_compile, checked_compile
from autodistill_sam3.segmentation.loading import (
    DEFAULT_BACKEND,
    Backend,
    check_backend,
    load_segmenter,
    segmenter_identity,
)
from autodistill_sam3.segmentation.segmenter import Segmenter, TextResult

__all__ = [
    "DEFAULT_BACKEND",
    "Backend",
    "Segmenter",
    "TextResult",
    "can_compile",
    "check_backend",
    "checked_compile",
    "load_segmenter",
    "segmenter_identity",
]
