"""A mask as the runs of its columns: what is done to masks of any size costs their outline and not their area.

`Runs` are (K, 3) ``int64``: column x, first row, one past the last row, in pixels of the image; sorted, and apart from
each other. A mask over half of a 20,000-pixel image is 200 MB of pixels, and 0.5 MB of runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import supervision as sv

Runs: TypeAlias = npt.NDArray[np.int64]
Box: TypeAlias = tuple[int, int, int, int]


def runs_of_crop(crop: npt.NDArray[np.bool_], x: int, y: int) -> Runs:
    """The runs of a (h, w) ``bool`` crop with its first column and row at pixel (x, y).

    Example:
        >>> runs_of_crop(np.array([[True, False], [True, True]]), 5, 7).tolist()
        [[5, 7, 9], [6, 8, 9]]
    """
    height, width = crop.shape
    # A row of background around the crop ends each run within its column.
    columns = np.zeros((width, height + 2), dtype=np.int8)
    columns[:, 1:-1] = crop.T
    steps = np.diff(columns, axis=1)
    column, first = np.nonzero(steps == 1)
    _, last = np.nonzero(steps == -1)
    return np.column_stack([column + x, first + y, last + y])


def runs_of_box(box: Box) -> Runs:
    """The runs of a filled rectangle."""
    x1, y1, x2, y2 = box
    columns = np.arange(x1, x2)
    return np.column_stack([columns, np.full_like(columns, y1), np.full_like(columns, y2)])


def area(runs: Runs) -> int:
    """Pixels of a mask."""
    return int((runs[:, 2] - runs[:, 1]).sum())


def extent(runs: Runs) -> Box:
    """The tight box of a mask that is not empty, right and bottom exclusive."""
    return int(runs[0, 0]), int(runs[:, 1].min()), int(runs[-1, 0]) + 1, int(runs[:, 2].max())


def overlap(first: Runs, second: Runs) -> int:
    """Pixels that two masks have in common."""
    if not (len(first) and len(second)):
        return 0
    stride = _stride(first, second)
    starts, ends = _on_a_line(second, stride)
    before = np.concatenate([[0], np.cumsum(ends - starts)])

    def covered(position: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many pixels of the second mask come before a position."""
        index = np.searchsorted(starts, position, side="right")
        within = np.minimum(position, ends[index - 1]) - starts[index - 1]
        count: npt.NDArray[np.int64] = np.where(index > 0, before[index - 1] + within, 0)
        return count

    openings, closings = _on_a_line(first, stride)
    return int((covered(closings) - covered(openings)).sum())


def inside(runs: Runs, box: Box) -> Runs:
    """The part of a mask within a box."""
    x1, y1, x2, y2 = box
    part = runs[np.searchsorted(runs[:, 0], x1) : np.searchsorted(runs[:, 0], x2)]
    clipped = np.column_stack([part[:, 0], np.maximum(part[:, 1], y1), np.minimum(part[:, 2], y2)])
    return clipped[clipped[:, 2] > clipped[:, 1]]


def outside(runs: Runs, box: Box) -> Runs:
    """The part of a mask without a box."""
    x1, y1, x2, y2 = box
    first, last = np.searchsorted(runs[:, 0], [x1, x2])
    part = runs[first:last]
    above = np.column_stack([part[:, :2], np.minimum(part[:, 2], y1)])
    below = np.column_stack([part[:, 0], np.maximum(part[:, 1], y2), part[:, 2]])
    pieces = np.concatenate([runs[:first], above, below, runs[last:]])
    return _in_order(pieces[pieces[:, 2] > pieces[:, 1]])


def union(masks: Sequence[Runs]) -> Runs:
    """The pixels that at least one mask has."""
    if len(masks) == 1:
        return masks[0]
    stride = _stride(*masks)
    runs = np.concatenate(masks)
    starts, ends = _on_a_line(runs, stride)
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    new = np.concatenate([[True], starts[1:] > ends[:-1]])[: len(starts)]
    starts, ends = starts[new], ends[np.append(new[1:], True)[: len(new)]]
    column = starts // stride
    return np.column_stack([column, starts - column * stride, ends - column * stride])


def scale(runs: Runs, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Runs:
    """A mask of an image that is enlarged: each pixel becomes a rectangle.

    Example:
        >>> scale(np.array([[0, 0, 1], [1, 0, 2]]), (2, 2), (3, 4)).tolist()
        [[0, 0, 1], [1, 0, 1], [2, 0, 3], [3, 0, 3]]
    """
    # A larger image's pixel is of the pixel that its centre lies in.
    rows, columns = (
        -((size - 2 * larger * np.arange(size + 1)) // (2 * size)) for size, larger in zip(from_hw, to_hw, strict=True)
    )
    x1, x2 = columns[runs[:, 0]], columns[runs[:, 0] + 1]
    index = np.repeat(np.arange(len(runs)), x2 - x1)
    within = np.arange(len(index)) - np.repeat(np.cumsum(x2 - x1) - (x2 - x1), x2 - x1)
    return _in_order(np.column_stack([x1[index] + within, rows[runs[index, 1]], rows[runs[index, 2]]]))


def parts_that_meet(first: Runs, second: Runs, box: Box) -> tuple[Runs, Runs]:
    """Of two masks within a box, the connected parts that have a pixel in common with the other."""
    crops = [_paint(runs, box) for runs in (first, second)]
    found = []
    for crop, other in (crops, crops[::-1]):
        _, labels = cv2.connectedComponents(crop.astype(np.uint8), connectivity=8)
        found.append(runs_of_crop(np.isin(labels, np.unique(labels[crop & other])), box[0], box[1]))
    return found[0], found[1]


def touch(first: Runs, second: Runs) -> bool:
    """Whether two masks have pixels in common or side by side."""
    taller = np.column_stack([first[:, 0], first[:, 1] - 1, first[:, 2] + 1])
    # Moved away from the image's edge, where no run may reach over.
    grown = [moved(runs, 1 + dx, 1) for runs, dx in ((taller, 0), (first, -1), (first, 1))]
    return any(overlap(runs, moved(second, 1, 1)) > 0 for runs in grown)


def moved(runs: Runs, dx: int, dy: int) -> Runs:
    """A mask moved right and down."""
    result: Runs = runs + np.array([dx, dy, dy], dtype=np.int64)
    return result


def compact_masks_of(masks: Iterable[Runs], image_hw: tuple[int, int]) -> sv.CompactMask:
    """Store masks that are not empty as :class:`supervision.CompactMask`, each as the crop of its tight box."""
    counts, shapes, offsets = [], [], []
    for runs in masks:
        x1, y1, x2, y2 = extent(runs)
        height = y2 - y1
        starts, ends = _on_a_line(moved(runs, -x1, -y1), height)
        # A run to the bottom of its column and one from the top of the next are one.
        new = np.concatenate([[True], starts[1:] > ends[:-1]])
        starts, ends = starts[new], ends[np.append(new[1:], True)]
        edges = np.concatenate([[0], np.column_stack([starts, ends]).ravel(), [height * (x2 - x1)]])
        lengths = np.diff(edges).astype(np.int32)
        counts.append(lengths if lengths[-1] else lengths[:-1])
        shapes.append((height, x2 - x1))
        offsets.append((x1, y1))
    return sv.CompactMask(
        counts,
        np.asarray(shapes, dtype=np.int32).reshape(-1, 2),
        np.asarray(offsets, dtype=np.int32).reshape(-1, 2),
        image_hw,
    )


def _paint(runs: Runs, box: Box) -> npt.NDArray[np.bool_]:
    x1, y1, x2, y2 = box
    part = moved(inside(runs, box), -x1, -y1)
    steps = np.zeros((x2 - x1, y2 - y1 + 1), dtype=np.int8)
    np.add.at(steps, (part[:, 0], part[:, 1]), 1)
    np.add.at(steps, (part[:, 0], part[:, 2]), -1)
    painted: npt.NDArray[np.bool_] = np.cumsum(steps[:, :-1], axis=1, dtype=np.int8).T.astype(bool)
    return painted


def _in_order(runs: Runs) -> Runs:
    ordered: Runs = runs[np.lexsort((runs[:, 1], runs[:, 0]))]
    return ordered


def _stride(*masks: Runs) -> int:
    """Longer than any column, so that the runs of two columns neither meet nor touch on a line."""
    return max(int(runs[:, 2].max(initial=0)) for runs in masks) + 1


def _on_a_line(runs: Runs, stride: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each run starts and ends when all columns are laid end to end."""
    origin = runs[:, 0] * stride
    return origin + runs[:, 1], origin + runs[:, 2]
