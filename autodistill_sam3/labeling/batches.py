"""Batches of one shape, whatever is left to do: what a model computes may depend on the batch in its last bits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import supervision as sv

from autodistill_sam3.errors import LabelingError, OutOfMemoryError
from autodistill_sam3.images import RGBImage

logger = logging.getLogger("autodistill_sam3")

PredictBatch: TypeAlias = Callable[[Sequence[RGBImage]], list[sv.Detections]]
Outcome: TypeAlias = "sv.Detections | Exception | None"

# Stands in for images that are not there.
PADDING: RGBImage = np.full((64, 64, 3), 128, dtype=np.uint8)


class _WrongCountError(LabelingError):
    """A model gave something other than what it has to give."""


class BatchPredictor:
    """Gives a model batches of one size, smaller ones once memory ran out, and finds out which image it fails on.

    Args:
        predict_batch: RGB images -> detections of each.
        batch_size: How many images it always gets.
        on_shrink: Called with the new size when it no longer gets as many.
    """

    def __init__(self, predict_batch: PredictBatch, batch_size: int, on_shrink: Callable[[int], None]) -> None:
        self._predict_batch = predict_batch
        self._size = batch_size
        self._on_shrink = on_shrink

    def predict(self, images: Sequence[RGBImage | None]) -> list[Outcome]:
        """Detections of each image, the exception if the model fails on this one, None where there is no image."""
        outcomes: list[Outcome] = []
        while len(outcomes) < len(images):
            batch = images[len(outcomes) : len(outcomes) + self._size]
            try:
                outcomes += self._predict(batch)
            except OutOfMemoryError as error:
                if self._size == 1:
                    outcomes.append(error)
                    continue
                self._size = max(1, self._size // 2)
                self._on_shrink(self._size)
                logger.warning("Out of memory: going on with batches of %d", self._size)
        return outcomes

    def check_model(self) -> None:
        """Raise what the model raises on blank images, where it is the model that fails and not an image."""
        self._asked([PADDING] * self._size)

    def _asked(self, images: Sequence[RGBImage]) -> list[sv.Detections]:
        found = self._predict_batch(images)
        if len(found) != len(images):
            raise _WrongCountError(f"Expected detections of {len(images)} images from the model, received {len(found)}")
        return found

    def _predict(self, images: Sequence[RGBImage | None]) -> list[Outcome]:
        if all(image is None for image in images):
            return [None] * len(images)
        padded = [PADDING if image is None else image for image in images]
        padded += [PADDING] * (self._size - len(padded))
        try:
            found = self._asked(padded)
        except (OutOfMemoryError, _WrongCountError):
            raise
        # Whatever a model raises on one image must not end a run over thousands.
        except Exception as error:
            return self._one_by_one(images, error)
        # Behind the images are paddings.
        return [None if image is None else detections for image, detections in zip(images, found, strict=False)]

    def _one_by_one(self, images: Sequence[RGBImage | None], error: Exception) -> list[Outcome]:
        """Each image in its place, the others blank."""
        places = [place for place, image in enumerate(images) if image is not None]
        outcomes: list[Outcome] = [None] * len(images)
        if len(places) == 1:
            outcomes[places[0]] = error
            return outcomes
        for place in places:
            alone = [image if index == place else None for index, image in enumerate(images)]
            outcomes[place] = self._predict(alone)[place]
        return outcomes
