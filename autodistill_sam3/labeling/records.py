"""What is known of one labelled image, as it stands in the journal: the source of every label file.

A record holds the masks as lossless RLE; YOLO and COCO files are written from it and can be made again from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import supervision as sv

from autodistill_sam3.instances import trim_crop
from autodistill_sam3.labeling.polygons import crop_to_yolo
from autodistill_sam3.labeling.rle import RLE, crop_to_rle, rle_to_crop, rle_to_mask

Split = Literal["train", "valid"]
SPLITS: tuple[Split, ...] = ("train", "valid")


class Annotation(TypedDict):
    """One object. `bbox` is x, y, width, height in pixels; `segmentation` is None for models that give no masks."""

    class_id: int
    bbox: list[float]
    area: float
    segmentation: RLE | None
    confidence: float
    data: dict[str, str]


class ImageRecord(TypedDict):
    """One finished image. `source` is its path in the input, `file` its name in the dataset."""

    source: str
    file: str
    split: Split
    width: int
    height: int
    annotations: list[Annotation]


def annotations_of(detections: sv.Detections, image_hw: tuple[int, int]) -> list[Annotation]:
    """Turn detections of one image into annotations; an empty mask gives none."""
    crops = _mask_crops(detections.mask, len(detections))
    return [
        _annotation(detections, index, crop, image_hw)
        for index, crop in enumerate(crops)
        if crop is None or crop[0].any()
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
    dense = np.array(masks, dtype=bool).reshape(-1, record["height"], record["width"])
    return sv.Detections(
        xyxy=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
        mask=None if has_boxes_only else dense,
        confidence=np.array([annotation["confidence"] for annotation in annotations], dtype=np.float32),
        class_id=class_id,
        data=data,
    )


def yolo_lines(record: ImageRecord) -> list[str]:
    """One YOLO line per object: a polygon where there is a mask, else a box."""
    return [_yolo_line(annotation, record) for annotation in record["annotations"]]


def _mask_crops(
    masks: npt.NDArray[np.bool_] | sv.CompactMask | None, count: int
) -> Iterator[tuple[npt.NDArray[np.bool_], int, int] | None]:
    """Each mask as a crop with the pixel of its first column and row; None for detections without masks."""
    for index in range(count):
        if masks is None:
            yield None
        elif isinstance(masks, np.ndarray):
            yield masks[index].astype(bool), 0, 0
        else:
            x, y = masks.offsets[index]
            yield masks.crop(index), int(x), int(y)


def _annotation(
    detections: sv.Detections,
    index: int,
    crop: tuple[npt.NDArray[np.bool_], int, int] | None,
    image_hw: tuple[int, int],
) -> Annotation:
    if detections.class_id is None or detections.confidence is None:
        raise ValueError("detections to be written need class_id and confidence")
    if crop is None:
        x1, y1, x2, y2 = (float(value) for value in detections.xyxy[index])
        bbox, area, segmentation = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1), None
    else:
        tight, x, y = trim_crop(*crop)
        bbox, area = [float(x), float(y), float(tight.shape[1]), float(tight.shape[0])], float(tight.sum())
        segmentation = crop_to_rle(tight, x, y, image_hw)
    return {
        "class_id": int(detections.class_id[index]),
        "bbox": bbox,
        "area": area,
        "segmentation": segmentation,
        "confidence": round(float(detections.confidence[index]), 6),
        "data": {key: str(detections.data[key][index]) for key in ("prompt", "source") if key in detections.data},
    }


def _yolo_line(annotation: Annotation, record: ImageRecord) -> str:
    image_hw = record["height"], record["width"]
    x, y, width, height = annotation["bbox"]
    if annotation["segmentation"] is not None:
        crop = rle_to_crop(annotation["segmentation"], (int(x), int(y), int(width), int(height)))
        return f"{annotation['class_id']} {crop_to_yolo(crop, int(x), int(y), image_hw)}"
    centre = (x + width / 2) / image_hw[1], (y + height / 2) / image_hw[0]
    values = (*centre, width / image_hw[1], height / image_hw[0])
    return " ".join([str(annotation["class_id"]), *(f"{value:.5f}" for value in values)])
