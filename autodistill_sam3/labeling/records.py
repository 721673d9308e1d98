"""What is known of one labelled image, as it stands in the journal: the source of every label file.

A record holds the masks as lossless RLE; YOLO and COCO files are written from it and can be made again from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

import cv2
import numpy as np
import numpy.typing as npt
import supervision as sv

from autodistill_sam3.background import BACKGROUND
from autodistill_sam3.labeling.polygons import polygon_iou
from autodistill_sam3.rle import RLE, crop_to_rle, rle_to_mask

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

# A mask as a crop of the image, with the pixel of its first column and row.
_Crop: TypeAlias = tuple[npt.NDArray[np.bool_], int, int]


class Annotation(TypedDict):
    """One object.

    `bbox` is x, y, width, height in pixels. `segmentation` is None for models that give no masks, and so is
    `polygon_iou`: the IoU of the mask with its YOLO polygon as ultralytics fills it, to four decimals. `track_id` is
    the same for an object in all frames of a clip.
    """

    class_id: int
    bbox: list[float]
    area: float
    segmentation: RLE | None
    polygon_iou: NotRequired[float | None]
    confidence: float
    data: dict[str, str]
    track_id: NotRequired[int]


def found_by_models(annotations: Sequence[Annotation]) -> list[Annotation]:
    """All but the background, which is there in any image."""
    return [annotation for annotation in annotations if annotation["data"].get("source") != BACKGROUND]


class ImageRecord(TypedDict):
    """One finished image.

    `source` is its path in the input, `file` its name in the dataset. `removed` counts what the model found and the
    dataset does not have, by reason. `sha256`, `size` (bytes), `mtime_ns` and `phash` (16 hexadecimal digits) are of
    the input file. What is not required was not known to earlier versions.
    """

    source: str
    file: str
    split: Split
    width: int
    height: int
    annotations: list[Annotation]
    removed: NotRequired[dict[str, int]]
    sha256: NotRequired[str]
    size: NotRequired[int]
    mtime_ns: NotRequired[int]
    phash: NotRequired[str]


def annotations_of(detections: sv.Detections, image_hw: tuple[int, int]) -> list[Annotation]:
    """Turn detections of one image into annotations.

    Args:
        detections: With `class_id` and `confidence`; masks are of the image's size.
        image_hw: Height and width of the image.

    Returns:
        One annotation per detection, but for detections with an empty mask, which give none.

    Raises:
        ValueError: `class_id` or `confidence` is missing.
    """
    crops = (crop and _trimmed(*crop) for crop in _mask_crops(detections.mask, len(detections)))
    return [
        _annotation(detections, index, crop, image_hw)
        for index, crop in enumerate(crops)
        if crop is None or crop[0].size
    ]


def detections_of(record: ImageRecord, classes: list[str]) -> sv.Detections:
    """The annotations of a record as `sv.Detections` with dense (N, H, W) ``bool`` masks."""
    annotations = record["annotations"]
    class_id = np.array([annotation["class_id"] for annotation in annotations], dtype=np.int64)
    data: dict[str, Any] = {"class_name": np.array(classes, dtype=np.str_)[class_id]}
    for key in annotations[0]["data"] if annotations else ():
        data[key] = np.array([annotation["data"][key] for annotation in annotations], dtype=np.str_)
    xywh = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float32).reshape(-1, 4)
    segmentations = [annotation["segmentation"] for annotation in annotations]
    masks = [rle_to_mask(rle) for rle in segmentations if rle is not None]
    has_boxes_only = bool(annotations) and not masks
    track_ids = [annotation["track_id"] for annotation in annotations if "track_id" in annotation]
    dense = np.array(masks, dtype=bool).reshape(-1, record["height"], record["width"])
    return sv.Detections(
        xyxy=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
        mask=None if has_boxes_only else dense,
        confidence=np.array([annotation["confidence"] for annotation in annotations], dtype=np.float32),
        class_id=class_id,
        tracker_id=np.array(track_ids, dtype=np.int64) if track_ids else None,
        data=data,
    )


def _mask_crops(masks: npt.NDArray[np.bool_] | sv.CompactMask | None, count: int) -> Iterator[_Crop | None]:
    """Each mask as a crop; None for detections without masks."""
    for index in range(count):
        if masks is None:
            yield None
        elif isinstance(masks, np.ndarray):
            yield masks[index].astype(bool, copy=False), 0, 0
        else:
            x, y = masks.offsets[index]
            yield masks.crop(index), int(x), int(y)


def _trimmed(crop: npt.NDArray[np.bool_], x: int, y: int) -> _Crop:
    """Cut a crop to its true pixels; there may be none."""
    left, top, width, height = cv2.boundingRect(crop.view(np.uint8))
    return np.ascontiguousarray(crop[top : top + height, left : left + width]), x + left, y + top


def _annotation(detections: sv.Detections, index: int, crop: _Crop | None, image_hw: tuple[int, int]) -> Annotation:
    if detections.class_id is None or detections.confidence is None:
        raise ValueError("detections to be written need class_id and confidence")
    if crop is None:
        x1, y1, x2, y2 = (float(value) for value in detections.xyxy[index])
        bbox, area, segmentation, kept = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1), None, None
    else:
        mask, x, y = crop
        bbox, area = [float(x), float(y), float(mask.shape[1]), float(mask.shape[0])], float(np.count_nonzero(mask))
        segmentation, kept = crop_to_rle(mask, x, y, image_hw), round(polygon_iou(mask), 4)
    annotation: Annotation = {
        "class_id": int(detections.class_id[index]),
        "bbox": bbox,
        "area": area,
        "segmentation": segmentation,
        "polygon_iou": kept,
        "confidence": round(float(detections.confidence[index]), 6),
        "data": {key: str(detections.data[key][index]) for key in ("prompt", "source") if key in detections.data},
    }
    if detections.tracker_id is not None:
        annotation["track_id"] = int(detections.tracker_id[index])
    return annotation
