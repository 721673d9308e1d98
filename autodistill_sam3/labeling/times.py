"""Where the time of a run went: a table for people, and `times.json`, the one file that differs from run to run."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autodistill_sam3.layout import TIMES
from autodistill_sam3.stages import StageTimes
from autodistill_sam3.whole_files import replacing

logger = logging.getLogger("autodistill_sam3")


class RunTimes:
    """The clock of one run.

    Args:
        stages: What the stages add to.

    Attributes:
        images: How many are finished.
    """

    def __init__(self, stages: StageTimes) -> None:
        self.images = 0
        self._stages = stages
        self._start = time.perf_counter()
        self._model_start: float | None = None
        self._model_end = 0.0

    @contextlib.contextmanager
    def model(self) -> Iterator[None]:
        """Around each call of the model."""
        if self._model_start is None:
            self._model_start = time.perf_counter()
        yield
        self._model_end = time.perf_counter()
        # What a GPU is through with need not be kept.
        _ = self._stages.seconds

    def as_json(self) -> dict[str, Any]:
        """What `times.json` says, in seconds.

        `images_per_second` counts from the first call of the model. Stages overlap, and those of several threads or
        processes count each, so that they may add up to more than the run. `gpu_idle_share` is the part of the time
        between the first and the last call of the model in which a GPU worked at no stage; None without a GPU.
        """
        now = time.perf_counter()
        seconds, gpu = self._stages.seconds, self._stages.gpu_seconds
        busy = None if self._model_start is None else self._model_end - self._model_start
        since = now - self._model_start if self._model_start is not None else now - self._start
        return {
            "images": self.images,
            "seconds": round(now - self._start, 3),
            "images_per_second": round(self.images / since, 3),
            "stages": {name: round(value, 3) for name, value in seconds.items()},
            "gpu_idle_share": round(max(0.0, 1 - gpu / busy), 4) if gpu and busy else None,
        }


def write_times(output: Path, times: RunTimes) -> None:
    """Write `times.json` and log the table."""
    content = times.as_json()
    with replacing(output / TIMES, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    for line in table(content):
        logger.info("%s", line)


def table(times: dict[str, Any]) -> list[str]:
    """Lines for people.

    Example:
        >>> stages = {"decode": 1.0, "ViT": 6.0}
        >>> run = {"images": 80, "seconds": 8.0, "images_per_second": 10.0, "stages": stages, "gpu_idle_share": 0.25}
        >>> for line in table(run):
        ...     print(line)
        80 images in 8.0 s, 10.00 images/s
          decode            1.0 s    12.5 ms an image
          ViT               6.0 s    75.0 ms an image
        GPU idle 25 % of the time between the first and the last batch
    """
    images = max(times["images"], 1)
    lines = [f"{times['images']} images in {times['seconds']:.1f} s, {times['images_per_second']:.2f} images/s"]
    for name, seconds in times["stages"].items():
        lines.append(f"  {name:12} {seconds:8.1f} s {1000 * seconds / images:7.1f} ms an image")
    if times["gpu_idle_share"] is not None:
        lines.append(f"GPU idle {100 * times['gpu_idle_share']:.0f} % of the time between the first and the last batch")
    return lines
