"""Tracking with this package's own engine."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

from autodistill_sam3.segmentation.transformers_segmenter import TransformersSegmenter
from autodistill_sam3.video.association import TrackingRules
from autodistill_sam3.video.clip import Clip
from autodistill_sam3.video.detections import Detecting, FrameViewer
from autodistill_sam3.video.session import TransformersTrackingSession


class TransformersVideoEngine:
    """A `VideoEngine` over a :class:`TransformersSegmenter`.

    Args:
        segmenter: With its weights.
        detecting: Text prompts -> how they are looked for.
        rules: By which tracks begin and end; None takes the checkpoint's.

    Raises:
        CheckpointError: The checkpoint has no tracker.
    """

    def __init__(
        self,
        segmenter: TransformersSegmenter,
        detecting: Callable[[Sequence[str]], Detecting],
        rules: TrackingRules | None = None,
    ) -> None:
        self._viewer, self._detecting = FrameViewer(segmenter, segmenter.tracker()), detecting
        self._rules = rules or TrackingRules.from_config(segmenter.config)
        self._sessions: weakref.WeakSet[TransformersTrackingSession] = weakref.WeakSet()

    def open(self, clip: Clip) -> TransformersTrackingSession:
        """Begin with a clip; several may be open."""
        session = TransformersTrackingSession(self._viewer, self._detecting, self._rules, clip)
        self._sessions.add(session)
        return session

    def close(self) -> None:
        """Close what is open."""
        for session in list(self._sessions):
            session.close()
        self._sessions.clear()
