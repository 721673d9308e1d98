"""YOLO's text files: one line per object, its class id and a polygon or a box in shares of the image's sides."""

from __future__ import annotations

from autodistill_sam3.labeling.polygons import crop_to_yolo
from autodistill_sam3.labeling.records import Annotation, ImageRecord
from autodistill_sam3.rle import rle_to_crop


def object_lines(record: ImageRecord) -> list[str]:
    """One polygon per object, or one box per object if none has a mask.

    The two are never mixed, which makes ultralytics reject the image: an object without a mask among others that have
    one is written as its box's outline.
    """
    if all(annotation["segmentation"] is None for annotation in record["annotations"]):
        return box_lines(record)
    return [f"{annotation['class_id']} {_polygon(annotation, record)}" for annotation in record["annotations"]]


def box_lines(record: ImageRecord) -> list[str]:
    """One box per object: centre, width and height."""
    lines = []
    for annotation in record["annotations"]:
        x, y, width, height = annotation["bbox"]
        centre = (x + width / 2) / record["width"], (y + height / 2) / record["height"]
        values = (*centre, width / record["width"], height / record["height"])
        lines.append(" ".join([str(annotation["class_id"]), *(f"{value:.7f}" for value in values)]))
    return lines


def confidence_lines(record: ImageRecord) -> list[str]:
    """The confidence of the object on each of the other functions' lines."""
    return [str(annotation["confidence"]) for annotation in record["annotations"]]


def _polygon(annotation: Annotation, record: ImageRecord) -> str:
    x, y, width, height = annotation["bbox"]
    if annotation["segmentation"] is None:
        # Through the centres of the outermost pixels, like polygons around masks.
        left, top, right, bottom = x + 0.499, y + 0.499, x + max(width - 0.501, 0.499), y + max(height - 0.501, 0.499)
        corners = ((left, top), (left, bottom), (right, bottom), (right, top))
        return " ".join(f"{x / record['width']:.7f} {y / record['height']:.7f}" for x, y in corners)
    box = int(x), int(y), int(width), int(height)
    crop = rle_to_crop(annotation["segmentation"], box)
    return crop_to_yolo(crop, box[0], box[1], (record["height"], record["width"]))
