"""The confidence that leaves about twenty masks an image, found on the pictures themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autodistill_sam3.benchmark.settings import MASKS_PER_IMAGE, PROMPTS, Settings
from autodistill_sam3.images import load_image
from autodistill_sam3.segmentation import Segmenter, load_segmenter
from autodistill_sam3.weights import SAM3, find_checkpoint

_PICTURES = 2
# In logits; a step below the first count that is large enough, the search is halved.
_HIGHEST, _LOWEST, _STEP, _HALVINGS = 6.0, -7.0, 1.0, 5


def calibrate(settings: Settings) -> dict[str, Any]:
    """Confidences and the gate for the rows.

    Returns:
        "confidence", by the number of classes as text; "presence_gate", the median presence of the first five prompts,
        so that a gate leaves about half of them out.
    """
    segmenter = load_segmenter(
        find_checkpoint(SAM3, settings.checkpoint), bpe_path=settings.bpe_path, boxes=False, device=settings.device
    )
    paths = sorted(settings.pictures.glob("*.jpg"))[:_PICTURES]
    features = segmenter.encode([load_image(path) for path in paths])
    confidence = {str(count): confidence_for(segmenter, features, PROMPTS[:count]) for count in settings.classes}
    results = segmenter.segment_text(features, PROMPTS[:5], [1.0] * 5)
    gate = float(np.median([result.presence for result in results]))
    return {"confidence": confidence, "presence_gate": gate}


def confidence_for(segmenter: Segmenter[Any], features: Any, prompts: Sequence[str]) -> float:
    """The highest confidence at which about twenty masks an image are left, or the lowest that is tried.

    Searched from above, so that few masks are made on the way.
    """
    low, high = _HIGHEST, _HIGHEST + _STEP
    while low > _LOWEST and _masks(segmenter, features, prompts, low) < MASKS_PER_IMAGE:
        low, high = low - _STEP, low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _masks(segmenter, features, prompts, middle) < MASKS_PER_IMAGE:
            high = middle
        else:
            low = middle
    return _probability(low)


def _masks(segmenter: Segmenter[Any], features: Any, prompts: Sequence[str], logit: float) -> float:
    """Masks an image above a score."""
    results = segmenter.segment_text(features, prompts, [_probability(logit)] * len(prompts))
    return sum(len(result.instances) for result in results) / len(results)


def _probability(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))
