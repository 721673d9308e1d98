"""SAM 3's detector in pieces: text -> embeddings, (image, prompt) pairs -> queries, surviving queries -> masks.

`transformers.Sam3Model.forward` runs everything for everything and, given text alone, is not the official model: it
leaves out the geometry encoder's CLS token (sam3/model/sam3_image.py always appends it). The pieces below run the same
modules, with that token, and the mask head only where a query survived.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torchvision.ops import box_convert
from transformers.models.sam3.modeling_sam3 import inverse_sigmoid

from autodistill_sam3.devices import full_precision

if TYPE_CHECKING:
    from transformers import Sam3Model

# The necks of SAM 3 make a fourth level that nothing reads; those of SAM 3.1 do not.
LEVELS = 3


@dataclass(frozen=True, eq=False)
class VisionFeatures:
    """What the vision encoder says of B images.

    Attributes:
        last_hidden_state: (B, g*g, C_vit), the ViT's output on a g x g grid.
        levels: The detector neck's maps, finest first: (B, C, 4g, 4g), (B, C, 2g, 2g), (B, C, g, g).
        positions: Their position encodings, same shapes.
    """

    last_hidden_state: torch.Tensor
    levels: tuple[torch.Tensor, ...]
    positions: tuple[torch.Tensor, ...]


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompt tokens, of texts alone or of (image, text) pairs.

    Attributes:
        features: (N, T, C).
        mask: (N, T) ``bool``, False at padding.
    """

    features: torch.Tensor
    mask: torch.Tensor

    def __getitem__(self, index: torch.Tensor) -> Prompts:
        return Prompts(self.features[index], self.mask[index])


@dataclass(frozen=True, eq=False)
class QueryOutput:
    """What the detector says of N (image, prompt) pairs.

    Attributes:
        logits: (N, Q) ``float32``, per query, given that the prompt is present.
        presence_logits: (N,) ``float32``.
        boxes_xyxy: (N, Q, 4) ``float32`` in 0..1 of the image, unclipped.
        hidden_states: (N, Q, C), for the mask head.
        encoder_hidden_states: (N, g*g, C), for the mask head.
        prompts: The pairs' prompt tokens, text and geometry, for the mask head.
    """

    logits: torch.Tensor
    presence_logits: torch.Tensor
    boxes_xyxy: torch.Tensor
    hidden_states: torch.Tensor
    encoder_hidden_states: torch.Tensor
    prompts: Prompts

    @property
    def scores(self) -> torch.Tensor:
        """(N, Q) ``float32``, probability that the prompt is present times that the query is an instance of it."""
        return self.logits.sigmoid() * self.presence_logits.sigmoid()[:, None]


def encode_images(detector: Sam3Model, pixel_values: torch.Tensor) -> VisionFeatures:
    """One pass of ViT and detector neck over (B, 3, S, S) normalised pixels."""
    output = detector.get_vision_features(pixel_values=pixel_values)
    return VisionFeatures(
        output.last_hidden_state,
        tuple(output.fpn_hidden_states[:LEVELS]),
        tuple(output.fpn_position_encoding[:LEVELS]),
    )


def encode_texts(detector: Sam3Model, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Prompts:
    """Text tokens (N, T) -> their embeddings in the detector's width."""
    output = detector.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
    return Prompts(output.pooler_output, attention_mask.bool())


def geometry_tokens(detector: Sam3Model, vision: VisionFeatures) -> Prompts:
    """The geometry encoder's tokens for B images when no exemplar box is given: its CLS token and one padding."""
    batch, device = len(vision.last_hidden_state), vision.last_hidden_state.device
    # Two tokens cost nothing, and transformers' RoI pooling mixes fp16 into bf16, which autocast on a CPU refuses.
    with full_precision(device):
        output = detector.geometry_encoder(
            box_embeddings=torch.zeros(batch, 1, 4, device=device),
            box_mask=torch.zeros(batch, 1, dtype=torch.bool, device=device),
            box_labels=torch.zeros(batch, 1, dtype=torch.long, device=device),
            img_feats=[level.float() for level in vision.levels],
            img_pos_embeds=[position.float() for position in vision.positions],
        )
    return Prompts(output.last_hidden_state, output.attention_mask.bool())


def detect(
    detector: Sam3Model, vision: VisionFeatures, image_index: torch.Tensor, texts: Prompts, geometry: Prompts
) -> QueryOutput:
    """Run the DETR encoder and decoder for N (image, prompt) pairs.

    Args:
        detector: The model.
        vision: Features of B images.
        image_index: (N,) which image each pair belongs to.
        texts: Text embeddings of the N pairs.
        geometry: Geometry tokens of the B images.
    """
    tokens = geometry[image_index]
    prompts = Prompts(
        torch.cat([texts.features, tokens.features.to(texts.features.dtype)], dim=1),
        torch.cat([texts.mask, tokens.mask], dim=1),
    )
    encoded = detector.detr_encoder(
        vision_features=[vision.levels[-1][image_index]],
        text_features=prompts.features,
        vision_pos_embeds=[vision.positions[-1][image_index]],
        text_mask=prompts.mask,
    )
    decoded = detector.detr_decoder(
        vision_features=encoded.last_hidden_state,
        text_features=encoded.text_features,
        vision_pos_encoding=encoded.pos_embeds_flattened,
        text_mask=prompts.mask,
        spatial_shapes=encoded.spatial_shapes,
    )
    return _read_queries(detector, encoded, decoded, prompts)


def _read_queries(detector: Sam3Model, encoded: Any, decoded: Any, prompts: Prompts) -> QueryOutput:
    """Logits and boxes of the last decoder layer."""
    hidden_states = decoded.intermediate_hidden_states[-1]
    offsets = detector.detr_decoder.box_head(hidden_states)
    boxes_cxcywh = (inverse_sigmoid(decoded.reference_boxes[-1]) + offsets).sigmoid()
    logits = detector.dot_product_scoring(
        decoder_hidden_states=hidden_states[None], text_features=encoded.text_features, text_mask=prompts.mask
    )
    return QueryOutput(
        logits=logits[0, ..., 0].float(),
        presence_logits=decoded.presence_logits[-1][:, 0].float(),
        boxes_xyxy=box_convert(boxes_cxcywh.float(), "cxcywh", "xyxy"),
        hidden_states=hidden_states,
        encoder_hidden_states=encoded.last_hidden_state,
        prompts=prompts,
    )


def mask_logits(
    detector: Sam3Model,
    vision: VisionFeatures,
    image_index: torch.Tensor,
    queries: QueryOutput,
    keep: torch.Tensor,
) -> torch.Tensor:
    """Mask logits of chosen queries; pairs without one cost nothing.

    Args:
        detector: The model.
        vision: Features of B images.
        image_index: (N,) which image each pair belongs to.
        queries: The detector's output for the N pairs.
        keep: (N, Q) ``bool``, the queries wanted.

    Returns:
        (K, 4g, 4g), in the order of `keep.nonzero()`.
    """
    pairs = keep.any(dim=1).nonzero()[:, 0]
    if not len(pairs):
        size = vision.levels[0].shape[-2:]
        return queries.logits.new_zeros(0, *size)
    kept = keep[pairs]
    # Gather each pair's queries to the front; the rest of the row is padding and is dropped again below.
    order = kept.int().argsort(dim=1, descending=True, stable=True)[:, : int(kept.sum(dim=1).max())]
    rows = torch.arange(len(pairs), device=order.device)[:, None]
    images = image_index[pairs]
    prompts = queries.prompts[pairs]
    output = detector.mask_decoder(
        decoder_queries=queries.hidden_states[pairs][rows, order],
        backbone_features=[level[images] for level in vision.levels],
        encoder_hidden_states=queries.encoder_hidden_states[pairs],
        prompt_features=prompts.features,
        prompt_mask=prompts.mask,
    )
    selected: torch.Tensor = output.pred_masks[kept[rows, order]]
    return selected
