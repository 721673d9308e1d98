"""Help for training: linear maps, thrown away afterwards, read off each image token what is drawn there.

One reads the vision tower, before any text: which colours and shapes a cell shows, and the box of its object. The real
models start from pretrained towers; this gives ours a start in a few hundred steps. The other reads the fused tokens:
what the prompt asks for. Matching queries, or writing out coordinates, is a faint signal for either.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from autodistill_sam3.training.batches import Batch
from autodistill_sam3.training.world import COLOURS, SHAPES

COVERED = 0.3
# Logits of colours and shapes, then centre and size of the box.
LOOKS = len(COLOURS) + len(SHAPES)


class LooksHead(nn.Linear):
    """Reads (B, cells, `width`) tokens of a vision tower."""

    def __init__(self, width: int) -> None:
        super().__init__(width, LOOKS + 4)
        nn.init.zeros_(self.weight)


def looks_losses(told: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
    """`loss_looks` and `loss_looks_box`.

    Args:
        told: (B, cells, LOOKS + 4), of a `LooksHead`.
        batch: For what is drawn.
    """
    grid = math.isqrt(told.shape[1])
    covered = object_coverage(batch, grid)
    kinds = torch.cat([F.one_hot(batch.colour, len(COLOURS)), F.one_hot(batch.shape, len(SHAPES))], dim=-1)
    wanted = torch.einsum("bkc,bkl->bcl", covered, kinds.float()).clamp(max=1.0)
    told = told.float()
    entropy = F.binary_cross_entropy_with_logits(told[..., :LOOKS], wanted, reduction="none").sum(-1).mean()
    boxes = batch.boxes_cxcywh[:: batch.per_scene]
    return {"loss_looks": entropy, "loss_looks_box": cell_box_loss(told[..., LOOKS:], covered, boxes)}


def object_coverage(batch: Batch, grid: int) -> torch.Tensor:
    """(B, K, grid * grid) ``float32``: how much of each cell each object covers."""
    slots = torch.arange(batch.targets.shape[1], device=batch.targets.device)[None, :, None, None]
    seen = (batch.scenes.top[:, None] == slots).float()
    return F.adaptive_avg_pool2d(seen, grid).flatten(2)


def cell_coverage(batch: Batch, grid: int) -> torch.Tensor:
    """(N, K, grid * grid) ``float32``: how much of each cell each object asked for covers."""
    return object_coverage(batch, grid).repeat_interleave(batch.per_scene, dim=0) * batch.targets[..., None]


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


def cell_box_loss(boxes: torch.Tensor, coverage: torch.Tensor, true_cxcywh: torch.Tensor) -> torch.Tensor:
    """Mean L1 error of the box that each covered cell names.

    Args:
        boxes: (N, cells, 4) centre and size in 0..1.
        coverage: (N, K, cells), of `object_coverage` or `cell_coverage`.
        true_cxcywh: (N, K, 4) in 0..1.
    """
    share, owner = coverage.max(1)
    covered = share >= COVERED
    wanted = true_cxcywh.gather(1, owner[..., None].expand(-1, -1, 4))
    error = (boxes.float() - wanted).abs().sum(-1)
    return (error * covered).sum() / covered.sum().clamp(min=1)
