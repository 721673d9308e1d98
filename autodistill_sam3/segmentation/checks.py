"""What every back end refuses: lists of different lengths, and scores that are no numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autodistill_sam3.errors import CheckpointError, SettingError
from autodistill_sam3.instances import Boxes

if TYPE_CHECKING:
    import torch


def check_thresholds(prompts: Sequence[str], min_scores: Sequence[float]) -> None:
    """Raise SettingError unless there is one threshold for each prompt."""
    if len(prompts) != len(min_scores):
        raise SettingError(
            f"Expected min_scores to have one value for each of the {len(prompts)} prompts, "
            f"received {len(min_scores)}. Pass lists of the same length."
        )


def check_boxes(image_hw: Sequence[tuple[int, int]], boxes: Sequence[Boxes]) -> None:
    """Raise SettingError unless there are boxes, perhaps none, for each image."""
    if len(image_hw) != len(boxes):
        raise SettingError(
            f"Expected boxes to have one entry for each of the {len(image_hw)} images, received {len(boxes)}. "
            "Pass Boxes.empty() for an image without any."
        )


def finite(values: torch.Tensor) -> npt.NDArray[np.float32]:
    """A model's output as an array.

    Raises:
        CheckpointError: A value is NaN or infinite. No threshold would keep it, so that it would look like an image
            without objects.
    """
    array: npt.NDArray[np.float32] = values.float().cpu().numpy()
    check_finite(array)
    return array


def check_finite(values: npt.NDArray[np.float32] | np.float32) -> None:
    """Raise CheckpointError if a value is NaN or infinite."""
    if not np.isfinite(values).all():
        raise CheckpointError(
            "Expected numbers from SAM 3, received values that are not finite: the checkpoint is damaged, or its "
            "numbers leave the precision's range. Try precision='fp32', or copy the checkpoint again."
        )
