"""A labelled folder -> tasks with predictions for Label Studio."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import quote_from_bytes

import numpy as np

from autodistill_sam3.errors import SettingError
from autodistill_sam3.exchange.brush import mask_to_brush
from autodistill_sam3.exchange.dataset import DatasetImage, DatasetObject, LabelledFolder
from autodistill_sam3.exchange.label_studio_config import CONTROLS, IMAGE, labeling_config, readme
from autodistill_sam3.exchange.new_folder import new_folder
from autodistill_sam3.exchange.result import ExportReport
from autodistill_sam3.exchange.shapes import Crop, crop_to_polygons, polygon_to_crop, unite

LOCAL_FILES = "/data/local-files/?d="
Shape = Literal["brush", "polygon"]
_CONTROL_OF_SHAPE = {"brush": "BrushLabels", "polygon": "PolygonLabels"}
# Label Studio takes 250 MiB at once unless it is told otherwise.
_MAX_FILE_BYTES = 200 * 2**20
_PERCENT_DECIMALS = 5


def to_label_studio(
    dataset: Path,
    output: Path,
    *,
    shape: Shape = "brush",
    image_root: Path | None = None,
    url_prefix: str = LOCAL_FILES,
    model_version: str = "autodistill_sam3",
) -> ExportReport:
    """Write a labelled folder as Label Studio takes it: tasks with predictions, the labelling interface, a README.

    Brush regions keep masks exactly. Label Studio's polygons have neither holes nor parts: an object of several parts
    becomes several polygons, which `from_label_studio` joins again, and a hole is cut free by a seam, which people
    see. Objects without a mask become rectangles. Confidences, prompts and sources stand in each region's `meta`, the
    confidence also in its `score`; a task's score is the lowest of them.

    Args:
        dataset: The labelled folder, with COCO files.
        output: The folder to write; it must not exist.
        shape: What masks become.
        image_root: What image addresses are relative to: the folder that Label Studio serves as its
            `LOCAL_FILES_DOCUMENT_ROOT`, or the one behind `url_prefix`. None takes the folder around the dataset.
        url_prefix: What addresses begin with, for images that are served in another way.
        model_version: The name of the predictions.

    Returns:
        What was written, and what polygons could not keep.

    Raises:
        SettingError: The shape is unknown, or the dataset does not lie in `image_root`.
        InputFolderError: There is no labelled folder.
        OutputFolderError: The output exists, or cannot be written.
        LabelingError: The dataset is damaged, or a class name is nothing for Label Studio.
    """
    if shape not in _CONTROL_OF_SHAPE:
        raise SettingError(f"Expected shape to be one of {', '.join(_CONTROL_OF_SHAPE)}, received {shape!r}")
    folder = LabelledFolder(dataset)
    # Before the work, since names may be refused.
    labeling_config(folder.classes, list(CONTROLS))
    root = (image_root or dataset.resolve().parent).resolve()
    if root not in dataset.resolve().parents and root != dataset.resolve():
        raise SettingError(f"Expected image_root around the dataset {dataset}, received {root}")
    place = dataset.resolve().relative_to(root).as_posix()
    prefix = url_prefix + ("" if place == "." else _quoted(f"{place}/"))
    tasks = _Tasks(folder, shape, prefix, model_version)
    with new_folder(output) as temporary:
        _write_tasks(temporary, tasks)
        config = labeling_config(folder.classes, sorted(tasks.controls) or [_CONTROL_OF_SHAPE[shape]])
        (temporary / "labels.xml").write_text(config, encoding="utf-8")
        is_local = url_prefix.startswith(LOCAL_FILES)
        text = readme(root, dataset.resolve(), tasks.report.files, url_prefix, is_local=is_local)
        (temporary / "README.md").write_text(text, encoding="utf-8", errors="replace")
    return tasks.report


class _Tasks:
    """Makes tasks, one at a time, and counts."""

    def __init__(self, folder: LabelledFolder, shape: Shape, prefix: str, model_version: str) -> None:
        self._folder = folder
        self._shape = shape
        self._prefix = prefix
        self._model_version = model_version
        self._polygons = 0
        self.controls: set[str] = set()
        self.report = ExportReport()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for split in self._folder.images:
            for image, objects in self._folder.objects(split):
                yield self._task(image, objects)

    def _task(self, image: DatasetImage, objects: list[DatasetObject]) -> dict[str, Any]:
        regions: list[dict[str, Any]] = []
        for number, item in enumerate(objects, 1):
            regions += self._regions(image, item, number)
        prediction: dict[str, Any] = {"model_version": self._model_version, "result": regions}
        if objects:
            prediction["score"] = min(item.confidence for item in objects)
        self.report.images += 1
        self.report.objects += len(objects)
        self.report.regions += len(regions)
        data = {"image": self._prefix + _quoted(image.path), "file": image.path}
        return {"data": data, "predictions": [prediction]}

    def _regions(self, image: DatasetImage, item: DatasetObject, number: int) -> Iterator[dict[str, Any]]:
        values = self._values(image, item)
        for part, (control, value) in enumerate(values):
            self.controls.add(control)
            name = CONTROLS[control]
            value[control.lower()] = [self._folder.classes[item.class_id]]
            yield {
                "id": hashlib.sha256(f"{image.path}:{number}:{part}".encode(errors="surrogateescape")).hexdigest()[:12],
                "from_name": name,
                "to_name": IMAGE,
                "type": control.lower(),
                "original_width": image.width,
                "original_height": image.height,
                "image_rotation": 0,
                "score": item.confidence,
                "meta": _meta(item) | ({"object": number, "part": part} if len(values) > 1 else {}),
                "value": value,
            }

    def _values(self, image: DatasetImage, item: DatasetObject) -> list[tuple[str, dict[str, Any]]]:
        """The control and the value of each region of an object."""
        if item.segmentation is None:
            x, y, width, height = item.bbox
            percent = [x / image.width, y / image.height, width / image.width, height / image.height]
            numbers = [round(100 * value, _PERCENT_DECIMALS) for value in percent]
            return [
                ("RectangleLabels", dict(zip(("x", "y", "width", "height"), numbers, strict=True)) | {"rotation": 0})
            ]
        crop, x, y = item.crop()
        if self._shape == "brush":
            mask = np.zeros(image.image_hw, dtype=bool)
            mask[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
            return [("BrushLabels", {"format": "rle", "rle": mask_to_brush(mask)})]
        polygons = crop_to_polygons(crop, x, y, image.image_hw)
        self._count_polygons((crop, x, y), polygons, image.image_hw)
        return [("PolygonLabels", {"points": points, "closed": True}) for points in polygons]

    def _count_polygons(self, mask: Crop, polygons: list[list[list[float]]], image_hw: tuple[int, int]) -> None:
        filled = unite([polygon_to_crop(np.array(points), image_hw) for points in polygons])
        both = unite([mask, filled])
        union = int(both[0].sum())
        iou, report = (int(mask[0].sum()) + int(filled[0].sum()) - union) / union, self.report
        self._polygons += 1
        report.mean_iou += (iou - report.mean_iou) / self._polygons
        report.min_iou = min(report.min_iou, iou)
        report.objects_in_parts += len(polygons) > 1
        report.objects_changed += iou < 1


def _write_tasks(folder: Path, tasks: _Tasks) -> None:
    """Write `tasks.json`, and `tasks_2.json` and on where Label Studio would refuse a file of that size."""
    names = tasks.report.files
    file: IO[str] | None = None
    size = 0
    with contextlib.ExitStack() as stack:
        for task in tasks:
            text = json.dumps(task, separators=(",", ":"), allow_nan=False)
            if file is None or size + len(text) > _MAX_FILE_BYTES:
                stack.close()
                names.append(f"tasks_{len(names) + 1}.json" if names else "tasks.json")
                file, size = stack.enter_context((folder / names[-1]).open("w", encoding="utf-8")), 0
                # Runs before the file is closed.
                stack.callback(file.write, "\n]\n")
            file.write(("," if size else "[") + "\n" + text)
            size += len(text)


def _meta(item: DatasetObject) -> dict[str, Any]:
    """What people see beside a region, and what comes back with it."""
    told = [f"confidence {item.confidence:.2f}"]
    told += [f"{name} {value}" for name, value in (("prompt", item.prompt), ("source", item.source)) if value]
    return {"text": [", ".join(told)], "confidence": item.confidence, "prompt": item.prompt, "source": item.source}


def _quoted(path: str) -> str:
    return quote_from_bytes(os.fsencode(path), safe="/")
