"""A mask -> one closed walk over pixels around all its parts and holes, which gives the mask again when it is filled.

Parts and holes are joined by bridges that the walk crosses forth and back, so that by the even-odd rule only the pixels
under a bridge are added. Bridges to holes run inside the mask and add none. Those between parts are as short as can
be, and a part is left out where its bridge would spoil more than the part is worth.
"""

from __future__ import annotations

import functools
import heapq
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Pixels: TypeAlias = npt.NDArray[np.int32]
# (L, 2), pairs of points of the rings by their index.
_Links: TypeAlias = npt.NDArray[np.int64]
# Parts with the part that each hangs on, the index of the link, and how many pixels lie between; parents come first.
_Tree: TypeAlias = list[tuple[int, int, int, int]]

# Noise has a part or a hole in every few pixels; beyond so many the shortest rings are left out.
_MAX_RINGS = 10_000
# For so few parts, and points, looking at each pair of points is faster than looking at each pixel.
_FEW_PARTS = 8
_FEW_PAIRS_PER_PIXEL = 3
# Larger masks are looked at in cells of several pixels.
_CELLS = 2**15
# Each mask is walked around twice, for its polygon's IoU and for the polygon, with those of its image in between.
_WALKS_KEPT = 512
# Of larger masks, such as backgrounds, so many would take gigabytes.
_LARGEST_KEPT = 2**21


@dataclass(frozen=True, eq=False)
class _Rings:
    """The outlines of parts and holes: 8-connected rings of the mask's own pixels, one after the other.

    Attributes:
        points: (N, 2) ``int32`` xy.
        ring: (N,) ``int64``, which ring each point is on. Ring k bounds part k; rings of holes come after those.
        first: (R,) ``int64``, the index of each ring's first point.
        part: (R,) ``int64``, the part that each ring belongs to.
        parts: Their number.
    """

    points: Pixels
    ring: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    part: npt.NDArray[np.int64]
    parts: int


def closed_walk(mask: npt.NDArray[np.bool_]) -> Pixels:
    """Walk around all parts and holes of a mask with at least one true pixel.

    Args:
        mask: (h, w) ``bool``.

    Returns:
        (N, 2) ``int32`` xy. From each pixel to the next, and from the last to the first, the walk goes along a row, a
        column or a diagonal.

    Example:
        >>> closed_walk(np.array([[True, True, False, True]])).tolist()
        [[0, 0], [1, 0], [3, 0], [1, 0]]
    """
    if mask.size > _LARGEST_KEPT:
        return _walk_around(mask.astype(np.uint8))
    return _closed_walk(np.packbits(mask).tobytes(), mask.shape)


@functools.lru_cache(maxsize=_WALKS_KEPT)
def _closed_walk(packed: bytes, shape: tuple[int, ...]) -> Pixels:
    walk = _walk_around(np.unpackbits(np.frombuffer(packed, np.uint8), count=shape[0] * shape[1]).reshape(shape))
    walk.setflags(write=False)
    return walk


def _walk_around(pixels: npt.NDArray[np.uint8]) -> Pixels:
    mask = pixels.view(np.bool_)
    found, hierarchy = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    contours = [np.asarray(contour, dtype=np.int32).reshape(-1, 2) for contour in found]
    if len(contours) == 1:
        return contours[0]
    rings = _as_rings(contours, np.asarray(hierarchy, dtype=np.int32)[0, :, 3])
    areas = _areas(rings) if rings.parts > 1 else np.ones(1)
    links = np.concatenate([_links_of_holes(rings, mask), _links_of_parts(rings, areas, mask.shape)])
    walk = _walk(rings, int(rings.first[areas.argmax()]), links.tolist())
    differs = walk != np.concatenate([walk[-1:], walk[:-1]])
    moves = differs[:, 0] | differs[:, 1]
    return walk[moves] if moves.any() else walk[:1]


def corners(walk: Pixels) -> Pixels:
    """Leave out the pixels of a walk at which it goes straight on.

    Example:
        >>> corners(np.array([[0, 0], [0, 1], [0, 2], [1, 2], [1, 1], [1, 0]])).tolist()
        [[0, 0], [0, 2], [1, 2], [1, 0]]
    """
    if len(walk) == 1:
        return walk
    sign = np.sign(np.diff(walk, axis=0, append=walk[:1]))
    direction = sign[:, 0] * 3 + sign[:, 1]
    turns: npt.NDArray[np.bool_] = direction != np.concatenate([direction[-1:], direction[:-1]])
    return walk[turns]


def _as_rings(contours: Sequence[npt.NDArray[np.int32]], parent: npt.NDArray[np.int32]) -> _Rings:
    """Sort OpenCV's contours: those of parts, then those of their holes."""
    lengths = np.array([len(contour) for contour in contours])
    kept = np.ones(len(contours), dtype=bool)
    kept[np.argsort(-lengths, kind="stable")[_MAX_RINGS:]] = False
    kept &= (parent < 0) | kept[parent]
    parts, holes = np.flatnonzero(kept & (parent < 0)), np.flatnonzero(kept & (parent >= 0))
    order = np.concatenate([parts, holes])
    return _Rings(
        points=np.concatenate([contours[index] for index in order]),
        ring=np.repeat(np.arange(len(order)), lengths[order]),
        first=np.cumsum(lengths[order]) - lengths[order],
        part=np.concatenate([np.arange(len(parts)), np.searchsorted(parts, parent[holes])]),
        parts=len(parts),
    )


def _areas(rings: _Rings) -> npt.NDArray[np.float64]:
    """(P,) pixels of each part, from its rings by Pick's theorem."""
    x, y = rings.points.T.astype(np.float64)
    after = np.arange(1, len(x) + 1)
    after[np.append(rings.first[1:], len(x)) - 1] = rings.first
    enclosed = np.abs(np.add.reduceat(x * y[after] - x[after] * y, rings.first)) / 2
    lengths = np.diff(np.append(rings.first, len(x)))
    is_part = np.arange(len(lengths)) < rings.parts
    # A ring's own pixels belong to the part, also if it is around a hole.
    pixels = np.where(is_part, enclosed + lengths / 2 + 1, lengths / 2 - enclosed - 1)
    # A single pixel is a ring without length.
    pixels[lengths == 1] = 1
    return np.bincount(rings.part, weights=pixels).astype(np.float64)


def _links_of_holes(rings: _Rings, mask: npt.NDArray[np.bool_]) -> _Links:
    """From the leftmost point of each hole's ring straight to the left, to where the mask begins.

    What lies left of there is outside, or a hole that reaches further to the left, so that no circle can come about.
    """
    if rings.parts == len(rings.part):
        return np.zeros((0, 2), dtype=np.int64)
    x, y = rings.points.T.astype(np.int64)
    leftmost = np.minimum.reduceat(x, rings.first)
    at_left = np.flatnonzero(x == leftmost[rings.ring])
    starts = at_left[np.searchsorted(rings.ring[at_left], np.arange(rings.parts, len(rings.part)))]
    # All points at which the mask begins in their row, as one reads; of several in one pixel the outermost ring's last.
    leftmost[: rings.parts] = -1
    begins = np.flatnonzero((x == 0) | ~mask[y, np.maximum(x - 1, 0)])
    begins = begins[np.lexsort((-leftmost[rings.ring[begins]], x[begins], y[begins]))]
    place = y * mask.shape[1] + x
    ends = begins[np.searchsorted(place[begins], place[starts], side="right") - 1]
    return np.column_stack([starts, ends])


def _links_of_parts(rings: _Rings, areas: npt.NDArray[np.float64], shape: tuple[int, ...]) -> _Links:
    """The shortest bridges that join the parts, as far as they are worth their pixels."""
    if rings.parts == 1:
        return np.zeros((0, 2), dtype=np.int64)
    lengths = np.bincount(rings.part[rings.ring])
    pairs = (lengths.sum() ** 2 - (lengths**2).sum()) // 2
    few = rings.parts <= _FEW_PARTS and pairs < _FEW_PAIRS_PER_PIXEL * shape[0] * shape[1]
    links = _nearest_in_pairs(rings) if few else _nearest_of_neighbours(rings, shape)
    between = _distances(rings.points[links[:, 0]], rings.points[links[:, 1]]) - 1
    tree = _shortest_tree(rings.part[rings.ring[links]].tolist(), between.tolist(), int(areas.argmax()))
    return links[_worthwhile(tree, areas.tolist(), int(areas.argmax()))]


def _nearest_in_pairs(rings: _Rings) -> _Links:
    """The nearest points of each two parts, found by looking at each pair of points."""
    part = rings.part[rings.ring]
    members = [np.flatnonzero(part == index) for index in range(rings.parts)]
    links = []
    for one, other in combinations(members, 2):
        distances = _distances(rings.points[one][:, None], rings.points[other][None])
        row, column = divmod(int(distances.argmin()), len(other))
        links.append((one[row], other[column]))
    return np.array(links, dtype=np.int64)


def _nearest_of_neighbours(rings: _Rings, shape: tuple[int, ...]) -> _Links:
    """Near points of each two parts that share a border, where every cell belongs to the part nearest to it."""
    side = max(1, math.isqrt(shape[0] * shape[1] // _CELLS))
    height, width = (-(-length // side) for length in shape)
    place = (rings.points[:, 1] // side) * np.int64(width) + rings.points[:, 0] // side
    field = np.ones((height, width), dtype=np.uint8)
    field.ravel()[place] = 0
    _, labels = cv2.distanceTransformWithLabels(field, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    point_of_label = np.zeros(labels.max() + 1, dtype=np.int64)
    point_of_label[labels.ravel()[place]] = np.arange(len(place))
    nearest = point_of_label[labels]
    part = rings.part[rings.ring]
    # Within a cell one point stands for the others, and is their neighbour.
    shared = np.flatnonzero(part != part[nearest.ravel()[place]])
    across, down = part[nearest[:, 1:]] != part[nearest[:, :-1]], part[nearest[1:]] != part[nearest[:-1]]
    one = np.concatenate([nearest[:, :-1][across], nearest[:-1][down], shared])
    other = np.concatenate([nearest[:, 1:][across], nearest[1:][down], nearest.ravel()[place[shared]]])
    pair = np.sort(part[np.column_stack([one, other])], axis=1) @ [rings.parts, 1]
    order = np.lexsort((_distances(rings.points[one], rings.points[other]), pair))
    order = order[np.unique(pair[order], return_index=True)[1]]
    return np.column_stack([one[order], other[order]])


def _distances(one: Pixels, other: Pixels) -> npt.NDArray[np.int32]:
    """Steps from pixel to pixel, of which a diagonal one counts as one."""
    x, y = np.abs(one[..., 0] - other[..., 0]), np.abs(one[..., 1] - other[..., 1])
    distances: npt.NDArray[np.int32] = np.maximum(x, y)
    return distances


def _shortest_tree(ends: Iterable[tuple[int, int]], lengths: Sequence[int], root: int) -> _Tree:
    """Join parts by the shortest of the links between them (Prim's algorithm)."""
    links: dict[int, list[tuple[int, int, int, int]]] = {}
    for index, ((one, other), length) in enumerate(zip(ends, lengths, strict=True)):
        links.setdefault(one, []).append((length, index, one, other))
        links.setdefault(other, []).append((length, index, other, one))
    tree, reached, waiting = [], {root}, list(links[root])
    heapq.heapify(waiting)
    while waiting:
        length, index, parent, child = heapq.heappop(waiting)
        if child not in reached:
            reached.add(child)
            tree.append((child, parent, index, length))
            for link in links[child]:
                heapq.heappush(waiting, link)
    return tree


def _worthwhile(tree: _Tree, areas: list[float], root: int) -> list[int]:
    """The links to keep so that the IoU of the filled outline with the mask is greatest (Dinkelbach's method).

    At an IoU of q, a pixel that is added costs q times what a pixel of the mask brings.
    """
    total, iou, links = sum(areas), 0.0, [index for _, _, index, _ in tree]
    while True:
        worth = list(areas)
        for child, parent, _, length in reversed(tree):
            worth[parent] += max(worth[child] - iou * length, 0.0)
        kept, inside, added, chosen = {root}, areas[root], 0, []
        for child, parent, index, length in tree:
            if parent in kept and worth[child] > iou * length:
                kept.add(child)
                chosen.append(index)
                inside, added = inside + areas[child], added + length
        if inside / (total + added) <= iou:
            return links
        iou, links = inside / (total + added), chosen


def _walk(rings: _Rings, start: int, links: Iterable[tuple[int, int]]) -> Pixels:
    """Once around every ring that links lead to from the point `start`, over each link forth and back."""
    count = len(rings.points)
    # Where the walk goes on, for points at which it is not simply to the next one.
    onward = dict(zip((np.append(rings.first[1:], count) - 1).tolist(), rings.first.tolist(), strict=True))
    added: list[tuple[int, int]] = []

    def add(point: tuple[int, int], to: int) -> int:
        added.append(point)
        onward[count + len(added) - 1] = to
        return count + len(added) - 1

    for one, other in links:
        here, there = tuple(rings.points[one].tolist()), tuple(rings.points[other].tolist())
        corner = _corner(here, there)
        over = add(corner, add(there, onward.get(other, other + 1)))
        back = add(corner, add(here, onward.get(one, one + 1)))
        onward[one], onward[other] = over, back
    points = np.concatenate([rings.points, np.array(added, dtype=np.int32).reshape(-1, 2)])
    stops = sorted(index for index in onward if index < count)
    pieces: list[npt.NDArray[np.int64]] = []
    index = start
    while not pieces or index != start:
        stop = stops[bisect_left(stops, index)] if index < count else index
        pieces.append(np.arange(index, stop + 1))
        index = onward[stop]
    walk: Pixels = points[np.concatenate(pieces)]
    return walk


def _corner(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """Where a way that first takes a diagonal and then a row or column turns; the same in both directions."""
    (x, y), (to_x, to_y) = sorted((one, other))
    diagonal = min(to_x - x, abs(to_y - y))
    return x + diagonal, y + (diagonal if to_y > y else -diagonal)
