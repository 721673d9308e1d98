"""Low-resolution masks of a batch -> `Instances` per image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from autodistill_sam3.instances import Instances, Source
from autodistill_sam3.segmentation.checks import check_finite, finite
from autodistill_sam3.segmentation.masks import upsampled_masks


def group_by_image(
    image_hw: Sequence[tuple[int, int]],
    source: Source,
    index: tuple[torch.Tensor, torch.Tensor],
    scores: torch.Tensor,
    logits: torch.Tensor,
) -> Iterator[tuple[int, Instances]]:
    """K masks of any images -> one `Instances` per image that has a mask with at least one pixel, without the others.

    Args:
        image_hw: Height and width in pixels of each image of the batch.
        source: Which kind of prompt found the masks.
        index: Two (K,) integer tensors: which image each mask belongs to, and which prompt it answers.
        scores: (K,) in 0..1.
        logits: (K, h, w), each covering its whole image.

    Raises:
        CheckpointError: A score or a mask is not finite.
    """
    images, prompts = (values.cpu().numpy() for values in index)
    if not len(images):
        return
    values = finite(scores)
    # The maximum is NaN if a logit is; minus infinity is what fp16 makes of a pixel that is surely not in the mask.
    check_finite(np.float32(logits.amax().item()))
    for image in np.unique(images):
        members = np.flatnonzero(images == image)
        masks, places = upsampled_masks(logits[torch.from_numpy(members).to(logits.device)], image_hw[image])
        if places:
            kept = members[places]
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
