"""Box arithmetic in 0..1, batched."""

from __future__ import annotations

import torch


def cxcywh_to_xyxy(boxes: torch.Tensor) -> torch.Tensor:
    """(..., 4) centre and size -> corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: torch.Tensor) -> torch.Tensor:
    """(..., 4) corners -> centre and size."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1)


def iou_and_giou(first_xyxy: torch.Tensor, second_xyxy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019) of boxes whose leading dimensions broadcast.

    Example:
        >>> iou, giou = iou_and_giou(torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 0, 1, 0.5]))
        >>> round(float(iou), 4), round(float(giou), 4)
        (0.5, 0.5)
    """
    low = torch.maximum(first_xyxy[..., :2], second_xyxy[..., :2])
    high = torch.minimum(first_xyxy[..., 2:], second_xyxy[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (first_xyxy, second_xyxy)]
    union = areas[0] + areas[1] - intersection
    iou = intersection / union.clamp(min=1e-9)
    hull_low = torch.minimum(first_xyxy[..., :2], second_xyxy[..., :2])
    hull_high = torch.maximum(first_xyxy[..., 2:], second_xyxy[..., 2:])
    hull = (hull_high - hull_low).prod(-1)
    return iou, iou - (hull - union) / hull.clamp(min=1e-9)
