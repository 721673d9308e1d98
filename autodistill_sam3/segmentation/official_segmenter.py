"""SAM 3 on Meta's own `sam3` package: `backend="sam3"`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from autodistill_sam3.devices import Precision, autocast, autocast_dtype, select_device
from autodistill_sam3.images import RGBImage
from autodistill_sam3.instances import Boxes, Instances
from autodistill_sam3.segmentation.checks import check_boxes, check_thresholds, finite
from autodistill_sam3.segmentation.grouping import concatenate, group_by_image
from autodistill_sam3.segmentation.official_model import build_official_model, move_official
from autodistill_sam3.segmentation.official_package import contained, import_processor
from autodistill_sam3.segmentation.segmenter import TextResult
from autodistill_sam3.weights import require_boxes

logger = logging.getLogger("autodistill_sam3")

BOXES_PER_PASS = 32

_TEXT_KEYS = ("language_features", "language_mask")


@dataclass(frozen=True, eq=False)
class OfficialFeatures:
    """Features of B images; what is inside is the segmenter's business.

    Attributes:
        backbone: What Meta's processor keeps of each image.
        image_hw: Height and width of each image in pixels.
    """

    backbone: tuple[dict[str, Any], ...]
    image_hw: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class _Grounding:
    """What the detector says of one (image, prompt) pair.

    Attributes:
        scores: (Q,) ``float32`` in 0..1.
        presence: In 0..1.
        mask_logits: (Q, 288, 288).
    """

    scores: torch.Tensor
    presence: float
    mask_logits: torch.Tensor


class OfficialSegmenter:
    """A `Segmenter` that runs Meta's `Sam3Image`, one image and one prompt at a time, as Meta's processor does.

    Masks are not the processor's: they are enlarged from the same logits only where they are true, and small holes in
    the masks of boxes are not filled, as in the other back end.
    """

    def __init__(self, model: torch.nn.Module, *, device: str | None = None, precision: Precision = "auto") -> None:
        """Take over a model, such as `build_official_model` makes.

        Raises:
            DeviceError: The device is not on this machine.
            MissingPackageError: The package is of another version.
            SettingError: The precision is unknown.
        """
        self.device = select_device(device)
        self._dtype = autocast_dtype(precision, self.device)
        processor = import_processor()
        with contained(self.device):
            self._model: Any = move_official(model, self.device)
            self._processor: Any = processor(self._model, device=self.device)
        if self._box_predictor is not None:
            # It would fill holes in full-size masks, which are not used; the logits are not affected.
            self._box_predictor._transforms.max_hole_area = 0
        self._texts: dict[str, dict[str, torch.Tensor]] = {}
        if self.device.type == "cpu":
            logger.warning("Full-size SAM 3 on a CPU: expect tens of seconds per image; a GPU takes well under one.")

    @classmethod
    def load(
        cls,
        tensors: Mapping[str, torch.Tensor],
        bpe_path: Path,
        *,
        code: Path | None = None,
        with_boxes: bool = True,
        device: str | None = None,
        precision: Precision = "auto",
    ) -> OfficialSegmenter:
        """Build the model from the tensors of an official checkpoint; see `build_official_model`.

        Raises:
            CheckpointError: A tensor is missing, unexpected or of another shape, or there is no package in `code`, or
                another version of it.
            DeviceError: The device is not on this machine.
            MissingPackageError: The package cannot be imported, or the installed one is of another version.
            SettingError: The precision is unknown.
        """
        # Before time is spent on building.
        autocast_dtype(precision, select_device(device))
        model = build_official_model(tensors, bpe_path, code=code, with_boxes=with_boxes)
        return cls(model, device=device, precision=precision)

    def compiled(self) -> Self:
        """Itself: the official code's complex rotary embedding cannot be compiled."""
        return self

    @torch.inference_mode()
    def encode(self, images: Sequence[RGBImage]) -> OfficialFeatures:
        """One ViT pass for each RGB ``uint8`` image; see `Segmenter.encode`."""
        backbone: list[dict[str, Any]] = []
        for image in images:
            with self._running():
                state = self._processor.set_image(Image.fromarray(image))
            features = state["backbone_out"]
            _share_positions(features, (backbone or [features])[0])
            backbone.append(features)
        return OfficialFeatures(tuple(backbone), tuple((image.shape[0], image.shape[1]) for image in images))

    @torch.inference_mode()
    def segment_text(
        self, features: OfficialFeatures, prompts: Sequence[str], min_scores: Sequence[float]
    ) -> list[TextResult]:
        """Every instance of each prompt that scores above the prompt's threshold; see `Segmenter.segment_text`."""
        check_thresholds(prompts, min_scores)
        return [
            self._segment_text(backbone, image_hw, prompts, min_scores)
            for backbone, image_hw in zip(features.backbone, features.image_hw, strict=True)
        ]

    def begin_text(
        self, features: OfficialFeatures, prompts: Sequence[str], min_scores: Sequence[float]
    ) -> Callable[[], list[TextResult]]:
        """Nothing yet: each prompt is waited for; see `Segmenter.begin_text`."""
        return lambda: self.segment_text(features, prompts, min_scores)

    @torch.inference_mode()
    def segment_boxes(self, features: OfficialFeatures, boxes: Sequence[Boxes]) -> list[Instances]:
        """The mask of the object in each box; see `Segmenter.segment_boxes`."""
        require_boxes(self._box_predictor is not None)
        check_boxes(features.image_hw, boxes)
        return [
            self._segment_boxes(backbone, image_hw, image_boxes)
            for backbone, image_hw, image_boxes in zip(features.backbone, features.image_hw, boxes, strict=True)
        ]

    @property
    def _box_predictor(self) -> Any:
        return self._model.inst_interactive_predictor

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        with contained(self.device), autocast(self.device, self._dtype):
            yield

    def _segment_text(
        self, backbone: dict[str, Any], image_hw: tuple[int, int], prompts: Sequence[str], min_scores: Sequence[float]
    ) -> TextResult:
        presence = np.zeros(len(prompts), dtype=np.float32)
        found: list[Instances] = []
        for prompt_index, (prompt, min_score) in enumerate(zip(prompts, min_scores, strict=True)):
            output = self._ground(backbone, prompt)
            presence[prompt_index] = output.presence
            keep = output.scores > min_score
            count = int(keep.sum())
            index = np.zeros(count, dtype=np.int64), np.full(count, prompt_index)
            grouped = group_by_image([image_hw], "text", index, finite(output.scores[keep]), output.mask_logits[keep])
            found.extend(instances for _, instances in grouped)
        return TextResult(concatenate(found, image_hw, "text"), presence)

    def _ground(self, backbone: dict[str, Any], prompt: str) -> _Grounding:
        text = self._embed(prompt)
        with self._running():
            output = self._model.forward_grounding(
                backbone_out={**backbone, **text},
                find_input=self._processor.find_stage,
                find_target=None,
                geometric_prompt=self._model._get_dummy_prompt(),
            )
        presence = output["presence_logit_dec"].float().sigmoid()[0, 0]
        scores = output["pred_logits"][0, :, 0].float().sigmoid() * presence
        # With the best score, which is NaN if any is, in one transfer.
        checked = finite(torch.stack([presence, scores.amax()]))
        return _Grounding(scores, float(checked[0]), output["pred_masks"][0])

    def _embed(self, prompt: str) -> dict[str, torch.Tensor]:
        """A prompt in Meta's terms; each is computed once in this object's life."""
        if prompt not in self._texts:
            with self._running():
                text = self._model.backbone.forward_text([prompt], device=self.device)
            self._texts[prompt] = {key: text[key] for key in _TEXT_KEYS}
            self._warn_of_truncation(prompt)
        return self._texts[prompt]

    def _warn_of_truncation(self, prompt: str) -> None:
        encoder = self._model.backbone.language_backbone
        # The start and the end token are not in what `encode` returns.
        tokens = len(encoder.tokenizer.encode(prompt)) + 2
        if tokens > encoder.context_length:
            logger.warning(
                "SAM 3 reads %d tokens of a prompt; this one has %d and its end is ignored: %s",
                encoder.context_length,
                tokens,
                shorten(prompt, 80),
            )

    def _segment_boxes(self, backbone: dict[str, Any], image_hw: tuple[int, int], boxes: Boxes) -> Instances:
        found: list[Instances] = []
        for start in range(0, len(boxes), BOXES_PER_PASS):
            chunk = boxes.select(slice(start, start + BOXES_PER_PASS))
            logits, iou = self._predict_boxes(backbone, image_hw, chunk.xyxy)
            index = np.zeros(len(chunk), dtype=np.int64), chunk.prompt_index
            grouped = group_by_image([image_hw], "boxes", index, chunk.scores * finite(iou), logits)
            found.extend(instances for _, instances in grouped)
        return concatenate(found, image_hw, "boxes")

    def _predict_boxes(
        self, backbone: dict[str, Any], image_hw: tuple[int, int], boxes_xyxy: npt.NDArray[np.float32]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask logits (N, 288, 288), clamped to -32..32, and predicted IoU (N,), ``float32`` on the CPU."""
        height, width = image_hw
        # Of an image of 1 x 1, it enlarges masks to that size only. The size is used for nothing else.
        state = {"original_height": 1, "original_width": 1, "backbone_out": backbone}
        relative_xyxy = boxes_xyxy / np.array([width, height, width, height], dtype=np.float32)
        try:
            with self._running():
                _, iou, logits = self._model.predict_inst(state, box=relative_xyxy, multimask_output=False)
        finally:
            # After an exception it would keep the features.
            self._box_predictor.reset_predictor()
        return torch.from_numpy(logits).flatten(0, -3), torch.from_numpy(iou).flatten()


def _share_positions(features: dict[str, Any], first: dict[str, Any]) -> None:
    """Position encodings are the same for all images: kept once, they cost 111 MB at full size, not 222 an image."""
    positions = first["vision_pos_enc"]
    features["vision_pos_enc"] = positions
    if features["sam2_backbone_out"] is not None:
        features["sam2_backbone_out"]["vision_pos_enc"] = positions
