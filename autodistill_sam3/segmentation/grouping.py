"""Low-resolution masks of a batch -> `Instances` per image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from autodistill_sam3.instances import Instances, Source, compact_masks
from autodistill_sam3.segmentation.masks import upsample_logits


def group_by_image(
    image_hw: Sequence[tuple[int, int]],
    source: Source,
    index: tuple[torch.Tensor, torch.Tensor],
    scores: torch.Tensor,
    logits: torch.Tensor,
) -> Iterator[tuple[int, Instances]]:
    """K masks of any images -> one `Instances` per image that has a mask with at least one pixel.

    Args:
        image_hw: Height and width in pixels of each image of the batch.
        source: Which kind of prompt found the masks.
        index: Two (K,) integer tensors: which image each mask belongs to, and which prompt it answers.
        scores: (K,) in 0..1.
        logits: (K, h, w), each covering its whole image.
    """
    images, prompts = (values.cpu().numpy() for values in index)
    values, low_resolution = scores.float().cpu().numpy(), logits.float().cpu().numpy()
    for image in np.unique(images):
        hw = image_hw[image]
        members = np.flatnonzero(images == image)
        crops = {int(index): upsample_logits(low_resolution[index], hw) for index in members}
        kept = [index for index, crop in crops.items() if crop is not None]
        masks = compact_masks([crop for crop in crops.values() if crop is not None], hw)
        yield int(image), Instances(masks, values[kept], prompts[kept].astype(np.int64), source)


def concatenate(parts: list[Instances], image_hw: tuple[int, int], source: Source) -> Instances:
    """Instances of one image from several passes, in their order; none at all gives an empty value."""
    if not parts:
        return Instances.empty(image_hw, source)
    return Instances(
        masks=parts[0].masks.merge([part.masks for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        prompt_index=np.concatenate([part.prompt_index for part in parts]),
        source=source,
    )
