"""Meta's own checkpoint files: read safely, recognised, and translated for transformers."""

from autodistill_sam3.weights.official.config import video_config
from autodistill_sam3.weights.official.conversion import to_transformers
from autodistill_sam3.weights.official.files import SAM3_1, OfficialCheckpoint, read_official

__all__ = ["SAM3_1", "OfficialCheckpoint", "read_official", "to_transformers", "video_config"]
