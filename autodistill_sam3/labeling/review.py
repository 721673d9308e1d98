"""Pictures to check labels by: one image with its detections drawn in, or sheets of many."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import supervision as sv
from PIL import Image

from autodistill_sam3.images import RGBImage

_CELL = 360
_CAPTION = 26
_COLUMNS = 4
_ROWS = 4
_BACKGROUND = 245
_INK = (40, 40, 40)


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
    annotator = sv.LabelAnnotator(
        text_scale=max(0.35, size / 1600),
        text_thickness=1,
        text_padding=2,
        text_color=sv.Color.BLACK,
    )
    return np.ascontiguousarray(annotator.annotate(scene, detections, labels)[..., ::-1], dtype=np.uint8)


def save_png(image: RGBImage, path: Path) -> None:
    """Write an RGB image; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, format="PNG")


class ReviewSheet:
    """Collects overlays into PNG sheets of 16 images, one sheet in memory at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cells: list[RGBImage] = []
        self.paths: list[Path] = []

    def add(self, image: RGBImage, detections: sv.Detections, caption: str) -> None:
        """Add an RGB image with its detections; a full sheet is written."""
        self._cells.append(_cell(image, detections, caption))
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
        save_png(_tile(self._cells), path)
        self.paths.append(path)
        self._cells = []


def draw_sheet(items: Iterable[tuple[RGBImage, sv.Detections, str]]) -> RGBImage:
    """One sheet of any number of (RGB image, detections, caption)."""
    return _tile([_cell(*item) for item in items])


def _tile(cells: list[RGBImage]) -> RGBImage:
    """Lay out equally large cells in rows of at most four."""
    columns = min(_COLUMNS, len(cells))
    blank = np.full_like(cells[0], _BACKGROUND)
    padded = cells + [blank] * (-len(cells) % columns)
    rows = [np.concatenate(padded[start : start + columns], axis=1) for start in range(0, len(padded), columns)]
    return np.concatenate(rows, axis=0)


def _cell(image: RGBImage, detections: sv.Detections, caption: str) -> RGBImage:
    """Scale before drawing, so that lines and letters have one size on the sheet."""
    height, width = image.shape[:2]
    scale = (_CELL - 8) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(np.ascontiguousarray(image), size, interpolation=interpolation)
    overlay = draw_detections(np.asarray(small, dtype=np.uint8), _scaled(detections, size, scale))
    cell = np.full((_CELL + _CAPTION, _CELL, 3), _BACKGROUND, dtype=np.uint8)
    top, left = (_CELL - size[1]) // 2, (_CELL - size[0]) // 2
    cell[top : top + size[1], left : left + size[0]] = overlay
    text = caption.encode("ascii", "replace").decode()
    text = f"{text if len(text) <= 40 else f'{text[:37]}...'}  {len(detections)}"
    cv2.putText(cell, text, (6, _CELL + 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA)
    return cell


def _scaled(detections: sv.Detections, size_wh: tuple[int, int], scale: float) -> sv.Detections:
    masks = None
    if detections.mask is not None:
        dense = np.asarray(detections.mask)
        resized = [cv2.resize(mask.astype(np.uint8), size_wh, interpolation=cv2.INTER_NEAREST) for mask in dense]
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
    return [f"{name} {value:.2f}" for name, value in zip(names, values, strict=True)]
