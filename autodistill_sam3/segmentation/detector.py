"""SAM 3's detector in pieces: text -> embeddings, (image, prompt) pairs -> queries; `mask_head.py` makes their masks.

`transformers.Sam3Model.forward` runs everything for everything and, given text alone, is not the official model: it
leaves out the geometry encoder's CLS token (sam3/model/sam3_image.py always appends it). The pieces run the same
modules, with that token, and the mask head only where a query survived.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad
from torchvision.ops import box_convert
from transformers.models.sam3.modeling_sam3 import inverse_sigmoid

from autodistill_sam3.segmentation.attention import self_attention, single_attention
from autodistill_sam3.segmentation.vision import Faster, linear_with, mlp, plain

if TYPE_CHECKING:
    from transformers import Sam3Model


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompt tokens, of texts alone or of (image, text) pairs.

    Attributes:
        features: (N, T, C).
        mask: (N, T) ``bool``, False at padding.
    """

    features: torch.Tensor
    mask: torch.Tensor

    def __getitem__(self, index: torch.Tensor | slice) -> Prompts:
        return Prompts(self.features[index], self.mask[index])


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """What every prompt needs of B images, computed once.

    Attributes:
        geometry: The geometry encoder's tokens.
        attended: (B, g*g, C), the coarsest level after the first self-attention of the detector's encoder, which no
            prompt takes part in.
        positions: (1, g*g, C), position encodings.
        grid_hw: Height and width of the grid.
    """

    geometry: Prompts
    attended: torch.Tensor
    positions: torch.Tensor
    grid_hw: tuple[int, int]


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

    def __getitem__(self, pairs: slice) -> QueryOutput:
        return QueryOutput(
            self.logits[pairs],
            self.presence_logits[pairs],
            self.boxes_xyxy[pairs],
            self.hidden_states[pairs],
            self.encoder_hidden_states[pairs],
            self.prompts[pairs],
        )

    @property
    def scores(self) -> torch.Tensor:
        """(N, Q) ``float32``, probability that the prompt is present times that the query is an instance of it."""
        return self.logits.sigmoid() * self.presence_logits.sigmoid()[:, None]


def encode_texts(detector: Sam3Model, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Prompts:
    """Text tokens (N, T) -> their embeddings in the detector's width."""
    output = detector.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
    return Prompts(output.pooler_output, attention_mask.bool())


def image_tokens(detector: Any, coarse: torch.Tensor, positions: torch.Tensor, faster: Faster = plain) -> ImageTokens:
    """What every prompt needs of B images.

    Args:
        detector: The model.
        coarse: The coarsest level, (B, C, g, g).
        positions: Its position encodings, (1, C, g, g).
        faster: What wraps the functions that are worth compiling.
    """
    tokens, places = (level.flatten(2).transpose(1, 2) for level in (coarse, positions))
    attended = faster(attend_within)(detector.detr_encoder.layers[0], tokens, places)
    height, width = positions.shape[-2:]
    geometry = Prompts(*faster(geometry_tokens)(detector.geometry_encoder, tokens, places))
    return ImageTokens(geometry, attended, places, (height, width))


def geometry_tokens(encoder: Any, tokens: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The geometry encoder's token of B images when no exemplar box is given, its CLS token; without dropout.

    Args:
        encoder: The geometry encoder.
        tokens: The coarsest level, (B, g*g, C).
        positions: Its position encodings, (1, g*g, C).

    Returns:
        The token (B, 1, C) and its mask (B, 1).
    """
    token = encoder.prompt_layer_norm(encoder.final_proj(encoder.cls_embed.weight)).expand(tokens.shape[0], 1, -1)
    placed = tokens + positions
    for layer in encoder.layers:
        # All that a single token sees of itself is its value.
        token = token + layer.self_attn.o_proj(layer.self_attn.v_proj(layer.layer_norm1(token)))
        token = token + single_attention(layer.cross_attn, layer.layer_norm2(token), placed, tokens)
        token = token + layer.mlp(layer.layer_norm3(token))
    token = encoder.output_layer_norm(token)
    return token, torch.ones_like(token[..., 0], dtype=torch.bool)


def detect(
    detector: Sam3Model, image_index: torch.Tensor, texts: Prompts, images: ImageTokens, faster: Faster = plain
) -> QueryOutput:
    """Run the DETR encoder and decoder for N (image, prompt) pairs.

    Args:
        detector: The model.
        image_index: (N,) which image each pair belongs to.
        texts: Text embeddings of the N pairs.
        images: Of the B images.
        faster: What wraps the functions that are worth compiling.
    """
    tokens = images.geometry[image_index]
    prompts = Prompts(
        torch.cat([texts.features, tokens.features.to(texts.features.dtype)], dim=1),
        torch.cat([texts.mask, tokens.mask], dim=1),
    )
    first, *others = detector.detr_encoder.layers
    hidden_states = faster(attend_to_prompts)(first, images.attended[image_index], prompts.features, prompts.mask)
    layer_function = faster(encoder_layer)
    for layer in others:
        hidden_states = layer_function(layer, hidden_states, images.positions, prompts.features, prompts.mask)
    return _decode(detector, hidden_states, images, prompts, faster)


def attend_within(layer: Any, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The self-attention of an encoder layer over (N, g*g, C) image tokens."""
    normed = layer.layer_norm1(tokens)
    placed = normed + positions
    return self_attention(layer.self_attn, placed, normed) + tokens


def attend_to_prompts(layer: Any, tokens: torch.Tensor, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The rest of an encoder layer: attention to (N, T, C) prompt tokens with their (N, T) mask, and the MLP."""
    attended = layer.cross_attn(
        query=layer.layer_norm2(tokens), key=features, value=features, attention_mask=mask[:, None, None]
    )[0]
    tokens = attended + tokens
    return mlp(layer.mlp, layer.layer_norm3(tokens)) + tokens


def encoder_layer(
    layer: Any, tokens: torch.Tensor, positions: torch.Tensor, features: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """One layer of the DETR encoder."""
    return attend_to_prompts(layer, attend_within(layer, tokens, positions), features, mask)


def decoder_layer(
    decoder: Any,
    layer: Any,
    state: tuple[torch.Tensor, torch.Tensor],
    image: tuple[torch.Tensor, torch.Tensor],
    prompts: tuple[torch.Tensor, torch.Tensor],
    grid_hw: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One layer of the DETR decoder with the refinement of its boxes.

    Args:
        decoder: The decoder, whose heads all layers share.
        layer: The layer.
        state: Hidden states (N, 1 + Q, C), the presence token first, and boxes (N, Q, 4), cxcywh in 0..1.
        image: Encoder output (N, g*g, C) and position encodings (1, g*g, C).
        prompts: Prompt tokens (N, T, C) and their mask (N, T).
        grid_hw: Height and width of the grid.

    Returns:
        Hidden states, boxes, and hidden states of the queries for the heads, (N, Q, C).
    """
    hidden_states, boxes = state
    features, mask = prompts
    hidden_states = layer(
        hidden_states,
        query_pos=decoder.ref_point_head(decoder.position_encoding.encode_boxes(boxes)),
        text_features=features,
        vision_features=image[0],
        vision_pos_encoding=image[1],
        text_cross_attn_mask=mask[:, None, None],
        vision_cross_attn_mask=position_bias(decoder, boxes, grid_hw),
    )
    queries = decoder.output_layer_norm(hidden_states[:, 1:])
    return hidden_states, (decoder.box_head(queries) + inverse_sigmoid(boxes)).sigmoid(), queries


def position_bias(decoder: Any, boxes: torch.Tensor, grid_hw: tuple[int, int]) -> torch.Tensor:
    """How much more each query looks at each cell of the grid, by where its box lies: (N, heads, 1 + Q, g*g).

    As `Sam3DetrDecoder._get_rpb_matrix`: an MLP for rows and one for columns see the distances to the box's two edges,
    logarithmic (`_get_rpb_matrix` in sam3/model/decoder.py). The presence token, which comes first, looks at all alike.
    """
    xyxy = box_convert(boxes, "cxcywh", "xyxy")
    networks = decoder.box_rpb_embed_y, decoder.box_rpb_embed_x
    rows, columns = (
        _edge_bias(network, length, xyxy[..., first::2])
        for network, length, first in zip(networks, grid_hw, (1, 0), strict=True)
    )
    return (rows[..., :, None] + columns[..., None, :]).flatten(-2)


def _edge_bias(network: Any, length: int, edges: torch.Tensor) -> torch.Tensor:
    """(N, heads, 1 + Q, length) for the two edges (N, Q, 2) of boxes along one side of the grid."""
    cells = torch.arange(length, device=edges.device, dtype=edges.dtype) / length
    distances = 8 * (cells[:, None] - edges[:, :, None])
    logarithmic = distances.sign() * (distances.abs() + 1).log2() / 3
    bias: torch.Tensor = network.layer2(linear_with(network.layer1, "relu", logarithmic))
    # With cells side by side in memory: attention takes the slow way around any other mask.
    return pad(bias.permute(0, 3, 1, 2).contiguous(), (0, 0, 1, 0))


def _decode(
    detector: Sam3Model, encoded: torch.Tensor, images: ImageTokens, prompts: Prompts, faster: Faster
) -> QueryOutput:
    """All layers of the decoder; of the heads, the last layer's alone count."""
    decoder: Any = detector.detr_decoder
    pairs = len(encoded)
    start = torch.cat([decoder.presence_token.weight, decoder.query_embed.weight]).expand(pairs, -1, -1)
    state = start, decoder.reference_points.weight.sigmoid().expand(pairs, -1, -1)
    layer_function = faster(decoder_layer)
    queries = state[0]
    for layer in decoder.layers:
        *refined, queries = layer_function(
            decoder, layer, state, (encoded, images.positions), (prompts.features, prompts.mask), images.grid_hw
        )
        state = refined[0], refined[1]
    limit = decoder.clamp_presence_logit_max_val
    presence = decoder.presence_head(decoder.presence_layer_norm(state[0][:, :1])).clamp(-limit, limit)
    logits = detector.dot_product_scoring(
        decoder_hidden_states=queries[None], text_features=prompts.features, text_mask=prompts.mask
    )
    return QueryOutput(
        logits=logits[0, ..., 0].float(),
        presence_logits=presence[:, 0, 0].float(),
        boxes_xyxy=box_convert(state[1].float(), "cxcywh", "xyxy"),
        hidden_states=queries,
        encoder_hidden_states=encoded,
        prompts=prompts,
    )
