"""Low-resolution mask logits -> masks in the image's frame, computed only where they are true."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import torch
from supervision import CompactMask
from torch.nn.functional import interpolate

from autodistill_sam3.instances import compact_masks, compact_masks_from_runs

# Of masks in the image's size that are on a GPU at a time.
_PIXELS_PER_PASS = 2**27

Crop = tuple[npt.NDArray[np.bool_], int, int]


def upsampled_masks(logits: torch.Tensor, image_hw: tuple[int, int]) -> tuple[CompactMask, list[int]]:
    """Interpolate the mask logits of one image, or of images of one size, to its size and threshold them at 0.

    Equals `torch.nn.functional.interpolate(mode="bilinear", align_corners=False) > 0`, as in SAM 3's post-processing
    (`sam3/model/sam3_image_processor.py`). From a GPU come the runs of true pixels alone; on a CPU only what is around
    positive logits is computed. The two agree but for pixels whose logit is within rounding of 0.

    Args:
        logits: (K, h, w), each covering the whole image.
        image_hw: Height and width of the image in pixels.

    Returns:
        The masks that have at least one pixel, and their positions among the K.
    """
    if logits.is_cuda:
        runs = mask_runs(logits, image_hw)
        kept = [index for index, (starts, _) in enumerate(runs) if len(starts)]
        return compact_masks_from_runs([runs[index] for index in kept], image_hw), kept
    crops = {index: upsample_logits(mask, image_hw) for index, mask in enumerate(logits.float().numpy())}
    found = {index: crop for index, crop in crops.items() if crop is not None}
    return compact_masks(found.values(), image_hw), list(found)


def mask_runs(
    logits: torch.Tensor, image_hw: tuple[int, int]
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Starts and stops of the runs of true pixels of (K, h, w) logits in the image's size, read column by column."""
    runs = []
    size = image_hw[0] * image_hw[1]
    for part in torch.split(logits, max(1, _PIXELS_PER_PASS // size)):
        # Transposed first, so that the large masks lie in memory column by column.
        turned = part.transpose(1, 2)[:, None].float().contiguous()
        pixels = interpolate(turned, size=image_hw[::-1], mode="bilinear", align_corners=False) > 0
        columns = pixels.view(len(part), size)
        # Whether a run starts or stops in front of each pixel, and behind the last one.
        changes = columns.new_empty(len(part), size + 1)
        changes[:, 0], changes[:, -1] = columns[:, 0], columns[:, -1]
        torch.ne(columns[:, 1:], columns[:, :-1], out=changes[:, 1:-1])
        mask, place = np.divmod(changes.flatten().nonzero()[:, 0].cpu().numpy(), size + 1)
        for first, last in itertools.pairwise(np.searchsorted(mask, np.arange(len(part) + 1))):
            runs.append((place[first:last:2], place[first + 1 : last : 2]))
    return runs


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
