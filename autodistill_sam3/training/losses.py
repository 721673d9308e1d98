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
class LayerOutputs:
    """What L decoder layers say of N (image, prompt) pairs, first layer first; a row is layer * N + pair.

    Attributes:
        logits: (L * N, Q).
        boxes_cxcywh: (L * N, Q, 4) in 0..1.
        presence_logits: (L * N,).
        layers: L.
    """

    logits: torch.Tensor
    boxes_cxcywh: torch.Tensor
    presence_logits: torch.Tensor
    layers: int

    @property
    def pairs(self) -> int:
        """N."""
        return len(self.logits) // self.layers

    def layer(self, index: int) -> LayerOutputs:
        """One layer's; -1 is the last."""
        first = index % self.layers * self.pairs
        rows = slice(first, first + self.pairs)
        return LayerOutputs(self.logits[rows], self.boxes_cxcywh[rows], self.presence_logits[rows], 1)


def focal_loss(logits: torch.Tensor, targets: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """Elementwise sigmoid focal loss (Lin et al. 2017)."""
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    missed = 1 - (probability * targets + (1 - probability) * (1 - targets))
    result: torch.Tensor = (alpha * targets + (1 - alpha) * (1 - targets)) * entropy * missed**gamma
    return result


def score_loss(
    outputs: LayerOutputs,
    matches: Matches,
    target_cxcywh: torch.Tensor,
    present: torch.Tensor,
    positive_weight: float,
) -> torch.Tensor:
    """IoU-aware binary cross-entropy of each layer, mean over all queries (`IABCEMdetr`).

    A matched query's target is its probability^0.25 times its IoU^0.75. Queries of absent prompts carry no loss: that
    is the presence token's work.

    Args:
        outputs: Of L layers.
        matches: M matches.
        target_cxcywh: (N, T, 4) in 0..1.
        present: (N,) ``bool``.
        positive_weight: Weight of matched queries.

    Returns:
        (L,).
    """
    logits = outputs.logits.float()
    probability = logits.sigmoid()
    is_positive = torch.zeros_like(logits)
    is_positive[matches.rows, matches.queries] = 1.0
    with torch.no_grad():
        iou, _ = iou_and_giou(
            cxcywh_to_xyxy(outputs.boxes_cxcywh.float()[matches.rows, matches.queries]),
            cxcywh_to_xyxy(target_cxcywh[matches.rows % outputs.pairs, matches.targets]),
        )
        quality = probability[matches.rows, matches.queries] ** SCORE_ALPHA * iou ** (1 - SCORE_ALPHA)
        soft = is_positive.clone()
        soft[matches.rows, matches.queries] = quality.clamp(min=0.01)
    positive = F.binary_cross_entropy_with_logits(logits, soft, reduction="none") * is_positive * positive_weight
    negative = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none")
    loss = positive + negative * (1 - is_positive) * probability**SCORE_GAMMA
    per_layer = loss.reshape(outputs.layers, outputs.pairs, -1)
    return (per_layer * present[:, None]).mean((1, 2))


def presence_loss(outputs: LayerOutputs, present: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Balanced cross-entropy of each layer's presence token (focal with alpha 0.5 and gamma 0), mean over pairs.

    Args:
        outputs: Of L layers.
        present: (N,) ``bool``.
        counts: (N,) ``bool``, which pairs have a clear answer.

    Returns:
        (L,).
    """
    logits = outputs.presence_logits.float().reshape(outputs.layers, outputs.pairs)
    loss = focal_loss(logits, present.float().expand_as(logits), alpha=0.5, gamma=0.0)
    return (loss * counts).sum(1) / counts.sum().clamp(min=1)


def box_losses(
    outputs: LayerOutputs, matches: Matches, target_cxcywh: torch.Tensor, num_boxes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """L1 and 1 - GIoU of each layer's matched boxes, (L,) each: sums divided by `num_boxes` ()."""
    predicted = outputs.boxes_cxcywh.float()[matches.rows, matches.queries]
    target = target_cxcywh[matches.rows % outputs.pairs, matches.targets]
    _, giou = iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target))
    layer = matches.rows // outputs.pairs
    sums = predicted.new_zeros(2, outputs.layers)
    l1, giou_loss = sums.index_add(1, layer, torch.stack([(predicted - target).abs().sum(1), 1 - giou])) / num_boxes
    return l1, giou_loss


def mask_losses(
    logits: torch.Tensor, targets: torch.Tensor, num_boxes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
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
    return focal, _dice(predicted.sigmoid(), wanted).sum() / num_boxes


def semantic_losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and dice loss of semantic masks, means over present prompts (`SemanticSegCriterion`).

    Args:
        logits: (R, h, w) of the prompts that ask for something drawn.
        targets: (R, h, w), 0 or 1.
    """
    predicted, wanted = logits.float().flatten(1), targets.float().flatten(1)
    entropy = F.binary_cross_entropy_with_logits(predicted, wanted, reduction="none").mean(1)
    count = max(len(predicted), 1)
    return entropy.sum() / count, _dice(predicted.sigmoid(), wanted).sum() / count


def _dice(probability: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """1 - dice of each row, smoothed by one pixel."""
    overlap = 2 * (probability * wanted).sum(1)
    return 1 - (overlap + 1) / (probability.sum(1) + wanted.sum(1) + 1)


def layer_losses(
    outputs: LayerOutputs,
    matches: Matches,
    target_cxcywh: torch.Tensor,
    present: torch.Tensor,
    counts: torch.Tensor,
    num_boxes: torch.Tensor,
    weights: DetectorWeights,
) -> dict[str, torch.Tensor]:
    """All weighted terms but those of masks, by name; all layers but the last carry the suffix "_aux_i".

    Args:
        outputs: Of L layers.
        matches: M matches; layers with one-to-many matches have several a target.
        target_cxcywh: (N, T, 4) in 0..1.
        present: (N,) ``bool``.
        counts: (N,) ``bool``, which pairs have a clear answer.
        num_boxes: (), what sums over boxes are divided by.
        weights: Of the terms.
    """
    l1, giou = box_losses(outputs, matches, target_cxcywh, num_boxes)
    terms = {
        "loss_ce": weights.loss_ce * score_loss(outputs, matches, target_cxcywh, present, weights.positive),
        "presence_loss": weights.presence_loss * presence_loss(outputs, present, counts),
        "loss_bbox": weights.loss_bbox * l1,
        "loss_giou": weights.loss_giou * giou,
    }
    last = outputs.layers - 1
    many = torch.arange(outputs.layers, device=num_boxes.device) < min(weights.one_to_many_layers, last)
    factors = torch.where(many, weights.one_to_many, 1.0)
    terms = {name: values * factors for name, values in terms.items()}
    suffixes = [*(f"_aux_{index}" for index in range(last)), ""]
    return {f"{name}{suffix}": values[i] for name, values in terms.items() for i, suffix in enumerate(suffixes)}
