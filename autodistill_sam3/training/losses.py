"""The detector's losses, named as the official trainer names them (sam3/train/loss/loss_fns.py)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from autodistill_sam3.training.boxes import cxcywh_to_xyxy, iou_and_giou
from autodistill_sam3.training.configs import DetectorWeights
from autodistill_sam3.training.matcher import Matches

SCORE_ALPHA, SCORE_GAMMA = 0.25, 2.0
MASK_ALPHA, MASK_GAMMA = 0.25, 2.0
MAX_MASK_POINTS = 12544


@dataclass(frozen=True, eq=False)
class LayerOutput:
    """What one decoder layer says of N (image, prompt) pairs.

    Attributes:
        logits: (N, Q).
        boxes_cxcywh: (N, Q, 4) in 0..1.
        presence_logits: (N,).
    """

    logits: torch.Tensor
    boxes_cxcywh: torch.Tensor
    presence_logits: torch.Tensor


def focal_loss(logits: torch.Tensor, targets: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """Elementwise sigmoid focal loss (Lin et al. 2017)."""
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    missed = 1 - (probability * targets + (1 - probability) * (1 - targets))
    result: torch.Tensor = (alpha * targets + (1 - alpha) * (1 - targets)) * entropy * missed**gamma
    return result


def score_loss(
    layer: LayerOutput, matches: Matches, target_cxcywh: torch.Tensor, present: torch.Tensor, positive_weight: float
) -> torch.Tensor:
    """IoU-aware binary cross-entropy, mean over all queries (`IABCEMdetr`).

    A matched query's target is its probability^0.25 times its IoU^0.75. Queries of absent prompts carry no loss: that
    is the presence token's work.

    Args:
        layer: The layer's output.
        matches: M matches.
        target_cxcywh: (N, T, 4) in 0..1.
        present: (N,) ``bool``.
        positive_weight: Weight of matched queries.
    """
    logits = layer.logits.float()
    probability = logits.sigmoid()
    is_positive = torch.zeros_like(logits)
    is_positive[matches.rows, matches.queries] = 1.0
    with torch.no_grad():
        iou, _ = iou_and_giou(
            cxcywh_to_xyxy(layer.boxes_cxcywh.float()[matches.rows, matches.queries]),
            cxcywh_to_xyxy(target_cxcywh[matches.rows, matches.targets]),
        )
        quality = probability[matches.rows, matches.queries] ** SCORE_ALPHA * iou ** (1 - SCORE_ALPHA)
        soft = is_positive.clone()
        soft[matches.rows, matches.queries] = quality.clamp(min=0.01)
    positive = F.binary_cross_entropy_with_logits(logits, soft, reduction="none") * is_positive * positive_weight
    negative = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none")
    loss = positive + negative * (1 - is_positive) * probability**SCORE_GAMMA
    return (loss * present[:, None]).mean()


def presence_loss(layer: LayerOutput, present: torch.Tensor) -> torch.Tensor:
    """Balanced cross-entropy of the presence token (focal with alpha 0.5 and gamma 0), mean over pairs."""
    return focal_loss(layer.presence_logits.float(), present.float(), alpha=0.5, gamma=0.0).mean()


def box_losses(
    layer: LayerOutput, matches: Matches, target_cxcywh: torch.Tensor, num_boxes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """L1 and 1 - GIoU of matched boxes, summed and divided by `num_boxes`."""
    predicted = layer.boxes_cxcywh.float()[matches.rows, matches.queries]
    target = target_cxcywh[matches.rows, matches.targets]
    _, giou = iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target))
    return (predicted - target).abs().sum() / num_boxes, (1 - giou).sum() / num_boxes


def mask_losses(logits: torch.Tensor, targets: torch.Tensor, num_boxes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Focal and dice loss of matched masks.

    Args:
        logits: (M, h, w).
        targets: (M, h, w), 0 or 1.
        num_boxes: What the sums are divided by.
    """
    predicted, wanted = logits.float().flatten(1), targets.float().flatten(1)
    if predicted.shape[1] > MAX_MASK_POINTS:
        points = torch.randint(predicted.shape[1], (MAX_MASK_POINTS,), device=predicted.device)
        predicted, wanted = predicted[:, points], wanted[:, points]
    focal = focal_loss(predicted, wanted, MASK_ALPHA, MASK_GAMMA).mean(1).sum() / num_boxes
    probability = predicted.sigmoid()
    overlap = 2 * (probability * wanted).sum(1)
    dice = 1 - (overlap + 1) / (probability.sum(1) + wanted.sum(1) + 1)
    return focal, dice.sum() / num_boxes


def layer_losses(
    layer: LayerOutput,
    matches: Matches,
    target_cxcywh: torch.Tensor,
    present: torch.Tensor,
    weights: DetectorWeights,
    suffix: str = "",
) -> dict[str, torch.Tensor]:
    """All weighted terms of one decoder layer but for masks; `suffix` is "_aux_i" for all layers but the last."""
    num_boxes = max(len(matches.rows), 1)
    l1, giou = box_losses(layer, matches, target_cxcywh, num_boxes)
    score = score_loss(layer, matches, target_cxcywh, present, weights.positive)
    return {
        f"loss_ce{suffix}": weights.loss_ce * score,
        f"presence_loss{suffix}": weights.presence_loss * presence_loss(layer, present),
        f"loss_bbox{suffix}": weights.loss_bbox * l1,
        f"loss_giou{suffix}": weights.loss_giou * giou,
    }
