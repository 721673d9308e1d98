"""Anything that is an image -> RGB uint8 (H, W, 3), upright."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from autodistill_sam3.errors import ImageError
from autodistill_sam3.images.files import decode_file, is_plain
from autodistill_sam3.images.pixels import MAX_SIDE, RGBImage, rgb_from_bgr, rgb_from_pil

ImageInput: TypeAlias = "str | Path | Image.Image | npt.NDArray[Any]"

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
)
# Trainers look for images by their suffix, and some do not know the others.
_TRAINERS_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
URL_TIMEOUT_S = 30.0
URL_MAX_BYTES = 64 * 2**20

# Room for four 16-bit samples a pixel, uncompressed.
_MAX_FILE_BYTES = 8 * MAX_SIDE**2 + 64 * 2**20


def load_image(source: ImageInput) -> RGBImage:
    """Read an image from a path, an http(s) URL, a PIL image or an array.

    Reads JPEG, PNG, WebP, BMP, TIFF, GIF and AVIF of up to 20,000 pixels a side (`MAX_SIDE`), the first frame or page
    of each, whatever the file is called. 16-bit samples are divided by 257 and rounded. Deeper ones and floats are
    scaled so that 1, 255 or 65535 is white, whichever is the first to hold the image's largest value.

    Args:
        source: A path (``str`` or ``Path``) or URL (``str``); a PIL image of any mode, with its EXIF orientation; or an
            array in autodistill's channel order: (H, W) gray, (H, W, 3) BGR or (H, W, 4) BGRA, ``uint8`` or ``uint16``.

    Returns:
        RGB ``uint8`` of shape (H, W, 3), upright, transparent pixels on white, C-contiguous.

    Raises:
        ImageError: It is missing, damaged, cut short, too large, or no image at all.

    Example:
        >>> import numpy as np
        >>> blue_in_bgr = np.zeros((2, 3, 3), dtype=np.uint8)
        >>> blue_in_bgr[..., 0] = 255
        >>> load_image(blue_in_bgr)[0, 0].tolist()
        [0, 0, 255]
    """
    if isinstance(source, np.ndarray):
        return rgb_from_bgr(source)
    if isinstance(source, Image.Image):
        return _guarded(lambda: rgb_from_pil(source), "the PIL image")
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        content = _download(source)
        return _guarded(lambda: decode_file(content), source)
    if isinstance(source, (str, Path)):
        content = _read_file(Path(source))
        return _guarded(lambda: decode_file(content), str(source))
    raise ImageError(
        f"Expected a path, a URL, a PIL image or a BGR array, received {type(source).__name__}. "
        "Tensors: pass `tensor.permute(1, 2, 0).numpy()` in BGR order."
    )


def has_image_suffix(path: Path) -> bool:
    """Whether the name ends like an image that :func:`load_image` reads, in any case."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_plain_rgb_file(path: Path) -> bool:
    """Whether every reader finds this file and sees the same pixels in it as :func:`load_image` does.

    True for upright 8-bit RGB or gray JPEG, PNG, WebP and BMP under one of their usual suffixes: those may be copied
    into a dataset byte for byte. It looks at the header alone, so the answer is for files that :func:`load_image` has
    read. What is no image is not plain.
    """
    if path.suffix.lower() not in _TRAINERS_SUFFIXES:
        return False
    try:
        return is_plain(_read_file(path))
    # As in _guarded.
    except Exception:
        return False


def _guarded(decode: Callable[[], RGBImage], name: str) -> RGBImage:
    try:
        return decode()
    except ImageError as error:
        raise ImageError(f"{error} ({name})") from error
    # Pillow's and OpenCV's decoders raise another type for each kind of damage, and no file may end a run.
    except Exception as error:
        raise ImageError(f"Expected an image, but {name} cannot be decoded: {error}") from error


def _read_file(path: Path) -> bytes:
    try:
        if not path.exists():
            raise ImageError(f"Expected an image file, received a path that does not exist: {path}")
        status = path.stat()
        if S_ISDIR(status.st_mode):
            raise ImageError(f"Expected an image file, received a folder: {path}. Use label() for folders.")
        if not S_ISREG(status.st_mode):
            raise ImageError(f"Expected an image file, received a pipe, socket or device: {path}")
        if status.st_size > _MAX_FILE_BYTES:
            raise ImageError(f"Expected a file of at most {_MAX_FILE_BYTES} bytes, received {status.st_size}: {path}")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"Expected an image, but the file cannot be read: {error}") from error


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
