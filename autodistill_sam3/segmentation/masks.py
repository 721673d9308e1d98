"""Low-resolution mask logits -> masks in the image's frame, computed only where they are true."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Crop = tuple[npt.NDArray[np.bool_], int, int]


def upsample_logits(logits: npt.NDArray[np.float32], image_hw: tuple[int, int]) -> Crop | None:
    """Interpolate mask logits to the image's size and threshold them at 0.

    Equals `torch.nn.functional.interpolate(mode="bilinear", align_corners=False) > 0` over the whole image, as in
    SAM 3's post-processing (`sam3/model/sam3_image_processor.py`), but is computed only around positive logits.

    Args:
        logits: (h, w) ``float32``, covering the whole image.
        image_hw: Height and width of the image in pixels.

    Returns:
        `(crop, x, y)`: a ``bool`` crop that holds every true pixel, and the pixel of its first column and row; None if
        no pixel is true.

    Example:
        >>> crop, x, y = upsample_logits(np.array([[-1, -1], [-1, 1]], dtype=np.float32), (4, 4))
        >>> crop.sum(axis=0).tolist(), crop.sum(axis=1).tolist(), (x, y)
        ([0, 0, 2, 2], [0, 0, 2, 2], (0, 0))
    """
    positive = logits > 0
    rows, columns = np.flatnonzero(positive.any(axis=1)), np.flatnonzero(positive.any(axis=0))
    if not len(rows):
        return None
    y, y_low, y_high, y_weight = _source_cells(image_hw[0], logits.shape[0], rows[0], rows[-1])
    x, x_low, x_high, x_weight = _source_cells(image_hw[1], logits.shape[1], columns[0], columns[-1])
    if not (len(y) and len(x)):
        return None
    first, last = x_low[0], x_high[-1] + 1
    lines = logits[y_low, first:last] * (1 - y_weight)[:, None] + logits[y_high, first:last] * y_weight[:, None]
    pixels = lines[:, x_low - first] * (1 - x_weight) + lines[:, x_high - first] * x_weight
    crop = pixels > 0
    return (crop, int(x[0]), int(y[0])) if crop.any() else None


def _source_cells(
    out_size: int, in_size: int, first: int, last: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Output positions that touch input cells first..last, with the two cells each lies between and the weight."""
    position = np.arange(out_size, dtype=np.float32)
    source = np.maximum((position + 0.5) * np.float32(in_size / out_size) - 0.5, 0)
    low = np.minimum(source.astype(np.int64), in_size - 1)
    high = np.minimum(low + 1, in_size - 1)
    touching = np.flatnonzero((high >= first) & (low <= last))
    low, high = low[touching], high[touching]
    return touching, low, high, (source[touching] - low).astype(np.float32)
