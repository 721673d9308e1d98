"""Masks of whole clips in a folder, by what they depend on.

A file has in its first line the SHA-256 of all that follows, which is JSON: what the masks depend on, their size
(T, H, W), and for each frame COCO's run lengths, or null where there is nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autodistill_sam3.errors import SettingError
from autodistill_sam3.rle import crop_to_rle, decompress
from autodistill_sam3.whole_files import PART, replacing

Masks = npt.NDArray[np.bool_]

logger = logging.getLogger("autodistill_sam3")


class MaskCache:
    """A folder of masks; it is made when the first are stored. Several processes may use it at a time.

    Args:
        folder: Where it is.

    Raises:
        SettingError: There is a file in its place.

    Example:
        >>> import tempfile
        >>> cache, masks = MaskCache(Path(tempfile.mkdtemp())), np.eye(3, dtype=bool)[None]
        >>> cache.store({"clip": "a"}, masks)
        >>> (cache.load({"clip": "a"}, masks.shape) == masks).all(), cache.load({"clip": "b"}, masks.shape)
        (np.True_, None)
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise SettingError(f"Expected a folder for cache, received a file: {folder}")
        self._folder = folder

    def load(self, settings: Mapping[str, Any], shape: tuple[int, int, int]) -> Masks | None:
        """(T, H, W) ``bool`` stored for the same settings; None if there are none that are whole and of this shape."""
        path = self._path(settings)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("%s cannot be read and is made anew: %s", path, error)
            return None
        try:
            return _decoded(content, shape)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            logger.warning("%s is damaged and is made anew: %s", path, error)
            return None

    def store(self, settings: Mapping[str, Any], masks: Masks) -> None:
        """Keep masks (T, H, W). A disk that does not take them is logged: they are there all the same."""
        path = self._path(settings)
        stored = {"settings": settings, "size": masks.shape, "counts": [_counts(mask) for mask in masks]}
        body = json.dumps(stored, default=str)
        content = body.encode()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(path, "wb", part=f".{path.stem}.{os.getpid()}{PART}") as file:
                file.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        except OSError as error:
            logger.warning("%s cannot be written: %s", path, error)

    def _path(self, settings: Mapping[str, Any]) -> Path:
        text = json.dumps(settings, sort_keys=True, default=str)
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"


def _counts(mask: Masks) -> str | None:
    height, width = mask.shape
    return crop_to_rle(np.ascontiguousarray(mask), 0, 0, (height, width))["counts"] if mask.any() else None


def _decoded(content: bytes, shape: tuple[int, int, int]) -> Masks:
    digest, _, body = content.partition(b"\n")
    if digest.decode("ascii", "replace") != hashlib.sha256(body).hexdigest():
        raise ValueError("its content is not what was written")
    stored = json.loads(body)
    if stored["size"] != list(shape) or len(stored["counts"]) != shape[0]:
        raise ValueError(f"expected masks of the size {shape}, received {stored['size']}")
    masks = np.zeros(shape, dtype=np.bool_)
    for mask, counts in zip(masks, stored["counts"], strict=True):
        if counts is not None:
            runs = decompress(counts)
            if (runs < 0).any() or (runs > mask.size).any() or runs.sum() != mask.size:
                raise ValueError("expected run lengths that fill a frame")
            mask[:] = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(mask.shape[::-1]).T
    return masks
