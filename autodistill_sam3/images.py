"""Anything that is an image -> RGB uint8 (H, W, 3), upright.

The only module that knows of BGR, EXIF orientation, alpha, palettes, CMYK and 16 bit.
"""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from autodistill_sam3.errors import ImageError

RGBImage: TypeAlias = npt.NDArray[np.uint8]
ImageInput: TypeAlias = "str | Path | Image.Image | npt.NDArray[Any]"

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
URL_TIMEOUT_S = 30.0
URL_MAX_BYTES = 64 * 2**20

_WHITE = (255, 255, 255)
_EXIF_ORIENTATION = 0x0112


def load_image(source: ImageInput) -> RGBImage:
    """Read an image from a path, an http(s) URL, a PIL image or an array.

    Args:
        source: A path (``str`` or ``Path``) or URL (``str``); a PIL image of any mode, with its EXIF orientation; or an
            array in autodistill's channel order: (H, W) gray, (H, W, 3) BGR or (H, W, 4) BGRA, ``uint8`` or ``uint16``.

    Returns:
        RGB ``uint8`` of shape (H, W, 3), upright, transparent pixels on white, C-contiguous.

    Raises:
        ImageError: It is missing, damaged, too large, or no image at all.

    Example:
        >>> import numpy as np
        >>> blue_in_bgr = np.zeros((2, 3, 3), dtype=np.uint8)
        >>> blue_in_bgr[..., 0] = 255
        >>> load_image(blue_in_bgr)[0, 0].tolist()
        [0, 0, 255]
    """
    if isinstance(source, np.ndarray):
        return _from_bgr_array(source)
    if isinstance(source, Image.Image):
        return _decode(lambda: source, "the PIL image")
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        content = io.BytesIO(_download(source))
        return _decode(lambda: Image.open(content), source)
    if isinstance(source, (str, Path)):
        return _from_path(Path(source))
    raise ImageError(
        f"Expected a path, a URL, a PIL image or a BGR array, received {type(source).__name__}. "
        "Tensors: pass `tensor.permute(1, 2, 0).numpy()` in BGR order."
    )


def has_image_suffix(path: Path) -> bool:
    """Whether the name ends like an image that :func:`load_image` reads, in any case."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_plain_rgb_file(path: Path) -> bool:
    """Whether every reader sees the same pixels in this file as :func:`load_image` does.

    True for upright 8-bit RGB or gray JPEG, PNG, WebP and BMP: those may be copied into a dataset byte for byte.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            return (
                image.format in ("JPEG", "PNG", "WEBP", "BMP")
                and image.mode in ("RGB", "L")
                and "transparency" not in image.info
                and not any(";16" in str(tile) for tile in image.tile)
                and image.getexif().get(_EXIF_ORIENTATION, 1) in (0, 1)
                and getattr(image, "n_frames", 1) == 1
            )


def _from_path(path: Path) -> RGBImage:
    try:
        if not path.exists():
            raise ImageError(f"Expected an image file, received a path that does not exist: {path}")
        if path.is_dir():
            raise ImageError(f"Expected an image file, received a folder: {path}. Use label() for folders.")
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f"Expected an image, but the file cannot be read: {error}") from error
    return _decode(lambda: Image.open(io.BytesIO(content)), str(path))


def _decode(open_image: Callable[[], Image.Image], name: str) -> RGBImage:
    try:
        with warnings.catch_warnings():
            # Pillow warns at 90 and refuses at 179 megapixels; only the refusal is of use here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            pixels = _from_pil(open_image())
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has too many pixels to be opened safely: {error}") from error
    # Pillow's decoders raise a different type for each kind of damage.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, MemoryError) as error:
        raise ImageError(f"Expected an image, but {name} cannot be decoded: {error}") from error
    if pixels.size == 0:
        raise ImageError(f"Expected an image of at least one pixel, received {name} of {pixels.shape[:2]}")
    return pixels


def _from_pil(image: Image.Image) -> RGBImage:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        return _from_gray(np.asarray(upright))
    if upright.mode == "PA" or "transparency" in upright.info:
        upright = upright.convert("RGBA")
    if upright.mode in ("RGBA", "LA", "La", "RGBa"):
        upright = upright.convert("RGBA")
        background = Image.new("RGBA", upright.size, (*_WHITE, 255))
        upright = Image.alpha_composite(background, upright)
    return np.array(upright.convert("RGB"), dtype=np.uint8)


def _from_gray(gray: npt.NDArray[Any]) -> RGBImage:
    """16-bit integers are scaled by 257; 32-bit ones and floats that already fit 8 bits stay as they are."""
    is_wide = gray.dtype == np.uint16 or (gray.size > 0 and gray.max() > 255)
    values = gray.astype(np.float64) / 257 if is_wide else gray.astype(np.float64)
    eight_bit = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(eight_bit[..., None], 3, axis=2))


def _from_bgr_array(array: npt.NDArray[Any]) -> RGBImage:
    is_gray = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    is_colour = array.ndim == 3 and array.shape[2] in (3, 4)
    if array.size == 0 or not (is_gray or is_colour) or array.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            "Expected an array of shape (H, W), (H, W, 3) or (H, W, 4), uint8 or uint16, BGR, "
            f"received shape {array.shape}, {array.dtype}"
        )
    if array.dtype == np.uint16:
        array = np.rint(array / 257).astype(np.uint8)
    if is_gray:
        return _from_gray(array.reshape(array.shape[:2]))
    if array.shape[2] == 4:
        return _from_pil(Image.fromarray(np.ascontiguousarray(array[..., [2, 1, 0, 3]])))
    # Always a copy: an array that was itself a reversed view would come back as the caller's own memory.
    return np.array(array[..., ::-1], order="C")


def _download(url: str) -> bytes:
    import requests
    import urllib3

    deadline = time.monotonic() + URL_TIMEOUT_S
    content = bytearray()
    try:
        with requests.get(url, stream=True, timeout=URL_TIMEOUT_S) as response:
            response.raise_for_status()
            # read1 hands over what has arrived; iter_content would wait for a full chunk, past any deadline.
            while chunk := response.raw.read1(2**16, decode_content=True):
                content += chunk
                if len(content) > URL_MAX_BYTES:
                    raise ImageError(f"{url} is larger than {URL_MAX_BYTES // 2**20} MiB. Download it first.")
                if time.monotonic() > deadline:
                    raise ImageError(f"{url} took longer than {URL_TIMEOUT_S:.0f} s. Download it first.")
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise ImageError(f"Expected an image at {url}, the download failed: {error}") from error
    return bytes(content)
