"""Models for worker processes, which import them from here."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from labelers import discs

from autodistill_sam3.distributed import Labeler


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def settings():
    return {"model": "discs"}


@dataclass(frozen=True)
class Model:
    """Finds discs, and does something else before.

    Attributes:
        deadly_height: Kills its process on images of this height.
        deadly_name: Kills its process when a file of this name is read.
        deadly_on: Kills its process before it is asked anything, on this device.
        once: Kills its process at the third call, and writes this file, so that it is done once.
        calls: A line for every image that a batch had, by the sum of its pixels.
        seconds: Takes so long for a batch.
    """

    deadly_height: int | None = None
    deadly_name: str | None = None
    deadly_on: str | None = None
    once: Path | None = None
    calls: Path | None = None
    seconds: float = 0.0
    fails: bool = False

    def __call__(self, device):
        if device == self.deadly_on:
            die()
        if self.deadly_name is not None:
            self._spoil_reader()
        self_calls = []

        def predict(images):
            self_calls.append(1)
            if self.once is not None and len(self_calls) == 3 and not self.once.exists():
                self.once.touch()
                die()
            if self.calls is not None:
                with self.calls.open("a") as file:
                    file.write("".join(f"{int(image.sum())}\n" for image in images))
            if any(image.shape[0] == self.deadly_height for image in images):
                die()
            if self.fails:
                raise LookupError("no model")
            time.sleep(self.seconds)
            return discs(images)

        return Labeler(predict, settings=settings())

    def _spoil_reader(self):
        from autodistill_sam3.labeling import reading

        real = reading.load_image

        def load(path):
            if Path(path).name == self.deadly_name:
                die()
            return real(path)

        reading.load_image = load


@dataclass(frozen=True)
class Seeing:
    """Writes down which device it was given, and which GPUs its process sees."""

    place: Path

    def __call__(self, device):
        (self.place / str(os.getpid())).write_text(f"{device} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
        return Labeler(discs, settings=settings())
