"""Label Studio's export -> a dataset of the same layout as a labelled folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autodistill_sam3.errors import LabelingError, SettingError
from autodistill_sam3.exchange.dataset import DatasetImage, DatasetObject, LabelledFolder
from autodistill_sam3.exchange.label_studio_tasks import Region, TaskReader
from autodistill_sam3.exchange.new_folder import new_folder
from autodistill_sam3.exchange.result import ImportReport
from autodistill_sam3.exchange.shapes import unite
from autodistill_sam3.exchange.writer import DatasetWriter, FoundObject
from autodistill_sam3.json_stream import array_items

logger = logging.getLogger("autodistill_sam3")

# Who says where an object is, as "text" and "boxes" do in a labelled folder.
SOURCE = "annotator"


def from_label_studio(
    export_json: Path,
    output: Path,
    *,
    dataset: Path,
    keep_not_reviewed: bool = False,
    link_images: bool = False,
) -> ImportReport:
    """Make a dataset of what people corrected in Label Studio.

    It has the layout of a labelled folder (`data.yaml`, splits as in the source dataset, images, YOLO labels, COCO
    files with RLE), so that trainers and `evaluate` take it. Where the labelled folder has a journal, it has one too,
    with what the images were called before they were labelled. Only images that were annotated are in it. Of several
    annotations of an image the latest that was not cancelled counts. Objects have confidence 1 and the source
    "annotator". Polygons that the export made of one object's parts are one object again.

    Args:
        export_json: Label Studio's export as JSON (not JSON-MIN).
        output: The folder to write; it must not exist.
        dataset: The labelled folder that was exported: its images, splits and classes.
        keep_not_reviewed: Also take images that nobody annotated, with the labels they have in `dataset`.
        link_images: Make hard links to the images where the file system can, instead of copies.

    Returns:
        What came back, and what was left out.

    Raises:
        SettingError: `export_json` is no file.
        InputFolderError: There is no labelled folder.
        OutputFolderError: The output exists, or cannot be written.
        LabelingError: The export is damaged, of another kind, or of other images; nothing was written.
    """
    if not export_json.is_file():
        raise SettingError(f"Expected Label Studio's export as a JSON file, received nothing there: {export_json}")
    folder = LabelledFolder(dataset)
    report = ImportReport()
    has_masks = _has_masks(folder)
    with new_folder(output) as temporary, DatasetWriter(temporary, folder, link_images, has_masks) as writer:
        remaining = _take_tasks(export_json, folder, writer, report, has_masks)
        report.not_reviewed = len(remaining)
        if keep_not_reviewed:
            _keep(remaining, folder, writer)
        writer.finish()
        report.images, report.objects = writer.images, writer.objects
        report.new_classes = writer.classes[len(folder.classes) :]
    _warn(report)
    return report


def _take_tasks(
    export_json: Path, folder: LabelledFolder, writer: DatasetWriter, report: ImportReport, has_masks: bool
) -> set[str]:
    """Write what was annotated; returns the paths of the images that were not."""
    images = [image for split in folder.images.values() for image in split]
    reader = TaskReader(images, report)
    taken: set[str] = set()
    skipped: set[str] = set()
    for task in _tasks(export_json):
        image = reader.image_of(task)
        if image is None:
            report.unknown_tasks += 1
            continue
        annotation = reader.annotation_of(task)
        if annotation is None:
            if task.get("annotations"):
                skipped.add(image.path)
            continue
        if image.path in taken:
            raise LabelingError(
                f"Expected one annotated task for each image, received a second for {image.path}: "
                f"{task.get('id')!r:.40}. Delete one of the two in Label Studio."
            )
        taken.add(image.path)
        regions = list(reader.regions(task, annotation, image))
        try:
            writer.write(image, _objects(regions, image, has_masks, report))
        except LabelingError as error:
            raise LabelingError(f"{error} (task {task.get('id')!r:.40}, {image.path})") from error
    if report.unknown_tasks and not (taken or skipped):
        raise LabelingError(
            f"Expected tasks of the images of {folder.path}, received {report.unknown_tasks} of other images "
            f"in {export_json}"
        )
    report.skipped = len(skipped - taken)
    return {image.path for image in images} - taken - skipped


def _has_masks(folder: LabelledFolder) -> bool:
    """Whether the dataset has masks and not only boxes; without any object, masks are expected."""
    for split in folder.images:
        for _, objects in folder.objects(split):
            if objects:
                return objects[0].segmentation is not None
    return True


def _objects(
    regions: Sequence[Region], image: DatasetImage, has_masks: bool, report: ImportReport
) -> Iterator[FoundObject]:
    """The objects of an image, one at a time, in the order of their first regions."""
    for parts in _by_object(regions):
        first = parts[0]
        crops = [part.crop(image) for part in parts] if has_masks else []
        filled = [crop for crop in crops if crop is not None]
        xyxy = None if has_masks else first.xyxy(image)
        report.empty += len(crops) - len(filled) + (not has_masks and xyxy is None)
        if filled or xyxy is not None:
            mask = unite(filled) if filled else None
            yield FoundObject(first.class_name, mask, xyxy, 1.0, first.prompt or first.class_name, SOURCE)


def _by_object(regions: Sequence[Region]) -> list[list[Region]]:
    """Regions of one object together. A part that is there twice was copied, to be an object of its own."""
    groups: dict[Any, list[Region]] = {}
    for index, region in enumerate(regions):
        key: Any = (region.class_name, region.object_number)
        if region.object_number is None or region.part in (other.part for other in groups.get(key, ())):
            key = index
        groups.setdefault(key, []).append(region)
    return list(groups.values())


def _keep(paths: set[str], folder: LabelledFolder, writer: DatasetWriter) -> None:
    """Write images with the labels that they had."""
    for split in folder.images:
        for image, objects in folder.objects(split):
            if image.path in paths:
                writer.write(image, (_as_found(item, folder.classes) for item in objects))


def _as_found(item: DatasetObject, classes: Sequence[str]) -> FoundObject:
    x, y, width, height = item.bbox
    mask = item.crop() if item.segmentation is not None else None
    xyxy = np.array([x, y, x + width, y + height])
    return FoundObject(classes[item.class_id], mask, xyxy, item.confidence, item.prompt, item.source)


def _warn(report: ImportReport) -> None:
    reasons = {
        "tasks show images that are not in the labelled folder": report.unknown_tasks,
        "images were skipped": report.skipped,
        "regions have no class": report.without_class,
        "regions are empty": report.empty,
    }
    for reason, count in reasons.items():
        if count:
            logger.warning("Left out: %d %s", count, reason)


def _tasks(export_json: Path) -> Iterator[Any]:
    try:
        yield from array_items(export_json)
    except (OSError, ValueError) as error:
        raise LabelingError(
            f"Expected a list of tasks in {export_json}: {error}. Export from Label Studio as JSON."
        ) from error
