"""Clips -> tracked instances, frame by frame, and datasets out of them."""

from autodistill_sam3.video.one_call import sam3_inference, video_masks
from autodistill_sam3.video.sam3_video import SAM3Video

__all__ = ["SAM3Video", "sam3_inference", "video_masks"]
