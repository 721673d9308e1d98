"""What a model returned for an image -> its record and the content of its label files, here or in other processes.

Beside a model on a GPU this must not run in threads of its process: each operation of the model lets go of Python's
global lock, and would wait for it again whenever another thread computes.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import cv2
import supervision as sv

from autodistill_sam3.conflicts import removed_counts
from autodistill_sam3.labeling.reading import ReadImage, Stamp
from autodistill_sam3.labeling.records import ImageRecord, annotations_of
from autodistill_sam3.labeling.resume import PerImage
from autodistill_sam3.stages import current, recording, stage

logger = logging.getLogger("autodistill_sam3")

ToDetections: TypeAlias = Callable[[Any], sv.Detections]
# An image's name in the input -> its detections.
Known: TypeAlias = Callable[[str], sv.Detections]

# The start of processes takes about two seconds of a core each.
MIN_IMAGES_FOR_PROCESSES = 64
_MAX_PROCESSES = 8
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True, eq=False)
class Job:
    """What the model returned for one image, and what is known of the image."""

    seen: Any
    source: str
    file: str
    width: int
    height: int
    phash: str
    stamp: Stamp

    @classmethod
    def of(cls, read: ReadImage, seen: Any) -> Job:
        """The job of an image that was read to be labelled."""
        assert read.stamp is not None
        return cls(seen, read.image.name, read.file, read.width, read.height, read.phash, read.stamp)


@dataclass(frozen=True, eq=False)
class Encoded:
    """What is to be written of one image.

    Attributes:
        record: What the journal will say; its split is decided later. None if there are no detections.
        files: Path relative to the split's folder -> content.
        error: Why there are no detections.
        seconds: Stage -> seconds that it took.
    """

    record: ImageRecord | None
    files: dict[str, bytes] = field(default_factory=dict)
    error: Exception | None = None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Encode:
    """Encodes one image; goes to other processes whole.

    Attributes:
        per_image: Which files an image has.
        to_detections: What the model returned for an image -> its detections; None if it returned detections.
        known: What is known of images, in place of what a model returned.
    """

    per_image: PerImage
    to_detections: ToDetections | None = None
    known: Known | None = None

    def __call__(self, job: Job) -> Encoded:
        with recording() as times:
            # Whatever it raises on one image must not end a run over thousands.
            try:
                detections = self._detections(job)
            except Exception as error:
                return Encoded(None, error=error)
            with stage("encode"):
                record = record_of(job, detections)
                files = self.per_image.files(record)
        return Encoded(record, files, seconds=times.seconds)

    def _detections(self, job: Job) -> sv.Detections:
        if self.known is not None:
            return self.known(job.source)
        found: sv.Detections = job.seen if self.to_detections is None else self.to_detections(job.seen)
        return found


def record_of(job: Job, detections: sv.Detections) -> ImageRecord:
    """What the journal says of an image, but for the split, which stands as "train" until it is known."""
    annotations = annotations_of(detections, (job.height, job.width))
    removed = removed_counts(detections)
    if len(annotations) < len(detections):
        removed["empty_mask"] = len(detections) - len(annotations)
    return {
        "source": job.source, "file": job.file, "split": "train", "width": job.width, "height": job.height,
        "annotations": annotations, "removed": removed, "phash": job.phash, **job.stamp,
    }  # fmt: skip


class Processes:
    """Processes to encode in: started when they are needed, and kept for what comes until they are closed.

    When one dies, the others are ended, and no new ones are started.
    """

    def __init__(self) -> None:
        self._pool: Any = None
        self._has_failed = False

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def start(self, count: int) -> None:
        """Start so many, unless there are some or it has failed before."""
        if self._pool is not None or self._has_failed or not count:
            return
        # Unlike the processes of multiprocessing, loky's do not run the user's script again, which may have no main
        # guard.
        import loky

        try:
            self._pool = loky.ProcessPoolExecutor(
                count, initializer=_prepare_process, initargs=(os.getpid(),), env={"OMP_NUM_THREADS": "1"}
            )
            # They start with the first call, and import while the model starts.
            self._pool.submit(os.getpid)
        except OSError as error:
            self.give_up(error)

    def submit(self, function: Callable[[Job], Encoded], job: Job) -> Future[Encoded] | None:
        """The result that is to come, or None if there are no processes."""
        if self._pool is None:
            return None
        try:
            future: Future[Encoded] = self._pool.submit(function, job)
        except (BrokenProcessPool, RuntimeError, OSError) as error:
            self.give_up(error)
            return None
        return future

    def give_up(self, error: Exception) -> None:
        """Go on without."""
        if not self._has_failed:
            self._has_failed = True
            logger.warning("Encoding goes on without processes of its own: %s", str(error).strip().partition("\n")[0])
        self._close()

    def _close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, kill_workers=True)


class Encoder:
    """Encodes images in processes, or in the thread that asks for the result.

    A process that dies ends nothing: what it had not finished, and all that comes later, is encoded here.

    Args:
        encode: For one image.
        processes: Started or not.
    """

    def __init__(self, encode: Encode, processes: Processes) -> None:
        self._encode, self._processes = encode, processes

    def submit(self, job: Job) -> Callable[[], Encoded]:
        """Start on an image.

        Returns:
            A function that waits for the result, to be called from one thread at a time.
        """
        future = self._processes.submit(self._encode, job)
        return lambda: self._result(job, future)

    def _result(self, job: Job, future: Future[Encoded] | None) -> Encoded:
        encoded = None
        if future is not None:
            try:
                encoded = future.result()
            # loky raises a RuntimeError for jobs that wait when it is shut down, and for those that are too large.
            except (BrokenProcessPool, pickle.PicklingError, RuntimeError) as error:
                self._processes.give_up(error)
        encoded = self._encode(job) if encoded is None else encoded
        times = current()
        if times is not None:
            for name, seconds in encoded.seconds.items():
                times.add(name, seconds)
        return encoded


def processes_for(images: int, *, on_gpu: bool, workers: int = 1) -> int:
    """How many processes encode: none without a GPU to keep busy, and none for few images.

    Args:
        images: That are to be labelled.
        on_gpu: Whether the model runs on one.
        workers: That share this machine's cores.
    """
    if not on_gpu or images < MIN_IMAGES_FOR_PROCESSES:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MAX_PROCESSES, cores // workers - 2))


def _prepare_process(parent: int) -> None:
    """In the new process: Ctrl-C is for the parent, whose death is the only one to follow."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End with the parent: processes of loky would wait for ever for the next call of one that was killed."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
