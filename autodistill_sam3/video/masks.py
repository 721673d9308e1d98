"""Masks of tracks, small and large: overlaps, holes, and who gets a pixel that two objects claim."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from supervision import CompactMask

from autodistill_sam3.instances import compact_masks, tight_xyxy

# What a pixel becomes that is filled, or wiped away: the reference's values.
_FILLED, _WIPED = 0.1, -0.1
_CLAMPED = -10.0


def mask_iou(first: torch.Tensor, second: torch.Tensor) -> npt.NDArray[np.float32]:
    """IoU of (N, h, w) and (M, h, w) ``bool`` masks, (N, M); 0 where both are empty."""
    a, b = first.flatten(1).float(), second.flatten(1).float()
    shared = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1)[None] - shared
    iou: npt.NDArray[np.float32] = (shared / union.clamp(min=1)).cpu().numpy()
    return iou


def tight_boxes(masks: torch.Tensor) -> npt.NDArray[np.float32]:
    """Boxes, xyxy (N, 4), around (N, h, w) ``bool`` masks, right and bottom edges exclusive; zeros for empty ones."""
    found = np.zeros((len(masks), 4), dtype=np.float32)
    for place, mask in enumerate(masks.cpu().numpy()):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            found[place] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return found


def without_specks(logits: torch.Tensor, area: int) -> torch.Tensor:
    """Fill holes and wipe away specks of at most so many pixels.

    A mask of which half would go keeps all of it. As `fill_holes_in_mask_scores` of the reference
    (sam3/model/sam3_tracker_utils.py), which needs kernels that are compiled or fetched; here OpenCV does it.

    Args:
        logits: (N, h, w).
        area: In pixels of these masks; 0 changes nothing.

    Returns:
        (N, h, w), where filled pixels are 0.1 and wiped ones -0.1.
    """
    if not area or not len(logits):
        return logits
    positive = (logits > 0).cpu().numpy()
    change = np.zeros(positive.shape, dtype=np.int8)
    for mask, own in zip(positive, change, strict=True):
        own[_small_parts(~mask, area)] = 1
        filled = mask | (own > 0)
        own[_small_parts(filled, min(area, int(filled.sum()) // 2))] = -1
    if not change.any():
        return logits
    told = torch.from_numpy(change).to(logits.device)
    return torch.where(told > 0, _FILLED, torch.where(told < 0, _WIPED, logits))


def _small_parts(mask: npt.NDArray[np.bool_], area: int) -> npt.NDArray[np.bool_]:
    """Where connected parts of a mask lie that have at most so many pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] <= area
    small[0] = False
    found: npt.NDArray[np.bool_] = small[labels]
    return found


def without_shrunk(logits: torch.Tensor, classes: npt.NDArray[np.int64], least: float) -> torch.Tensor:
    """Masks that would lose most of their pixels, if each went to one object of a class, become empty.

    Args:
        logits: (N, h, w).
        classes: (N,).
        least: Share of a mask's pixels that it must keep.
    """
    kept = logits.clone()
    for class_id in np.unique(classes):
        members = torch.from_numpy(np.flatnonzero(classes == class_id)).to(logits.device)
        if len(members) < 2:
            continue
        own = logits[members]
        wins = own.argmax(dim=0)[None] == torch.arange(len(own), device=own.device)[:, None, None]
        before = (own > 0).flatten(1).sum(1)
        after = ((own > 0) & wins).flatten(1).sum(1)
        lost = after < least * before.clamp(min=1)
        kept[members] = torch.where(lost[:, None, None], own.clamp(max=_CLAMPED), own)
    return kept


def without_overlap(
    masks: CompactMask, presence: Sequence[float], classes: npt.NDArray[np.int64], image_hw: tuple[int, int]
) -> tuple[CompactMask, npt.NDArray[np.int64]]:
    """Each pixel to one object of a class: the one that is surest to be there.

    Args:
        masks: N masks, each with at least one pixel.
        presence: (N,), how surely.
        classes: (N,).
        image_hw: Height and width of the frame.

    Returns:
        The masks that have pixels left, and their positions among the N.
    """
    boxes = tight_xyxy(masks).astype(np.int64)
    crops = [(masks.crop(index).copy(), int(box[0]), int(box[1])) for index, box in enumerate(boxes)]
    order = sorted(range(len(crops)), key=lambda index: -presence[index])
    for place, index in enumerate(order):
        for better in order[:place]:
            if classes[index] == classes[better]:
                _take_away(crops[index], crops[better])
    left = [index for index, (crop, _, _) in enumerate(crops) if crop.any()]
    return compact_masks([crops[index] for index in left], image_hw), np.array(left, dtype=np.int64)


_Crop = tuple[npt.NDArray[np.bool_], int, int]


def _take_away(crop: _Crop, better: _Crop) -> None:
    """Remove from a crop, in place, what another one covers."""
    (own, x, y), (other, other_x, other_y) = crop, better
    left, top = max(x, other_x), max(y, other_y)
    right = min(x + own.shape[1], other_x + other.shape[1])
    bottom = min(y + own.shape[0], other_y + other.shape[0])
    if left < right and top < bottom:
        covered = other[top - other_y : bottom - other_y, left - other_x : right - other_x]
        own[top - y : bottom - y, left - x : right - x] &= ~covered
