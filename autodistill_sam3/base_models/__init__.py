"""autodistill's base models: `SegmentAnything3`, `GroundedSAM3`, `Florence2`."""

from autodistill_sam3.base_models.florence2 import Florence2
from autodistill_sam3.base_models.grounded_sam3 import GroundedSAM3
from autodistill_sam3.base_models.segment_anything3 import SegmentAnything3

__all__ = ["Florence2", "GroundedSAM3", "SegmentAnything3"]
