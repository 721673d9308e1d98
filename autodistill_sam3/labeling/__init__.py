"""Images -> a labelled dataset on disk. Knows files and `sv.Detections`, nothing of models."""

from autodistill_sam3.labeling.folder import read_run
from autodistill_sam3.labeling.formats import FORMATS, check_formats
from autodistill_sam3.labeling.inputs import ImagesInput, beside, default_output, find_images, has_at_least
from autodistill_sam3.labeling.plan import LabelingPlan
from autodistill_sam3.labeling.run import label_images, label_known_images
from autodistill_sam3.labeling.split import SplitRule

__all__ = [
    "FORMATS",
    "ImagesInput",
    "LabelingPlan",
    "SplitRule",
    "beside",
    "check_formats",
    "default_output",
    "find_images",
    "has_at_least",
    "label_images",
    "label_known_images",
    "read_run",
]
