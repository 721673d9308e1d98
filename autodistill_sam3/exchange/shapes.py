"""Masks <-> the shapes that Label Studio draws, in its percentages of the image's width and height.

A mask is given as the crop that holds it, with the pixel of its first column and row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from autodistill_sam3.errors import LabelingError
from autodistill_sam3.instances import trim_crop
from autodistill_sam3.labeling.outlines import closed_walk, corners

Crop = tuple[npt.NDArray[np.bool_], int, int]
Points = npt.NDArray[np.float64]

# A thousandth of a pixel at 10,000 pixels a side.
_DECIMALS = 5
# Percent. Shapes may reach out of the image, but not so far that numbers overflow.
_FAR_AWAY = 1e6
# Pixels looked at in one go.
_BLOCK = 2**20


def crop_to_polygons(crop: npt.NDArray[np.bool_], x: int, y: int, image_hw: tuple[int, int]) -> list[list[list[float]]]:
    """One polygon per connected part, through the centres of its border pixels; holes are cut free by a seam.

    Returns:
        Per part its points as [x, y] in percent.

    Example:
        >>> crop = np.array([[True, False, True]])
        >>> [len(polygon) >= 3 for polygon in crop_to_polygons(crop, 0, 0, (10, 10))]
        [True, True]
    """
    height, width = image_hw
    count, parts = cv2.connectedComponents(crop.astype(np.uint8), connectivity=8)
    polygons = []
    for part in range(1, count):
        tight, left, top = trim_crop(parts == part, x, y)
        centres = corners(closed_walk(tight)) + 0.5
        if len(centres) < 3:
            # A line or a pixel; the editor wants three points.
            centres = np.concatenate([centres, centres[-1:] + np.array([[0.25, 0.25], [0, 0.25]])])
        pixels = centres + np.array([left, top])
        polygons.append(np.round(pixels / (width, height) * 100, _DECIMALS).tolist())
    return polygons


def polygon_to_crop(points: Points, image_hw: tuple[int, int]) -> Crop:
    """The pixels that a polygon's outline touches or encloses (even-odd).

    Args:
        points: (N, 2) x, y in percent, N at least 1; points outside the image are moved to its edge.
        image_hw: Height and width of the image.
    """
    height, width = image_hw
    pixels = np.floor(points / 100 * (width, height)).clip(0, (width - 1, height - 1)).astype(np.int32)
    left_top = pixels.min(axis=0)
    columns, rows = pixels.max(axis=0) - left_top + 1
    canvas = np.zeros((rows, columns), dtype=np.uint8)
    cv2.fillPoly(canvas, [pixels - left_top], color=1)
    return canvas.astype(bool), int(left_top[0]), int(left_top[1])


def rectangle_to_crop(value: dict[str, Any], image_hw: tuple[int, int]) -> Crop:
    """The pixels whose centres lie in a rectangle, which may be turned about its upper left corner."""
    x, y, width, height = _numbers(value, ("x", "y", "width", "height"), image_hw)

    def is_inside(along: Points, across: Points) -> npt.NDArray[np.bool_]:
        return (along >= 0) & (along < width) & (across >= 0) & (across < height)

    return _fill(is_inside, (x, y), _angle(value), rectangle_to_xyxy(value, image_hw), image_hw)


def rectangle_to_xyxy(value: dict[str, Any], image_hw: tuple[int, int]) -> Points:
    """The box around a rectangle, (4,) in pixels."""
    x, y, width, height = _numbers(value, ("x", "y", "width", "height"), image_hw)
    angle = _angle(value)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = corners @ turn + (x, y)
    limits = np.array(image_hw[::-1], dtype=np.float64)
    return np.concatenate([turned.min(axis=0).clip(0, limits), turned.max(axis=0).clip(0, limits)])


def ellipse_to_crop(value: dict[str, Any], image_hw: tuple[int, int]) -> Crop:
    """The pixels whose centres lie in an ellipse, which may be turned about its centre."""
    x, y, radius_x, radius_y = _numbers(value, ("x", "y", "radiusX", "radiusY"), image_hw)
    reach = max(radius_x, radius_y)

    def is_inside(along: Points, across: Points) -> npt.NDArray[np.bool_]:
        inside: npt.NDArray[np.bool_] = (along * radius_y) ** 2 + (across * radius_x) ** 2 <= (radius_x * radius_y) ** 2
        return inside

    return _fill(is_inside, (x, y), _angle(value), np.array([x - reach, y - reach, x + reach, y + reach]), image_hw)


def unite(crops: list[Crop]) -> Crop:
    """One crop that holds all of these, which are at least one."""
    left, top = min(x for _, x, _ in crops), min(y for _, _, y in crops)
    right = max(x + crop.shape[1] for crop, x, _ in crops)
    bottom = max(y + crop.shape[0] for crop, _, y in crops)
    whole = np.zeros((bottom - top, right - left), dtype=bool)
    for crop, x, y in crops:
        whole[y - top : y - top + crop.shape[0], x - left : x - left + crop.shape[1]] |= crop
    return whole, left, top


def points_of(value: dict[str, Any]) -> Points:
    """(N, 2) points of a polygon in percent.

    Raises:
        LabelingError: They are no points.
    """
    try:
        points = np.array(value["points"], dtype=np.float64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LabelingError("Expected a polygon with points [x, y], received something else") from error
    if points.size and (points.ndim != 2 or points.shape[1] != 2):
        raise LabelingError(f"Expected a polygon with points [x, y], received numbers of shape {points.shape}")
    if not (np.abs(points) <= _FAR_AWAY).all():
        raise LabelingError("Expected a polygon near its image, received points far away")
    return points.reshape(-1, 2)


def _numbers(value: dict[str, Any], keys: tuple[str, ...], image_hw: tuple[int, int]) -> list[float]:
    """These percentages of the width and the height in turns, in pixels."""
    try:
        numbers = [float(value[key]) for key in keys]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LabelingError(f"Expected a shape with the numbers {', '.join(keys)}, received something else") from error
    if not (np.abs(numbers) <= _FAR_AWAY).all() or min(numbers[2:]) < 0:
        raise LabelingError(f"Expected {', '.join(keys)} near the image and no negative size, received {numbers}")
    return [number / 100 * image_hw[1 - index % 2] for index, number in enumerate(numbers)]


def _angle(value: dict[str, Any]) -> float:
    """Clockwise, in radians."""
    try:
        degrees = float(value.get("rotation") or 0)
    except (TypeError, ValueError, OverflowError) as error:
        raise LabelingError("Expected a rotation in degrees, received something else") from error
    if not np.isfinite(degrees):
        raise LabelingError("Expected a finite rotation, received another")
    return float(np.deg2rad(degrees))


def _fill(
    is_inside: Callable[[Points, Points], npt.NDArray[np.bool_]],
    origin: tuple[float, float],
    angle: float,
    around_xyxy: Points,
    image_hw: tuple[int, int],
) -> Crop:
    """Ask for each pixel near a shape whether its centre, seen from the shape's origin and turn, lies inside."""
    height, width = image_hw
    limits = np.array([width, height, width, height])
    left, top = np.floor(around_xyxy[:2]).clip(0, limits[:2]).astype(int)
    right, bottom = np.ceil(around_xyxy[2:]).clip(0, limits[2:]).astype(int)
    inside = np.zeros((max(bottom - top, 0), max(right - left, 0)), dtype=bool)
    step = max(_BLOCK // max(inside.shape[1], 1), 1)
    columns = np.arange(left, right) + 0.5 - origin[0]
    for start in range(0, len(inside), step):
        rows = (np.arange(top + start, min(top + start + step, bottom)) + 0.5 - origin[1])[:, None]
        along, across = columns * np.cos(angle) + rows * np.sin(angle), rows * np.cos(angle) - columns * np.sin(angle)
        inside[start : start + step] = is_inside(along, across)
    return inside, int(left), int(top)
