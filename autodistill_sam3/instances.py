"""The values that pass between stages: boxes from grounding, instances from segmentation.

Boxes are absolute xyxy pixels of the original upright image, ``float32``, with exclusive right and bottom edges
(width = x2 - x1). Masks are of that image's size and kept as run lengths of their bounding box.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from supervision import CompactMask

Source = Literal["text", "boxes"]


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes proposed for one image.

    Attributes:
        xyxy: (N, 4) ``float32``.
        scores: (N,) ``float32`` in 0..1.
        prompt_index: (N,) ``int64``, which prompt each box answers.
    """

    xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    prompt_index: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.xyxy)

    def select(self, index: npt.NDArray[np.bool_] | slice) -> Boxes:
        """The boxes where this (N,) mask is true, or of this slice."""
        return Boxes(self.xyxy[index], self.scores[index], self.prompt_index[index])

    @classmethod
    def empty(cls) -> Boxes:
        """No boxes."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True, eq=False)
class Instances:
    """Objects segmented in one image by one kind of prompt.

    Attributes:
        masks: N masks in the image's frame, each stored as the crop of its tight bounding box.
        scores: (N,) ``float32`` in 0..1.
        prompt_index: (N,) ``int64``, which prompt each instance answers.
        source: Which kind of prompt found them.
    """

    masks: CompactMask
    scores: npt.NDArray[np.float32]
    prompt_index: npt.NDArray[np.int64]
    source: Source

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def xyxy(self) -> npt.NDArray[np.float32]:
        """(N, 4) ``float32``, the tight boxes of the masks."""
        return tight_xyxy(self.masks)

    @classmethod
    def empty(cls, image_hw: tuple[int, int], source: Source) -> Instances:
        """No instances in an image of this height and width."""
        return cls(compact_masks([], image_hw), np.zeros(0, np.float32), np.zeros(0, np.int64), source)

    def select(self, index: npt.NDArray[np.bool_] | npt.NDArray[np.int64] | Sequence[int]) -> Instances:
        """The instances at these positions, or where this (N,) mask is true."""
        positions = np.arange(len(self))[np.asarray(index, dtype=None if len(index) else np.int64)]
        return Instances(self.masks[positions], self.scores[positions], self.prompt_index[positions], self.source)


def compact_masks(crops: Iterable[tuple[npt.NDArray[np.bool_], int, int]], image_hw: tuple[int, int]) -> CompactMask:
    """Store masks given as crops.

    Args:
        crops: ``(crop, x, y)`` per mask: (h, w) ``bool``, with its first row and column at pixel (x, y). A crop is
            trimmed to its true pixels; it must have at least one.
        image_hw: Height and width of the image.

    Example:
        >>> crop = np.array([[False, True], [False, True]])
        >>> compact_masks([(crop, 5, 7)], (10, 20)).bbox_xyxy.tolist()
        [[6, 7, 6, 8]]
    """
    return _compact((_encoded(*trim_crop(crop, x, y)) for crop, x, y in crops), image_hw)


def compact_masks_from_runs(
    runs: Iterable[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]], image_hw: tuple[int, int]
) -> CompactMask:
    """Store masks given as runs of true pixels.

    Args:
        runs: ``(starts, stops)`` per mask, (R,) each with R > 0: positions in the image read column by column, sorted;
            a stop is the first position behind its run.
        image_hw: Height and width of the image.

    Example:
        >>> starts, stops = np.array([4, 14]), np.array([6, 15])
        >>> compact_masks_from_runs([(starts, stops)], (10, 20)).bbox_xyxy.tolist()
        [[0, 4, 1, 5]]
    """
    return _compact((_cropped(*_split_at_columns(*run, image_hw[0]), image_hw[0]) for run in runs), image_hw)


def trim_crop(crop: npt.NDArray[np.bool_], x: int, y: int) -> tuple[npt.NDArray[np.bool_], int, int]:
    """Cut a crop with at least one true pixel to the bounding box of its true pixels."""
    rows, columns = np.flatnonzero(crop.any(axis=1)), np.flatnonzero(crop.any(axis=0))
    tight = crop[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return tight, x + int(columns[0]), y + int(rows[0])


def tight_xyxy(masks: CompactMask) -> npt.NDArray[np.float32]:
    """(N, 4) ``float32`` boxes around masks made by :func:`compact_masks`, right and bottom edges exclusive."""
    inclusive = masks.bbox_xyxy.astype(np.float32).reshape(-1, 4)
    return inclusive + np.array([0, 0, 1, 1], dtype=np.float32)


# Run lengths of a crop, its height and width, and the pixel of its first column and row.
_Encoded = tuple[npt.NDArray[np.int32], tuple[int, int], tuple[int, int]]


def _compact(encoded: Iterable[_Encoded], image_hw: tuple[int, int]) -> CompactMask:
    parts = list(encoded)
    return CompactMask(
        [rle for rle, _, _ in parts],
        np.array([shape for _, shape, _ in parts], dtype=np.int32).reshape(-1, 2),
        np.array([offset for _, _, offset in parts], dtype=np.int32).reshape(-1, 2),
        image_hw,
    )


def _encoded(tight: npt.NDArray[np.bool_], x: int, y: int) -> _Encoded:
    return _run_lengths(tight), (tight.shape[0], tight.shape[1]), (x, y)


def _split_at_columns(
    starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64], height: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The same runs, none of which goes on from one column to the next."""
    columns = (stops - 1) // height - starts // height + 1
    if (columns == 1).all():
        return starts, stops
    # The place of each piece within its run.
    place = np.arange(columns.sum()) - np.repeat(np.cumsum(columns) - columns, columns)
    top = (np.repeat(starts // height, columns) + place) * height
    return np.maximum(np.repeat(starts, columns), top), np.minimum(np.repeat(stops, columns), top + height)


def _cropped(starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64], height: int) -> _Encoded:
    """Runs within columns of the image -> the crop of their bounding box."""
    (columns, rows), lengths = np.divmod(starts, height), stops - starts
    left, top = int(columns[0]), int(rows.min())
    shape = int((rows + lengths).max()) - top, int(columns[-1]) - left + 1
    begin = (columns - left) * shape[0] + rows - top
    end = begin + lengths
    # Runs that fill a column of the crop go on in the next.
    edges = np.concatenate(([0], np.stack([begin, end], axis=1).ravel(), [shape[0] * shape[1]]))
    joins = np.flatnonzero(begin[1:] == end[:-1])
    edges = np.delete(edges, np.concatenate([2 * joins + 2, 2 * joins + 3]))
    if edges[-1] == edges[-2]:
        edges = edges[:-1]
    return np.diff(edges).astype(np.int32), shape, (left, top)


def _run_lengths(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Lengths of the runs of false, true, false, ... in column-major order, as in COCO."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0], changes, [flat.size]))
    lengths = np.diff(edges).astype(np.int32)
    return np.concatenate(([np.int32(0)], lengths)) if flat[0] else lengths
