"""Label Studio's exported tasks -> objects of the images of a labelled folder. Nothing in the file is trusted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import numpy.typing as npt

from autodistill_sam3.errors import LabelingError
from autodistill_sam3.exchange.brush import brush_to_mask
from autodistill_sam3.exchange.dataset import DatasetImage
from autodistill_sam3.exchange.result import ImportReport
from autodistill_sam3.exchange.shapes import (
    Crop,
    ellipse_to_crop,
    points_of,
    polygon_to_crop,
    rectangle_to_crop,
    rectangle_to_xyxy,
)
from autodistill_sam3.instances import trim_crop

# Of the results that carry a class, those that can be read.
REGIONS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels")
# What the editor draws has an origin; predictions that the server turned into annotations have none.
_ORIGINS = {"prediction": "as_predicted", "None": "as_predicted", "prediction-changed": "changed"}
_LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Region:
    """A region of one class.

    Attributes:
        class_name: The class.
        object_number: What the parts of one object share; None for an object of its own.
        part: Which of these parts it is.
        prompt: The prompt of the prediction it comes from, or nothing.
        result: The region as Label Studio has it.
    """

    class_name: str
    object_number: int | None
    part: int | None
    prompt: str
    result: Mapping[str, Any]

    def crop(self, image: DatasetImage) -> Crop | None:
        """Its pixels; None if there are none.

        Raises:
            LabelingError: It was drawn on an image of another size, or is damaged.
        """
        value, image_hw = self.result["value"], image.image_hw
        kind = self.result["type"]
        if kind == "brushlabels":
            crop = brush_to_mask(value.get("rle"), image_hw), 0, 0
        elif kind == "rectanglelabels":
            crop = rectangle_to_crop(value, image_hw)
        elif kind == "ellipselabels":
            crop = ellipse_to_crop(value, image_hw)
        elif len(points := points_of(value)):
            crop = polygon_to_crop(points, image_hw)
        else:
            return None
        return trim_crop(*crop) if crop[0].any() else None

    def xyxy(self, image: DatasetImage) -> npt.NDArray[np.float64] | None:
        """(4,) the box around it in pixels; None if it is empty."""
        if self.result["type"] == "rectanglelabels":
            box = rectangle_to_xyxy(self.result["value"], image.image_hw)
            return box if box[2] > box[0] and box[3] > box[1] else None
        if (found := self.crop(image)) is None:
            return None
        crop, x, y = found
        return np.array([x, y, x + crop.shape[1], y + crop.shape[0]], dtype=np.float64)


class TaskReader:
    """Finds the image of a task and its latest annotation, and counts what is left out.

    Args:
        images: The images of the labelled folder.
        report: Where to count.
    """

    def __init__(self, images: Sequence[DatasetImage], report: ImportReport) -> None:
        self._images = {image.path: image for image in images}
        self._report = report

    def image_of(self, task: Any) -> DatasetImage | None:
        """The image of the labelled folder that a task shows, or None.

        Raises:
            LabelingError: It is no task of Label Studio's JSON export.
        """
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            raise LabelingError(
                "Expected tasks with `data`, as Label Studio exports them as JSON (not JSON-MIN), "
                f"received {_named(task)}"
            )
        # Only names that the labelled folder has are ever looked up.
        for name in _image_names(task["data"]):
            if name in self._images:
                return self._images[name]
        return None

    def annotation_of(self, task: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The latest annotation that was not cancelled, or None.

        Raises:
            LabelingError: The task has annotations that are none.
        """
        annotations = task.get("annotations", [])
        if not isinstance(annotations, list) or not all(isinstance(item, dict) for item in annotations):
            raise LabelingError(f"Expected a list of annotations in {_named(task)}, received something else")
        done = [item for item in annotations if not item.get("was_cancelled")]
        if len(done) > 1:
            self._report.several_annotations += 1
        return max(done, key=_time_of, default=None)

    def regions(self, task: Mapping[str, Any], annotation: Mapping[str, Any], image: DatasetImage) -> Iterator[Region]:
        """The regions of an annotation that have a class.

        Raises:
            LabelingError: A region is of a kind that is not read, or was drawn on another image or a turned one.
        """
        results = annotation.get("result")
        if not isinstance(results, list) or not all(isinstance(item, dict) for item in results):
            raise LabelingError(f"Expected a list as the result in {_named(task)}, received something else")
        for result in results:
            kind = str(result.get("type"))
            if kind not in REGIONS:
                self._pass_over(kind, task)
                continue
            _check_region(result, task, image)
            labels = result["value"].get(kind)
            if not labels:
                self._report.without_class += 1
                continue
            if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str):
                raise LabelingError(f"Expected one class for each region of {_named(task)}, received {labels!r:.100}")
            name = _ORIGINS.get(str(result.get("origin")), "drawn")
            setattr(self._report, name, getattr(self._report, name) + 1)
            yield _region(result, labels[0])

    def _pass_over(self, kind: str, task: Mapping[str, Any]) -> None:
        if kind.endswith("labels") or kind in ("brush", "polygon", "rectangle", "ellipse", "bitmask", "magicwand"):
            raise LabelingError(
                f"Expected regions of the kinds {', '.join(REGIONS)}, received {kind!r:.40} in {_named(task)}. "
                "Use the labelling interface in labels.xml of the export."
            )
        self._report.not_regions += 1


def _region(result: Mapping[str, Any], class_name: str) -> Region:
    meta = result.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    number, part, prompt = (meta.get(key) for key in ("object", "part", "prompt"))
    if not (isinstance(number, int) and isinstance(part, int)):
        number = part = None
    return Region(class_name, number, part, prompt if isinstance(prompt, str) else "", result)


def _check_region(result: Mapping[str, Any], task: Mapping[str, Any], image: DatasetImage) -> None:
    size = result.get("original_height"), result.get("original_width")
    if size != image.image_hw:
        raise LabelingError(
            f"Expected regions drawn on an image of height and width {image.image_hw} in {_named(task)}, "
            f"received {size}. The image of {image.path} was another one."
        )
    if result.get("image_rotation"):
        raise LabelingError(f"Expected an image that is not turned in {_named(task)}; turn it back in Label Studio")
    if not isinstance(result.get("value"), dict):
        raise LabelingError(f"Expected a value for each region of {_named(task)}, received something else")


def _image_names(data: Mapping[str, Any]) -> Iterator[str]:
    """Paths in the labelled folder that a task may mean: what the export wrote, else the end of the image's address."""
    if isinstance(file := data.get("file"), str):
        yield file
    if isinstance(address := data.get("image"), str):
        path = address.rpartition("?d=")[2]
        try:
            parts = os.fsdecode(unquote_to_bytes(path)).split("/")
        except UnicodeError:
            return
        yield "/".join(parts[-3:])


def _time_of(annotation: Mapping[str, Any]) -> tuple[datetime, int]:
    """When an annotation was last changed; of two at the same time the one with the higher number is later."""
    try:
        time = datetime.fromisoformat(str(annotation.get("updated_at") or annotation.get("created_at")))
    except ValueError:
        time = _LONG_AGO
    number = annotation.get("id")
    return time if time.tzinfo else time.replace(tzinfo=UTC), number if isinstance(number, int) else 0


def _named(task: Any) -> str:
    """What errors call a task."""
    number = task.get("id") if isinstance(task, dict) else None
    return f"task {number!r:.40}" if number is not None else "a task without id"
