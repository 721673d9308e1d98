"""A mask -> the one polygon that YOLO's format has for an object.

Parts and holes are joined into a single outline by bridges that run forth and back over the same pixels, so that
filling it by the even-odd rule gives the mask again; only bridges between separate parts add pixels.
"""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Points: TypeAlias = npt.NDArray[np.float64]

# Readers truncate coordinates to pixels after multiplying by the image's size; a quarter keeps them off the edge.
_PIXEL_OFFSET = 0.25
# A second point of the same pixel, for outlines that would have no extent.
_SAME_PIXEL = 0.5


def crop_to_yolo(crop: npt.NDArray[np.bool_], x: int, y: int, image_hw: tuple[int, int]) -> str:
    """Encode a mask given as a crop as the coordinates of a YOLO segmentation line.

    Args:
        crop: (h, w) ``bool`` with at least one true pixel.
        x: Pixel of the crop's first column.
        y: Pixel of the crop's first row.
        image_hw: Height and width of the image.

    Returns:
        `x1 y1 x2 y2 ...` in 0..1, at least three points.

    Example:
        >>> crop_to_yolo(np.ones((2, 2), dtype=bool), 0, 0, (10, 10))
        '0.02500 0.02500 0.02500 0.12500 0.12500 0.12500 0.12500 0.02500'
    """
    height, width = image_hw
    outline = outline_of(crop) + np.array([x + _PIXEL_OFFSET, y + _PIXEL_OFFSET])
    return " ".join(f"{value:.5f}" for value in (outline / (width, height)).ravel())


def outline_of(mask: npt.NDArray[np.bool_]) -> Points:
    """One closed outline, (N, 2) xy pixel centres with N >= 3, around all parts and holes of a mask."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = sorted((contour.reshape(-1, 2).astype(np.float64) for contour in contours), key=len, reverse=True)
    outline = rings.pop(0)
    while rings:
        gaps = [_closest(outline, ring) for ring in rings]
        nearest = min(range(len(rings)), key=lambda index: gaps[index][0])
        _, at, start = gaps[nearest]
        outline = _insert(outline, at, rings.pop(nearest), start)
    if len(outline) < 3:
        outline = np.concatenate([outline, outline[-1] + _SAME_PIXEL * np.array([[1, 1], [0, 1]])])
    return outline


def _closest(first: Points, second: Points) -> tuple[float, int, int]:
    """Squared distance and indices of the closest points of two rings."""
    squared = ((first[:, None] - second[None]) ** 2).sum(axis=2)
    at, start = np.unravel_index(squared.argmin(), squared.shape)
    return float(squared[at, start]), int(at), int(start)


def _insert(outline: Points, at: int, ring: Points, start: int) -> Points:
    """Walk the outline to `at`, over to the ring, once around it from `start`, back, and on."""
    loop = np.roll(ring, -start, axis=0)
    return np.concatenate([outline[: at + 1], loop, loop[:1], outline[at:]])
