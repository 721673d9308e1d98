"""Help for training: a linear map, thrown away afterwards, reads off each image token what the prompt asks for there.

Matching queries, or writing out coordinates, is a faint signal for learning which words mean which pixels; this one is
strong, and costs next to nothing. SAM 3's own trainer has a semantic loss to the same end, on full-size masks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from autodistill_sam3.training.batches import Batch

COVERED = 0.3


def cell_coverage(batch: Batch, grid: int) -> torch.Tensor:
    """(N, K, grid * grid) ``float32``: how much of each cell each object asked for covers."""
    slots = torch.arange(batch.targets.shape[1], device=batch.targets.device)[None, :, None, None]
    seen = (batch.scenes.top[:, None] == slots).float()
    covered = F.adaptive_avg_pool2d(seen, grid).flatten(2).repeat_interleave(batch.per_scene, dim=0)
    return covered * batch.targets[..., None]


def presence_map_loss(logits: torch.Tensor, coverage: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus dice of what is asked for, per cell.

    Args:
        logits: (N, cells).
        coverage: (N, K, cells), of `cell_coverage`.
    """
    wanted = coverage.sum(1).clamp(max=1.0)
    entropy = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none").mean()
    probability = logits.float().sigmoid()
    dice = 1 - (2 * (probability * wanted).sum(1) + 1) / (probability.sum(1) + wanted.sum(1) + 1)
    return 5.0 * entropy + dice.mean()


def cell_box_loss(boxes: torch.Tensor, coverage: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean L1 error of the box that each covered cell names.

    Args:
        boxes: (N, cells, 4) centre and size in 0..1.
        coverage: (N, K, cells), of `cell_coverage`.
        batch: For the true boxes.
    """
    share, owner = coverage.max(1)
    rows, cells = (share >= COVERED).nonzero(as_tuple=True)
    wanted = batch.boxes_cxcywh[rows, owner[rows, cells]]
    return (boxes.float()[rows, cells] - wanted).abs().sum() / max(len(rows), 1)
