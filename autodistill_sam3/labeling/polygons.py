"""A mask -> the one polygon that YOLO's format has for an object.

Parts and holes are joined into a single outline by bridges that run forth and back over the same pixels, so that
filling it by the even-odd rule gives the mask again; only bridges between separate parts add pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Points: TypeAlias = npt.NDArray[np.float64]

# Readers truncate coordinates to pixels after multiplying by the image's size; a quarter keeps them off the edge.
_PIXEL_OFFSET = 0.25
# A second point of the same pixel, for outlines that would have no extent.
_SAME_PIXEL = 0.5
_MAX_BRIDGE_POINTS = 4000


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
    outline = _walk(rings, _bridges(rings))
    if len(outline) < 3:
        outline = np.concatenate([outline, outline[-1] + _SAME_PIXEL * np.array([[1, 1], [0, 1]])])
    return outline


@dataclass(frozen=True)
class _Bridge:
    """From point `leave` of ring `parent` to point `enter` of ring `child`."""

    parent: int
    leave: int
    child: int
    enter: int


def _bridges(rings: list[Points]) -> list[_Bridge]:
    """A shortest tree over the rings that starts at the first one (Prim's algorithm)."""
    # Speckled masks have thousands of points; every n-th of them will do to find short bridges.
    stride = 1 + sum(len(ring) for ring in rings) // _MAX_BRIDGE_POINTS
    points = np.concatenate([ring[::stride] for ring in rings])
    lengths = [len(ring[::stride]) for ring in rings]
    owner = np.repeat(np.arange(len(rings)), lengths)
    first = np.concatenate(([0], np.cumsum(lengths)))
    gap = np.full(len(points), np.inf)
    nearest = np.zeros(len(points), dtype=np.int64)
    waiting = owner >= 0
    bridges: list[_Bridge] = []
    current = 0
    while True:
        waiting &= owner != current
        if not waiting.any():
            return bridges
        others = np.flatnonzero(waiting)
        own = points[first[current] : first[current + 1]]
        squared = ((points[others, None] - own[None]) ** 2).sum(axis=2)
        closer = squared.min(axis=1) < gap[others]
        gap[others[closer]] = squared.min(axis=1)[closer]
        nearest[others[closer]] = first[current] + squared.argmin(axis=1)[closer]
        best = others[gap[others].argmin()]
        current, parent = int(owner[best]), int(owner[nearest[best]])
        leave, enter = (nearest[best] - first[parent]) * stride, (best - first[current]) * stride
        bridges.append(_Bridge(parent, int(leave), current, int(enter)))


def _walk(rings: list[Points], bridges: list[_Bridge]) -> Points:
    """Once around the first ring; at each bridge over, once around the other ring, back, and on."""
    loops = {0: rings[0]}
    inserts: dict[int, list[tuple[int, int]]] = {index: [] for index in range(len(rings))}
    for bridge in bridges:
        ring = np.roll(rings[bridge.child], -bridge.enter, axis=0)
        loops[bridge.child] = np.concatenate([ring, ring[:1]])
        shift = next((other.enter for other in bridges if other.child == bridge.parent), 0)
        inserts[bridge.parent].append(((bridge.leave - shift) % len(rings[bridge.parent]), bridge.child))
    # Children come after their parents in the list, so that going backwards each loop is complete when it is needed.
    for child in [bridge.child for bridge in reversed(bridges)] + [0]:
        pieces, start = [], 0
        for leave, other in sorted(inserts[child]):
            pieces += [loops[child][start : leave + 1], loops[other]]
            start = leave
        loops[child] = np.concatenate([*pieces, loops[child][start:]])
    return loops[0]
