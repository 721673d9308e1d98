"""Florence-2 alone: boxes without masks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import supervision as sv

from autodistill_sam3.base_models.base import LabelingModel, OverlappingClasses
from autodistill_sam3.devices import Precision
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

        self.grounder = Florence2Grounder.load(self.checkpoint, device=device, precision=precision)

    def _detect(self, images: Sequence[RGBImage]) -> list[sv.Detections]:
        return [self._to_detections(boxes) for boxes in self.grounder.ground(images, self.table.prompts)]

    def _to_detections(self, boxes: Boxes) -> sv.Detections:
        order = np.argsort(-boxes.scores, kind="stable")
        kept = order[boxes.scores[order] >= self.thresholds.box_confidence]
        prompts, class_id = boxes.prompt_index[kept], self.table.class_ids(boxes.prompt_index[kept])
        return sv.Detections(
            xyxy=boxes.xyxy[kept],
            confidence=boxes.scores[kept],
            class_id=class_id,
            data={
                "class_name": np.array(self.table.classes, dtype=np.str_)[class_id],
                "prompt": np.array(self.table.prompts, dtype=np.str_)[prompts],
                "source": np.full(len(kept), "boxes", dtype="<U5"),
            },
        )

    def _identity(self) -> dict[str, Any]:
        return {"florence2_sha256": self._sha256}

    def _checkpoints(self) -> dict[str, str]:
        return {"florence2": str(self.checkpoint.resolve())}

    @cached_property
    def _sha256(self) -> str:
        return sha256_of(self.checkpoint)
