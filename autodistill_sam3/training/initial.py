"""Weights that a small model starts from. transformers' own start suits models ten times as wide.

A standard deviation of 0.02 is about right for a width of 1,024; at 128 it shrinks every signal fivefold a layer, and
what the text says barely reaches the image. All queries would also start at the same place.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import Florence2ForConditionalGeneration, Sam3VideoModel

from autodistill_sam3.training.detector import run_detector


@torch.no_grad()
def spread_weights(model: nn.Module) -> None:
    """Xavier-uniform linear layers (as DETR's), convolutions and their transposes by fan-in."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d) and module.groups == 1:
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
        elif isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight.shape[0]))


@torch.no_grad()
def prepare_sam3(model: Sam3VideoModel, images: torch.Tensor, input_ids: torch.Tensor, mask: torch.Tensor) -> None:
    """Initial weights of the small SAM 3.

    Args:
        model: The model.
        images: (B, 3, S, S) normalised, typical ones.
        input_ids: (B, T), a prompt for each.
        mask: (B, T).
    """
    spread_weights(model)
    for mlp in model.tracker_model.mask_decoder.output_hypernetworks_mlps:
        mlp.proj_out.weight.mul_(0.1)
    balance(model, images, input_ids, mask)
    _start_decoder(model)


@torch.no_grad()
def _start_decoder(model: Sam3VideoModel) -> None:
    """Weights of the detector's decoder; its queries start on a grid over the image."""
    decoder: Any = model.detector_model.detr_decoder
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.03)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    for table in (decoder.query_embed, decoder.presence_token):
        nn.init.normal_(table.weight, std=0.1)
    # Outputs start near zero: a confident random mask costs more than it teaches.
    nn.init.normal_(model.detector_model.mask_decoder.mask_embedder.layers[-1].weight, std=0.01)
    queries = len(decoder.reference_points.weight)
    columns = 1 << (queries.bit_length() // 2)
    rows = math.ceil(queries / columns)
    index = torch.arange(queries)
    centre_x, centre_y = (index % columns + 0.5) / columns, (index // columns + 0.5) / rows
    size = torch.full_like(centre_x, 0.2)
    decoder.reference_points.weight.copy_(torch.logit(torch.stack([centre_x, centre_y, size, size], dim=-1)))


@torch.no_grad()
def balance(model: Sam3VideoModel, images: torch.Tensor, input_ids: torch.Tensor, mask: torch.Tensor) -> None:
    """Scale the features that decoders read to a standard deviation of 1 (after LSUV, Mishkin and Matas 2016).

    They are sums of many layers' outputs without a norm at the end. Where they are large, they drown the position
    encodings that are added to them, and queries cannot learn where things are. The detector's encoder normalises
    before each layer, so scaling its input and its residual branches alike scales its output and changes nothing else.
    """
    detector: Any = model.detector_model
    output = run_detector(detector, images, input_ids, mask)
    factor = 1.0 / float(output.encoded.std())
    branches = [detector.vision_encoder.neck.fpn_layers[2].proj2]
    for layer in detector.detr_encoder.layers:
        branches += [layer.self_attn.o_proj, layer.cross_attn.o_proj, layer.mlp.fc2]
    for branch in branches:
        branch.weight.mul_(factor)
        branch.bias.mul_(factor)
    neck: Any = model.tracker_neck
    levels, _ = neck(_as_map(detector.vision_encoder.backbone(images).last_hidden_state))
    for layer, level in zip(neck.fpn_layers, levels, strict=True):
        layer.proj2.weight.div_(level.std())
        layer.proj2.bias.div_(level.std())


def _as_map(tokens: torch.Tensor) -> torch.Tensor:
    """(B, g * g, C) -> (B, C, g, g)."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)


@torch.no_grad()
def prepare_florence2(model: Florence2ForConditionalGeneration) -> None:
    """Initial weights of the small Florence-2; image tokens start out knowing where they are."""
    spread_weights(model)
    # The output layer is the embedding table, which the sweep above must not scale up.
    embeddings: Any = model.get_input_embeddings()
    nn.init.normal_(embeddings.weight, std=0.05)
    projector: Any = model.model.multi_modal_projector
    position = projector.image_position_embed
    for table in (position.row_embeddings, position.column_embeddings):
        count, width = table.weight.shape
        frequency = torch.exp(torch.arange(width // 2) / (width // 2) * -math.log(30.0))
        angle = torch.arange(count)[:, None] * frequency[None] * math.pi / 2
        table.weight.copy_(torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width])
