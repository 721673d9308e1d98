"""Pixels as Pillow and OpenCV hold them -> RGB uint8 (H, W, 3), upright."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from autodistill_sam3.errors import ImageError

RGBImage: TypeAlias = npt.NDArray[np.uint8]

# Larger images are refused from their header; 20,000 x 20,000 pixels take 1.2 GB as RGB.
MAX_SIDE = 20_000

_STRIP_PIXELS = 2**22
_EXIF_ORIENTATION = 0x0112
_TURNS: dict[int, Callable[[RGBImage], Any]] = {
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.flip(pixels, -1),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.flip(cv2.transpose(pixels), -1),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def check_size(size_wh: tuple[int, int]) -> None:
    if max(size_wh) > MAX_SIDE:
        raise ImageError(
            f"Expected at most {MAX_SIDE} pixels a side, received {size_wh[0]} x {size_wh[1]}: too many pixels. "
            "Cut it up or scale it down first."
        )


def rgb_from_bgr(array: npt.NDArray[Any]) -> RGBImage:
    is_gray = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    is_colour = array.ndim == 3 and array.shape[2] in (3, 4)
    if array.size == 0 or not (is_gray or is_colour) or array.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            "Expected an array of shape (H, W), (H, W, 3) or (H, W, 4), uint8 or uint16, BGR, "
            f"received shape {array.shape}, {array.dtype}"
        )
    if is_gray or array.shape[2] == 4 or array.dtype == np.uint16:
        return rgb_from_stored(array)
    # Always a copy: an array that was itself a reversed view would come back as the caller's own memory.
    return np.array(array[..., ::-1], order="C")


def rgb_from_pil(image: Image.Image) -> RGBImage:
    check_size(image.size)
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        return turned_upright(rgb_from_stored(np.asarray(image)), image)
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB") or image
    if image.mode == "La":
        image = image.convert("LA")
    has_alpha = image.mode in ("RGBA", "LA", "RGBa", "PA") or "transparency" in image.info
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for rows in strips(image.height, image.width):
        strip = image.crop((0, rows.start, image.width, rows.stop))
        pixels[rows] = np.asarray(_on_white(strip.convert("RGBA")) if has_alpha else strip.convert("RGB"))
    return turned_upright(pixels, image)


def _on_white(strip: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB")


def rgb_from_stored(stored: npt.NDArray[Any], *, is_inverted: bool = False) -> RGBImage:
    """Gray, BGR or BGRA of any depth -> 8-bit RGB."""
    white = _white_of(stored)
    height, width = stored.shape[:2]
    pixels = np.empty((height, width, 3), np.uint8)
    for rows in strips(height, width):
        strip = stored[rows].reshape(rows.stop - rows.start, width, -1).astype(np.float32) * (255 / white)
        if strip.shape[2] == 4:
            alpha = strip[..., 3:] / 255
            strip = strip[..., :3] * alpha + 255 * (1 - alpha)
        strip = np.clip(np.rint(np.nan_to_num(strip[..., ::-1])), 0, 255)
        pixels[rows] = 255 - strip if is_inverted else strip
    return pixels


def _white_of(stored: npt.NDArray[Any]) -> float:
    if stored.dtype in (np.uint8, np.uint16):
        return float(np.iinfo(stored.dtype).max)
    is_float = stored.dtype.kind == "f"
    highest = float(np.max(stored, where=np.isfinite(stored), initial=0))
    whites = (1, 255, 65_535, highest) if is_float else (255, 65_535, np.iinfo(stored.dtype).max)
    return next(float(white) for white in whites if highest <= white)


def strips(height: int, width: int) -> Iterator[slice]:
    """Rows that are converted at once, so that only the result is as large as the image."""
    step = max(_STRIP_PIXELS // width, 1)
    return (slice(start, min(start + step, height)) for start in range(0, height, step))


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 if there is none and 0 if it cannot be read."""
    try:
        # PNG's own method decodes the pixels to look behind them; see _has_late_orientation.
        return int(Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1))
    # Damaged EXIF raises whatever its damage leads to, and takes nothing from the pixels.
    except Exception:
        return 0


def turned_upright(pixels: RGBImage, image: Image.Image) -> RGBImage:
    turn = _TURNS.get(orientation_of(image))
    return pixels if turn is None else np.asarray(turn(pixels), np.uint8)
