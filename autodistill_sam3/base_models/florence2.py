"""Florence-2 alone: boxes without masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import supervision as sv

from autodistill_sam3.base_models.base import LabelingModel, OverlappingClasses
from autodistill_sam3.devices import Precision
from autodistill_sam3.fusion import boxes_to_detections
from autodistill_sam3.images import RGBImage
from autodistill_sam3.instances import Boxes
from autodistill_sam3.ontology import Ontology
from autodistill_sam3.thresholds import Thresholds
from autodistill_sam3.weights import FLORENCE2, find_checkpoint, sha256_of


class Florence2(LabelingModel):
    """Boxes of each prompt by Florence-2's phrase grounding, with a confidence from the location tokens.

    Args:
        ontology: Prompts and classes.
        checkpoint: `"shapes"`, a checkpoint folder, or a models root; by default the usual places.
        confidence: Boxes below it are dropped.
        overlapping_classes: One object that was found under two classes: "best" gives it to the more confident one,
            "keep" keeps both.
        device: Such as "cuda:1"; by default the best one there is.
        precision: "auto", "bf16", "fp16" or "fp32".

    Raises:
        CheckpointNotFoundError, CheckpointError, DeviceError, OntologyError, SettingError
    """

    _gives_masks = False

    def __init__(
        self,
        ontology: Ontology,
        *,
        checkpoint: str | Path | None = None,
        confidence: float = Thresholds.box_confidence,
        overlapping_classes: OverlappingClasses = "best",
        device: str | None = None,
        precision: Precision = "auto",
    ) -> None:
        super().__init__(ontology, Thresholds(box_confidence=confidence), overlapping_classes, device, precision)
        self.checkpoint = find_checkpoint(FLORENCE2, checkpoint)
        from autodistill_sam3.grounding.florence2 import Florence2Grounder

        if self._has_weights:
            self.grounder = Florence2Grounder.load(self.checkpoint, device=device, precision=precision)

    def _begin(self, images: Sequence[RGBImage]) -> Callable[[], list[Boxes]]:
        # It decides after each word whether to say another, so there is nothing to run ahead with.
        return lambda: list(self.grounder.ground(images, self.table.prompts))

    def _fusion(self) -> Callable[[Boxes], sv.Detections]:
        return partial(boxes_to_detections, table=self.table, thresholds=self.thresholds)

    def _keywords(self) -> dict[str, Any]:
        return super()._keywords() | {"confidence": self.thresholds.box_confidence}

    def _identity(self) -> dict[str, Any]:
        return {"florence2_sha256": self._sha256}

    def _checkpoints(self) -> dict[str, str]:
        return {"florence2": str(self.checkpoint.resolve())}

    @cached_property
    def _sha256(self) -> str:
        return sha256_of(self.checkpoint)
