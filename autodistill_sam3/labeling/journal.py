"""`journal.jsonl`: one line per finished image, appended once its files are in place.

A line that a crash cut short is dropped when the journal is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import supervision as sv

from autodistill_sam3.labeling.records import ImageRecord, detections_of


class Journal:
    """Appends records durably and remembers where each begins; the records themselves stay on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets: dict[str, int] = {}
        end = 0
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    record = _parse(line)
                    if record is None:
                        break
                    self._offsets[record["source"]] = end
                    end += len(line)
        self._file = path.open("ab")
        self._file.truncate(end)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, source: str) -> bool:
        return source in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def append(self, record: ImageRecord) -> None:
        """Write a record and wait until it is on the disk."""
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._offsets[record["source"]] = start

    def sources(self) -> list[str]:
        """The images that are finished, sorted."""
        return sorted(self._offsets)

    def read(self, source: str) -> ImageRecord:
        """The record of a finished image."""
        with self.path.open("rb") as file:
            file.seek(self._offsets[source])
            record = _parse(file.readline())
        if record is None:
            raise KeyError(source)
        return record

    def records(self) -> Iterator[ImageRecord]:
        """All records in the order of their images' names, one in memory at a time."""
        for source in self.sources():
            yield self.read(source)


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


def _parse(line: bytes) -> ImageRecord | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record: ImageRecord = json.loads(line)
    except ValueError:
        return None
    return record
