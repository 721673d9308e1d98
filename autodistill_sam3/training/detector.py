"""Stage 1: SAM 3's detector, text -> every instance with its box, mask and score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Sam3VideoModel

from autodistill_sam3.training.batches import Batch, normalise, object_masks, tokenize
from autodistill_sam3.training.configs import GRID, HIDDEN, IMAGE_SIZE, VISION_WIDTH, DetectorWeights
from autodistill_sam3.training.dense import LooksHead, cell_coverage, looks_losses, presence_map_loss
from autodistill_sam3.training.losses import LayerOutputs, layer_losses, mask_losses, semantic_losses
from autodistill_sam3.training.matcher import Matches, hungarian, matching_cost, one_to_many
from autodistill_sam3.training.tokenizers import CONTEXT_LENGTH

PIXEL_MEAN = (0.5, 0.5, 0.5)
PIXEL_STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True, eq=False)
class DetectorOutput:
    """The detector's answer for N (image, prompt) pairs.

    Attributes:
        layers: Of all decoder layers.
        queries: (N, Q, C), the last layer's hidden states, for the mask head.
        encoded: (N, g*g, C), for the mask head.
        prompt_features: (N, T, C), text and geometry tokens.
        prompt_mask: (N, T) ``bool``.
        levels: The neck's maps of the B images, finest first.
        vision: (B, g*g, D), the ViT's tokens.
    """

    layers: LayerOutputs
    queries: torch.Tensor
    encoded: torch.Tensor
    prompt_features: torch.Tensor
    prompt_mask: torch.Tensor
    levels: list[torch.Tensor]
    vision: torch.Tensor

    @property
    def scores(self) -> torch.Tensor:
        """(N, Q) ``float32`` in 0..1: present, and this query is an instance."""
        last = self.layers.layer(-1)
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
    return DetectorOutput(layers, queries, encoded.last_hidden_state, features, mask, levels, vision.last_hidden_state)


def _decode(detector: Any, encoded: Any, mask: torch.Tensor) -> tuple[LayerOutputs, torch.Tensor]:
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
    return LayerOutputs(logits.flatten(0, 1), boxes.flatten(0, 1), presence.flatten(), len(logits)), hidden[-1]


def run_mask_head(model: nn.Module, output: DetectorOutput, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask logits of all queries of chosen pairs, and semantic logits.

    Args:
        model: A `Sam3Model`.
        output: Of `run_detector`.
        pairs: (R,) which pairs.

    Returns:
        (R, Q, 4g, 4g) and (R, 4g, 4g).
    """
    detector: Any = model
    images = pairs // (len(output.encoded) // len(output.levels[0]))
    masks = detector.mask_decoder(
        decoder_queries=output.queries[pairs],
        backbone_features=[level[images] for level in output.levels],
        encoder_hidden_states=output.encoded[pairs],
        prompt_features=output.prompt_features[pairs],
        prompt_mask=output.prompt_mask[pairs],
    )
    return masks.pred_masks, masks.semantic_seg[:, 0]


def detector_losses(
    model: nn.Module, output: DetectorOutput, batch: Batch, weights: DetectorWeights
) -> dict[str, torch.Tensor]:
    """All weighted loss terms; their sum is `core_loss`."""
    layers = output.layers
    cost = matching_cost(layers.logits, layers.boxes_cxcywh, batch.boxes_cxcywh.repeat(layers.layers, 1, 1))
    # Started before the matching, so that the device has work while the host matches.
    masks = run_mask_head(model, output, batch.present_rows) if len(batch.present_rows) else None
    one_to_one = hungarian(cost, batch.targets.repeat(layers.layers, 1))
    matches = _first_layers_to_many(layers, one_to_one, batch, weights.one_to_many_layers)
    num_boxes = batch.targets.sum().clamp(min=1)
    # Whether something hardly visible is present is a matter of opinion.
    clear = batch.present | ~batch.ignored.any(1)
    terms = layer_losses(layers, matches, batch.boxes_cxcywh, batch.present, clear, num_boxes, weights)
    last = one_to_one.where(one_to_one.rows >= (layers.layers - 1) * layers.pairs)
    return terms | _mask_terms(masks, last, batch, num_boxes, weights)


def _first_layers_to_many(layers: LayerOutputs, one_to_one: Matches, batch: Batch, count: int) -> Matches:
    """The first layers may give an object to several queries: they learn faster, and the last ones choose."""
    repeats = min(count, layers.layers - 1)
    rows = repeats * layers.pairs
    first = one_to_one.rows < rows
    many = one_to_many(
        layers.logits[:rows],
        layers.boxes_cxcywh[:rows],
        batch.boxes_cxcywh.repeat(repeats, 1, 1),
        batch.targets.repeat(repeats, 1),
        one_to_one=one_to_one.where(first),
    )
    return many.and_then(one_to_one.where(~first))


def _mask_terms(
    masks: tuple[torch.Tensor, torch.Tensor] | None,
    matches: Matches,
    batch: Batch,
    num_boxes: torch.Tensor,
    weights: DetectorWeights,
) -> dict[str, torch.Tensor]:
    """Of the last layer's matches; no terms where nothing is present."""
    if masks is None:
        return {}
    logits, semantic = masks
    place = torch.searchsorted(batch.present_rows, matches.rows % len(batch.targets))
    pairs, size = batch.present_rows[place], logits.shape[-1]
    truth = object_masks(batch.scenes, pairs // batch.per_scene, matches.targets, size)
    focal, dice = mask_losses(logits[place, matches.queries], truth, num_boxes)
    union = torch.zeros_like(semantic, dtype=torch.float32).index_add(0, place, truth).clamp(max=1.0)
    entropy, semantic_dice = semantic_losses(semantic, union)
    return {
        "loss_mask": weights.loss_mask * focal,
        "loss_dice": weights.loss_dice * dice,
        "loss_semantic_seg": weights.loss_semantic_seg * entropy,
        "loss_semantic_dice": weights.loss_semantic_dice * semantic_dice,
    }


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
        self.looks = LooksHead(VISION_WIDTH)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that this stage changes."""
        helpers = nn.ModuleDict({"dense": self.dense, "looks": self.looks})
        return [*self.model.detector_model.named_parameters(), *helpers.named_parameters()]

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Weighted loss terms of a batch."""
        output = run_detector(self.model.detector_model, *self._inputs(batch))
        terms = detector_losses(self.model.detector_model, output, batch, self.weights)
        seen = presence_map_loss(self.dense(output.encoded)[..., 0], cell_coverage(batch, GRID))
        looks = looks_losses(self.looks(output.vision), batch)
        weighted = {name: self.weights.loss_looks * value for name, value in looks.items()}
        return terms | {"loss_dense": self.weights.loss_dense * seen} | weighted

    def run(self, batch: Batch) -> DetectorOutput:
        """The detector's answer to a batch."""
        return run_detector(self.model.detector_model, *self._inputs(batch))

    def _inputs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        images = normalise(batch.scenes.images, PIXEL_MEAN, PIXEL_STD)
        return images, *tokenize(self.tokenizer, batch.texts, images.device, CONTEXT_LENGTH)
