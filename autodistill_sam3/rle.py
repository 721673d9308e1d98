"""Masks <-> COCO's compressed run-length encoding, lossless.

The format is that of the COCO API (cocodataset/cocoapi, common/maskApi.c): runs of 0, 1, 0, ... down the columns, each
from the third on stored as the difference to the one two before, in groups of five bits as printable characters.
"""

from __future__ import annotations

from typing import TypedDict

import cv2
import numpy as np
import numpy.typing as npt

_BITS = 5
_MORE = 0x20
_SIGN = 0x10
_FIRST_CHARACTER = 48
# More do not fit 64 bits.
_MAX_GROUPS = 11
# The least values for which one group, two, three ... are too few.
_TOO_LARGE = [1 << (_BITS * groups - 1) for groups in range(1, 12)]


class RLE(TypedDict):
    """A mask as COCO stores it; `size` is (height, width)."""

    size: list[int]
    counts: str


def crop_to_rle(crop: npt.NDArray[np.bool_], x: int, y: int, image_hw: tuple[int, int]) -> RLE:
    """Encode a mask given as a crop, without ever building the full mask.

    Args:
        crop: (h, w) ``bool`` with at least one true pixel.
        x: Pixel of the crop's first column.
        y: Pixel of the crop's first row.
        image_hw: Height and width of the image.

    Example:
        >>> crop_to_rle(np.array([[True, True]]), 1, 0, (2, 4))
        {'size': [2, 4], 'counts': '21102'}
    """
    height, width = image_hw
    rows, columns = crop.shape
    # Columns one after the other with a false pixel around each, so that every run begins and ends on its own.
    runs = np.zeros(columns * (rows + 1) + 1, dtype=np.uint8)
    runs[:-1].reshape(columns, rows + 1)[:, 1:] = cv2.transpose(crop.view(np.uint8))
    column, row = np.divmod(_changes(runs), rows + 1)
    edges = np.concatenate([[0], (column + x) * height + row + y, [height * width]])
    if rows == height:
        # A run that reaches the bottom goes on at the top of the next column.
        joined = np.flatnonzero(edges[2:-1] == edges[1:-2]) + 1
        edges = np.delete(edges, np.concatenate([joined, joined + 1]))
    counts = edges[1:] - edges[:-1]
    return {"size": [height, width], "counts": compress(counts if counts[-1] else counts[:-1])}


def rle_to_mask(rle: RLE) -> npt.NDArray[np.bool_]:
    """Decode to (H, W) ``bool``.

    Example:
        >>> rle_to_mask({"size": [2, 4], "counts": "21102"}).astype(int).tolist()
        [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    height, width = rle["size"]
    return rle_to_crop(rle, (0, 0, width, height))


def rle_to_crop(rle: RLE, xywh: tuple[int, int, int, int]) -> npt.NDArray[np.bool_]:
    """Decode only the pixels in a box, (h, w) ``bool``; much less work than the whole mask."""
    x, y, width, height = xywh
    rows = rle["size"][0]
    ends = np.cumsum(decompress(rle["counts"]))
    inside = np.clip(ends, x * rows, (x + width) * rows)
    lengths = np.diff(inside, prepend=x * rows)
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, rows).T[y : y + height]


def _changes(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The indices of values that differ from the one after them."""
    differs = np.zeros(-(-len(values) // 8) * 8, dtype=np.uint8)
    np.not_equal(values[1:], values[:-1], out=differs[: len(values) - 1].view(np.bool_))
    # Eight at a time, for changes are few.
    words = np.flatnonzero(differs.view(np.uint64) != 0)
    found = np.flatnonzero(differs.reshape(-1, 8)[words])
    changes: npt.NDArray[np.int64] = words[found // 8] * 8 + found % 8
    return changes


def compress(counts: npt.NDArray[np.int64]) -> str:
    """Run lengths -> compressed counts.

    Example:
        >>> compress(np.array([2, 1, 1, 1, 3]))
        '21102'
    """
    values = counts.copy()
    values[3:] -= counts[1:-2]
    # The last group's highest bit is the sign, so that five bits hold -16..15.
    lengths = 1 + np.searchsorted(_TOO_LARGE, values ^ (values >> 63), side="right")
    ends = np.cumsum(lengths)
    place = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    groups = (np.repeat(values, lengths) >> _BITS * place) & (_MORE - 1) | _MORE
    groups[ends - 1] &= _MORE - 1
    characters: bytes = (groups + _FIRST_CHARACTER).astype(np.uint8).tobytes()
    return characters.decode("ascii")


def decompress(text: str) -> npt.NDArray[np.int64]:
    """Compressed counts -> run lengths.

    Raises:
        ValueError: It is no such text.

    Example:
        >>> decompress("21102").tolist()
        [2, 1, 1, 1, 3]
    """
    groups = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - _FIRST_CHARACTER
    lasts = np.flatnonzero((groups & _MORE) == 0)
    is_whole = len(lasts) and lasts[-1] == len(groups) - 1
    if not is_whole or groups.min() < 0 or groups.max() >= 2 * _MORE or np.diff(lasts, prepend=-1).max() > _MAX_GROUPS:
        raise ValueError("expected the compressed run lengths of COCO, received damaged ones")
    firsts = np.append(0, lasts[:-1] + 1)
    place = np.arange(len(groups)) - np.repeat(firsts, lasts - firsts + 1)
    counts = np.add.reduceat((groups & (_MORE - 1)) << (_BITS * place), firsts)
    counts -= np.where(groups[lasts] & _SIGN, np.int64(1) << (_BITS * (lasts - firsts + 1)), 0)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts
