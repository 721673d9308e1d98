"""Masks <-> COCO's compressed run-length encoding, lossless.

The format is that of the COCO API (cocodataset/cocoapi, common/maskApi.c): runs of 0, 1, 0, ... down the columns, each
from the third on stored as the difference to the one two before, in groups of five bits as printable characters.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import numpy.typing as npt


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
    padded = np.pad(crop, ((1, 1), (0, 0))).astype(np.int8)
    steps = np.diff(padded, axis=0).T
    starts_column, starts_row = np.nonzero(steps == 1)
    ends_column, ends_row = np.nonzero(steps == -1)
    starts = (starts_column + x) * height + starts_row + y
    ends = (ends_column + x) * height + ends_row + y
    # A run that reaches the bottom goes on at the top of the next column.
    joined = starts[1:] == ends[:-1]
    starts, ends = starts[np.append(True, ~joined)], ends[np.append(~joined, True)]
    edges = np.concatenate(([0], np.column_stack((starts, ends)).ravel(), [height * width]))
    counts = np.diff(edges)
    if counts[-1] == 0:
        counts = counts[:-1]
    return {"size": [height, width], "counts": _compress(counts.tolist())}


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
    ends = np.cumsum(_decompress(rle["counts"]), dtype=np.int64)
    inside = np.clip(ends, x * rows, (x + width) * rows)
    lengths = np.diff(inside, prepend=x * rows)
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, rows).T[y : y + height]


def _compress(counts: list[int]) -> str:
    characters = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            characters.append(chr((bits | 0x20 if more else bits) + 48))
    return "".join(characters)


def _decompress(text: str) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts
