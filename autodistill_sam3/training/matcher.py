"""Which query answers for which object: one-to-one (Hungarian) and one-to-many matching.

After sam3/train/matcher.py (`BinaryHungarianMatcherV2` with focal cost, `BinaryOneToManyMatcher`). All decoder layers
are matched at once: to the matchers, a layer's answer to a prompt is one more row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from autodistill_sam3.training.boxes import cxcywh_to_xyxy, iou_and_giou

COST_CLASS, COST_L1, COST_GIOU = 2.0, 5.0, 2.0
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


@dataclass(frozen=True, eq=False)
class Matches:
    """M matched (row, query, target) triples, all ``int64`` of shape (M,).

    A row is a layer's answer to one (image, prompt) pair: layer * N + pair.
    """

    rows: torch.Tensor
    queries: torch.Tensor
    targets: torch.Tensor

    def where(self, chosen: torch.Tensor) -> Matches:
        """Those that a (M,) ``bool`` chooses."""
        return Matches(self.rows[chosen], self.queries[chosen], self.targets[chosen])

    def and_then(self, other: Matches) -> Matches:
        """These and those of `other`."""
        return Matches(
            torch.cat([self.rows, other.rows]),
            torch.cat([self.queries, other.queries]),
            torch.cat([self.targets, other.targets]),
        )


def matching_cost(logits: torch.Tensor, boxes_cxcywh: torch.Tensor, target_cxcywh: torch.Tensor) -> torch.Tensor:
    """Cost of giving each query to each target.

    Args:
        logits: (..., Q).
        boxes_cxcywh: (..., Q, 4) in 0..1.
        target_cxcywh: (..., T, 4) in 0..1, leading dimensions broadcast.

    Returns:
        (..., Q, T).
    """
    probability = logits.float().sigmoid()
    negative = (1 - FOCAL_ALPHA) * probability**FOCAL_GAMMA * -(1 - probability + 1e-8).log()
    positive = FOCAL_ALPHA * (1 - probability) ** FOCAL_GAMMA * -(probability + 1e-8).log()
    queries, targets = boxes_cxcywh.float()[..., :, None, :], target_cxcywh.float()[..., None, :, :]
    l1 = (queries - targets).abs().sum(-1)
    _, giou = iou_and_giou(cxcywh_to_xyxy(queries), cxcywh_to_xyxy(targets))
    return COST_CLASS * (positive - negative)[..., None] + COST_L1 * l1 - COST_GIOU * giou


def hungarian(cost: torch.Tensor, valid: torch.Tensor) -> Matches:
    """The cheapest one-to-one assignment for each row.

    Args:
        cost: (N, Q, T).
        valid: (N, T) ``bool``, which targets exist.
    """
    from scipy.optimize import linear_sum_assignment

    # Where the cost is not finite, neither is the loss, and the training loop passes over the step.
    host, exists = np.nan_to_num(cost.detach().float().cpu().numpy(), nan=1e6), valid.cpu().numpy()
    rows: list[int] = []
    queries: list[npt.NDArray[np.int64]] = []
    targets: list[npt.NDArray[np.int64]] = []
    for row in np.flatnonzero(exists.any(1)):
        columns = np.flatnonzero(exists[row])
        chosen, order = linear_sum_assignment(host[row][:, columns])
        rows += [int(row)] * len(chosen)
        queries.append(chosen)
        targets.append(columns[order])
    none = np.zeros(0, dtype=np.int64)
    triples = np.stack(
        [np.array(rows, dtype=np.int64), *(np.concatenate([none, *part]) for part in (queries, targets))]
    )
    return Matches(*torch.from_numpy(triples).to(cost.device))


@torch.no_grad()
def one_to_many(
    logits: torch.Tensor,
    boxes_cxcywh: torch.Tensor,
    target_cxcywh: torch.Tensor,
    valid: torch.Tensor,
    *,
    one_to_one: Matches,
    top: int = 4,
    alpha: float = 0.3,
    threshold: float = 0.4,
) -> Matches:
    """Up to `top` good queries for each target, and always the one of `one_to_one`.

    A query goes to the target that it fits best. After DAC-DETR's matcher as in the official one, where a target
    without a good query gets none; here the one-to-one match stays, so that the first layers learn from the start.

    Args:
        logits: (N, Q).
        boxes_cxcywh: (N, Q, 4) in 0..1.
        target_cxcywh: (N, T, 4) in 0..1.
        valid: (N, T) ``bool``.
        one_to_one: Of the same layer.
        top: Queries per target.
        alpha: Share of the score in the quality; the rest is IoU.
        threshold: Least quality.
    """
    iou, _ = iou_and_giou(
        cxcywh_to_xyxy(boxes_cxcywh.float())[:, :, None], cxcywh_to_xyxy(target_cxcywh.float())[:, None]
    )
    quality = alpha * logits.float().sigmoid()[..., None] + (1 - alpha) * iou
    quality = quality.masked_fill(~valid[:, None], -1.0)
    best = quality.topk(min(top, quality.shape[1]), dim=1).values[:, -1:]
    chosen = (quality >= best) & (quality > threshold) & (quality >= quality.amax(2, keepdim=True))
    chosen[one_to_one.rows, one_to_one.queries] = False
    chosen[one_to_one.rows, one_to_one.queries, one_to_one.targets] = True
    rows, queries, targets = chosen.nonzero(as_tuple=True)
    return Matches(rows, queries, targets)
