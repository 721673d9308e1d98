"""Batches of one shape, whatever is left to do: what a model computes may depend on the batch in its last bits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from autodistill_sam3.errors import LabelingError, OutOfMemoryError
from autodistill_sam3.images import RGBImage

logger = logging.getLogger("autodistill_sam3")

# What a model returns for an image is its own matter, but that it is neither an exception nor None. It may return a
# function that waits for it.
PredictBatch: TypeAlias = Callable[[Sequence[RGBImage]], "Sequence[Any] | Callable[[], Sequence[Any]]"]
Outcome: TypeAlias = Any
_Begun: TypeAlias = Callable[[], Sequence[Any]]

# Stands in for images that are not there.
PADDING: RGBImage = np.full((64, 64, 3), 128, dtype=np.uint8)


class _WrongCountError(LabelingError):
    """A model gave something other than what it has to give."""


class BatchPredictor:
    """Gives a model batches of one size, smaller ones once memory ran out, and finds out which image it fails on.

    Args:
        predict_batch: RGB images -> what it sees in each, or a function that waits for that.
        batch_size: How many images it always gets.
        on_shrink: Called with the new size when it no longer gets as many.
    """

    def __init__(self, predict_batch: PredictBatch, batch_size: int, on_shrink: Callable[[int], None]) -> None:
        self._predict_batch = predict_batch
        self._size = batch_size
        self._on_shrink = on_shrink

    def begin(self, images: Sequence[RGBImage | None]) -> Callable[[], list[Outcome]]:
        """Have the model begin with a batch, so that it works while the one before is waited for.

        Returns:
            Waits for what it sees in each image, the exception if it fails on this one, None where there is no image.
        """
        size = self._size
        padded = _padded(images[:size], size)
        begun = None if padded is None else _attempt(self._predict_batch, padded)
        return lambda: self._finish(images, size, begun)

    def _finish(self, images: Sequence[RGBImage | None], begun_size: int, begun: _Begun | None) -> list[Outcome]:
        outcomes: list[Outcome] = []
        while len(outcomes) < len(images):
            size = self._size
            # What was begun before memory ran out is done anew, in the size of all that follows.
            first = begun if size == begun_size and not outcomes else None
            try:
                outcomes += self._predict(images[len(outcomes) : len(outcomes) + size], size, first)
            except OutOfMemoryError as error:
                if size == 1:
                    outcomes.append(error)
                else:
                    self._size = size // 2
                    self._on_shrink(self._size)
                    logger.warning("Out of memory: going on with batches of %d", self._size)
        return outcomes

    def check_model(self) -> Any:
        """What it sees in a blank image; what it raises is raised, for then it is the model and not an image."""
        return _counted(_attempt(self._predict_batch, [PADDING] * self._size)(), self._size)[0]

    def _predict(self, images: Sequence[RGBImage | None], size: int, begun: _Begun | None = None) -> list[Outcome]:
        padded = _padded(images, size)
        if padded is None:
            return [None] * len(images)
        try:
            found = _counted((begun or _attempt(self._predict_batch, padded))(), size)
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


def _padded(images: Sequence[RGBImage | None], size: int) -> list[RGBImage] | None:
    """A batch of the full size; None if no image is in it."""
    if all(image is None for image in images):
        return None
    batch = [PADDING if image is None else image for image in images]
    return batch + [PADDING] * (size - len(batch))


def _attempt(predict_batch: PredictBatch, images: Sequence[RGBImage]) -> _Begun:
    """Begin; what is raised is raised again where the result is waited for."""
    try:
        begun = predict_batch(images)
    # Whatever a model raises on one image must not end a run over thousands.
    except Exception as error:
        raised = error

        def fail() -> Sequence[Any]:
            raise raised

        return fail
    return begun if callable(begun) else lambda: begun


def _counted(found: Sequence[Any], count: int) -> Sequence[Any]:
    if len(found) != count:
        raise _WrongCountError(f"Expected detections of {count} images from the model, received {len(found)}")
    return found
