"""Low-resolution masks of a batch -> `Instances` per image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from autodistill_sam3.instances import Instances, Source
from autodistill_sam3.segmentation.checks import check_finite
from autodistill_sam3.segmentation.masks import upsampled_masks


def group_by_image(
    image_hw: Sequence[tuple[int, int]],
    source: Source,
    index: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    scores: npt.NDArray[np.float32],
    logits: torch.Tensor,
) -> Iterator[tuple[int, Instances]]:
    """K masks of any images -> one `Instances` per image that has a mask with at least one pixel, without the others.

    Args:
        image_hw: Height and width in pixels of each image of the batch.
        source: Which kind of prompt found the masks.
        index: Two (K,) arrays: which image each mask belongs to, and which prompt it answers.
        scores: (K,) in 0..1.
        logits: (K, h, w), each covering its whole image.

    Raises:
        CheckpointError: A mask is not finite.
    """
    images, prompts = index
    if not len(images):
        return
    # The maximum is NaN if a logit is; minus infinity is what fp16 makes of a pixel that is surely not in the mask.
    check_finite(np.float32(logits.amax().item()))
    sizes = np.array(image_hw)[images]
    for size in np.unique(sizes, axis=0):
        members = np.flatnonzero((sizes == size).all(axis=1))
        own = logits if len(members) == len(images) else logits[torch.from_numpy(members).to(logits.device)]
        masks, places = upsampled_masks(own, (int(size[0]), int(size[1])))
        kept = members[places]
        for image in np.unique(images[kept]):
            part = np.flatnonzero(images[kept] == image)
            yield int(image), Instances(masks[part], scores[kept[part]], prompts[kept[part]], source)


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
