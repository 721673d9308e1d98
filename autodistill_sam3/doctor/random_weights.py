"""Weights that training never touched.

A loader refuses missing tensors, and so what is left to find is a file written from a model that had them filled in at
random. The entries of a freshly initialised matrix are independent of each other, whatever their size and distribution
(normal, uniform, any standard deviation). The largest singular value of such an m x n matrix is s (sqrt(m) + sqrt(n)),
with s the standard deviation of its entries, to a few per cent and ever closer the larger it is (the edge of the
Marchenko-Pastur law). Gradient descent adds a few strong directions to a matrix, and the largest singular value leaves
that edge: in the small bundled models, which were trained for minutes, it is 1.2 to 4 times the edge in at least one
matrix of each part. In freshly initialised models, small ones and one of full size, no matrix goes beyond 1.06.

So a part of the model counts as untrained if not one of its matrices goes beyond 1.1 times the edge. Single matrices do
not count: some that training did touch stay near the edge, and official checkpoints hold some that nothing uses. Only
parts that every labelling run goes through are looked at, so that a file is not blamed for what it has no need of,
such as the tensors for prompts by examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Prefixes of their tensors, and what they are called.
SAM3_TEXT_PARTS = {
    "detector_model.vision_encoder.backbone.layers.": "image encoder",
    "detector_model.vision_encoder.neck.": "neck",
    "detector_model.text_encoder.text_model.encoder.": "text encoder",
    "detector_model.geometry_encoder.layers.": "geometry encoder",
    "detector_model.detr_encoder.": "detection encoder",
    "detector_model.detr_decoder.layers.": "detection decoder",
    "detector_model.detr_decoder.box_head.": "box head",
    "detector_model.mask_decoder.": "mask head",
    "detector_model.dot_product_scoring.": "scoring",
}
SAM3_BOX_PARTS = {
    "tracker_neck.": "neck for boxes",
    "tracker_model.mask_decoder.": "box decoder",
}
SAM3_MEMORY_PARTS = {"tracker_model.memory_": "memory for video"}
FLORENCE2_PARTS = {
    "model.vision_tower.": "image encoder",
    "model.language_model.encoder.layers.": "text encoder",
    "model.language_model.decoder.layers.": "text decoder",
}

_BEYOND_EDGE = 1.1
# In smaller ones the edge is not sharp.
_SMALLEST_SIDE = 32
# In deviations; of independent entries, none in a model is this large but by accident.
_LARGEST_ENTRY = 6.0
# A direction 1.3 times as strong as the rest has outgrown any random start by then.
_ITERATIONS = 16


def untrained_parts(tensors: Mapping[str, torch.Tensor], parts: Mapping[str, str]) -> list[str]:
    """The names of the parts whose matrices are all as random as at initialisation.

    Args:
        tensors: By their names in the model, finite.
        parts: Prefix of the names of a part's tensors -> what it is called.
    """
    return [
        title
        for prefix, title in parts.items()
        if (matrices := [tensors[name] for name in sorted(tensors) if name.startswith(prefix) and _fits(tensors[name])])
        and not any(edge_ratio(matrix) > _BEYOND_EDGE for matrix in matrices)
    ]


def non_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of the tensors that hold NaN or infinity."""
    return [name for name, tensor in sorted(tensors.items()) if not tensor.isfinite().all()]


def edge_ratio(weight: torch.Tensor) -> float:
    """The largest singular value over what independent entries of the same size would give; 0 of zeros.

    Example:
        >>> import torch
        >>> noise = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
        >>> round(edge_ratio(noise), 1), round(edge_ratio(noise + 0.5), 1)
        (1.0, 3.5)
    """
    import torch

    matrix = weight.flatten(1).float()
    rows, columns = matrix.shape
    size = float(matrix.square().mean().sqrt())
    if not size:
        return 0.0
    edge = size * (math.sqrt(rows) + math.sqrt(columns))
    # `trunc_normal_` with limits far out draws one of them about once in a million times, a hundred deviations away.
    matrix = matrix.clamp(-_LARGEST_ENTRY * size, _LARGEST_ENTRY * size)
    direction = torch.randn(columns, generator=torch.Generator().manual_seed(0)).to(matrix.device)
    for _ in range(_ITERATIONS):
        direction = matrix.T @ (matrix @ direction)
        direction = direction / direction.norm()
    return float((matrix @ direction).norm()) / edge


def _fits(weight: torch.Tensor) -> bool:
    return weight.ndim >= 2 and min(weight.shape[0], weight[0].numel()) >= _SMALLEST_SIDE
