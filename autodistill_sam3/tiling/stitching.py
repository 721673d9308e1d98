"""What overlapping views of one image show -> the objects of the image.

Every object may be seen by several views: whole by one tile, in pieces by others, and small by the view of the whole
image. Pieces of one class that agree where both views look are one object, and so are chains of them. What boxes say is
of no matter, nor is the size of a piece: objects side by side stay two, and a piece of any size finds its object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from autodistill_sam3.tiling.runs import (
    Box,
    Runs,
    area,
    extent,
    inside,
    outside,
    overlap,
    parts_that_meet,
    touch,
    union,
)

SAME_OBJECT_IOU = 0.5
# Of two finds of one small object, the smaller lies on the larger by this share and has this IoU with it.
WITHIN, WITHIN_IOU = 0.8, 1 / 3
# A piece that lies on another object by this share of its own area is a piece of that object.
LIES_ON = 0.5
# The mask of an object that a tile cuts ends at the tile's border, or, as masks go, a little before.
BORDER_SHARE = 0.01

Verdict = Literal["kept", "stitched", "unconfirmed"]


@dataclass(frozen=True)
class View:
    """Where a look at the image was taken: a tile, or the whole image."""

    box: Box
    whole: bool


@dataclass(frozen=True, eq=False)
class Piece:
    """One detection of one view; `runs` in the frame of the image, not empty. `cut` if it ends where the tile does."""

    view: int
    class_id: int
    confidence: float
    runs: Runs
    box: Box
    cut: bool


@dataclass(frozen=True, eq=False)
class Stitched:
    """An object of the image: the pieces it was made of, the most confident one first, and its mask."""

    pieces: tuple[int, ...]
    runs: Runs


def is_cut(box: Box, view: View, image_hw: tuple[int, int]) -> bool:
    """Whether a mask with this box reaches a border of its tile that is not one of the image."""
    margin = max(2, round(BORDER_SHARE * max(view.box[2] - view.box[0], view.box[3] - view.box[1])))
    near = (
        box[0] < view.box[0] + margin and view.box[0] > 0,
        box[1] < view.box[1] + margin and view.box[1] > 0,
        box[2] > view.box[2] - margin and view.box[2] < image_hw[1],
        box[3] > view.box[3] - margin and view.box[3] < image_hw[0],
    )
    return any(near)


def stitch(
    views: Sequence[View], pieces: Sequence[Piece], image_hw: tuple[int, int]
) -> tuple[list[Stitched], dict[str, int]]:
    """Join the pieces of each object of an image.

    Two pieces of one class are of one object if their masks have an IoU of 0.5 or more in the region that both views
    see. Two pieces of one view are never joined, whatever a third one says, unless the tile cuts both and they lie
    apart.

    A tile that shows all of an object, as far as any tile knows, gives its mask. Otherwise the mask is what any of the
    tiles shows, and beyond those tiles what the view of the whole image adds.

    What no tile shows whole is then looked at again. If half of it lies on an object of its class, it is a piece of
    that one whose edges did not agree. If it is small enough to be whole in some tile, which shows nothing there, it is
    dropped: a piece looks like many things, and so does a thing that is scaled down. (In 22 drawn scenes of 9 million
    pixels with the shapes checkpoint, 109 of 109 such finds were wrong.) All else stays: large objects that only the
    whole image shows, and cut ones whose other half was missed.

    Args:
        views: Where the pieces come from.
        pieces: All detections of the image.
        image_hw: Height and width of the image.

    Returns:
        The objects, in the order of their most confident pieces, and how many pieces were "stitched" to others and how
        many dropped as "unconfirmed".
    """
    groups = _group(pieces, _links(views, pieces))
    made = [Stitched(tuple(group), _mask_of(group, views, pieces)) for group in groups]
    verdicts = _verdicts(made, views, pieces, image_hw)
    kept = [item for item, verdict in zip(made, verdicts, strict=True) if verdict == "kept"]
    kept.sort(key=lambda item: (-pieces[item.pieces[0]].confidence, item.pieces[0]))
    unconfirmed = verdicts.count("unconfirmed")
    return kept, {"stitched": len(pieces) - len(kept) - unconfirmed, "unconfirmed": unconfirmed}


def _links(views: Sequence[View], pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    """Pairs of pieces that show one object: what tiles say of each other, then the whole image, the surest first."""
    of_view: list[list[int]] = [[] for _ in views]
    for index, piece in enumerate(pieces):
        of_view[piece.view].append(index)
    found = []
    for first, second in _neighbours(views, [bool(members) for members in of_view]):
        for one, other in _close(of_view[first], of_view[second], pieces):
            agreement = _agreement(pieces[one], pieces[other], views)
            if agreement >= SAME_OBJECT_IOU:
                found.append((views[first].whole or views[second].whole, -agreement, one, other))
    return [(one, other) for *_, one, other in sorted(found)]


def _neighbours(views: Sequence[View], filled: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Pairs of views with pieces that have a region in common."""
    index = np.flatnonzero(filled)
    boxes = np.array([views[view].box for view in index], dtype=np.int64).reshape(-1, 4)
    for position, box in enumerate(boxes):
        later = boxes[position + 1 :]
        meets = (later[:, :2] < box[2:]).all(axis=1) & (later[:, 2:] > box[:2]).all(axis=1)
        for other in np.flatnonzero(meets):
            yield int(index[position]), int(index[position + 1 + other])


def _close(first: Sequence[int], second: Sequence[int], pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    """Pairs of pieces of one class of which the boxes meet."""
    a, b = (np.array([pieces[index].box for index in members]) for members in (first, second))
    classes_a, classes_b = (np.array([pieces[index].class_id for index in members]) for members in (first, second))
    meets = (a[:, None, :2] < b[None, :, 2:]).all(axis=2) & (b[None, :, :2] < a[:, None, 2:]).all(axis=2)
    pairs = np.argwhere(meets & (classes_a[:, None] == classes_b[None]))
    return [(first[row], second[column]) for row, column in pairs.tolist()]


def _agreement(one: Piece, other: Piece, views: Sequence[View]) -> float:
    """IoU of two pieces in the region that both views see.

    What ends within its tile is all there, so the view of the whole image must agree with it everywhere. Of two that
    are all there in tiles, a few pixels of outline decide when they are small, so one may lie within the other. An
    object that a tile cuts may show there in several parts, each a piece of its own: the parts that meet are compared.
    """
    first, second = views[one.view], views[other.view]
    common = _common(first.box, second.box)
    seen_whole = (first.whole and not other.cut) or (second.whole and not one.cut)
    a, b = (one.runs, other.runs) if seen_whole else (inside(one.runs, common), inside(other.runs, common))
    iou, share_of_smaller = _overlaps(a, b)
    if not iou or iou >= SAME_OBJECT_IOU:
        return iou
    if not one.cut and not other.cut:
        nested = share_of_smaller >= WITHIN and iou >= WITHIN_IOU and not (first.whole or second.whole)
        return SAME_OBJECT_IOU if nested else 0.0
    if (one.cut or first.whole) and (other.cut or second.whole):
        return _overlaps(*parts_that_meet(a, b, common))[0]
    return 0.0


def _overlaps(a: Runs, b: Runs) -> tuple[float, float]:
    """IoU, and the share of the smaller mask that lies on the larger one."""
    common = overlap(a, b)
    if not common:
        return 0.0, 0.0
    areas = area(a), area(b)
    return common / (sum(areas) - common), common / min(areas)


def _common(a: Box, b: Box) -> Box:
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _group(pieces: Sequence[Piece], links: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Pieces that links connect, the most confident first, but no two that one view shows side by side."""
    groups = {index: [index] for index in range(len(pieces))}
    group_of = list(range(len(pieces)))
    for one, other in links:
        first, second = sorted((group_of[one], group_of[other]))
        if first == second or _apart(groups[first], groups[second], pieces):
            continue
        for index in groups[second]:
            group_of[index] = first
        groups[first] += groups.pop(second)
    return [sorted(group, key=lambda index: (-pieces[index].confidence, index)) for group in groups.values()]


def _apart(first: Sequence[int], second: Sequence[int], pieces: Sequence[Piece]) -> bool:
    """Whether some view shows a piece of each as two objects: it cuts at most one of them, or they are side by side."""
    return any(
        pieces[one].view == pieces[other].view
        and not (pieces[one].cut and pieces[other].cut and not touch(pieces[one].runs, pieces[other].runs))
        for one in first
        for other in second
    )


def _mask_of(group: Sequence[int], views: Sequence[View], pieces: Sequence[Piece]) -> Runs:
    from_tiles = [pieces[index] for index in group if not views[pieces[index].view].whole]
    if not from_tiles:
        return union([pieces[index].runs for index in group])
    boxes = np.array([piece.box for piece in from_tiles])
    around = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
    for piece in from_tiles:
        if not piece.cut and _common(views[piece.view].box, around) == around:
            return piece.runs
    masks = [piece.runs for piece in from_tiles]
    for index in group:
        rest = pieces[index].runs
        if views[pieces[index].view].whole:
            for piece in from_tiles:
                rest = outside(rest, views[piece.view].box)
            masks.append(rest)
    return union(masks)


def _verdicts(
    made: Sequence[Stitched], views: Sequence[View], pieces: Sequence[Piece], image_hw: tuple[int, int]
) -> list[Verdict]:
    """What becomes of each object; those that a tile shows whole are kept."""
    boxes = np.array([extent(item.runs) for item in made], dtype=np.int64).reshape(-1, 4)
    areas = np.array([area(item.runs) for item in made], dtype=np.int64)
    classes = np.array([pieces[item.pieces[0]].class_id for item in made], dtype=np.int64)
    from_tile = np.array([any(not views[pieces[i].view].whole for i in item.pieces) for item in made], dtype=bool)
    verdicts: list[Verdict] = []
    for position, item in enumerate(made):
        if any(not pieces[index].cut and not views[pieces[index].view].whole for index in item.pieces):
            verdicts.append("kept")
            continue
        box = boxes[position]
        meets = (boxes[:, :2] < box[2:]).all(axis=1) & (boxes[:, 2:] > box[:2]).all(axis=1)
        # A piece belongs to something larger; what the whole image shows may be several small things run together.
        others = meets & (classes == classes[position]) & from_tile
        others &= (areas > areas[position]) if from_tile[position] else True
        others[position] = False
        hidden = _hidden_by(item.runs, [made[index].runs for index in np.flatnonzero(others)])
        if hidden >= LIES_ON * areas[position]:
            verdicts.append("stitched")
        else:
            verdicts.append("unconfirmed" if _fits_a_tile(item.runs, views, image_hw) else "kept")
    return verdicts


def _hidden_by(runs: Runs, others: Sequence[Runs]) -> int:
    box = extent(runs)
    return overlap(runs, union([inside(other, box) for other in others])) if others else 0


def _fits_a_tile(runs: Runs, views: Sequence[View], image_hw: tuple[int, int]) -> bool:
    """Whether some tile shows a mask whole."""
    box = extent(runs)
    return any(not view.whole and _common(view.box, box) == box and not is_cut(box, view, image_hw) for view in views)
