"""Writes a dataset of the same layout as a labelled folder, one image at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import supervision as sv

from autodistill_sam3.errors import LabelingError
from autodistill_sam3.evaluation.journal_files import journal_entries
from autodistill_sam3.exchange.dataset import DatasetImage, LabelledFolder
from autodistill_sam3.exchange.shapes import Crop
from autodistill_sam3.instances import compact_masks, tight_xyxy
from autodistill_sam3.labeling.folder import write_data_yaml
from autodistill_sam3.labeling.formats import Format, image_files, write_coco
from autodistill_sam3.labeling.records import Annotation, ImageRecord, Split, annotations_of
from autodistill_sam3.layout import COCO, JOURNAL

_SPOOL = "records.jsonl"


@dataclass(frozen=True, eq=False)
class FoundObject:
    """An object to be written.

    Attributes:
        class_name: Its class; a new one is added behind those that there are.
        mask: Its pixels, at least one; None for a box.
        xyxy: Its box in pixels; None where there is a mask.
        confidence: In 0..1.
        prompt: What found it.
        source: Who says so.
    """

    class_name: str
    mask: Crop | None
    xyxy: npt.NDArray[np.float64] | None
    confidence: float
    prompt: str
    source: str


def found_annotations(item: FoundObject, class_id: int, image_hw: tuple[int, int]) -> list[Annotation]:
    """An object as it is written.

    Args:
        item: Its mask and box are in the frame of the image.
        class_id: Index of its class.
        image_hw: Height and width of the image.

    Returns:
        One annotation.
    """
    masks = None if item.mask is None else compact_masks([item.mask], image_hw)
    box = np.zeros((1, 4)) if item.xyxy is None else item.xyxy[None]
    detections = sv.Detections(
        xyxy=box.astype(np.float32) if masks is None else tight_xyxy(masks),
        mask=masks,
        confidence=np.array([item.confidence], dtype=np.float32),
        class_id=np.array([class_id]),
        data={"prompt": np.array([item.prompt]), "source": np.array([item.source])},
    )
    return annotations_of(detections, image_hw)


class DatasetWriter:
    """Writes images with their labels as they come, and the files of the whole dataset at the end.

    Where the labelled folder has a journal, the dataset gets one, too: it says what the images were called before they
    were labelled, so that the dataset can be compared with labels that use those names.

    Args:
        output: A new folder.
        folder: The labelled folder that the images come from.
        link_images: Make hard links where that is possible.
        has_masks: Whether objects have masks; YOLO labels are boxes otherwise.

    Attributes:
        classes: Class names so far.
        images: Images written.
        objects: Objects written.

    Raises:
        LabelingError: The labelled folder's journal is damaged.
    """

    def __init__(self, output: Path, folder: LabelledFolder, link_images: bool, has_masks: bool) -> None:
        self.classes = list(folder.classes)
        self.images = self.objects = 0
        self._output = output
        self._folder = folder
        self._link_images = link_images
        self._formats: tuple[Format, ...] = ("yolo" if has_masks else "yolo-detection",)
        self._entries: list[tuple[str, str, int]] = []
        entries = journal_entries(folder.path / JOURNAL)
        self._source_of = {(entry.split, entry.file): entry.source for entry in entries}
        for split in folder.images:
            for name in ("images", "labels"):
                (output / split / name).mkdir(parents=True)
        self._spool = (output / _SPOOL).open("w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._spool.close()

    def write(self, image: DatasetImage, objects: Iterable[FoundObject]) -> None:
        """Write an image and its labels.

        Raises:
            LabelingError: The image is missing, or something cannot be written.
        """
        annotations = [annotation for item in objects for annotation in self._annotations(item, image)]
        record: ImageRecord = {
            "source": self._source_of.get((image.split, image.file), image.file),
            "file": image.file,
            "split": image.split,
            "width": image.width,
            "height": image.height,
            "annotations": annotations,
        }
        try:
            self._place(image)
            for name, content in image_files(record, self.classes, self._formats, record_confidence=False).items():
                (self._output / image.split / name).write_bytes(content)
            self._entries.append((image.split, image.file, self._spool.seek(0, os.SEEK_END)))
            self._spool.write(json.dumps(record).encode() + b"\n")
        except OSError as error:
            raise LabelingError(f"Expected {image.path} to be copied with its labels: {error}") from error
        self.images += 1
        self.objects += len(annotations)

    def finish(self) -> None:
        """Write `data.yaml`, the COCO files and, where sources are known, the journal."""
        for split in self._folder.images:
            with (self._output / split / COCO).open("w", encoding="utf-8") as file:
                write_coco(file, self._records(split), self.classes)
        write_data_yaml(self._output, list(self._folder.images), self.classes)
        if self._source_of:
            with (self._output / JOURNAL).open("w", encoding="utf-8") as file:
                for split in self._folder.images:
                    file.writelines(json.dumps(record) + "\n" for record in self._records(split))
        self._spool.close()
        (self._output / _SPOOL).unlink()

    def _annotations(self, item: FoundObject, image: DatasetImage) -> list[Annotation]:
        if item.class_name not in self.classes:
            self.classes.append(item.class_name)
        return found_annotations(item, self.classes.index(item.class_name), image.image_hw)

    def _place(self, image: DatasetImage) -> None:
        source, target = self._folder.path / image.path, self._output / image.path
        if self._link_images:
            try:
                target.hardlink_to(source.resolve())
            except OSError:
                # Other file systems, or none that links.
                shutil.copyfile(source, target)
        else:
            shutil.copyfile(source, target)

    def _records(self, split: Split) -> Iterator[ImageRecord]:
        """The records of a split by the names of its images, one in memory at a time."""
        for _, _, offset in sorted(entry for entry in self._entries if entry[0] == split):
            self._spool.seek(offset)
            record: ImageRecord = json.loads(self._spool.readline())
            yield record
