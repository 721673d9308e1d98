"""Masks <-> the run lengths of Label Studio's brush.

Label Studio packs the RGBA pixels of a region, row by row, with the `rle-pack` format of thi.ng/umbrella: a header of
the number of bytes (32 bits), bits per value less one (5) and four sizes less one (4 each), then pieces. A piece is a
bit that says whether one value repeats, two bits that choose a size, a length less one of that size, and the value or,
where none repeats, as many values as the length. A pixel belongs to the region where its alpha is set.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autodistill_sam3.errors import LabelingError

_CHANNELS = 4
_VALUE_BITS = 8
_LENGTH_BITS = (3, 4, 8, 16)
_MAX_LENGTH = 2 ** _LENGTH_BITS[-1]
_HEADER_BITS = np.array([32, 5, 4, 4, 4, 4])
# Pieces packed at once.
_BLOCK = 2**16
# Brush strokes have soft edges; a pixel that is covered half belongs to the region.
_ALPHA = 128

Codes = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def mask_to_brush(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Encode a mask as Label Studio's brush does, byte for byte as `label_studio_sdk.converter.brush.mask2rle`.

    Args:
        mask: (H, W) ``bool`` of the whole image.

    Returns:
        Bytes, as numbers of 0..255.

    Raises:
        LabelingError: The image has more pixels than the format can count.

    Example:
        >>> mask_to_brush(np.array([[False, True]]))
        [0, 0, 0, 8, 57, 27, 252, 96, 17, 255, 128]
    """
    if mask.size * _CHANNELS >= 2 ** _HEADER_BITS[0]:
        raise LabelingError(f"Expected an image of less than 2^30 pixels for Label Studio, received {mask.shape}")
    header = np.array([mask.size * _CHANNELS, _VALUE_BITS - 1, *(bits - 1 for bits in _LENGTH_BITS)], dtype=np.int64)
    codes, bits = _pieces(mask.ravel())
    blocks = [_bits_of(header, _HEADER_BITS)]
    blocks += [_bits_of(codes[at : at + _BLOCK], bits[at : at + _BLOCK]) for at in range(0, len(codes), _BLOCK)]
    stream = np.concatenate(blocks)
    # mask2rle fills up with one to eight zeros.
    return list(np.packbits(np.append(stream, np.zeros(8 - len(stream) % 8, dtype=np.uint8))).tobytes())


def brush_to_mask(rle: Sequence[int], image_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Decode a brush region, also as the editor writes it, with soft edges.

    Args:
        rle: Bytes, as numbers of 0..255.
        image_hw: Height and width of the image; the region must declare as many pixels.

    Returns:
        (H, W) ``bool``, true where alpha is at least a half.

    Raises:
        LabelingError: The bytes are of another size, cut short, or none.
    """
    height, width = image_hw
    try:
        # Of a number, bytes() would make as many zeros.
        data = bytes(rle if isinstance(rle, list) else list(rle))
    except (TypeError, ValueError) as error:
        raise LabelingError(
            f"Expected a brush region as numbers of 0 to 255, received something else: {error}"
        ) from error
    values, lengths = _unpack(data, height * width * _CHANNELS)
    # Of the RGBA bytes before each piece's end, every fourth is an alpha.
    ends = np.cumsum(np.frombuffer(lengths, dtype=np.int64)) // _CHANNELS
    is_set = np.frombuffer(values, dtype=np.uint8) >= _ALPHA
    return np.repeat(is_set, np.diff(ends, prepend=0)).reshape(height, width)


def _pieces(flat: npt.NDArray[np.bool_]) -> Codes:
    """The repeated runs of a mask as numbers and how many bits each has; all four channels have the mask's value."""
    edges = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]))
    lengths = np.diff(edges) * _CHANNELS
    values = np.where(flat[edges[:-1]], 255, 0)
    size = np.searchsorted([2**bits for bits in _LENGTH_BITS[:-1]], lengths)
    # A run longer than the largest length is several; only the last is shorter.
    full = (lengths - 1) // _MAX_LENGTH
    pieces = np.full(int((full + 1).sum()), _MAX_LENGTH, dtype=np.int64)
    pieces[np.cumsum(full + 1) - 1] = lengths - full * _MAX_LENGTH
    size, values = np.repeat(size, full + 1), np.repeat(values, full + 1)
    length_bits = np.array(_LENGTH_BITS)[size]
    codes = ((0b100 | size) << length_bits | pieces - 1) << _VALUE_BITS | values
    return codes, 3 + length_bits + _VALUE_BITS


def _bits_of(codes: npt.NDArray[np.int64], bits: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """The codes, most significant bit first, one after the other."""
    ends = np.cumsum(bits)
    shift = np.repeat(ends, bits) - 1 - np.arange(ends[-1])
    return (np.repeat(codes, bits) >> shift & 1).astype(np.uint8)


def _unpack(data: bytes, expected: int) -> tuple[bytearray, array[int]]:
    """Values and how often each is repeated."""
    at = 0
    available = len(data) * 8

    def read(bits: int) -> int:
        nonlocal at
        start, at = at, at + bits
        if at > available:
            raise LabelingError("Expected a whole brush region, received one that is cut short")
        return int.from_bytes(data[start >> 3 : (at + 7) >> 3], "big") >> (-at & 7) & ((1 << bits) - 1)

    count, value_bits = read(32), read(5) + 1
    length_bits = [read(4) + 1 for _ in _LENGTH_BITS]
    if count != expected or value_bits != _VALUE_BITS:
        raise LabelingError(
            f"Expected a brush region of {expected} bytes for its image, received {count} values of {value_bits} bits"
        )
    values, lengths = bytearray(), array("q")
    filled = 0
    while filled < count:
        is_run = read(1)
        length = read(length_bits[read(2)]) + 1
        values += read(_VALUE_BITS * (1 if is_run else length)).to_bytes(1 if is_run else length, "big")
        lengths.extend([length] if is_run else [1] * length)
        filled += length
    if filled != count:
        raise LabelingError(f"Expected a brush region of {count} bytes, received {filled}")
    return values, lengths
