"""Input files -> pixels and what else is known of each before a model sees it, some batches ahead of the model."""

from __future__ import annotations

import contextvars
import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeAlias, TypedDict

from autodistill_sam3.errors import ImageError
from autodistill_sam3.images import RGBImage, load_image
from autodistill_sam3.labeling import folder
from autodistill_sam3.labeling.names import SourceImage
from autodistill_sam3.labeling.split import perceptual_hash
from autodistill_sam3.stages import stage

Batch: TypeAlias = Sequence[SourceImage]

# Batches that are read before the model asks for them, as far as their pixels leave room.
LOOK_AHEAD = 2
PIXELS_AHEAD_BYTES = 2 * 2**30
_MAX_READERS = 8


class Stamp(TypedDict):
    """What an input file was when it was read."""

    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, eq=False)
class ReadImage:
    """An input file as it was read.

    Attributes:
        image: The file.
        stem: Its name in the dataset, None if it is not labelled again and only fills its place in the batch.
        pixels: None if it cannot be read, and once nobody needs them any more.
        error: Why it cannot be read.
        stamp: Of the files that are labelled.
        phash: Of those, too.
        is_copied: Whether the dataset gets a copy of the file, and not a PNG of the pixels.
        file: Its name in the dataset.
        width: In pixels.
        height: In pixels.
    """

    image: SourceImage
    stem: str | None
    pixels: RGBImage | None = None
    error: str = ""
    stamp: Stamp | None = None
    phash: str = ""
    is_copied: bool = False
    file: str = ""
    width: int = 0
    height: int = 0

    def without_pixels(self) -> ReadImage:
        """The same for after the model, with pixels only if they are written."""
        return replace(self, pixels=None) if self.is_copied else self


def read_image(image: SourceImage, stem: str | None) -> ReadImage:
    """Read a file; an error is noted and not raised.

    Args:
        image: The file.
        stem: Its name in the dataset; None reads nothing but pixels.
    """
    with stage("decode"):
        read = ReadImage(image, stem)
        stamp = None if stem is None else _stamp(image)
        try:
            pixels = load_image(image.path)
        except ImageError as error:
            return replace(read, error=str(error))
        if stem is None:
            return replace(read, pixels=pixels)
        if stamp is None:
            return replace(read, error="it cannot be read")
        height, width = pixels.shape[:2]
        copied = folder.is_copied(image)
        file = folder.image_name(image, stem, copied=copied)
        return ReadImage(image, stem, pixels, "", stamp, perceptual_hash(pixels), copied, file, width, height)


def read_ahead(
    batches: Iterable[Batch], read: Callable[[SourceImage], ReadImage]
) -> Generator[list[ReadImage], None, None]:
    """Read batches in threads, up to `LOOK_AHEAD` of them before they are asked for.

    Fewer if the pixels of those would take more than `PIXELS_AHEAD_BYTES`, going by the batch before.

    Args:
        batches: What to read.
        read: Reads one image, in any thread.

    Yields:
        What was read, batch by batch, in order.
    """
    waiting: deque[list[Future[ReadImage]]] = deque()
    remaining = iter(batches)
    pool = ThreadPoolExecutor(min(_MAX_READERS, os.cpu_count() or 1), thread_name_prefix="read")

    def submit(count: int) -> None:
        while len(waiting) < count and (batch := next(remaining, None)) is not None:
            waiting.append([pool.submit(contextvars.copy_context().run, read, image) for image in batch])

    try:
        submit(1)
        while waiting:
            done = [future.result() for future in waiting.popleft()]
            size = sum(item.pixels.nbytes for item in done if item.pixels is not None)
            submit(min(LOOK_AHEAD, PIXELS_AHEAD_BYTES // max(size, 1)))
            yield done
            del done
            # Where there is no room ahead, it is read when it is asked for.
            submit(1)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _stamp(image: SourceImage) -> Stamp | None:
    """None if it cannot be read."""
    try:
        status = image.path.stat()
        # A pipe would be waited for, and a device may have no end.
        if not stat.S_ISREG(status.st_mode):
            return None
        with image.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    # A manifest may hold names that no file system takes, which is a ValueError.
    except (OSError, ValueError):
        return None
    return {"sha256": digest, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
