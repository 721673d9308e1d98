"""What the models saw in one image -> its detections: everything behind the models, without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import supervision as sv

from autodistill_sam3.background import Background
from autodistill_sam3.conflicts import add_removed, resolve_conflicts
from autodistill_sam3.stages import stage

# As autodistill names them.
Nms = Literal["no_nms", "class_specific", "class_agnostic"]


@dataclass(frozen=True)
class Interpretation:
    """Fusion, one class per object, non-maximum suppression; can be sent to other processes.

    Attributes:
        fuse: What the models saw -> detections; None if it is detections already.
        keep_both: Leave an object that was found under two classes to both.
        nms: Non-maximum suppression: none, per class, or across classes.
        background: Added at last.

    Example:
        >>> Interpretation()(sv.Detections.empty()) == sv.Detections.empty()
        True
    """

    fuse: Callable[[Any], sv.Detections] | None = None
    keep_both: bool = False
    nms: Nms = "no_nms"
    background: Background | None = None

    def __call__(self, seen: Any) -> sv.Detections:
        """The detections of one image; what was taken away is counted in them."""
        with stage("fusion"):
            found = seen if self.fuse is None else self.fuse(seen)
            found = self._suppressed(resolve_conflicts(found, keep_both=self.keep_both))
            return found if self.background is None else self.background.added_to(found)

    def _suppressed(self, found: sv.Detections) -> sv.Detections:
        if self.nms == "no_nms" or not len(found):
            return found
        kept: sv.Detections = found.with_nms(class_agnostic=self.nms == "class_agnostic")
        add_removed(kept, "nms", len(found) - len(kept))
        return kept
