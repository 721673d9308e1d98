"""The objects of a record at the size of a thumbnail, without ever decoding a large mask whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import supervision as sv

from autodistill_sam3.instances import compact_masks
from autodistill_sam3.labeling.records import Annotation, ImageRecord
from autodistill_sam3.rle import RLE, rle_to_crop

Size: TypeAlias = tuple[int, int]
Mask: TypeAlias = npt.NDArray[np.bool_]
Rings: TypeAlias = list[npt.NDArray[np.int32]]

MAX_OBJECTS_DRAWN = 300
# Decoding reads whole columns; so many pixels of them at a time.
_BAND_PIXELS = 2**22
_TOLERANCES = (1.0, 2.0, 4.0, 8.0)
_MAX_POINTS = 6000


@dataclass(frozen=True)
class Outline:
    """One object as closed rings of points in a thumbnail's frame; holes are rings too (even-odd rule)."""

    annotation: Annotation
    rings: Rings


def fit(size_wh: Size, longest: int) -> Size:
    """The size of an image whose longer side is shrunk to `longest`; a small image keeps its size.

    Example:
        >>> fit((4000, 1000), 640), fit((30, 20), 640)
        ((640, 160), (30, 20))
    """
    scale = min(1.0, longest / max(size_wh))
    return max(1, round(size_wh[0] * scale)), max(1, round(size_wh[1] * scale))


def drawn_annotations(record: ImageRecord) -> list[Annotation]:
    """The annotations to draw: all, or of a crowd those with the lowest confidences, in the record's order."""
    annotations = record["annotations"]
    if len(annotations) <= MAX_OBJECTS_DRAWN:
        return annotations
    order = sorted(range(len(annotations)), key=lambda index: (annotations[index]["confidence"], index))
    return [annotations[index] for index in sorted(order[:MAX_OBJECTS_DRAWN])]


def small_detections(record: ImageRecord, size_wh: Size, classes: Sequence[str]) -> sv.Detections:
    """The drawn annotations of a record in the frame of its image scaled down to a width and height."""
    annotations = drawn_annotations(record)
    scale = np.array([size_wh[0] / record["width"], size_wh[1] / record["height"]] * 2, dtype=np.float32)
    xywh = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float32).reshape(-1, 4)
    class_id = np.array([annotation["class_id"] for annotation in annotations], dtype=np.int64)
    has_masks = all(annotation["segmentation"] is not None for annotation in annotations)
    crops = [small_mask(annotation, record, size_wh) for annotation in annotations] if has_masks else []
    return sv.Detections(
        xyxy=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1) * scale,
        mask=compact_masks(crops, size_wh[::-1]) if has_masks else None,
        confidence=np.array([annotation["confidence"] for annotation in annotations], dtype=np.float32),
        class_id=class_id,
        data={"class_name": np.array([class_name(classes, index) for index in class_id], dtype=np.str_)},
    )


def class_name(classes: Sequence[str], class_id: int) -> str:
    """The name of a class, also of one that is not among them."""
    return classes[class_id] if 0 <= class_id < len(classes) else f"class {class_id}"


def outlines(record: ImageRecord, size_wh: Size) -> list[Outline]:
    """Outlines of the drawn annotations; the more points they have together, the more are left out."""
    rings = [(annotation, _rings(annotation, record, size_wh)) for annotation in drawn_annotations(record)]
    result: list[Outline] = []
    for tolerance in _TOLERANCES:
        result = [Outline(annotation, [_simpler(ring, tolerance) for ring in own]) for annotation, own in rings]
        if sum(len(ring) for outline in result for ring in outline.rings) <= _MAX_POINTS:
            break
    return result


def small_mask(annotation: Annotation, record: ImageRecord, size_wh: Size) -> tuple[Mask, int, int]:
    """A mask in the frame of its image scaled down to a width and height.

    A pixel is true if the mask covers half of it; where no pixel is, any that the mask touches are.

    Returns:
        The (h, w) ``bool`` crop with at least one true pixel, and the pixel of its first column and row.
    """
    if annotation["segmentation"] is None:
        raise ValueError("Expected an annotation with a mask, received one with a box only")
    x, y, width, height = (int(value) for value in annotation["bbox"])
    columns = np.arange(x, x + width) * size_wh[0] // record["width"]
    rows = np.arange(y, y + height) * size_wh[1] // record["height"]
    counts = np.zeros((columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1), dtype=np.int64)
    for start, band in mask_bands(annotation["segmentation"], (x, y, width, height)):
        own = columns[start - x : start - x + band.shape[1]]
        # Columns first, as they lie in memory. A band may end within a small pixel, which the next one goes on with.
        sums = cv2.integral(np.ascontiguousarray(band.T).view(np.uint8))
        corners = sums[np.ix_(_edges(own), _edges(rows))]
        counts[own[0] - columns[0] : own[-1] - columns[0] + 1] += np.diff(np.diff(corners, axis=0), axis=1)
    across = _extents(columns[0], columns[-1], record["width"], size_wh[0])
    down = _extents(rows[0], rows[-1], record["height"], size_wh[1])
    half = counts * 2 >= across[:, None] * down
    return (half if half.any() else counts > 0).T, int(columns[0]), int(rows[0])


def mask_bands(rle: RLE, xywh: tuple[int, int, int, int]) -> Iterator[tuple[int, Mask]]:
    """Decode the pixels in a box a few columns at a time: the first column of each band, and its (h, w) ``bool``."""
    x, y, width, height = xywh
    step = max(1, _BAND_PIXELS // rle["size"][0])
    for start in range(x, x + width, step):
        yield start, rle_to_crop(rle, (start, y, min(step, x + width - start), height))


def _edges(targets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where a new value begins in an ascending row of values, and its end."""
    return np.concatenate([[0], np.flatnonzero(np.diff(targets)) + 1, [len(targets)]])


def _extents(first: int, last: int, size: int, small_size: int) -> npt.NDArray[np.int64]:
    """How many of an image's columns (or rows) each of the small image's, from `first` to `last`, is made of."""
    starts = -(-np.arange(first, last + 2, dtype=np.int64) * size // small_size)
    return np.diff(starts)


def _rings(annotation: Annotation, record: ImageRecord, size_wh: Size) -> Rings:
    if annotation["segmentation"] is None:
        x, y, width, height = annotation["bbox"]
        across, down = size_wh[0] / record["width"], size_wh[1] / record["height"]
        left, top, right, bottom = x * across, y * down, (x + width) * across, (y + height) * down
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        return [np.rint(corners).astype(np.int32)]
    crop, left, top = small_mask(annotation, record, size_wh)
    contours, _ = cv2.findContours(crop.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [contour.reshape(-1, 2).astype(np.int32) + np.array([left, top], dtype=np.int32) for contour in contours]


def _simpler(ring: npt.NDArray[np.int32], tolerance: float) -> npt.NDArray[np.int32]:
    return np.asarray(cv2.approxPolyDP(ring.reshape(-1, 1, 2), tolerance, closed=True), dtype=np.int32).reshape(-1, 2)
