"""Batches of one shape, whatever is left to do: what a model computes may depend on the batch in its last bits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from autodistill_sam3.errors import LabelingError, OutOfMemoryError
from autodistill_sam3.images import RGBImage

logger = logging.getLogger("autodistill_sam3")

# What a model returns for an image is its own matter, but that it is neither an exception nor None.
PredictBatch: TypeAlias = Callable[[Sequence[RGBImage]], Sequence[Any]]
Outcome: TypeAlias = Any

# Stands in for images that are not there.
PADDING: RGBImage = np.full((64, 64, 3), 128, dtype=np.uint8)


class _WrongCountError(LabelingError):
    """A model gave something other than what it has to give."""


class BatchPredictor:
    """Gives a model batches of one size, smaller ones once memory ran out, and finds out which image it fails on.

    Several threads may ask at a time.

    Args:
        predict_batch: RGB images -> what it sees in each.
        batch_size: How many images it always gets.
        on_shrink: Called with the new size when it no longer gets as many.
    """

    def __init__(self, predict_batch: PredictBatch, batch_size: int, on_shrink: Callable[[int], None]) -> None:
        self._predict_batch = predict_batch
        self._size = batch_size
        self._lock = threading.Lock()
        self._on_shrink = on_shrink

    def predict(self, images: Sequence[RGBImage | None]) -> list[Outcome]:
        """What it sees in each image, the exception if it fails on this one, None where there is no image."""
        outcomes: list[Outcome] = []
        while len(outcomes) < len(images):
            size = self._size
            try:
                outcomes += self._predict(images[len(outcomes) : len(outcomes) + size], size)
            except OutOfMemoryError as error:
                if size == 1:
                    outcomes.append(error)
                else:
                    self._shrink(size)
        return outcomes

    def _shrink(self, size: int) -> None:
        with self._lock:
            # Another thread may have run out of the same memory at the same time.
            if self._size == size:
                self._size = size // 2
                self._on_shrink(self._size)
                logger.warning("Out of memory: going on with batches of %d", self._size)

    def check_model(self) -> Any:
        """What it sees in a blank image; what it raises is raised, for then it is the model and not an image."""
        return self._asked([PADDING] * self._size)[0]

    def _asked(self, images: Sequence[RGBImage]) -> Sequence[Any]:
        found = self._predict_batch(images)
        if len(found) != len(images):
            raise _WrongCountError(f"Expected detections of {len(images)} images from the model, received {len(found)}")
        return found

    def _predict(self, images: Sequence[RGBImage | None], size: int) -> list[Outcome]:
        if all(image is None for image in images):
            return [None] * len(images)
        padded = [PADDING if image is None else image for image in images]
        padded += [PADDING] * (size - len(padded))
        try:
            found = self._asked(padded)
        except (OutOfMemoryError, _WrongCountError):
            raise
        # Whatever a model raises on one image must not end a run over thousands.
        except Exception as error:
            return self._one_by_one(images, size, error)
        # Behind the images are paddings.
        return [None if image is None else seen for image, seen in zip(images, found, strict=False)]

    def _one_by_one(self, images: Sequence[RGBImage | None], size: int, error: Exception) -> list[Outcome]:
        """Each image in its place, the others blank."""
        places = [place for place, image in enumerate(images) if image is not None]
        outcomes: list[Outcome] = [None] * len(images)
        if len(places) == 1:
            outcomes[places[0]] = error
            return outcomes
        for place in places:
            alone = [image if index == place else None for index, image in enumerate(images)]
            outcomes[place] = self._predict(alone, size)[place]
        return outcomes
