"""Stage 1: SAM 3's detector, text -> every instance with its box, mask and score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Sam3VideoModel

from autodistill_sam3.training.batches import Batch, normalise, object_masks, tokenize
from autodistill_sam3.training.configs import GRID, HIDDEN, IMAGE_SIZE, DetectorWeights
from autodistill_sam3.training.dense import cell_coverage, presence_map_loss
from autodistill_sam3.training.losses import LayerOutput, layer_losses, mask_losses
from autodistill_sam3.training.matcher import Matches, hungarian, matching_cost, one_to_many

PIXEL_MEAN = (0.5, 0.5, 0.5)
PIXEL_STD = (0.5, 0.5, 0.5)
# The first layers may give an object to several queries, which teaches them faster; the last ones choose among those.
ONE_TO_MANY_LAYERS = 2


@dataclass(frozen=True, eq=False)
class DetectorOutput:
    """The detector's answer for N (image, prompt) pairs.

    Attributes:
        layers: Of each decoder layer, first to last.
        queries: (N, Q, C), the last layer's hidden states, for the mask head.
        encoded: (N, g*g, C), for the mask head.
        prompt_features: (N, T, C), text and geometry tokens.
        prompt_mask: (N, T) ``bool``.
        levels: The neck's maps of the B images, finest first.
    """

    layers: list[LayerOutput]
    queries: torch.Tensor
    encoded: torch.Tensor
    prompt_features: torch.Tensor
    prompt_mask: torch.Tensor
    levels: list[torch.Tensor]

    @property
    def scores(self) -> torch.Tensor:
        """(N, Q) ``float32`` in 0..1: present, and this query is an instance."""
        last = self.layers[-1]
        return last.logits.float().sigmoid() * last.presence_logits.float().sigmoid()[:, None]


def run_detector(
    model: nn.Module, images: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> DetectorOutput:
    """The detector over P prompts for each of B images, with every decoder layer's output.

    What `Sam3Model.forward` computes when it is given one padding box (which brings the geometry encoder's CLS token
    that the official model always has), except that the ViT and the geometry encoder run once per image.

    Args:
        model: A `Sam3Model`.
        images: (B, 3, S, S) normalised.
        input_ids: (B * P, T), image by image.
        attention_mask: (B * P, T).
    """
    detector: Any = model
    vision = detector.get_vision_features(pixel_values=images)
    levels, positions = list(vision.fpn_hidden_states[:-1]), list(vision.fpn_position_encoding[:-1])
    prompts = len(input_ids) // len(images)
    text = detector.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
    geometry = detector.geometry_encoder(
        box_embeddings=images.new_zeros(len(images), 1, 4),
        box_mask=torch.zeros(len(images), 1, dtype=torch.bool, device=images.device),
        box_labels=torch.zeros(len(images), 1, dtype=torch.long, device=images.device),
        img_feats=levels,
        img_pos_embeds=positions,
    )
    features = torch.cat([text, geometry.last_hidden_state.repeat_interleave(prompts, dim=0).to(text.dtype)], dim=1)
    mask = torch.cat([attention_mask.bool(), geometry.attention_mask.bool().repeat_interleave(prompts, dim=0)], dim=1)
    encoded = detector.detr_encoder(
        vision_features=[levels[-1].repeat_interleave(prompts, dim=0)],
        text_features=features,
        vision_pos_embeds=[positions[-1].repeat_interleave(prompts, dim=0)],
        text_mask=mask,
    )
    layers, queries = _decode(detector, encoded, mask)
    return DetectorOutput(layers, queries, encoded.last_hidden_state, features, mask, levels)


def _decode(detector: Any, encoded: Any, mask: torch.Tensor) -> tuple[list[LayerOutput], torch.Tensor]:
    decoded = detector.detr_decoder(
        vision_features=encoded.last_hidden_state,
        text_features=encoded.text_features,
        vision_pos_encoding=encoded.pos_embeds_flattened,
        text_mask=mask,
        spatial_shapes=encoded.spatial_shapes,
    )
    hidden = decoded.intermediate_hidden_states
    boxes = (torch.logit(decoded.reference_boxes.float(), eps=1e-3) + detector.detr_decoder.box_head(hidden)).sigmoid()
    logits = detector.dot_product_scoring(
        decoder_hidden_states=hidden, text_features=encoded.text_features, text_mask=mask
    )[..., 0]
    presence = decoded.presence_logits[..., 0]
    layers = [LayerOutput(*parts) for parts in zip(logits, boxes, presence, strict=True)]
    return layers, hidden[-1]


def query_masks(model: nn.Module, output: DetectorOutput, pairs: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Mask logits of chosen queries.

    Args:
        model: A `Sam3Model`.
        output: Of `run_detector`.
        pairs: (R,) which pairs.
        queries: (R, k) which of their queries.

    Returns:
        (R, k, 4g, 4g).
    """
    detector: Any = model
    images = pairs // (len(output.encoded) // len(output.levels[0]))
    result: torch.Tensor = detector.mask_decoder(
        decoder_queries=output.queries[pairs[:, None], queries],
        backbone_features=[level[images] for level in output.levels],
        encoder_hidden_states=output.encoded[pairs],
        prompt_features=output.prompt_features[pairs],
        prompt_mask=output.prompt_mask[pairs],
    ).pred_masks
    return result


def detector_losses(
    model: nn.Module, output: DetectorOutput, batch: Batch, weights: DetectorWeights
) -> dict[str, torch.Tensor]:
    """All weighted loss terms; their sum is `core_loss`."""
    valid, present = batch.targets, batch.present
    logits = torch.stack([layer.logits for layer in output.layers])
    boxes = torch.stack([layer.boxes_cxcywh for layer in output.layers])
    matches = hungarian(matching_cost(logits, boxes, batch.boxes_cxcywh[None]), valid)
    terms: dict[str, torch.Tensor] = {}
    last = len(output.layers) - 1
    for index, layer in enumerate(output.layers):
        chosen = matches[index]
        if index < min(ONE_TO_MANY_LAYERS, last):
            chosen = one_to_many(layer.logits, layer.boxes_cxcywh, batch.boxes_cxcywh, valid, one_to_one=chosen)
        suffix = "" if index == last else f"_aux_{index}"
        terms |= layer_losses(layer, chosen, batch.boxes_cxcywh, present, weights, suffix)
    focal, dice = _matched_mask_losses(model, output, batch, matches[-1])
    return terms | {"loss_mask": weights.loss_mask * focal, "loss_dice": weights.loss_dice * dice}


def _matched_mask_losses(
    model: nn.Module, output: DetectorOutput, batch: Batch, matches: Matches
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mask head runs for pairs with a match only, and for as many queries as the fullest of them has."""
    if not len(matches.rows):
        nothing = output.queries.sum() * 0.0
        return nothing, nothing
    pairs, place, counts = torch.unique_consecutive(matches.rows, return_inverse=True, return_counts=True)
    first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    column = torch.arange(len(matches.rows), device=first.device) - first
    queries = torch.zeros(len(pairs), batch.targets.shape[1], dtype=torch.long, device=first.device)
    queries[place, column] = matches.queries
    logits = query_masks(model, output, pairs, queries)[place, column]
    targets = object_masks(batch.scenes, matches.rows // batch.per_scene, matches.targets, logits.shape[-1])
    return mask_losses(logits, targets, len(matches.rows))


class DetectorStage:
    """Trains everything under `detector_model`."""

    name = "detector"
    image_size = IMAGE_SIZE

    def __init__(
        self, model: Sam3VideoModel, tokenizer: PreTrainedTokenizerFast, weights: DetectorWeights | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.weights = weights or DetectorWeights()
        self.dense = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(self.dense.weight)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that this stage changes."""
        helper = [(f"dense.{name}", value) for name, value in self.dense.named_parameters()]
        return [*self.model.detector_model.named_parameters(), *helper]

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Weighted loss terms of a batch."""
        output = self.run(batch)
        terms = detector_losses(self.model.detector_model, output, batch, self.weights)
        seen = presence_map_loss(self.dense(output.encoded)[..., 0], cell_coverage(batch, GRID))
        return terms | {"loss_dense": self.weights.loss_dense * seen}

    def run(self, batch: Batch) -> DetectorOutput:
        """The detector's answer to a batch."""
        images = normalise(batch.scenes.images, PIXEL_MEAN, PIXEL_STD)
        ids, mask = tokenize(self.tokenizer, batch.texts, images.device)
        return run_detector(self.model.detector_model, images, ids, mask)
