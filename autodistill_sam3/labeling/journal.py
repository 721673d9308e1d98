"""`journal.jsonl`: one line per finished image, appended once its files are in place.

A last line that a crash cut short is dropped when the journal is opened again. Of two lines for one image the later
counts. Lines with an "event" say what else a later run has to know.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import supervision as sv

from autodistill_sam3.errors import LabelingError
from autodistill_sam3.labeling.records import ImageRecord, Split, detections_of

# By event, None for a finished image.
_KEYS_OF: dict[str | None, tuple[str, ...]] = {
    None: ("source", "split", "file", "phash", "size", "mtime_ns", "annotations"),
    "out_of_memory": ("batch_size",),
    "wrote": ("file", "sha256"),
    "writing": ("images",),
}


class Entry(NamedTuple):
    """Where a record begins in the journal, and what is asked of it most."""

    offset: int
    split: Split
    file: str
    phash: str
    size: int
    mtime_ns: int


class Journal:
    """Appends records durably and remembers where each begins; the records themselves stay on disk.

    Attributes:
        batch_size: What the batch has shrunk to, if memory ran out.
        pending: Source name -> split and stem, of images whose files a run was about to write when it ended.
        superseded: Split and name of image files that a later copy of the same image replaced.

    Raises:
        LabelingError: A line in the middle is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.batch_size: int | None = None
        self.pending: dict[str, tuple[Split, str]] = {}
        self.superseded: list[tuple[Split, str]] = []
        self._entries: dict[str, Entry] = {}
        self._written: dict[str, list[str]] = {}
        if path.exists():
            self._read()

    def __contains__(self, source: str) -> bool:
        return source in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, source: str) -> Entry:
        return self._entries[source]

    def append(self, record: ImageRecord, *, wait: bool = True) -> None:
        """Write a record, and wait until it is on the disk."""
        self._note(self._append(record, wait=wait), record)

    def wait(self) -> None:
        """Wait until all records are on the disk."""
        with self.path.open("ab") as file:
            os.fsync(file.fileno())

    def begin(self, images: Sequence[tuple[str, Split, str]]) -> None:
        """Note that files of these images, (source, split, stem) each, are about to be written."""
        line = {"event": "writing", "images": list(images)}
        self._note(self._append(line), line)

    def shrink(self, batch_size: int) -> None:
        """Note that only batches of this size fit the memory."""
        line = {"event": "out_of_memory", "batch_size": batch_size}
        self._note(self._append(line), line)

    def wrote(self, name: str, sha256: str) -> None:
        """Note what a file of the whole dataset is about to contain, so that later runs know it from an edited one."""
        if not self.has_written(name, sha256):
            line = {"event": "wrote", "file": name, "sha256": sha256}
            self._note(self._append(line), line)

    def has_written(self, name: str, sha256: str) -> bool:
        """Whether a file of the whole dataset ever had this content."""
        return sha256 in self._written.get(name, ())

    def forget(self, source: str) -> None:
        """Take an image as not finished; its line stays and is superseded by the next one."""
        del self._entries[source]

    def entries(self) -> list[tuple[str, Entry]]:
        """The images that are finished, sorted by name."""
        return sorted(self._entries.items(), key=lambda item: item[0])

    def in_order(self) -> Iterator[tuple[str, Entry]]:
        """The images that are finished, the earliest first."""
        return iter(self._entries.items())

    def read(self, source: str) -> ImageRecord:
        """The record of a finished image."""
        with self.path.open("rb") as file:
            return self._read_at(file, source)

    def records(self, split: Split | None = None) -> Iterator[ImageRecord]:
        """The records of a split, or all, in the order of their images' names, one in memory at a time."""
        if not self._entries:
            return
        with self.path.open("rb") as file:
            for source, entry in self.entries():
                if split in (None, entry.split):
                    yield self._read_at(file, source)

    def _read(self) -> None:
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    parsed = self._parse(line, number)
                except LabelingError:
                    # A power cut may take any lines of the last batch, whose images are labelled again; see `wait`.
                    if self.pending and not any(b'"event"' in later for later in file):
                        break
                    raise
                self._note(end, parsed)
                end += len(line)
        if end < self.path.stat().st_size:
            os.truncate(self.path, end)

    def _append(self, line: Any, *, wait: bool = True) -> int:
        """Where the line begins."""
        # Unbuffered: a buffer that a full disk did not take would be written again when the file is closed.
        with self.path.open("ab", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            rest = memoryview(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                if wait:
                    os.fsync(file.fileno())
            except OSError:
                # What the disk did take; the next line would be glued to it.
                file.truncate(start)
                raise
        return start

    def _note(self, offset: int, line: Any) -> None:
        event = line.get("event")
        if event == "out_of_memory":
            self.batch_size = line["batch_size"]
        elif event == "wrote":
            self._written.setdefault(line["file"], []).append(line["sha256"])
        elif event == "writing":
            self.pending |= {source: (split, stem) for source, split, stem in line["images"]}
        else:
            self._note_record(offset, line)

    def _note_record(self, offset: int, record: ImageRecord) -> None:
        source = record["source"]
        self.pending.pop(source, None)
        # Its place is that of its last line, as in a run that nobody stopped.
        earlier = self._entries.pop(source, None)
        if earlier is not None and earlier.file != record["file"]:
            self.superseded.append((earlier.split, earlier.file))
        self._entries[source] = Entry(
            offset, record["split"], record["file"], record["phash"], record["size"], record["mtime_ns"]
        )

    def _read_at(self, file: Any, source: str) -> ImageRecord:
        file.seek(self._entries[source].offset)
        record: ImageRecord = self._parse(file.readline(), None)
        if record.get("source") != source:
            raise LabelingError(
                f"Expected the journal that was opened, received another one: {self.path}. Label again."
            )
        return record

    def _parse(self, line: bytes, number: int | None) -> Any:
        try:
            parsed = json.loads(line)
            _ = [parsed[key] for key in _KEYS_OF.get(parsed.get("event"), ())]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            where = f"line {number} of " if number else ""
            raise LabelingError(
                f"Expected a finished image in {where}{self.path}, which is damaged. Remove that line, or label anew "
                "with overwrite=True."
            ) from error
        return parsed


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
