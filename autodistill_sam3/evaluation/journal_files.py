"""The journal of a labelled folder.

It says from which file each image came, and holds the labels where only formats without confidences were written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autodistill_sam3.evaluation.labels import (
    LabeledImage,
    LabeledObject,
    checked_box,
    checked_number,
    checked_score,
    damaged,
    image_names,
)
from autodistill_sam3.evaluation.masks import ImageHW, segmentation_rle


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """Where an image's record begins, and its names."""

    offset: int
    split: str
    file: str
    source: str


class JournalImage(LabeledImage):
    """An image as the journal has it."""

    def __init__(self, journal: Path, entry: JournalEntry, classes: Sequence[str]) -> None:
        self.names = image_names(entry.file, entry.split, entry.source)
        self._journal = journal
        self._entry = entry
        self._classes = classes

    @property
    def image_hw(self) -> ImageHW | None:
        record = self._record()
        return int(record["height"]), int(record["width"])

    def objects(self, image_hw: ImageHW) -> list[LabeledObject]:
        try:
            return [self._parse(item, image_hw) for item in self._record()["annotations"]]
        # pycocotools raises plain exceptions.
        except Exception as error:
            raise damaged(self._journal, self._entry.source, error) from error

    def _parse(self, item: Mapping[str, Any], image_hw: ImageHW) -> LabeledObject:
        return LabeledObject(
            class_name=self._classes[item["class_id"]],
            xywh=checked_box(item["bbox"]),
            rle=segmentation_rle(item["segmentation"], image_hw),
            area=checked_number(item["area"], "a number as the area"),
            score=checked_score(item["confidence"]),
        )

    def _record(self) -> dict[str, Any]:
        with self._journal.open("rb") as file:
            file.seek(self._entry.offset)
            record: dict[str, Any] = json.loads(file.readline())
        return record


def journal_entries(journal: Path) -> list[JournalEntry]:
    """The finished images of a journal, by name; of two lines for one image the later counts.

    Raises:
        LabelingError: A line in the middle is damaged.
    """
    if not journal.is_file():
        return []
    try:
        entries = {entry.source: entry for entry in _read(journal)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(journal, "", error) from error
    return [entries[source] for source in sorted(entries)]


def _read(journal: Path) -> Iterator[JournalEntry]:
    offset = 0
    with journal.open("rb") as file:
        for line in file:
            # A crash may have cut the last line short.
            if not line.endswith(b"\n"):
                return
            record = json.loads(line)
            # Other lines say something about the run.
            if "event" not in record:
                yield JournalEntry(offset, str(record["split"]), str(record["file"]), str(record["source"]))
            offset += len(line)
