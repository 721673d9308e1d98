"""One image -> its card on the page and its cell of a sheet."""

from __future__ import annotations

import base64
import io
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from autodistill_sam3.errors import ImageError
from autodistill_sam3.images import RGBImage, load_image
from autodistill_sam3.labeling.records import ImageRecord
from autodistill_sam3.labeling.review.doubt import LOW_CONFIDENCE, Doubt
from autodistill_sam3.labeling.review.drawing import CELL, MARGIN, draw_cell, resize
from autodistill_sam3.labeling.review.page import Card, Shape, counted, removal_label
from autodistill_sam3.labeling.review.shapes import (
    MAX_OBJECTS_DRAWN,
    Outline,
    Size,
    class_name,
    fit,
    outlines,
    small_detections,
)
from autodistill_sam3.labeling.review.summary import removed_from
from autodistill_sam3.labeling.review.text import image_href, printable, shorten

_THUMBNAIL = 640
# Outlines are finer than the thumbnail, so that they stay smooth when it is enlarged.
_GRID = 2 * _THUMBNAIL
_QUALITY = 78
_NAME_LENGTH = 90
_GRAY = 128
_SOURCES = {"both": "text and boxes", "text": "text alone", "boxes": "boxes alone"}


@dataclass(frozen=True)
class Drawing:
    """A finished image; its cell is packed, for all that are shown are held until their order is known."""

    card: Card
    packed_cell: bytes

    @property
    def cell(self) -> RGBImage:
        """The cell of a sheet, (h, 360, 3)."""
        return np.frombuffer(zlib.decompress(self.packed_cell), dtype=np.uint8).reshape(-1, CELL, 3)


def draw_record(record: ImageRecord, doubt: Doubt, path: Path, classes: Sequence[str]) -> Drawing:
    """Draw an image; one that cannot be read gives a card that says so."""
    size = record["width"], record["height"]
    pixels, problem = _small_image(path, fit(size, _THUMBNAIL))
    cell_size = fit(size, CELL - 2 * MARGIN)
    shrunk = np.full((*cell_size[::-1], 3), _GRAY, dtype=np.uint8) if pixels is None else resize(pixels, cell_size)
    note = f"{counted(len(record['annotations']), 'object')}, doubt {doubt.score:.2f}"
    cell = draw_cell(shrunk, small_detections(record, cell_size, classes), record["source"], note)
    return Drawing(_card(record, doubt, classes, pixels, problem), zlib.compress(cell.tobytes(), 1))


def _card(record: ImageRecord, doubt: Doubt, classes: Sequence[str], pixels: RGBImage | None, problem: str) -> Card:
    size = record["width"], record["height"]
    thumbnail, grid = fit(size, _THUMBNAIL), fit(size, _GRID)
    source = printable(record["source"])
    objects = _objects_in_words(record, classes)
    return Card(
        key="",
        source=source,
        name=shorten(source, _NAME_LENGTH),
        split=record["split"],
        href=image_href(record["split"], record["file"]),
        uri="" if pixels is None else _data_uri(pixels),
        problem=problem,
        size=thumbnail,
        grid=f"{thumbnail[0] / grid[0]:.6g} {thumbnail[1] / grid[1]:.6g}",
        shapes=[_shape(outline, classes) for outline in outlines(record, grid)],
        alt=f"{source}: {objects}",
        doubt=f"{doubt.score:.2f}",
        pixels=f"{size[0]} \N{MULTIPLICATION SIGN} {size[1]}",
        objects=_count_of(record),
        removed=", ".join(f"removed {count}: {removal_label(key)}" for key, count in removed_from(record).items()),
        reasons=doubt.reasons,
        class_ids=" ".join(map(str, sorted({annotation["class_id"] for annotation in record["annotations"]}))),
    )


def _small_image(path: Path, size_wh: Size) -> tuple[RGBImage | None, str]:
    """A thumbnail of this size, or None and why not."""
    try:
        pixels = load_image(path)
    except ImageError as error:
        return None, printable(f"The image cannot be shown: {error}")
    return resize(pixels, size_wh), ""


def _data_uri(pixels: RGBImage) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="WEBP", quality=_QUALITY, method=2)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _shape(outline: Outline, classes: Sequence[str]) -> Shape:
    annotation = outline.annotation
    words = [f"{printable(class_name(classes, annotation['class_id']))} {annotation['confidence']:.2f}"]
    prompt, source = annotation["data"].get("prompt"), annotation["data"].get("source")
    words += [f"“{printable(prompt)}”"] if prompt else []
    words += [_SOURCES.get(source, printable(source))] if source else []
    return Shape(
        class_id=annotation["class_id"],
        path=path_data(ring.tolist() for ring in outline.rings),
        label=" · ".join(words),
        low=annotation["confidence"] < LOW_CONFIDENCE,
    )


def path_data(rings: Iterable[Sequence[Sequence[int]]]) -> str:
    """SVG path data of closed rings of whole numbers, each point relative to the one before.

    Example:
        >>> path_data([[[2, 3], [7, 3], [7, 1]]])
        'M2 3l5 0 0-2z'
    """
    parts = []
    for ring in rings:
        steps = [(x - u, y - v) for (u, v), (x, y) in pairwise(ring)]
        numbers = " ".join(f"{x} {y}" for x, y in steps).replace(" -", "-")
        parts.append(f"M{ring[0][0]} {ring[0][1]}{f'l{numbers}' if numbers else ''}z")
    return "".join(parts)


def _count_of(record: ImageRecord) -> str:
    count = len(record["annotations"])
    drawn = f", the {MAX_OBJECTS_DRAWN} least certain drawn" if count > MAX_OBJECTS_DRAWN else ""
    return counted(count, "object") + drawn


def _objects_in_words(record: ImageRecord, classes: Sequence[str]) -> str:
    counts = Counter(annotation["class_id"] for annotation in record["annotations"])
    words = [f"{count} {printable(class_name(classes, class_id))}" for class_id, count in sorted(counts.items())]
    return ", ".join(words) or "no objects"
