"""What a segmentation model offers the rest of the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from autodistill_sam3.images import RGBImage
from autodistill_sam3.instances import Boxes, Instances


@dataclass(frozen=True, eq=False)
class TextResult:
    """What text prompts found in one image.

    Attributes:
        instances: The objects found, `source="text"`.
        presence: (P,) ``float32`` in 0..1, how sure the model is that the image shows anything of each prompt.
    """

    instances: Instances
    presence: npt.NDArray[np.float32]


Features = TypeVar("Features")


class Segmenter(Protocol[Features]):
    """SAM 3 behind one interface, whatever implements it. Works on batches, also of one, and keeps no results."""

    def compiled(self) -> Self:
        """The same segmenter, compiled for long runs where that can be done; itself where it cannot."""
        ...

    def encode(self, images: Sequence[RGBImage]) -> Features:
        """One vision pass for a batch of images, RGB ``uint8`` (H, W, 3) of any sizes.

        The features serve any number of text and box prompts. No images give features of none, for which the other
        methods return an empty list.
        """
        ...

    def segment_text(self, features: Features, prompts: Sequence[str], min_scores: Sequence[float]) -> list[TextResult]:
        """Every instance of each prompt that scores above that prompt's entry of `min_scores`, per image.

        Without prompts, or where nothing is found, an image's instances are empty, of its size.

        Raises:
            SettingError: `min_scores` has another length than `prompts`.
            CheckpointError: What the model says is not finite.
        """
        ...

    def begin_text(
        self, features: Features, prompts: Sequence[str], min_scores: Sequence[float]
    ) -> Callable[[], list[TextResult]]:
        """As :meth:`segment_text`, in two halves: what a GPU can begin with is queued, and not waited for.

        Returns:
            A function that gives the result, to be called once.
        """
        ...

    def segment_boxes(self, features: Features, boxes: Sequence[Boxes]) -> list[Instances]:
        """One instance for each box, per image; a box in which nothing is found gives none.

        The score is the box's own times the mask's predicted IoU. An image without boxes has empty instances of its
        size.

        Raises:
            SettingError: `boxes` has another length than the images.
            CheckpointError: What the model says is not finite, or it cannot segment boxes.
        """
        ...
