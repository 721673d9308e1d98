"""Clips -> tracked instances, frame by frame, and datasets out of them."""

from autodistill_sam3.video.plan import TrackingPlan
from autodistill_sam3.video.run import TrackedClips, track_clips
from autodistill_sam3.video.sam3_video import SAM3Video

__all__ = ["SAM3Video", "TrackedClips", "TrackingPlan", "track_clips"]
