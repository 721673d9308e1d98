"""Stage 2: SAM 3's tracker as an image model, box -> mask of its object. The ViT stays as the detector left it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Sam3VideoModel

from autodistill_sam3.training.batches import Batch, normalise, object_masks
from autodistill_sam3.training.configs import IMAGE_SIZE
from autodistill_sam3.training.detector import PIXEL_MEAN, PIXEL_STD
from autodistill_sam3.training.drawing import SceneBatch
from autodistill_sam3.training.losses import focal_loss
from autodistill_sam3.training.scenes import MIN_VISIBLE

# Segment Anything's balance of focal, dice and IoU error (Kirillov et al. 2023, appendix A).
FOCAL_WEIGHT, DICE_WEIGHT, IOU_WEIGHT = 20.0, 1.0, 1.0
JITTER = 0.10
# Shares of steps that train the three masks for ambiguous prompts instead of the one, and points instead of boxes.
MULTIMASK_SHARE, POINTS_SHARE = 0.25, 0.25
TRAINED_PARTS = (
    "tracker_neck.",
    "tracker_model.mask_decoder.",
    "tracker_model.prompt_encoder.",
    "tracker_model.no_memory_embedding",
)


def jitter_boxes(boxes_xyxy: torch.Tensor, amount: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Move each side by up to `amount` of the box's width or height; stays within 0..1."""
    size = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).repeat_interleave(2, -1)[..., [0, 2, 1, 3]]
    shift = torch.rand(boxes_xyxy.shape, device=boxes_xyxy.device, generator=generator) * 2 - 1
    return (boxes_xyxy + shift * amount * size).clamp(0, 1)


def points_inside(scenes: SceneBatch, generator: torch.Generator | None = None) -> torch.Tensor:
    """A random visible pixel of each object, (B, K, 1, 2) in 0..1; the corner where nothing is visible."""
    height, width = scenes.top.shape[-2:]
    noise = torch.rand(scenes.top.shape, device=scenes.top.device, generator=generator)
    points = []
    for slot in range(scenes.visible.shape[1]):
        place = (noise * (scenes.top == slot)).flatten(1).argmax(1)
        points.append(torch.stack([(place % width + 0.5) / width, (place // width + 0.5) / height], dim=-1))
    return torch.stack(points, dim=1)[:, :, None]


def run_box_decoder(
    model: Sam3VideoModel,
    images: torch.Tensor,
    boxes_xyxy: torch.Tensor | None,
    points: torch.Tensor | None = None,
    *,
    multimask: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of the objects in boxes, or at points, the way the official `predict_inst` computes them.

    `transformers.Sam3TrackerModel` leaves out `no_memory_embedding`; here it is added to the coarsest features.

    Args:
        model: The model; its ViT gets no gradient.
        images: (B, 3, S, S) normalised.
        boxes_xyxy: (B, K, 4) in 0..1, or None.
        points: (B, K, P, 2) in 0..1, P points inside each object, instead of boxes.
        multimask: The three masks for ambiguous prompts instead of the one.

    Returns:
        Mask logits (B, K, m, 4g, 4g) and predicted IoU (B, K, m), m = 1 or 3.
    """
    tracker: Any = model.tracker_model
    with torch.no_grad():
        vision = model.detector_model.vision_encoder.backbone(images)
    levels, _ = model.get_vision_features_for_tracker(vision)
    levels[-1] = levels[-1] + tracker.no_memory_embedding
    grid = tracker.prompt_encoder.image_embedding_size[0]
    fine, middle, coarse = (
        level.permute(1, 2, 0).unflatten(2, (factor * grid, factor * grid))
        for level, factor in zip(levels, (4, 2, 1), strict=True)
    )
    sparse, dense, positions = _encode_prompts(tracker, boxes_xyxy, points)
    logits, iou, _, _ = tracker.mask_decoder(
        image_embeddings=coarse,
        image_positional_embeddings=positions.expand(len(images), -1, -1, -1),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
        high_resolution_features=[fine, middle],
    )
    return logits, iou


def _encode_prompts(
    tracker: Any, boxes_xyxy: torch.Tensor | None, points: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sparse and dense prompt embeddings, and the image's positions."""
    size = tracker.prompt_encoder.input_image_size
    device = tracker.no_memory_embedding.device.type
    # bf16 has 8 bits for a coordinate: too few.
    with torch.autocast(device, enabled=False):
        sparse, dense = tracker.prompt_encoder(
            input_points=None if points is None else points * size,
            input_labels=None if points is None else torch.ones_like(points[..., 0], dtype=torch.int),
            input_boxes=None if boxes_xyxy is None else boxes_xyxy * size,
            input_masks=None,
        )
        return sparse, dense, tracker.get_image_wide_positional_embeddings()


def box_decoder_losses(
    logits: torch.Tensor, predicted_iou: torch.Tensor, targets: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Focal, dice and IoU error; of several masks only the best one's mask loss counts (Segment Anything).

    Args:
        logits: (M, m, h, w).
        predicted_iou: (M, m).
        targets: (M, h, w), 0 or 1.
    """
    count = max(len(logits), 1)
    return {name: error.sum() / count for name, error in mask_errors(logits, predicted_iou, targets).items()}


def mask_errors(
    logits: torch.Tensor, predicted_iou: torch.Tensor, targets: torch.Tensor, *, ambiguous: bool = True
) -> dict[str, torch.Tensor]:
    """The terms of `box_decoder_losses` for each of M objects, (M,) each.

    Args:
        logits: (M, m, h, w).
        predicted_iou: (M, m).
        targets: (M, h, w), 0 or 1.
        ambiguous: Without, all of several masks are to be the object, and the loss is their mean.
    """
    predicted, wanted = logits.float().flatten(2), targets.flatten(1)[:, None].expand(-1, logits.shape[1], -1)
    focal = FOCAL_WEIGHT * focal_loss(predicted, wanted, alpha=0.25, gamma=2.0).mean(-1)
    probability = predicted.sigmoid()
    dice = 1 - (2 * (probability * wanted).sum(-1) + 1) / (probability.sum(-1) + wanted.sum(-1) + 1)
    if ambiguous:
        best = (focal + DICE_WEIGHT * dice).argmin(1, keepdim=True)
        focal, dice = focal.gather(1, best), dice.gather(1, best)
    on, truth = predicted > 0, wanted > 0.5
    iou = (on & truth).sum(-1) / (on | truth).sum(-1).clamp(min=1)
    return {
        "loss_mask": focal.mean(1),
        "loss_dice": DICE_WEIGHT * dice.mean(1),
        "loss_iou": IOU_WEIGHT * ((predicted_iou.float() - iou) ** 2).mean(1),
    }


class BoxStage:
    """Trains the tracker's neck, prompt encoder and mask decoder; the memory is left for video."""

    name = "boxes"
    image_size = IMAGE_SIZE

    def __init__(self, model: Sam3VideoModel) -> None:
        self.model = model

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that this stage changes."""
        return [(name, value) for name, value in self.model.named_parameters() if name.startswith(TRAINED_PARTS)]

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Weighted loss terms of a batch; prompts are not looked at."""
        images = normalise(batch.scenes.images, PIXEL_MEAN, PIXEL_STD)
        rows, slots = (batch.scenes.visible >= MIN_VISIBLE).nonzero(as_tuple=True)
        multimask, pointed = (bool(torch.rand(()) < share) for share in (MULTIMASK_SHARE, POINTS_SHARE))
        if pointed:
            logits, iou = run_box_decoder(self.model, images, None, points_inside(batch.scenes), multimask=multimask)
        else:
            boxes = jitter_boxes(batch.scenes.boxes_xyxy, JITTER)
            logits, iou = run_box_decoder(self.model, images, boxes, multimask=multimask)
        targets = object_masks(batch.scenes, rows, slots, logits.shape[-1])
        return box_decoder_losses(logits[rows, slots], iou[rows, slots], targets)
