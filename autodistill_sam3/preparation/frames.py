"""Where an item lies in its image, how large it becomes, and what that does to pixels and masks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from autodistill_sam3.recipe import Recipe

Pixels: TypeAlias = npt.NDArray[np.uint8]
Mask: TypeAlias = npt.NDArray[np.bool_]
Window: TypeAlias = tuple[int, int, int, int]

# What ultralytics pads with.
PADDING = 114
# Of a pixel: what rounding adds to a box must not add a pixel to a window.
_ROUNDING = 1e-6
_HALF = 128


@dataclass(frozen=True)
class Frame:
    """A window of an image and its place in an item.

    Attributes:
        window: x1, y1, x2, y2 in pixels of the image, right and bottom edges exclusive.
        content_wh: Width and height that the window is resized to.
        offset_xy: Pixel of the item that the resized window begins at.
        item_wh: Width and height of the item.
    """

    window: Window
    content_wh: tuple[int, int]
    offset_xy: tuple[int, int]
    item_wh: tuple[int, int]

    @property
    def window_wh(self) -> tuple[int, int]:
        """Width and height of the window."""
        x1, y1, x2, y2 = self.window
        return x2 - x1, y2 - y1

    @property
    def is_resized(self) -> bool:
        """Whether the item's pixels are others than the window's."""
        return self.item_wh != self.window_wh

    def content_of(self, pixels: Pixels) -> Pixels:
        """The resized window of an image (H, W) or (H, W, C) ``uint8``."""
        x1, y1, x2, y2 = self.window
        return resized(pixels[y1:y2, x1:x2], self.content_wh)

    def mask_of(self, mask: Mask) -> Mask:
        """A mask of the window (h, w) as one of the resized window: where it covers at least half of a pixel.

        It is resized as an image that is white where the mask is true, so that it follows the image's pixels exactly.
        """
        if self.content_wh == self.window_wh:
            return mask
        return resized(mask.view(np.uint8) * np.uint8(255), self.content_wh) >= _HALF

    def box_of(self, xyxy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """A box (4,) in pixels of the image as one of the item, clipped to the resized window."""
        scale = np.array(self.content_wh * 2) / np.array(self.window_wh * 2)
        moved = (xyxy - np.array(self.window[:2] * 2)) * scale
        clipped: npt.NDArray[np.float64] = moved.clip(0, self.content_wh * 2) + np.array(self.offset_xy * 2)
        return clipped


def window_around(xywh: tuple[float, float, float, float], margin: float, image_hw: tuple[int, int]) -> Window:
    """The pixels that a box and its margin touch, clipped to the image; at least one.

    Args:
        xywh: The box in pixels.
        margin: Share of its width on the left and on the right, and of its height above and below.
        image_hw: Height and width of the image.

    Example:
        >>> window_around((10, 20, 30, 40), 0.1, (100, 100)), window_around((10, 20, 30, 40), 1, (70, 50))
        ((7, 16, 43, 64), (0, 0, 50, 70))
        >>> window_around((20, 20, 10, 10), 1.1, (100, 100))  # 1.1 * 10 is a little more than 11.
        (9, 9, 41, 41)
    """
    starts, ends = [], []
    for start, length, side in zip(xywh[:2], xywh[2:], image_hw[::-1], strict=True):
        first, last = start - margin * length + _ROUNDING, start + length + margin * length - _ROUNDING
        starts.append(math.floor(min(max(first, 0), side - 1)))
        ends.append(math.ceil(min(max(last, starts[-1] + 1), side)))
    return starts[0], starts[1], ends[0], ends[1]


def frame_of(window: Window, recipe: Recipe) -> Frame:
    """What a recipe makes of a window.

    Example:
        >>> frame_of((0, 0, 400, 200), Recipe(size=100))
        Frame(window=(0, 0, 400, 200), content_wh=(100, 50), offset_xy=(0, 25), item_wh=(100, 100))
        >>> frame_of((0, 0, 400, 200), Recipe(size=100, fit="within")).item_wh
        (100, 50)
    """
    width, height = window[2] - window[0], window[3] - window[1]
    if recipe.size is None:
        return Frame(window, (width, height), (0, 0), (width, height))
    square = (recipe.size, recipe.size)
    if recipe.fit == "stretch":
        return Frame(window, square, (0, 0), square)
    scale = recipe.size / max(width, height)
    if recipe.fit == "within":
        scale = min(scale, 1.0)
    content = max(1, round(width * scale)), max(1, round(height * scale))
    if recipe.fit == "within":
        return Frame(window, content, (0, 0), content)
    return Frame(window, content, ((recipe.size - content[0]) // 2, (recipe.size - content[1]) // 2), square)


def resized(pixels: Pixels, size_wh: tuple[int, int]) -> Pixels:
    """Resize an image to a width and height: what shrinks by OpenCV's INTER_AREA, then what grows by INTER_LINEAR.

    Args:
        pixels: (H, W) or (H, W, C) ``uint8``.
        size_wh: The new width and height.

    Example:
        >>> resized(np.array([[0, 255, 255, 255]], np.uint8), (2, 1)).tolist()
        [[128, 255]]
    """
    height, width = pixels.shape[:2]
    smaller = min(width, size_wh[0]), min(height, size_wh[1])
    for goal, interpolation in ((smaller, cv2.INTER_AREA), (size_wh, cv2.INTER_LINEAR)):
        if pixels.shape[1::-1] != goal:
            pixels = np.asarray(cv2.resize(np.ascontiguousarray(pixels), goal, interpolation=interpolation), np.uint8)
    return pixels
