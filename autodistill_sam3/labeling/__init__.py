"""Images -> a labelled dataset on disk. Knows files and `sv.Detections`, nothing of models."""

from autodistill_sam3.labeling.folder import default_output, read_run
from autodistill_sam3.labeling.run import LabelingPlan, label_images
from autodistill_sam3.labeling.source import find_images

__all__ = ["LabelingPlan", "default_output", "find_images", "label_images", "read_run"]
