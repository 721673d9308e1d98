"""Florence-2 and SAM 3 together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import supervision as sv

from autodistill_sam3.base_models.base import LabelingModel, OverlappingClasses
from autodistill_sam3.devices import Precision, aside, mark
from autodistill_sam3.errors import SettingError
from autodistill_sam3.fusion import Found, fuse_found, text_floor
from autodistill_sam3.grounding import Grounder
from autodistill_sam3.images import RGBImage
from autodistill_sam3.instances import Boxes, Instances
from autodistill_sam3.ontology import Ontology, Prompting
from autodistill_sam3.segmentation import (
    DEFAULT_BACKEND,
    Backend,
    TextResult,
    check_backend,
    checked_compile,
    load_segmenter,
    segmenter_identity,
)
from autodistill_sam3.thresholds import Thresholds
from autodistill_sam3.weights import FLORENCE2, SAM3, find_checkpoint, florence2_argument, sha256_of

GROUNDING_MODEL = "Florence 2"


class GroundedSAM3(LabelingModel):
    """Masks from SAM 3, prompted by text, by Florence-2's boxes, or by both, fused.

    Args:
        ontology: Prompts and classes.
        model: The grounding model; "Florence 2" is the only one.
        checkpoint: `"shapes"` for the small bundled models, a SAM 3 folder or file such as `sam3.pt`, or a models root
            that holds `sam3/` and `florence2/`; by default the places of `autodistill_sam3.weights.find_checkpoint`.
        bpe_path: `bpe_simple_vocab_16e6.txt.gz` or `tokenizer.json`, if it is not with the checkpoint. With both given,
            nothing else is looked for for SAM 3.
        florence2_checkpoint: A Florence-2 folder, if it lies elsewhere.
        backend: "transformers": this package's engine. "sam3": Meta's own code and files.
        prompting: "text": SAM 3 finds every instance of each prompt. "boxes": Florence-2 proposes boxes and SAM 3
            turns each into a mask. "both": both, fused.
        confidence: For what text, or text and box together, found: detections below it are dropped.
        box_confidence: For what boxes alone found.
        thresholds: By class name, a value that replaces both for that class. It is for the final confidence, so text
            and box may reach it together.
        overlapping_classes: One object that was found under two classes: "best" gives it to the more confident one,
            "keep" keeps both.
        background: The name of a further class: in each image, what no object covers is one more detection.
        presence_gate: With "both", prompts of which SAM 3 sees less than this presence in an image are not sent to
            Florence-2, the slower model. Off by default, since it lets SAM 3 veto what it misses; 0.05 is mild.
        device: Such as "cuda:1"; by default the best one there is.
        precision: "auto", "bf16", "fp16" or "fp32".
        compile: Whether SAM 3 runs compiled: faster on a GPU, after about a minute the first time. By default `label()`
            compiles on a GPU from 1,000 images on.

    Raises:
        CheckpointNotFoundError, CheckpointError, DeviceError, OntologyError, SettingError

    Example:
        >>> from autodistill.detection import CaptionOntology
        >>> model = GroundedSAM3(CaptionOntology({"red circle": "ball"}), checkpoint="shapes", device="cpu")
        >>> sorted(model.predict("examples/images/scene_00.jpg").data)
        ['class_name', 'prompt', 'source']
    """

    def __init__(
        self,
        ontology: Ontology,
        model: str = GROUNDING_MODEL,
        *,
        checkpoint: str | Path | None = None,
        bpe_path: str | Path | None = None,
        florence2_checkpoint: str | Path | None = None,
        backend: Backend = DEFAULT_BACKEND,
        prompting: Prompting = "both",
        confidence: float = Thresholds.confidence,
        box_confidence: float = Thresholds.box_confidence,
        thresholds: Mapping[str, float] | None = None,
        presence_gate: float | None = None,
        overlapping_classes: OverlappingClasses = "best",
        background: str | None = None,
        device: str | None = None,
        precision: Precision = "auto",
        compile: bool | None = None,
    ) -> None:
        minima = Thresholds(confidence, box_confidence, dict(thresholds or {}))
        self.background = background
        super().__init__(ontology, minima, overlapping_classes, device, precision)
        _check_choices(model, prompting, presence_gate)
        check_backend(backend)
        self.compile = checked_compile(compile, self._device)
        self.backend = backend
        self.bpe_path = bpe_path
        self.prompting = prompting
        self.presence_gate = presence_gate
        self.checkpoint = find_checkpoint(SAM3, checkpoint, official=backend == "sam3")
        self.florence2_checkpoint: Path | None = None
        if prompting != "text":
            argument = florence2_argument(checkpoint, florence2_checkpoint)
            self.florence2_checkpoint = find_checkpoint(FLORENCE2, argument)
        if self._has_weights:
            self._load(device, precision)

    def _load(self, device: str | None, precision: Precision) -> None:
        from autodistill_sam3.grounding.florence2 import Florence2Grounder

        self.segmenter = load_segmenter(
            self.checkpoint,
            backend=self.backend,
            bpe_path=self.bpe_path,
            boxes=self.prompting != "text",
            device=device,
            precision=precision,
        )
        self.grounder: Grounder | None = None
        if self.florence2_checkpoint is not None:
            self.grounder = Florence2Grounder.load(self.florence2_checkpoint, device=device, precision=precision)

    def _begin(self, images: Sequence[RGBImage]) -> Callable[[], list[Found]]:
        segmenter = self.segmenter.compiled() if self.compile else self.segmenter
        features = segmenter.encode(images)
        finish_text = None
        if self.prompting != "boxes":
            floor = text_floor(self.thresholds, self.table, fused=self.prompting == "both")
            finish_text = segmenter.begin_text(features, self.table.prompts, floor)
        begun = mark(self._device)

        def finish() -> list[Found]:
            texts = [None] * len(images) if finish_text is None else finish_text()
            boxes: list[Instances | None] = [None] * len(images)
            if self.grounder is not None:
                with aside(self._device, begun):
                    proposals = self.grounder.ground(images, self.table.prompts, self._prompts_for_boxes(texts))
                    boxes = list(segmenter.segment_boxes(features, [self._promising(part) for part in proposals]))
            return [
                Found(None, found) if text is None else Found(text.instances, found, text.presence)
                for text, found in zip(texts, boxes, strict=True)
            ]

        return finish

    def _release(self) -> None:
        if self.grounder is not None:
            self.grounder.release()

    def _fusion(self) -> Callable[[Found], sv.Detections]:
        return partial(fuse_found, table=self.table, thresholds=self.thresholds)

    def _prompts_for_boxes(self, texts: Sequence[TextResult | None]) -> list[list[int]]:
        """Per image, the prompts that Florence-2 is asked for."""
        everything = list(range(len(self.table.prompts)))
        gate = self.presence_gate or 0.0
        return [
            everything if text is None else [index for index in everything if text.presence[index] >= gate]
            for text in texts
        ]

    def _promising(self, boxes: Boxes) -> Boxes:
        """The boxes that can still reach their threshold; a mask's predicted IoU only lowers the score.

        A box below the value for its class may still reach it together with text.
        """
        names = [self.table.classes[class_id] for class_id in self.table.class_ids(boxes.prompt_index)]
        is_fused = self.prompting == "both"
        floors = [
            self.thresholds.before_pairing(name)[1] if is_fused else self.thresholds.for_boxes(name) for name in names
        ]
        minimum = np.array(floors)
        return boxes.select(boxes.scores >= minimum)

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"prompting": self.prompting, "presence_gate": self.presence_gate}

    def _identity(self) -> dict[str, Any]:
        return self._hashes

    def _checkpoints(self) -> dict[str, str]:
        places = {"sam3": self.checkpoint, "florence2": self.florence2_checkpoint}
        return {name: str(place.resolve()) for name, place in places.items() if place is not None}

    @cached_property
    def _hashes(self) -> dict[str, str]:
        hashes = segmenter_identity(self.checkpoint, self.backend, self.bpe_path)
        if self.florence2_checkpoint is not None:
            hashes["florence2_sha256"] = sha256_of(self.florence2_checkpoint)
        return hashes


def _check_choices(model: str, prompting: str, presence_gate: float | None) -> None:
    if model != GROUNDING_MODEL:
        raise SettingError(f"Expected model to be {GROUNDING_MODEL!r}, the only grounding model, received {model!r}")
    if prompting not in get_args(Prompting):
        raise SettingError(f"Expected prompting to be one of {get_args(Prompting)}, received {prompting!r}")
    if presence_gate is not None and not 0 <= presence_gate <= 1:
        raise SettingError(f"Expected presence_gate between 0 and 1, received {presence_gate}")
