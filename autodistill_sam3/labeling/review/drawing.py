"""Images with their detections drawn in: one overlay, or sheets of many."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import supervision as sv
from PIL import Image, ImageDraw

from autodistill_sam3.images import RGBImage
from autodistill_sam3.labeling.review.text import font_for, font_path_for, printable, shorten
from autodistill_sam3.whole_files import replacing

CELL = 360
MARGIN = 4
_CAPTION = 26
_CAPTION_SIZE = 13
_INDENT = 6
_BASE_LINE = 17
_COLUMNS = 4
_ROWS = 4
_BACKGROUND = 245
_INK = (40, 40, 40)
_SOFT_INK = (110, 110, 110)


def draw_detections(image: RGBImage, detections: sv.Detections) -> RGBImage:
    """Draw masks, boxes and labels ("class 0.87") into a copy of an RGB image (H, W, 3) ``uint8``."""
    scene = np.ascontiguousarray(image[..., ::-1])
    size = max(image.shape[:2])
    thickness = max(1, size // 400)
    if detections.mask is not None:
        scene = sv.MaskAnnotator(opacity=0.35).annotate(scene, detections)
        scene = sv.PolygonAnnotator(thickness=thickness).annotate(scene, detections)
    else:
        scene = sv.BoxAnnotator(thickness=thickness).annotate(scene, detections)
    labels = _labels(detections)
    annotator = sv.RichLabelAnnotator(
        font_path=font_path_for("".join(labels)),
        font_size=max(11, size // 60),
        text_padding=max(2, size // 400),
        text_color=sv.Color.BLACK,
    )
    return np.ascontiguousarray(annotator.annotate(scene, detections, labels)[..., ::-1], dtype=np.uint8)


def save_png(image: RGBImage, path: Path) -> None:
    """Write an RGB image; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "wb") as file:
        Image.fromarray(image).save(file, format="PNG")


class ReviewSheet:
    """Collects overlays into PNG sheets of 16 images, one sheet in memory at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cells: list[RGBImage] = []
        self.paths: list[Path] = []

    def add(self, image: RGBImage, detections: sv.Detections, caption: str) -> None:
        """Add an RGB image with its detections; a full sheet is written."""
        self.add_cell(draw_cell(image, detections, caption, str(len(detections))))

    def add_cell(self, cell: RGBImage) -> None:
        """Add what :func:`draw_cell` made; a full sheet is written."""
        self._cells.append(cell)
        if len(self._cells) == _COLUMNS * _ROWS:
            self._write()

    def close(self) -> list[Path]:
        """Write the last sheet.

        Returns:
            The paths of all sheets.
        """
        if self._cells:
            self._write()
        return self.paths

    def _write(self) -> None:
        path = self._folder / f"sheet_{len(self.paths) + 1:04d}.png"
        save_png(tile(self._cells), path)
        self.paths.append(path)
        self._cells = []


def draw_sheet(items: Iterable[tuple[RGBImage, sv.Detections, str]]) -> RGBImage:
    """One sheet of any number of (RGB image, detections, caption)."""
    return tile([draw_cell(image, detections, caption, str(len(detections))) for image, detections, caption in items])


def draw_cell(image: RGBImage, detections: sv.Detections, caption: str, note: str) -> RGBImage:
    """One cell of a sheet, (386, 360, 3), over its caption and, at the right, a note.

    The image is scaled before drawing, so that lines and letters have one size on the sheet.
    """
    height, width = image.shape[:2]
    scale = (CELL - 2 * MARGIN) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    overlay = draw_detections(resize(image, size), _scaled(detections, size, scale))
    cell = np.full((CELL + _CAPTION, CELL, 3), _BACKGROUND, dtype=np.uint8)
    top, left = (CELL - size[1]) // 2, (CELL - size[0]) // 2
    cell[top : top + size[1], left : left + size[0]] = overlay
    return _with_caption(cell, printable(caption), note)


def resize(image: RGBImage, size_wh: tuple[int, int]) -> RGBImage:
    """Scale an RGB image to a width and height."""
    if image.shape[1::-1] == size_wh:
        return image
    interpolation = cv2.INTER_AREA if size_wh[0] < image.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(image), size_wh, interpolation=interpolation), dtype=np.uint8)


def _with_caption(cell: RGBImage, text: str, note: str) -> RGBImage:
    picture = Image.fromarray(cell)
    draw = ImageDraw.Draw(picture)
    font = font_for(text + note, _CAPTION_SIZE)
    room = CELL - 3 * _INDENT - font.getlength(note)
    length = len(text)
    while length > 1 and font.getlength(shorten(text, length)) > room:
        length -= 1
    # "s": on the base line, so that names with and without descenders stand on one.
    draw.text((_INDENT, CELL + _BASE_LINE), shorten(text, length), fill=_INK, font=font, anchor="ls")
    draw.text((CELL - _INDENT, CELL + _BASE_LINE), note, fill=_SOFT_INK, font=font, anchor="rs")
    return np.asarray(picture, dtype=np.uint8)


def tile(cells: list[RGBImage]) -> RGBImage:
    """Lay out equally large cells in rows of at most four."""
    columns = min(_COLUMNS, len(cells))
    blank = np.full_like(cells[0], _BACKGROUND)
    padded = cells + [blank] * (-len(cells) % columns)
    rows = [np.concatenate(padded[start : start + columns], axis=1) for start in range(0, len(padded), columns)]
    return np.concatenate(rows, axis=0)


def _scaled(detections: sv.Detections, size_wh: tuple[int, int], scale: float) -> sv.Detections:
    masks = detections.mask
    if masks is not None and masks.shape[1:] != size_wh[::-1]:
        resized = [cv2.resize(mask.astype(np.uint8), size_wh, interpolation=cv2.INTER_NEAREST) for mask in masks]
        masks = np.array(resized, dtype=bool).reshape(-1, size_wh[1], size_wh[0])
    return sv.Detections(
        xyxy=detections.xyxy * scale,
        mask=masks,
        confidence=detections.confidence,
        class_id=detections.class_id,
        data=detections.data,
    )


def _labels(detections: sv.Detections) -> list[str]:
    names = detections.data.get("class_name", np.array([""] * len(detections)))
    values = detections.confidence if detections.confidence is not None else np.ones(len(detections))
    return [f"{printable(str(name))} {value:.2f}" for name, value in zip(names, values, strict=True)]
