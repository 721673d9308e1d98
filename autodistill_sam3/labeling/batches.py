"""Batches of one shape, whatever is left to do: what a model computes may depend on the batch in its last bits."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from autodistill_sam3.errors import LabelingError, OutOfMemoryError
from autodistill_sam3.images import RGBImage

logger = logging.getLogger("autodistill_sam3")

# What a model returns for an image is its own matter, but that it is neither an exception nor None. It may return a
# function that waits for it.
PredictBatch: TypeAlias = Callable[[Sequence[RGBImage]], "Sequence[Any] | Callable[[], Sequence[Any]]"]
Outcome: TypeAlias = Any
_Wait: TypeAlias = Callable[[], Sequence[Any]]

# Stands in for images that are not there.
PADDING: RGBImage = np.full((64, 64, 3), 128, dtype=np.uint8)


class _WrongCountError(LabelingError):
    """A model gave something other than what it has to give."""


class _Begun:
    """What a model has begun with, for as long as it is wanted."""

    def __init__(self, size: int, wait: _Wait | None) -> None:
        self._size, self._wait = size, wait

    def take(self, size: int) -> _Wait | None:
        """It, once, if the batch has this size; from then on nothing is kept."""
        wait, self._wait = self._wait, None
        return wait if size == self._size else None


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
        # What is not waited for yet.
        self._begun: list[_Begun] = []

    def begin(self, images: Sequence[RGBImage | None]) -> Callable[[], list[Outcome]]:
        """Have the model begin with a batch, so that it works while the one before is waited for.

        Returns:
            Waits for what it sees in each image, the exception if it fails on this one, None where there is no image.
        """
        size = self._size
        padded = _padded(images[:size], size)
        begun = _Begun(size, None if padded is None else _attempt(self._predict_batch, padded))
        self._begun.append(begun)
        return lambda: self._finish(images, begun)

    def _finish(self, images: Sequence[RGBImage | None], begun: _Begun) -> list[Outcome]:
        self._begun.remove(begun)
        outcomes: list[Outcome] = []
        while len(outcomes) < len(images):
            size = self._size
            try:
                outcomes += self._predict(images[len(outcomes) : len(outcomes) + size], size, begun)
                continue
            except OutOfMemoryError as error:
                if size == 1:
                    outcomes.append(error)
                    continue
            self._shrink(size // 2)
        return outcomes

    def _shrink(self, size: int) -> None:
        self._size = size
        self._on_shrink(size)
        # They are done anew in the size of all that follows, and hold memory.
        for begun in list(self._begun):
            begun.take(size)
        logger.warning("Out of memory: going on with batches of %d", size)

    def check_model(self) -> Any:
        """What it sees in a blank image; what it raises is raised, for then it is the model and not an image."""
        size = self._size
        while True:
            try:
                return _counted(_attempt(self._predict_batch, [PADDING] * size)(), size)[0]
            except OutOfMemoryError:
                # Beside what is begun there may be too little; an ordinary batch would be tried in a smaller size, too.
                if size == 1:
                    raise
            size //= 2

    def _predict(self, images: Sequence[RGBImage | None], size: int, begun: _Begun | None = None) -> list[Outcome]:
        padded = _padded(images, size)
        if padded is None:
            return [None] * len(images)
        first = begun.take(size) if begun is not None else None
        try:
            found = _counted((first or _attempt(self._predict_batch, padded))(), size)
            # Behind the images are paddings.
            return [None if image is None else seen for image, seen in zip(images, found, strict=False)]
        except (OutOfMemoryError, _WrongCountError):
            raise
        # Whatever a model raises on one image must not end a run over thousands.
        except Exception as error:
            failure = _without_frames(error)
        # What failed is let go before its images are tried.
        del first
        return self._one_by_one(images, size, failure)

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


def _attempt(predict_batch: PredictBatch, images: Sequence[RGBImage]) -> _Wait:
    """Begin; what is raised is raised again where the result is waited for."""
    try:
        begun = predict_batch(images)
    # Whatever a model raises on one image must not end a run over thousands.
    except Exception as error:
        return partial(_raise, _without_frames(error))
    return begun if callable(begun) else lambda: begun


def _raise(error: Exception) -> Sequence[Any]:
    raise error


def _without_frames(error: Exception) -> Exception:
    """The exception, without what the functions that it came through hold; lines stay."""
    traceback.clear_frames(error.__traceback__)
    return error


def _counted(found: Sequence[Any], count: int) -> Sequence[Any]:
    if len(found) != count:
        raise _WrongCountError(f"Expected detections of {count} images from the model, received {len(found)}")
    return found
