"""What the references have in common: one image at a time, timed one after another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from autodistill_sam3.benchmark.settings import Measured, Settings, Work


@dataclass(frozen=True, eq=False)
class Found:
    """Masks of one image.

    Attributes:
        masks: (K, H, W) ``bool``.
        scores: (K,) ``float32``.
        class_id: (K,) ``int64``.
    """

    masks: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]
    class_id: npt.NDArray[np.int64]


class OneImageModel(Protocol):
    """A reference: an open image and what to look for -> masks in the host's memory."""

    def segment(self, image: Image.Image, work: Work) -> Found:
        """Masks of all prompts, and with "both" of ten boxes."""
        ...


def stacked(parts: Sequence[tuple[int, npt.NDArray[np.bool_], npt.NDArray[np.float32]]], image: Image.Image) -> Found:
    """Masks and scores by class id, as one value."""
    empty = np.zeros((0, image.height, image.width), dtype=np.bool_)
    return Found(
        np.concatenate([empty, *(masks for _, masks, _ in parts)]),
        np.concatenate([np.zeros(0, np.float32), *(scores for _, _, scores in parts)]),
        np.concatenate([np.zeros(0, np.int64), *(np.full(len(scores), index) for index, _, scores in parts)]),
    )


def measure_one_by_one(model: OneImageModel, work: Work, settings: Settings, *, warm_up: bool) -> Measured:
    """Open, decode and segment pictures until enough or until the time is up.

    Args:
        model: The reference.
        work: The row's.
        settings: Says how many pictures, and how long.
        warm_up: Whether to segment one picture untimed first.
    """
    paths = sorted(settings.pictures.glob("*.jpg"))
    if warm_up:
        segment_file(model, paths[-1], work)
    masks = images = 0
    start = time.perf_counter()
    for path in paths[: settings.reference_images]:
        masks += len(segment_file(model, path, work).masks)
        images += 1
        if time.perf_counter() - start > settings.seconds:
            break
    return Measured(images, time.perf_counter() - start, masks / images)


def segment_file(model: OneImageModel, path: Path, work: Work) -> Found:
    """Segment a file, decoding included."""
    with Image.open(path) as image:
        return model.segment(image.convert("RGB"), work)
