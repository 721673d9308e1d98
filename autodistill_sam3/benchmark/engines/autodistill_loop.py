"""autodistill's own `label()` around a model that sees one image at a time, which is what most of its plugins are."""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import supervision as sv
from autodistill.detection import CaptionOntology, DetectionBaseModel
from PIL import Image

from autodistill_sam3.benchmark.engines.reference import OneImageModel
from autodistill_sam3.benchmark.settings import Measured, Settings, Work


class OneImagePlugin(DetectionBaseModel):  # type: ignore[misc]  # autodistill has no types
    """A plugin around a reference.

    Holes in masks are filled: supervision 0.31 ends the whole run on some of them ("No foreground-contained seam found
    for a mask hole"), as random weights make them.

    Args:
        model: The reference.
        work: What to look for.

    Attributes:
        filling_s: Seconds that filling took, which no other plugin needs.
    """

    def __init__(self, model: OneImageModel, work: Work) -> None:
        self.ontology = CaptionOntology({prompt: prompt for prompt in work.prompts})
        self._model, self._work = model, work
        self.filling_s = 0.0

    def predict(self, input: Any) -> sv.Detections:
        """Detections in an array as OpenCV reads it."""
        found = self._model.segment(Image.fromarray(np.ascontiguousarray(input[..., ::-1])), self._work)
        start = time.perf_counter()
        for mask in found.masks:
            _fill_holes(mask)
        self.filling_s += time.perf_counter() - start
        return sv.Detections(
            xyxy=sv.mask_to_xyxy(found.masks).astype(np.float32) if len(found.masks) else np.zeros((0, 4), np.float32),
            mask=found.masks,
            confidence=found.scores,
            class_id=found.class_id,
        )


def _fill_holes(mask: npt.NDArray[np.bool_]) -> None:
    pixels = mask.view(np.uint8)
    outlines, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(pixels, outlines, -1, 1, cv2.FILLED)


def measure_loop(model: OneImageModel, work: Work, settings: Settings, *, warm_up: bool) -> Measured:
    """Label a folder with autodistill's loop, and write COCO with supervision.

    The number of pictures is set by the time that one took, since the loop writes everything at its end.

    Args:
        model: The reference.
        work: The row's.
        settings: Says how many pictures, and how long.
        warm_up: Whether to segment one picture untimed first.
    """
    paths = sorted(settings.pictures.glob("*.jpg"))
    plugin = OneImagePlugin(model, work)
    with _folders(settings.output / "loop") as (pictures, output):
        seconds = 0.0
        for path in [paths[0]] * (2 if warm_up else 1):
            seconds = _label(plugin, [path], pictures, output)[0]
        count = min(settings.reference_images, len(paths), max(1, int(settings.seconds / seconds)))
        seconds, masks = _label(plugin, paths[:count], pictures, output)
    return Measured(count, seconds, masks / count)


@contextlib.contextmanager
def _folders(parent: Path) -> Any:
    shutil.rmtree(parent, ignore_errors=True)
    try:
        yield parent / "pictures", parent / "labeled"
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _label(plugin: OneImagePlugin, paths: list[Path], pictures: Path, output: Path) -> tuple[float, int]:
    """Seconds but for filling holes, and the number of masks."""
    for folder in (pictures, output):
        shutil.rmtree(folder, ignore_errors=True)
    pictures.mkdir(parents=True)
    for path in paths:
        shutil.copyfile(path, pictures / path.name)
    start, plugin.filling_s = time.perf_counter(), 0.0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        dataset = plugin.label(str(pictures), extension=".jpg", output_folder=str(output))
        dataset.as_coco(annotations_path=str(output / "coco.json"))
    seconds = time.perf_counter() - start - plugin.filling_s
    return seconds, sum(len(detections) for detections in dataset.annotations.values())
