"""SAM 3's tracker as an image model: a box -> the mask of the object in it.

Not to be confused with the detector's exemplar boxes, which ask for everything that looks like what is in the box.
`transformers.Sam3TrackerModel` leaves out `no_memory_embedding`, which the official `predict_inst`
(sam3/model/sam1_task_predictor.py) adds to the coarsest features of an image without memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from autodistill_sam3.devices import full_precision
from autodistill_sam3.segmentation.vision import LEVELS, VisionFeatures

if TYPE_CHECKING:
    from transformers import Sam3VideoModel


@dataclass(frozen=True, eq=False)
class TrackerFeatures:
    """What the mask decoder reads of B images.

    Attributes:
        image_embeddings: (B, C, g, g).
        image_positions: (1, C, g, g).
        high_resolution: (B, C/8, 4g, 4g) and (B, C/4, 2g, 2g).
    """

    image_embeddings: torch.Tensor
    image_positions: torch.Tensor
    high_resolution: tuple[torch.Tensor, torch.Tensor]


def tracker_features(model: Sam3VideoModel, vision: VisionFeatures) -> TrackerFeatures:
    """What the mask decoder reads of images that nothing comes before."""
    tracker: Any = model.tracker_model
    fine, middle, coarse = tracker_levels(model, vision)
    coarse = coarse + tracker.no_memory_embedding.reshape(1, -1, 1, 1)
    # The 8 bits of bf16 would move a coordinate of 1008 pixels by up to two.
    with full_precision(coarse.device):
        positions = tracker.get_image_wide_positional_embeddings()
    return TrackerFeatures(coarse, positions, (fine, middle))


def tracker_levels(model: Sam3VideoModel, vision: VisionFeatures) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tracker's neck over ViT features that are already there.

    Returns:
        (B, C/8, 4g, 4g), (B, C/4, 2g, 2g) and (B, C, g, g).
    """
    tracker: Any = model.tracker_model
    grid = tracker.prompt_encoder.image_embedding_size[0]
    batch, _, width = vision.last_hidden_state.shape
    hidden_states = vision.last_hidden_state.transpose(1, 2).reshape(batch, width, grid, grid)
    fine, middle, coarse = (layer(hidden_states) for layer in model.tracker_neck.fpn_layers[:LEVELS])
    return tracker.mask_decoder.conv_s0(fine), tracker.mask_decoder.conv_s1(middle), coarse


def decode_boxes(
    model: Sam3VideoModel, features: TrackerFeatures, boxes_xyxy: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of the objects in boxes.

    Args:
        model: The model.
        features: Of B images.
        boxes_xyxy: (B, N, 4) ``float32`` in 0..1 of the image; images with fewer boxes are padded with anything.

    Returns:
        Mask logits (B, N, 4g, 4g) and predicted IoU (B, N) in 0..1, both ``float32``.
    """
    tracker = model.tracker_model
    with full_precision(boxes_xyxy.device):
        sparse, dense = tracker.prompt_encoder(
            input_points=None,
            input_labels=None,
            input_boxes=boxes_xyxy * tracker.prompt_encoder.input_image_size,
            input_masks=None,
        )
    logits, iou, _, _ = tracker.mask_decoder(
        image_embeddings=features.image_embeddings,
        image_positional_embeddings=features.image_positions.expand(len(boxes_xyxy), -1, -1, -1),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
        high_resolution_features=list(features.high_resolution),
    )
    return logits[:, :, 0].float(), iou[:, :, 0].float()
