"""The same weights, images and prompts give the official package's numbers, in ``float32``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from . import raw
from .conftest import PROMPTS, Case
from .narrow import SCORE_THRESHOLD, STABILITY_THRESHOLD, Array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Sam3VideoModel

    from autodistill_sam3.segmentation.transformers_segmenter import ImageFeatures, TransformersSegmenter

TOLERANCE = 1e-4
# A forgotten term must stand out, not just exceed the tolerance.
NOTICEABLE = 100 * TOLERANCE

TEXT_OUTPUTS = ("logits", "presence_logit", "boxes_xyxy", "mask_logits")
# `predict_inst` clamps the logits it returns.
CLAMP = 32.0


def deviation(received: Sequence[Array], expected: Sequence[Array]) -> float:
    """The largest difference, relative to how far the expected values reach from their mean.

    Relative to the values themselves, a common offset would hide a difference.
    """
    for ours, official in zip(received, expected, strict=True):
        assert ours.shape == official.shape
        assert ours.dtype == official.dtype == np.float32
    difference = max(float(np.abs(ours - official).max()) for ours, official in zip(received, expected, strict=True))
    values = np.concatenate([official.ravel() for official in expected])
    return difference / float(np.abs(values - values.mean()).max())


# The package's engine.


@pytest.fixture(scope="module")
def features(segmenter: TransformersSegmenter, cases: tuple[Case, ...]) -> ImageFeatures:
    return segmenter.encode([case.image for case in cases])


@pytest.fixture(scope="module")
def engine_texts(
    segmenter: TransformersSegmenter, features: ImageFeatures, cases: tuple[Case, ...]
) -> dict[str, list[Array]]:
    """All outputs of the detector for all pairs, images outermost, before any threshold."""
    from autodistill_sam3.segmentation import transformers_segmenter
    from autodistill_sam3.segmentation.mask_head import mask_logits

    arrays: dict[str, list[Array]] = {name: [] for name in TEXT_OUTPUTS}
    pairs: list[tuple[int, int]] = []
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        # Several passes; all but the last end within an image.
        patch.setattr(transformers_segmenter, "PAIRS_PER_PASS", 4)
        for image_index, prompt_index, _, queries in segmenter._detect_pairs(features, PROMPTS):
            everything = torch.ones_like(queries.logits, dtype=torch.bool)
            images = torch.from_numpy(image_index)
            masks = mask_logits(segmenter._model.detector_model, features.vision, images, queries, everything)
            arrays["logits"].extend(queries.logits.numpy())
            arrays["presence_logit"].extend(queries.presence_logits[:, None].numpy())
            arrays["boxes_xyxy"].extend(queries.boxes_xyxy.numpy())
            arrays["mask_logits"].extend(masks.view(*everything.shape, *masks.shape[1:]).numpy())
            pairs.extend(zip(image_index.tolist(), prompt_index.tolist(), strict=True))
    assert pairs == [(image, prompt) for image in range(len(cases)) for prompt in range(len(PROMPTS))]
    return arrays


@pytest.mark.parametrize("output", TEXT_OUTPUTS)
def test_text_outputs_equal_the_official(
    output: str, engine_texts: dict[str, list[Array]], cases: tuple[Case, ...]
) -> None:
    official = [np.atleast_1d(getattr(text, output)) for case in cases for text in case.texts]
    assert deviation(engine_texts[output], official) < TOLERANCE


def test_box_outputs_equal_predict_inst(
    segmenter: TransformersSegmenter, features: ImageFeatures, cases: tuple[Case, ...]
) -> None:
    from autodistill_sam3.segmentation import transformers_segmenter

    logits: list[list[Array]] = [[] for _ in cases]
    iou: list[list[Array]] = [[] for _ in cases]
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        # Two boxes of each image at a time; the images have different numbers of them.
        patch.setattr(transformers_segmenter, "BOXES_PER_PASS", 2 * len(cases))
        for chunk, chunk_logits, chunk_iou in segmenter._decode_boxes(features, [_boxes(case) for case in cases]):
            for image, boxes in enumerate(chunk):
                logits[image].append(chunk_logits[image, : len(boxes)].clamp(-CLAMP, CLAMP).numpy())
                iou[image].append(chunk_iou[image, : len(boxes)].numpy())
    official = [case.boxes for case in cases]
    assert deviation(_join(logits), [boxes.mask_logits for boxes in official]) < TOLERANCE
    assert deviation(_join(iou), [boxes.iou for boxes in official]) < TOLERANCE


def test_text_instances_equal_the_official_processor(segmenter: TransformersSegmenter, cases: tuple[Case, ...]) -> None:
    case = cases[0]
    [result] = segmenter.segment_text(segmenter.encode([case.image]), PROMPTS, [SCORE_THRESHOLD] * len(PROMPTS))
    presence = [1 / (1 + np.exp(-text.presence_logit)) for text in case.texts]
    np.testing.assert_allclose(result.presence, presence, rtol=TOLERANCE)
    counts = []
    for prompt, text in enumerate(case.texts):
        found = result.instances.select(result.instances.prompt_index == prompt)
        np.testing.assert_allclose(found.scores, text.scores, rtol=TOLERANCE)
        _assert_same_masks(found.masks.to_dense(), text.masks)
        counts.append(len(found))
    assert any(0 < count < len(text.logits) for count, text in zip(counts, case.texts, strict=True))


def test_box_instances_equal_predict_inst(
    segmenter: TransformersSegmenter, features: ImageFeatures, cases: tuple[Case, ...]
) -> None:
    results = segmenter.segment_boxes(features, [_boxes(case) for case in cases])
    for found, case in zip(results, cases, strict=True):
        np.testing.assert_allclose(found.scores, case.boxes.iou, rtol=TOLERANCE)
        _assert_same_masks(found.masks.to_dense(), case.boxes.masks)


def test_both_ways_of_choosing_a_box_mask_are_covered(cases: tuple[Case, ...]) -> None:
    stable = np.concatenate([case.boxes.stability for case in cases]) >= STABILITY_THRESHOLD
    assert stable.any() and not stable.all()


# Plain transformers modules: the converted weights are right, and these tests notice what is easily forgotten.


@dataclass(frozen=True, eq=False)
class Plain:
    """Deviations of plain transformers modules on one image, by output."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    case: Case

    def texts(self, *, geometry_token: bool = True) -> dict[str, float]:
        vision = raw.encode(self.model, self.case.image)
        official = self.case.texts[:2]
        answers = [
            raw.text_prompt(self.model, self.tokenizer, vision, prompt, geometry_token=geometry_token)
            for prompt in PROMPTS[:2]
        ]
        return {
            name: deviation(
                [np.atleast_1d(answer[name]) for answer in answers],
                [np.atleast_1d(getattr(text, name)) for text in official],
            )
            for name in TEXT_OUTPUTS
        }

    def boxes(self, *, no_memory: bool = True) -> dict[str, float]:
        vision = raw.encode(self.model, self.case.image)
        height, width = self.case.image.shape[:2]
        answer = raw.box_prompt(self.model, vision, (height, width), self.case.boxes_xyxy, no_memory=no_memory)
        official = self.case.boxes
        return {
            "mask_logits": deviation([answer["mask_logits"].clip(-CLAMP, CLAMP)], [official.mask_logits]),
            "iou": deviation([answer["iou"]], [official.iou]),
        }


@pytest.fixture(scope="module")
def plain(video_model: Sam3VideoModel, tokenizer: PreTrainedTokenizerBase, cases: tuple[Case, ...]) -> Plain:
    return Plain(video_model, tokenizer, cases[1])


def test_plain_modules_equal_the_official(plain: Plain) -> None:
    assert max(plain.texts().values()) < TOLERANCE
    assert max(plain.boxes().values()) < TOLERANCE


def test_parity_notices_a_missing_geometry_token(plain: Plain) -> None:
    assert min(plain.texts(geometry_token=False).values()) > NOTICEABLE


def test_parity_notices_a_missing_no_memory_embedding(plain: Plain) -> None:
    assert min(plain.boxes(no_memory=False).values()) > NOTICEABLE


def test_parity_notices_the_default_norm_epsilon(plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in plain.model.detector_model.vision_encoder.backbone.modules():
        if isinstance(module, torch.nn.LayerNorm):
            monkeypatch.setattr(module, "eps", 1e-6)
    assert min(plain.boxes().values()) > NOTICEABLE


def _boxes(case: Case) -> Any:
    from autodistill_sam3.instances import Boxes

    count = len(case.boxes_xyxy)
    return Boxes(case.boxes_xyxy, np.ones(count, np.float32), np.zeros(count, np.int64))


def _join(parts: list[list[Array]]) -> list[Array]:
    return [np.concatenate(image_parts) for image_parts in parts]


def _assert_same_masks(received: Array, expected: Array) -> None:
    """Equal but for pixels whose logit is so near 0 that rounding decides."""
    assert received.shape == expected.shape
    assert (received != expected).mean() < TOLERANCE if expected.size else True
