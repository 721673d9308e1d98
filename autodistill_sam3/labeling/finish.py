"""The files of the whole dataset, assembled from the journal, and the dataset that `label()` returns."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import supervision as sv

from autodistill_sam3.labeling import folder
from autodistill_sam3.labeling.formats import write_coco
from autodistill_sam3.labeling.inputs import ImagesInput, input_root
from autodistill_sam3.labeling.journal import Journal, JournalAnnotations
from autodistill_sam3.labeling.records import ImageRecord, Split
from autodistill_sam3.labeling.report import Report, summary
from autodistill_sam3.labeling.resume import PerImage
from autodistill_sam3.labeling.review import write_review
from autodistill_sam3.layout import COCO, REPORT, REVIEW
from autodistill_sam3.whole_files import replacing

logger = logging.getLogger("autodistill_sam3")


def write_summaries(
    output: Path,
    journal: Journal,
    per_image: PerImage,
    splits: Sequence[Split],
    source: ImagesInput | None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a COCO file per split and the report, with one record in memory at a time.

    Args:
        output: The dataset.
        journal: All that is finished.
        per_image: Its formats say whether COCO is wanted.
        splits: Of the dataset.
        source: The input; images of the dataset that are no longer there are reported. None if it has none such.
        more: What else the report says.

    Returns:
        The report.
    """
    report = Report(per_image.classes)
    filled = {entry.split for _, entry in journal.entries()}
    for split in splits:
        if filled and split not in filled:
            logger.warning("No image fell into the %s split; most trainers need it. Add images.", split)
        records = report.counting(journal.records(split))
        if "coco" in per_image.formats:
            write = partial(write_coco, records=records, classes=per_image.classes)
            folder.write_whole(output, f"{split}/{COCO}", journal, write)
        else:
            for _ in records:
                pass
    removed = [] if source is None else _removed_from(source, journal)
    content = report.as_json(removed_images=removed, quarantined=len(folder.read_quarantine(output)))
    content |= more or {}
    if removed:
        logger.warning("%d images of the dataset are no longer in the input and stay in it, see %s",
                       len(removed), output / REPORT)  # fmt: skip
    with replacing(output / REPORT, "w") as file:
        _dump(content, file)
    for line in summary(content).splitlines():
        logger.info("%s", line)
    return content


def write_pages(output: Path, journal: Journal, classes: Sequence[str], report: dict[str, Any]) -> None:
    """Write what people judge the labels by, `review/`.

    Args:
        output: The dataset.
        journal: All that is finished.
        classes: Class names.
        report: What :func:`write_summaries` returned.
    """

    def image_path(record: ImageRecord) -> Path:
        return output / record["split"] / "images" / record["file"]

    quarantine = folder.read_quarantine(output)
    place, title = output / REVIEW, output.resolve().name
    write_review(place, journal.records, image_path, classes, report, quarantine, title=title)


def open_dataset(output: Path, journal: Journal, classes: Sequence[str]) -> sv.DetectionDataset:
    """The dataset; its annotations are read from the journal when they are asked for."""
    place = output.resolve()
    source_of_image = {str(place / entry.split / "images" / entry.file): name for name, entry in journal.entries()}
    dataset = sv.DetectionDataset(classes=list(classes), images=[], annotations={})
    # The constructor would read every annotation into memory, to copy and to check it.
    dataset.image_paths = list(source_of_image)
    annotations: Any = JournalAnnotations(journal, source_of_image, list(classes))
    dataset.annotations = annotations
    return dataset


def _removed_from(source: ImagesInput, journal: Journal) -> list[str]:
    root = input_root(source) or Path()
    return [name for name, _ in journal.entries() if not os.path.lexists(root / name)]


def _dump(content: dict[str, Any], file: IO[str]) -> None:
    json.dump(content, file, indent=2)
    file.write("\n")
