"""`journal.jsonl`: one line per finished image, appended once its files are in place.

A last line that a crash cut short is dropped when the journal is opened again. Of two lines for one image the later
counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import supervision as sv

from autodistill_sam3.errors import LabelingError
from autodistill_sam3.labeling.records import ImageRecord, Split, detections_of


@dataclass(frozen=True)
class Entry:
    """Where a record begins in the journal, and what is asked of it most."""

    offset: int
    split: Split
    file: str


class Journal:
    """Appends records durably and remembers where each begins; the records themselves stay on disk.

    Raises:
        LabelingError: A line in the middle is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, Entry] = {}
        end = 0
        if path.exists():
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if not line.endswith(b"\n"):
                        break
                    record = self._parse(line, number)
                    self._entries[record["source"]] = Entry(end, record["split"], record["file"])
                    end += len(line)
            if end < path.stat().st_size:
                os.truncate(path, end)

    def __contains__(self, source: str) -> bool:
        return source in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, record: ImageRecord) -> None:
        """Write a record and wait until it is on the disk."""
        with self.path.open("ab") as file:
            start = file.seek(0, os.SEEK_END)
            file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._entries[record["source"]] = Entry(start, record["split"], record["file"])

    def forget(self, source: str) -> None:
        """Take an image as not finished; its line stays and is superseded by the next one."""
        del self._entries[source]

    def entries(self) -> list[tuple[str, Entry]]:
        """The images that are finished, sorted by name."""
        return sorted(self._entries.items(), key=lambda item: item[0])

    def read(self, source: str) -> ImageRecord:
        """The record of a finished image."""
        with self.path.open("rb") as file:
            file.seek(self._entries[source].offset)
            return self._parse(file.readline(), None)

    def records(self, split: Split) -> Iterator[ImageRecord]:
        """The records of a split in the order of their images' names, one in memory at a time."""
        for source, entry in self.entries():
            if entry.split == split:
                yield self.read(source)

    def _parse(self, line: bytes, number: int | None) -> ImageRecord:
        try:
            record: ImageRecord = json.loads(line)
            record["source"], record["split"], record["file"]
        except (ValueError, KeyError, TypeError) as error:
            where = f"line {number} of " if number else ""
            raise LabelingError(
                f"Expected a finished image in {where}{self.path}, which is damaged. Remove that line, or label anew "
                "with overwrite=True."
            ) from error
        return record


class JournalAnnotations(Mapping[str, sv.Detections]):
    """Image path -> its detections, read from the journal on each access, so that memory does not grow with them."""

    def __init__(self, journal: Journal, source_of_image: dict[str, str], classes: list[str]) -> None:
        self._journal = journal
        self._source_of_image = source_of_image
        self._classes = classes

    def __getitem__(self, image_path: str) -> sv.Detections:
        return detections_of(self._journal.read(self._source_of_image[image_path]), self._classes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source_of_image)

    def __len__(self) -> int:
        return len(self._source_of_image)

    def __deepcopy__(self, memo: dict[int, Any]) -> JournalAnnotations:
        return self
