"""What is known of each image of the labelled folder before anything is chosen: `measured.jsonl`, a line per image."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from autodistill_sam3.background import BACKGROUND
from autodistill_sam3.errors import ImageError
from autodistill_sam3.exchange.dataset import DatasetImage, DatasetObject
from autodistill_sam3.images import RGBImage, load_image
from autodistill_sam3.labeling import folder
from autodistill_sam3.labeling.names import SourceImage
from autodistill_sam3.labeling.split import perceptual_hash
from autodistill_sam3.preparation.frames import Mask, Pixels, resized
from autodistill_sam3.preparation.items import (
    WITHOUT_A_PIXEL,
    Item,
    items_of,
    objects_in,
    render,
    seen_without_transparency,
    whole_mask,
)
from autodistill_sam3.recipe import Recipe

# Above it, an item is shrunk before its sharpness is measured, so that those of all cameras compare.
SHARPNESS_SIDE = 512
WITHOUT_A_MASK = "without_a_mask"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Depth and type of colour in a PNG's header.
_PNG_8_BIT_RGBA = b"\x08\x06"


@dataclass(frozen=True, slots=True)
class MeasuredItem:
    """What is known of an item.

    Attributes:
        number: Place of its object among its image's, from 1; None for a whole image.
        class_id: Of its object.
        side: In pixels of the image, the shorter side of its object's box, or of the image.
        sharpness: Variance of the Laplacian.
        phash: 16 hexadecimal digits.
        classes: Class ids of the objects that it would have, without the background.
        removed: How many more it would have had, by reason.
        fault: Why nothing can be made of it; empty if something can.
    """

    number: int | None
    class_id: int | None
    side: float
    sharpness: float
    phash: str
    classes: list[int]
    removed: dict[str, int]
    fault: str


@dataclass(frozen=True, slots=True)
class MeasuredImage:
    """What is known of an image.

    Attributes:
        path: In the labelled folder.
        size: In bytes.
        mtime_ns: When it was changed last.
        sha256: Of the file.
        labels_sha256: Of its objects.
        is_copied: Whether it is taken over byte for byte.
        items: What can be made of it.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    labels_sha256: str
    is_copied: bool
    items: list[MeasuredItem]


class Measurements:
    """The images that are measured, also by earlier runs.

    Args:
        path: The file, which lines are appended to. One that is damaged is passed over: its image is measured again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._images: dict[str, MeasuredImage] = {}
        if path.exists():
            self._read()

    def find(self, image: DatasetImage, place: Path, labels_sha256: str) -> MeasuredImage | None:
        """What is known of an image, if neither its file nor its objects have changed since."""
        known = self._images.get(image.path)
        if known is None or known.labels_sha256 != labels_sha256:
            return None
        try:
            status = place.stat()
        except OSError:
            # What was finished of it is worth more than what can no longer be read.
            return known
        return known if (status.st_size, status.st_mtime_ns) == (known.size, known.mtime_ns) else None

    def __contains__(self, measured: MeasuredImage) -> bool:
        return self._images.get(measured.path) == measured

    def add(self, measured: MeasuredImage) -> None:
        """Append a line."""
        with self._path.open("ab") as file:
            file.write(json.dumps(asdict(measured), separators=(",", ":")).encode() + b"\n")
        self._images[measured.path] = measured

    def _read(self) -> None:
        end = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                try:
                    measured = _parse(line)
                except (ValueError, KeyError, TypeError):
                    continue
                self._images[measured.path] = measured
        if end < self._path.stat().st_size:
            # The next line would be glued to it.
            os.truncate(self._path, end)


def measure(dataset: Path, image: DatasetImage, objects: Sequence[DatasetObject], recipe: Recipe) -> MeasuredImage:
    """Read an image and measure its items.

    Raises:
        ImageError: It cannot be read, or is of another size than its labels.
    """
    place = dataset / image.path
    pixels = read_pixels(place, image)
    # After the pixels, which can be read only of regular files.
    try:
        status, content = place.stat(), place.read_bytes()
    except OSError as error:
        raise ImageError(f"Expected an image, but the file cannot be read: {error}") from error
    items = items_of(image, objects, recipe)
    is_whole = recipe.items == "images" and not items[0].frame.is_resized
    return MeasuredImage(
        path=image.path,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        sha256=hashlib.sha256(content).hexdigest(),
        labels_sha256=labels_digest(image, objects),
        is_copied=is_whole and (_is_cutout(content) or folder.is_copied(SourceImage(place, place.name))),
        items=[_measure_item(pixels, item, objects, recipe) for item in items],
    )


def read_pixels(place: Path, image: DatasetImage) -> RGBImage:
    """The pixels of an image, RGB (H, W, 3) ``uint8``.

    Raises:
        ImageError: It cannot be read, or is of another size than its labels.
    """
    pixels = load_image(place)
    if pixels.shape[:2] != image.image_hw:
        raise ImageError(
            f"Expected {image.width} x {image.height} pixels, as its labels say, received {pixels.shape[1]} x "
            f"{pixels.shape[0]}: {place}. Label it again."
        )
    return pixels


def labels_digest(image: DatasetImage, objects: Sequence[DatasetObject]) -> str:
    """SHA-256 of an image's objects and their frame."""
    content = [image.width, image.height, [dataclasses.astuple(one) for one in objects]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def sharpness_of(pixels: Pixels, mask: Mask | None = None) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, 2000).

    Args:
        pixels: RGB (H, W, 3) ``uint8``, as 8-bit gray. If its longer side has more than 512 pixels it is brought down
            to that by means of pixels.
        mask: (H, W) ``bool``: the variance is that of these pixels; all if None.

    Example:
        >>> sharpness_of(np.full((20, 30, 3), 90, np.uint8))
        0.0
    """
    gray = np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY), np.uint8)
    scale = SHARPNESS_SIDE / max(gray.shape)
    if scale < 1:
        size = max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale))
        gray = resized(gray, size)
        if mask is not None:
            coverage = resized(mask.view(np.uint8) * np.uint8(255), size)
            mask = coverage >= min(128, coverage.max())
    laplacian = cv2.Laplacian(gray, cv2.CV_64F)
    return round(float((laplacian if mask is None else laplacian[mask]).var()), 6)


def _measure_item(pixels: RGBImage, item: Item, objects: Sequence[DatasetObject], recipe: Recipe) -> MeasuredItem:
    shown = objects_in(item, objects, recipe)
    own = None if item.own is None else objects[item.own]
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = item.natural.window
    natural, mask = pixels[y1:y2, x1:x2], None
    if recipe.items == "cutouts" and own is not None and own.segmentation is not None:
        x, y, _, _ = own.bbox
        crop = own.crop()[0], int(x) - x1, int(y) - y1
        mask = whole_mask(crop, item.natural.item_wh)
        seen = render(pixels, item.natural, seen_without_transparency(recipe), crop)
    else:
        seen = natural
    return MeasuredItem(
        number=item.number,
        class_id=None if own is None else own.class_id,
        side=min(own.bbox[2:]) if own is not None else min(width, height),
        sharpness=sharpness_of(natural, mask),
        phash=perceptual_hash(np.ascontiguousarray(seen)),
        classes=[objects[index].class_id for index in shown.found if objects[index].source != BACKGROUND],
        removed=dict(sorted((+shown.removed).items())),
        fault=_fault_of(item, own, shown.found, recipe),
    )


def _fault_of(item: Item, own: DatasetObject | None, found: Any, recipe: Recipe) -> str:
    if own is None:
        return ""
    if recipe.items == "cutouts" and own.segmentation is None:
        return WITHOUT_A_MASK
    return "" if item.own in found else WITHOUT_A_PIXEL


def _is_cutout(content: bytes) -> bool:
    """Whether a file is one of this package's cut-outs with alpha: an 8-bit RGBA PNG with nothing but pixels.

    Source: PNG specification (W3C, third edition), 5.3 and 11.2.1.
    """
    return content[:8] == _PNG_SIGNATURE and content[24:26] == _PNG_8_BIT_RGBA and content[37:41] == b"IDAT"


def _parse(line: bytes) -> MeasuredImage:
    values = json.loads(line)
    values["items"] = [MeasuredItem(**item) for item in values["items"]]
    return MeasuredImage(**values)
