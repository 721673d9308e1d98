"""Labelled images -> files and journal lines, batch by batch, in a thread behind the model."""

from __future__ import annotations

import contextlib
import contextvars
import errno
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from autodistill_sam3.errors import AutodistillSAM3Error, ImageError, LabelingError
from autodistill_sam3.labeling import folder
from autodistill_sam3.labeling.encoding import Encoded
from autodistill_sam3.labeling.journal import Journal
from autodistill_sam3.labeling.plan import LabelingPlan
from autodistill_sam3.labeling.reading import ReadImage
from autodistill_sam3.labeling.records import ImageRecord, Split
from autodistill_sam3.labeling.resume import Left
from autodistill_sam3.labeling.split import NearDuplicates
from autodistill_sam3.stages import stage
from autodistill_sam3.whole_files import PART

# Batches that the model may be ahead of the disk.
BATCHES_BEHIND = 2
# They wait for the disk most of the time.
_WRITERS = 4
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_FAULTS_OF_THE_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
_KINDS = ("images", "labels", "voc", "masks")


class WritesTo(Protocol):
    """A run that writes a folder."""

    @property
    def output(self) -> Path: ...

    @property
    def overwrite(self) -> bool: ...


@dataclass(frozen=True, eq=False)
class SeenImage:
    """An image behind the model.

    Attributes:
        read: The image.
        result: Gives what is to be written; or what the model raised; None if the image could not be read.
    """

    read: ReadImage
    result: Callable[[], Encoded] | Exception | None


@dataclass(frozen=True, eq=False)
class SeenBatch:
    """A batch behind the model: its images that are left to do, and the batch sizes that memory ended at."""

    images: Sequence[SeenImage]
    shrunk: Sequence[int] = ()


@dataclass(frozen=True, eq=False)
class _Placed:
    """An image about to be written."""

    read: ReadImage
    record: ImageRecord
    files: dict[str, bytes]
    part: str


class Writer:
    """Writes batches in their order, each after the one before; an image's line in the journal comes after its files.

    What it writes does not depend on when. Once a batch failed, nothing more is written.

    Args:
        plan: Of the run.
        journal: Gets a line per image.
        left: What is left to do.
        on_written: Called with the number of images after each batch.

    Attributes:
        quarantined: How many images were left out.
        doubt: What interpreting raised on every image of a batch that the model had no trouble with.
    """

    def __init__(self, plan: LabelingPlan, journal: Journal, left: Left, on_written: Callable[[int], object]) -> None:
        self.quarantined = 0
        self.doubt: Exception | None = None
        self._plan, self._journal, self._left, self._on_written = plan, journal, left, on_written
        self._is_stopped = False
        self._waiting: deque[Future[None]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._helpers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="files")
        self._near: NearDuplicates[Split] = NearDuplicates()
        for source, entry in journal.in_order():
            if plan.group_near_duplicates and source not in left.earlier:
                self._near.add(entry.phash, entry.split)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            # What the model has seen is written, also if the run ends; what failed here is raised.
            self.wait(0)
        finally:
            self._is_stopped = True
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._helpers.shutdown(wait=True)

    def stop(self) -> None:
        """Write no batch but the one that is being written."""
        self._is_stopped = True

    def write(self, batch: SeenBatch) -> None:
        """Have a batch written; waits while too many are waiting, and raises what failed before."""
        self.wait(BATCHES_BEHIND - 1)
        self._waiting.append(self._thread.submit(contextvars.copy_context().run, self._write, batch))

    def wait(self, behind: int = BATCHES_BEHIND) -> None:
        """Wait until no more batches than these are waiting; raises what failed."""
        while self._waiting and (len(self._waiting) > behind or self._waiting[0].done()):
            self._waiting.popleft().result()

    def _write(self, batch: SeenBatch) -> None:
        if self._is_stopped:
            return
        try:
            with writing(self._plan):
                for size in batch.shrunk:
                    self._journal.shrink(size)
                ready = self._ready(batch)
                with stage("write"):
                    self._finish(ready)
        except BaseException:
            self._is_stopped = True
            raise
        self._on_written(len(batch.images))

    def _ready(self, batch: SeenBatch) -> list[_Placed]:
        """The images that can be written; the others are noted as left out, first those that could not be read."""
        for item in batch.images:
            if item.result is None:
                self._leave_out(item.read, item.read.error)
        ready: list[_Placed] = []
        failed = []
        for position, item in enumerate(batch.images):
            if item.result is None:
                continue
            encoded = Encoded(None, error=item.result) if isinstance(item.result, Exception) else item.result()
            if encoded.record is None:
                failed += [] if isinstance(item.result, Exception) else [encoded.error]
                self._leave_out(item.read, f"the model failed on it: {type(encoded.error).__name__}: {encoded.error}")
                continue
            encoded.record["split"] = self._split_of(item.read)
            ready.append(_Placed(item.read, encoded.record, encoded.files, f"{PART}-{position}"))
        if failed and not ready:
            self.doubt = failed[0]
        return ready

    def _split_of(self, read: ReadImage) -> Split:
        earlier = self._left.earlier.get(read.image.name)
        near = self._near.earliest(read.phash) if self._plan.group_near_duplicates else None
        split = earlier.split if earlier else near or self._plan.split.split_of(read.image)
        if self._plan.group_near_duplicates:
            self._near.add(read.phash, split)
        return split

    def _finish(self, ready: Sequence[_Placed]) -> None:
        """Files side by side, each waited for; then the journal's lines in order, waited for together."""
        if not ready:
            return
        self._journal.begin([(item.read.image.name, item.record["split"], item.read.stem or "") for item in ready])
        # With a failure none of the batch gets a line: all of it is written again.
        faults = list(self._helpers.map(self._write_files, ready))
        written = [item for item, fault in zip(ready, faults, strict=True) if fault is None]
        for item in written:
            self._journal.append(item.record, wait=False)
        self._journal.wait()
        for item, fault in zip(ready, faults, strict=True):
            if fault is not None:
                self._leave_out(item.read, fault)
        for item in written:
            earlier = self._left.earlier.get(item.read.image.name)
            if earlier and earlier.file != item.record["file"]:
                folder.remove_files(self._plan.output / item.record["split"], [f"images/{earlier.file}"])

    def _write_files(self, item: _Placed) -> str | None:
        """Write an image and its labels; why it is left out, or None."""
        read, split_folder = item.read, self._plan.output / item.record["split"]
        try:
            folder.place_image(read.image, read.file, read.pixels, split_folder, item.part)
            if not _is_still(read):
                raise ImageError("it changed while it was labelled; the same command labels it again")
            folder.write_files(split_folder, item.files, item.part)
        except OSError as error:
            folder.remove_files(split_folder, [f"images/{read.file}"])
            is_source = error.filename is not None and str(error.filename) == str(read.image.path)
            if not is_source and error.errno not in _FAULTS_OF_THE_NAME:
                raise
            return f"{'it cannot be read' if is_source else 'its name cannot be written'}: {error}"
        except ImageError as error:
            folder.remove_files(split_folder, [f"images/{read.file}"])
            return str(error)
        return None

    def _leave_out(self, read: ReadImage, reason: str) -> None:
        self.quarantined += 1
        folder.append_quarantine(self._plan.output, read.image.name, reason)


def remove_parts(plan: LabelingPlan) -> None:
    """Remove the incomplete files of a run that was killed."""
    for split in plan.splits:
        for kind in _KINDS:
            folder.remove_files(
                plan.output / split / kind, [PART, *(f"{PART}-{position}" for position in range(plan.batch_size))]
            )


@contextlib.contextmanager
def writing(plan: WritesTo) -> Iterator[None]:
    """Say what to do where something could not be written.

    Raises:
        LabelingError: It could not.
    """
    try:
        yield
    except AutodistillSAM3Error:
        raise
    except OSError as error:
        step = "Free some space; then the" if error.errno in _FULL_DISK else "The"
        command = "same command without overwrite (--overwrite)" if plan.overwrite else "same command"
        raise LabelingError(
            f"Cannot write to {plan.output}: {error}. What was finished stays valid. {step} {command} goes on."
        ) from error


def _is_still(read: ReadImage) -> bool:
    """Whether the file is what it was when it was read."""
    status = read.image.path.stat()
    return read.stamp is not None and (status.st_size, status.st_mtime_ns) == (
        read.stamp["size"],
        read.stamp["mtime_ns"],
    )
