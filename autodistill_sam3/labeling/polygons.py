"""A mask -> the one polygon that YOLO's format has for an object.

What makes it survive its readers (ultralytics 8.4: data/dataset.py, utils/ops.py, data/utils.py; supervision 0.31):

- ultralytics truncates coordinates to pixels, supervision rounds them. Points that lie a hair before the centre of
  their pixel suit both, and are where other readers, which know no pixels, expect them.
- ultralytics first adds points between those given until there are 1000, or as many as the longest polygon of the
  image has. On rows, columns and falling diagonals these stay on the polygon's pixels. On rising diagonals one
  coordinate changes pixel before the other, and a point in between adds a pixel. The hair makes that rare; small
  polygons also step around through the mask, and where there is no such way they are filled up to 1000 points, so that
  few or none are added.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from autodistill_sam3.labeling.outlines import Pixels, closed_walk, corners

# How far before the centre of their pixel points lie, in pixels: more than what is lost to the decimals and to readers'
# 32-bit numbers, which grows with the side of the image.
_HAIR = 0.001
_HAIR_PER_PIXEL_OF_SIDE = 3e-7
_DECIMALS = 7
_RESAMPLED_POINTS = 1000
# In masks of more pixels, the one or two that resampling may add do not matter.
_SMALL_AREA = 10_000
_TOLERATED_LOSS = 0.0005


def crop_to_yolo(crop: npt.NDArray[np.bool_], x: int, y: int, image_hw: tuple[int, int]) -> str:
    """Encode a mask given as a crop as the coordinates of a YOLO segmentation line.

    They have seven decimals: five would move points by 0.1 pixels on sides of 20,000 pixels, seven by 0.001.

    Args:
        crop: (h, w) ``bool`` with at least one true pixel.
        x: Pixel of the crop's first column.
        y: Pixel of the crop's first row.
        image_hw: Height and width of the image.

    Returns:
        `x1 y1 x2 y2 ...` in 0..1, at least three points.

    Example:
        >>> crop_to_yolo(np.ones((2, 2), dtype=bool), 0, 0, (10, 10))
        '0.0498997 0.0498997 0.0498997 0.1498997 0.1498997 0.1498997 0.1498997 0.0498997'
    """
    hair = _HAIR + _HAIR_PER_PIXEL_OF_SIDE * max(image_hw)
    walk, area = closed_walk(crop), int(np.count_nonzero(crop))
    walk, frail_share = _step_around(walk, crop) if area < _SMALL_AREA else (walk, 0.0)
    is_frail = 2 * hair * frail_share * _RESAMPLED_POINTS > _TOLERATED_LOSS * area
    pixels = walk if is_frail and len(walk) < _RESAMPLED_POINTS else corners(walk)
    points = pixels.astype(np.float64) + (0.5 - hair)
    if len(points) < 3:
        points = _with_extent(points)
    if is_frail:
        missing = max(_RESAMPLED_POINTS - len(points), 0)
        points = np.concatenate([points, np.repeat(points[-1:], missing, axis=0)])
    return _as_text((points + np.array([x, y])) / image_hw[::-1])


def polygon_iou(crop: npt.NDArray[np.bool_]) -> float:
    """What share of a mask its polygon keeps: the IoU of the mask and the polygon, filled by one `cv2.fillPoly`.

    Args:
        crop: (h, w) ``bool`` with at least one true pixel.

    Example:
        >>> polygon_iou(np.array([[True, True, False, True]]))
        0.75
    """
    filled = cv2.fillPoly(np.zeros(crop.shape, dtype=np.uint8), [corners(closed_walk(crop))], 1).view(np.bool_)
    both, different = np.count_nonzero(filled) + np.count_nonzero(crop), np.count_nonzero(filled != crop)
    return float((both - different) / (both + different))


def _step_around(walk: Pixels, mask: npt.NDArray[np.bool_]) -> tuple[Pixels, float]:
    """Replace steps along rising diagonals by two straight ones where points between could leave the mask.

    Points that are added fall into the pixel above the step, so nothing is to be done if the mask has that. If it has
    neither that nor the pixel below, the step stays.

    Returns:
        The walk, and which share of its steps stayed though points between can leave the mask.
    """
    ahead = np.concatenate([walk[1:], walk[:1]])
    rising = np.flatnonzero((ahead[:, 0] - walk[:, 0]) * (ahead[:, 1] - walk[:, 1]) == -1)
    above, below = np.minimum(walk[rising], ahead[rising]), np.maximum(walk[rising], ahead[rising])
    exposed = ~mask[above[:, 1], above[:, 0]]
    has_way = mask[below[:, 1], below[:, 0]]
    around, frail = exposed & has_way, exposed & ~has_way
    if around.any():
        walk = np.insert(walk, rising[around] + 1, below[around], axis=0)
    return walk, np.count_nonzero(frail) / len(ahead)


def _with_extent(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Make one or two points three and more; those of one row or column get others in their pixels, not to be flat."""
    inset = points[0] % 1 - 0.01
    flat = np.ptp(points, axis=0) == 0
    return np.concatenate([points, points[-1:], points[-1:] - inset * flat, points[:1] - inset * flat])


def _as_text(points: npt.NDArray[np.float64]) -> str:
    """Write values in 0..1 with seven decimals; Python's own formatting takes ten times as long."""
    above, below = np.divmod(np.rint(points.ravel() * 10**_DECIMALS).astype(np.uint32), 10_000)
    text = np.full((len(above), _DECIMALS + 3), ord(" "), dtype=np.uint8)
    text[:, 1:5] = _four_digits()[above].view(np.uint8).reshape(-1, 4)
    text[:, 0], text[:, 1] = text[:, 1], ord(".")
    text[:, 5:9] = _four_digits()[below].view(np.uint8).reshape(-1, 4)
    return text.tobytes()[:-1].decode("ascii")


@cache
def _four_digits() -> npt.NDArray[np.uint32]:
    """(10000,), the four characters of each number from 0000 to 9999."""
    return np.frombuffer("".join(f"{number:04d}" for number in range(10_000)).encode(), dtype=np.uint32)
