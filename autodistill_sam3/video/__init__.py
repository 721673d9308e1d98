"""Clips -> tracked instances, frame by frame, and datasets out of them.

Names are looked up when they are first used: reading and writing clips needs no model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autodistill_sam3.video.one_call import sam3_inference, video_masks
    from autodistill_sam3.video.plan import TrackingPlan
    from autodistill_sam3.video.run import TrackedClips, track_clips
    from autodistill_sam3.video.sam3_video import SAM3Video

__all__ = ["SAM3Video", "TrackedClips", "TrackingPlan", "sam3_inference", "track_clips", "video_masks"]

_MODULES = {
    "SAM3Video": "sam3_video",
    "TrackedClips": "run",
    "TrackingPlan": "plan",
    "sam3_inference": "one_call",
    "track_clips": "run",
    "video_masks": "one_call",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
