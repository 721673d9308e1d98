"""Weights that a small model starts from. transformers' own start suits models ten times as wide.

A standard deviation of 0.02 is about right for a width of 1,024; at 128 it shrinks every signal fivefold a layer, and
what the text says barely reaches the image. All queries would also start at the same place.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
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
    start_memory(model)


@torch.no_grad()
def start_memory(model: Sam3VideoModel) -> None:
    """Weights of the tracker's memory: nothing starts at zero that tells one frame, or one object, from another."""
    tracker: Any = model.tracker_model
    for part in (tracker.memory_attention, tracker.memory_encoder, tracker.object_pointer_proj):
        spread_weights(part)
    for layer in tracker.memory_encoder.memory_fuser.layers:
        layer.scale.fill_(0.1)
    for table in (
        tracker.memory_temporal_positional_encoding,
        tracker.occlusion_spatial_embedding_parameter,
        tracker.no_object_pointer,
    ):
        nn.init.normal_(table, std=0.1)
    # The mean of each cell, at first.
    tracker.mask_downsample.weight.fill_(1 / tracker.mask_downsample.weight.numel())
    tracker.mask_downsample.bias.zero_()
    # One matrix in the official model: a prompt's corner looks like the place it points at.
    tracker.prompt_encoder.shared_embedding.positional_embedding.copy_(
        tracker.shared_image_embedding.positional_embedding
    )


# Of the 64 channels of a memory: what a cell looks like, anything else, and the mask.
LOOKS, REST, MASK = 32, 16, 16
# Channels of the memory encoder that only the mask writes to.
MASK_WIDTH = 32
# How much more a cell attends to one that looks the same than to any other, and to a near one than to a far one.
LOOKS_GAIN, NEARNESS_GAIN = 12.0, 3.0
# Rotary frequencies, in radians a cell, by which near and far are told apart.
NEAR_PAIRS = (4, 5, 6, 7)


@torch.no_grad()
def start_matching(model: Sam3VideoModel, images: torch.Tensor) -> None:
    """Memory attention that begins by comparing looks: each cell is told what the mask was where it looked the same.

    Trained from anywhere else, it is for thousands of steps that nothing is remembered: eight directions hold 98 % of
    the features' variance, and looks are told apart by the others. Here the first directions count alike, in those
    pairs of channels that the rotary encoding hardly turns; the fast pairs prefer what is near.

    Args:
        model: With a trained vision tower and tracker neck.
        images: (B, 3, S, S) normalised, typical ones.
    """
    tracker: Any = model.tracker_model
    encoder = tracker.memory_encoder
    vision = model.detector_model.vision_encoder.backbone(images)
    features = model.get_vision_features_for_tracker(vision)[0][-1].flatten(0, 1).float()
    told, mean, directions = _looks(features)
    width = encoder.feature_projection.weight.shape[0]
    seen = width - MASK_WIDTH
    solution = torch.linalg.lstsq(torch.cat([features, torch.ones_like(features[:, :1])], dim=1), told).solution
    encoder.feature_projection.weight[:LOOKS, :, 0, 0] = solution[:-1].T
    encoder.feature_projection.bias[:LOOKS] = solution[-1]
    encoder.feature_projection.weight[seen:] = 0.0
    encoder.feature_projection.bias[seen:] = 0.0
    encoder.mask_downsampler.final_conv.weight[:seen] = 0.0
    encoder.mask_downsampler.final_conv.bias[:seen] = 0.0
    memory = encoder.projection.weight[..., 0, 0]
    memory[:LOOKS] = 2.0 * torch.eye(LOOKS, width)
    memory[LOOKS : LOOKS + REST, :LOOKS] = memory[LOOKS : LOOKS + REST, seen:] = 0.0
    memory[LOOKS + REST :, :seen] = 0.0
    for layer in tracker.memory_attention.layers:
        _match(layer, mean, directions)


def _looks(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Looks (N, LOOKS) of (N, C) cells, of mean square 1; the mean (C,) and directions (C, LOOKS) they are read by."""
    normed = F.layer_norm(features, features.shape[-1:])
    mean = normed.mean(0)
    variance, vectors = torch.linalg.eigh((normed - mean).T @ (normed - mean) / len(normed))
    directions = (vectors / variance.clamp(min=1e-6).sqrt()).flip(1)[:, :LOOKS]
    return (normed - mean) @ directions, mean, directions


def _match(layer: Any, mean: torch.Tensor, directions: torch.Tensor) -> None:
    """Set what a layer of the memory attention compares, and what it takes over."""
    attention = layer.cross_attn_image
    width = attention.q_proj.weight.shape[0]
    half = width // 2
    # The second half of the pairs of either axis turns by less than a hundredth of a radian a cell.
    slow = [*range(half // 2, half), *range(half + half // 2, width)][:: 2 * half // (2 * LOOKS)][:LOOKS]
    near = [axis + 2 * pair for axis in (0, half) for pair in NEAR_PAIRS]
    turned = [*near, *(channel + 1 for channel in near)]
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.mul_(0.1)
        projection.bias.zero_()
        projection.weight[turned] = 0.0
        projection.bias[near] = math.sqrt(NEARNESS_GAIN * math.sqrt(width) / len(NEAR_PAIRS))
    share = math.sqrt(LOOKS_GAIN * math.sqrt(width) / LOOKS)
    attention.q_proj.weight[slow] = share * directions.T
    attention.q_proj.bias[slow] = -share * (mean @ directions)
    attention.k_proj.weight[slow] = 0.5 * share * torch.eye(LOOKS, attention.k_proj.weight.shape[1])
    attention.v_proj.weight[:MASK] = torch.eye(attention.v_proj.weight.shape[1])[LOOKS + REST :]
    for branch in (layer.self_attn.o_proj, layer.linear2):
        branch.weight.mul_(0.1)


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
