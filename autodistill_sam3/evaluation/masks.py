"""Masks as run lengths, as pycocotools takes them; a full mask is never built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from autodistill_sam3.rle import compress, crop_to_rle, decompress

# What pycocotools calls an RLE: {"size": [height, width], "counts": compressed bytes or text}.
RLE: TypeAlias = dict[str, Any]
ImageHW: TypeAlias = tuple[int, int]

# In lengths of the image's longer side.
_FARTHEST = 10


def segmentation_rle(segmentation: Any, image_hw: ImageHW) -> RLE | None:
    """What a COCO file says of a mask -> compressed RLE.

    Polygons are filled as pycocotools fills them. Polygons with fewer than three points are left out.

    Args:
        segmentation: Compressed or uncompressed RLE, or a list of polygons.
        image_hw: Height and width of the image.

    Returns:
        The RLE, or None where there is no mask.

    Raises:
        ValueError: It is none of these, of another size, or damaged.
    """
    from pycocotools import mask as coco_mask

    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        return _checked_rle(segmentation, image_hw)
    if not isinstance(segmentation, list):
        raise ValueError(f"expected a mask as RLE or polygons, received {type(segmentation).__name__}")
    flat = isinstance(segmentation[0], (int, float))
    polygons = [_polygon(points, image_hw) for points in ([segmentation] if flat else segmentation)]
    # pycocotools takes four numbers for a box.
    outlines = [points for points in polygons if len(points) >= 6]
    if not outlines:
        return None
    rle: RLE = coco_mask.merge(coco_mask.frPyObjects(outlines, *image_hw))
    return rle


def outline_rle(outline: npt.NDArray[np.float64], image_hw: ImageHW) -> RLE:
    """A YOLO outline -> compressed RLE, filled as ultralytics' loader fills it.

    That is: coordinates truncated to whole pixels, the edge belongs to the mask, and what is enclosed twice is outside
    (ultralytics/data/utils.py, `polygon2mask`).

    Args:
        outline: (N, 2) xy in pixels.
        image_hw: Height and width of the image.
    """
    height, width = image_hw
    points = outline.astype(np.int32)
    x, y = np.maximum(points.min(axis=0), 0).tolist()
    right, bottom = np.minimum(points.max(axis=0) + 1, (width, height)).tolist()
    crop = np.zeros((max(bottom - y, 0), max(right - x, 0)), dtype=np.uint8)
    if not crop.size:
        return {"size": [height, width], "counts": compress(np.array([height * width]))}
    cv2.fillPoly(crop, [points - (x, y)], color=1)
    return dict(crop_to_rle(crop.view(np.bool_), x, y, image_hw))


def areas(rles: Sequence[RLE]) -> npt.NDArray[np.float64]:
    """(N,) pixels of each mask."""
    from pycocotools import mask as coco_mask

    return np.asarray(coco_mask.area(list(rles)), dtype=np.float64).reshape(-1)


def box_of(rle: RLE) -> tuple[float, float, float, float]:
    """The tight box of a mask: x, y, width, height in pixels; zeros if it is empty."""
    from pycocotools import mask as coco_mask

    x, y, width, height = (float(value) for value in coco_mask.toBbox(rle))
    return x, y, width, height


def pairwise_iou(found: Sequence[Any], truth: Sequence[Any], crowd: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """IoU of every mask or box found with every true one.

    Args:
        found: D RLEs, or D boxes xywh.
        truth: G of the same kind.
        crowd: (G,) which are crowds; with these the share of what was found that lies inside counts, as in COCO.

    Returns:
        (D, G).
    """
    from pycocotools import mask as coco_mask

    if not (len(found) and len(truth)):
        return np.zeros((len(found), len(truth)))
    return np.asarray(coco_mask.iou(list(found), list(truth), crowd.astype(int).tolist()), dtype=np.float64)


def _polygon(points: Any, image_hw: ImageHW) -> list[float]:
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 1 or len(values) % 2 or not np.isfinite(values).all():
        raise ValueError("expected polygons as [x, y, x, y, ...]")
    # pycocotools takes memory for every pixel along the edge, inside the image or not.
    if np.abs(values).max(initial=0) > _FARTHEST * max(image_hw):
        raise ValueError("expected polygons in the image, received one far outside")
    polygon: list[float] = values.tolist()
    return polygon


def _checked_rle(segmentation: dict[str, Any], image_hw: ImageHW) -> RLE:
    from pycocotools import mask as coco_mask

    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [*image_hw]:
        raise ValueError(f"expected a mask of height and width {[*image_hw]}, received {size}")
    if isinstance(counts, list):
        runs = np.asarray(counts)
    elif isinstance(counts, str) and counts.isascii():
        runs = decompress(counts)
    else:
        raise ValueError(f"expected run lengths as a list or as text, received {type(counts).__name__}")
    # pycocotools trusts what it is given.
    if runs.ndim != 1 or runs.dtype.kind != "i" or (runs < 0).any() or runs.sum() != image_hw[0] * image_hw[1]:
        raise ValueError("expected run lengths that cover the image, received damaged ones")
    if isinstance(counts, str):
        return {"size": size, "counts": counts}
    rle: RLE = coco_mask.frPyObjects({"size": size, "counts": counts}, *image_hw)
    return rle
