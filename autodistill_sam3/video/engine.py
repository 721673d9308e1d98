"""Tracking with this package's own engine."""

from __future__ import annotations

from autodistill_sam3.segmentation.transformers_segmenter import TransformersSegmenter
from autodistill_sam3.video.association import TrackingRules
from autodistill_sam3.video.clip import Clip
from autodistill_sam3.video.detections import Detecting, FrameViewer
from autodistill_sam3.video.session import TransformersTrackingSession


class TransformersVideoEngine:
    """A `VideoEngine` over a :class:`TransformersSegmenter`.

    Args:
        segmenter: With its weights.
        detecting: How objects are found.
        rules: By which tracks begin and end; None takes the checkpoint's.

    Raises:
        CheckpointError: The checkpoint has no tracker.
    """

    def __init__(
        self, segmenter: TransformersSegmenter, detecting: Detecting, rules: TrackingRules | None = None
    ) -> None:
        self._viewer = FrameViewer(segmenter, segmenter.tracker(), detecting)
        self._rules = rules or TrackingRules.from_config(segmenter.config)
        self._session: TransformersTrackingSession | None = None

    def open(self, clip: Clip) -> TransformersTrackingSession:
        """Begin with a clip, and close the session before."""
        self.close()
        self._session = TransformersTrackingSession(self._viewer, self._rules, clip)
        return self._session

    def close(self) -> None:
        """Close what is open."""
        if self._session is not None:
            self._session.close()
        self._session = None
