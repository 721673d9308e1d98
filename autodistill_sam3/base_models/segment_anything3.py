"""SAM 3 with text prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import supervision as sv

from autodistill_sam3.base_models.base import LabelingModel, OverlappingClasses
from autodistill_sam3.devices import Precision
from autodistill_sam3.fusion import Found, fuse_found, text_floor
from autodistill_sam3.images import ImageInput, RGBImage
from autodistill_sam3.ontology import Ontology
from autodistill_sam3.segmentation import (
    DEFAULT_BACKEND,
    Backend,
    check_backend,
    checked_compile,
    load_segmenter,
    segmenter_identity,
)
from autodistill_sam3.thresholds import Thresholds
from autodistill_sam3.weights import SAM3, find_checkpoint


class SegmentAnything3(LabelingModel):
    """Every instance of each prompt, found by SAM 3 from text.

    Has the constructor and the `predict` of the plugin of the same name, and sends prompts to the model, not classes.

    Args:
        ontology: Prompts and classes.
        checkpoint: `"shapes"` for the small bundled model, a checkpoint folder or file, or a models root; by default
            the places of `autodistill_sam3.weights.find_checkpoint`.
        bpe_path: `bpe_simple_vocab_16e6.txt.gz` or `tokenizer.json`, if it is not with the checkpoint.
        backend: "transformers": this package's engine. "sam3": Meta's own code and files.
        confidence: Detections below it are dropped.
        thresholds: By class name, a value that replaces `confidence` for that class.
        overlapping_classes: One object that was found under two classes: "best" gives it to the more confident one,
            "keep" keeps both.
        background: The name of a further class: in each image, what no object covers is one more detection.
        device: Such as "cuda:1"; by default the best one there is.
        precision: "auto", "bf16", "fp16" or "fp32".
        compile: Whether SAM 3 runs compiled: faster on a GPU, after about a minute the first time. By default `label()`
            compiles on a GPU from 1,000 images on.

    Raises:
        CheckpointNotFoundError, CheckpointError, DeviceError, OntologyError, SettingError

    Example:
        >>> from autodistill.detection import CaptionOntology
        >>> model = SegmentAnything3(CaptionOntology({"red circle": "ball"}), checkpoint="shapes", device="cpu")
        >>> model.predict("examples/images/scene_00.jpg", confidence=0.4).class_id.dtype
        dtype('int64')
    """

    def __init__(
        self,
        ontology: Ontology,
        *,
        checkpoint: str | Path | None = None,
        bpe_path: str | Path | None = None,
        backend: Backend = DEFAULT_BACKEND,
        confidence: float = Thresholds.confidence,
        thresholds: Mapping[str, float] | None = None,
        overlapping_classes: OverlappingClasses = "best",
        background: str | None = None,
        device: str | None = None,
        precision: Precision = "auto",
        compile: bool | None = None,
    ) -> None:
        minima = Thresholds(confidence=confidence, per_class=dict(thresholds or {}))
        self.background = background
        super().__init__(ontology, minima, overlapping_classes, device, precision)
        check_backend(backend)
        self.compile = checked_compile(compile, self._device)
        self.backend = backend
        self.bpe_path = bpe_path
        self.checkpoint = find_checkpoint(SAM3, checkpoint, official=backend == "sam3")
        if self._has_weights:
            self.segmenter = load_segmenter(
                self.checkpoint, backend=backend, bpe_path=bpe_path, boxes=False, device=device, precision=precision
            )

    def predict(self, input: ImageInput, confidence: float | None = None) -> sv.Detections:
        """:meth:`LabelingModel.predict`; `confidence`, if given, replaces the constructor's for this call."""
        model = self
        if confidence is not None:
            model = self._with_thresholds(replace(self.thresholds, confidence=confidence))
        return model.predict_batch([input])[0]

    def _begin(self, images: Sequence[RGBImage]) -> Callable[[], list[Found]]:
        segmenter = self.segmenter.compiled() if self.compile else self.segmenter
        features = segmenter.encode(images)
        floor = text_floor(self.thresholds, self.table, fused=False)
        finish = segmenter.begin_text(features, self.table.prompts, floor)
        return lambda: [Found(text=result.instances) for result in finish()]

    def _fusion(self) -> Callable[[Found], sv.Detections]:
        return partial(fuse_found, table=self.table, thresholds=self.thresholds)

    def _identity(self) -> dict[str, Any]:
        return self._segmenter_identity

    def _checkpoints(self) -> dict[str, str]:
        return {"sam3": str(self.checkpoint.resolve())}

    @cached_property
    def _segmenter_identity(self) -> dict[str, str]:
        return segmenter_identity(self.checkpoint, self.backend, self.bpe_path)
