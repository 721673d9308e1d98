"""Detections as users get them, of an image as a whole and of its slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import supervision as sv

from autodistill_sam3.background import Background
from autodistill_sam3.images import RGBImage
from autodistill_sam3.instances import compact_masks


def predict_slices(
    image: RGBImage, predict: Callable[[Any], sv.Detections], background: Background | None
) -> sv.Detections:
    """Detections of overlapping slices of an image, as supervision cuts and joins them.

    Args:
        image: The whole.
        predict: BGR pixels of a slice -> its detections, with dense masks, and without background.
        background: Added to the whole.
    """
    found: sv.Detections = sv.InferenceSlicer(callback=predict)(np.ascontiguousarray(image[..., ::-1]))
    if background is None:
        return found
    masks = () if found.mask is None else np.asarray(found.mask)
    found.mask = compact_masks([(mask, 0, 0) for mask in masks], (image.shape[0], image.shape[1]))
    return with_dense_masks(background.added_to(found))


def with_dense_masks(detections: sv.Detections) -> sv.Detections:
    """Detections as users get them: dense (N, H, W) masks, which may be treated as any array, and no counts."""
    if isinstance(detections.mask, sv.CompactMask):
        detections.mask = detections.mask.to_dense()
    # Counts of one image, for the report of a run; detections with different counts could not be merged.
    detections.metadata.clear()
    return detections
