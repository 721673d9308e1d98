"""Weights that the tracker's memory starts from: it begins by comparing looks.

Trained from random weights, memory attention learns for thousands of steps that nothing is worth remembering. Here it
starts as a classifier: what a cell shows is read off the features by the linear discriminants of colours and shapes
(Fisher 1936), and each cell is told what the mask was where a remembered cell is the nearest in their space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Sam3VideoModel

from autodistill_sam3.training.batches import Batch, normalise
from autodistill_sam3.training.dense import object_coverage
from autodistill_sam3.training.detector import PIXEL_MEAN, PIXEL_STD
from autodistill_sam3.training.initial import spread_weights
from autodistill_sam3.training.world import SHAPES

# Of the 64 channels of a memory: discriminants, minus half their squared norm, anything else, and the mask.
DISCRIMINANTS, REST, MASK = 31, 16, 16
NORM = DISCRIMINANTS
LOOKS = DISCRIMINANTS + 1
# Channels of the memory encoder that only the mask writes to.
MASK_WIDTH = 32
# A memory's looks are so much larger than the positions, up to 1, that are added to them.
LOOKS_SCALE = 2.0
# How much more a cell attends to a near one than to a far one.
NEARNESS_GAIN = 3.0
# Rotary frequencies, in radians a cell, by which near and far are told apart.
NEAR_PAIRS = (4, 5, 6, 7)
# Cells count as an object's, or as none's, from and up to these shares of cover.
COVERED, BARE = 0.5, 0.02
# Of the variance within classes, added to it; background weighs as much as so many classes.
SHRINKAGE, BACKGROUND_WEIGHT = 0.005, 4.0
# Keeps the fuser's norm from hiding how large the discriminants are.
STEADY = 30.0
# What the mask adds to features, in their standard deviations, by layer.
TOLD = (1.0, 0.3)


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


@dataclass(frozen=True, eq=False)
class Cells:
    """What N cells of drawn scenes show.

    Attributes:
        features: (N, C), the tracker's coarse ones.
        kinds: (N,) of colour and shape; one more than the last for background, -1 for what is neither.
    """

    features: torch.Tensor
    kinds: torch.Tensor


@torch.no_grad()
def start_matching(model: Sam3VideoModel, batch: Batch) -> None:
    """Set the memory encoder and the memory attention to compare looks.

    With q and k the discriminants of a cell and of a remembered one, attention's logit is q k - k k / 2: the softmax
    over k is that of -(q - k)^2 / 2, the log-likelihood of the cell under the remembered one's class.

    Args:
        model: With a trained vision tower and tracker neck, and memory of `start_memory`.
        batch: Typical scenes.
    """
    cells = _cells(model, batch)
    mean, directions = discriminants(cells)
    looks = (cells.features - mean) @ directions
    tracker: Any = model.tracker_model
    _pass_mask(tracker.memory_encoder.mask_downsampler)
    _write_looks(tracker.memory_encoder, cells.features, mean, directions)
    for table in (tracker.memory_temporal_positional_encoding, tracker.occlusion_spatial_embedding_parameter):
        table[..., :LOOKS] = 0.0
    # Tokens of pointers are no cells.
    tracker.object_pointer_proj.proj_out.weight.mul_(0.3)
    # Queries are normalised, memories are not.
    read = _regression(F.layer_norm(cells.features, cells.features.shape[-1:]), looks)
    for layer, told in zip(tracker.memory_attention.layers, TOLD, strict=True):
        _compare_looks(layer, read, told * float(cells.features.std()))
    _keep_scale(tracker, cells.features)


def _cells(model: Sam3VideoModel, batch: Batch) -> Cells:
    images = normalise(batch.scenes.images, PIXEL_MEAN, PIXEL_STD)
    features = []
    for first in range(0, len(images), 16):
        vision = model.detector_model.vision_encoder.backbone(images[first : first + 16])
        features.append(model.get_vision_features_for_tracker(vision)[0][-1].transpose(0, 1))
    coarse = torch.cat(features).float()
    cover = object_coverage(batch, math.isqrt(coarse.shape[1]))
    share, owner = cover.max(1)
    kind = (batch.colour * len(SHAPES) + batch.shape).gather(1, owner)
    background = int(kind.max()) + 1
    kind = torch.where(share >= COVERED, kind, torch.where(cover.sum(1) < BARE, background, -1))
    return Cells(coarse.flatten(0, 1), kind.flatten())


def discriminants(cells: Cells) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean (C,) of the features and directions (C, `DISCRIMINANTS`) in which a class has variance 1."""
    known = cells.kinds >= 0
    features, kinds = cells.features[known].double(), cells.kinds[known]
    mean = features.mean(0)
    within = features.new_zeros(features.shape[1], features.shape[1])
    between, total = within.clone(), 0.0
    background = int(kinds.max())
    for kind in range(background + 1):
        own = features[kinds == kind]
        if not len(own):
            continue
        weight = BACKGROUND_WEIGHT if kind == background else 1.0
        within += weight * (own - own.mean(0)).T @ (own - own.mean(0)) / len(own)
        between += weight * torch.outer(own.mean(0) - mean, own.mean(0) - mean)
        total += weight
    within = within / total
    within += SHRINKAGE * within.diag().mean() * torch.eye(len(within), dtype=within.dtype)
    whiten = torch.linalg.inv(torch.linalg.cholesky(within))
    _, vectors = torch.linalg.eigh(whiten @ (between / total) @ whiten.T)
    return mean.float(), (whiten.T @ vectors.flip(1)[:, :DISCRIMINANTS]).float()


def _regression(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (D, C) and bias (D,) that read (N, D) targets off (N, C) inputs, by least squares."""
    extended = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1).double()
    squares = extended.T @ extended
    squares += 1e-6 * squares.diag().mean() * torch.eye(len(squares), dtype=squares.dtype)
    solution = torch.linalg.solve(squares, extended.T @ targets.double()).float()
    return solution[:-1].T, solution[-1]


def _pass_mask(downsampler: Any) -> None:
    """Channels that are 0 where a cell is rather not in the mask, and 1 where it is; the others start fainter."""
    signs = torch.tensor([1.0, -1.0])
    for layer in downsampler.layers:
        weight = layer.conv.weight
        weight.mul_(0.1)
        layer.conv.bias.zero_()
        # The first two channels are the mask and its opposite: what the norm leaves of them is the sign.
        told = signs[:, None] * signs[None, : weight.shape[1]]
        weight[:2] = 0.0
        weight[:2, :2] = told[..., None, None] / weight[0, 0].numel()
    final = downsampler.final_conv
    final.weight.mul_(0.1)
    final.bias.zero_()
    final.weight[:-MASK_WIDTH] = final.weight[-MASK:] = 0.0
    final.weight[-MASK:, :2, 0, 0] = signs
    shown = signs.reshape(2, 1, 1, 1).expand(-1, -1, 64, 64)
    for layer in downsampler.layers:
        shown = layer(shown)
    on, off = final(shown)[:, -1, 2, 2]
    final.weight[-MASK:] /= on - off
    final.bias[-MASK:] = -off / (on - off)


def _write_looks(encoder: Any, features: torch.Tensor, mean: torch.Tensor, directions: torch.Tensor) -> None:
    """Memories begin with discriminants and their norm, and end with the mask."""
    looks = (features - mean) @ directions
    feature = encoder.feature_projection
    seen = feature.weight.shape[0] - MASK_WIDTH
    feature.weight.div_(features.std())
    feature.bias.zero_()
    feature.weight[:LOOKS] = feature.weight[seen:] = 0.0
    feature.weight[:DISCRIMINANTS, :, 0, 0], feature.bias[:DISCRIMINANTS] = directions.T, -mean @ directions
    _write_norm(encoder.memory_fuser.layers[0], looks)
    memory = encoder.projection.weight[..., 0, 0]
    memory[:LOOKS] = LOOKS_SCALE * torch.eye(*memory[:LOOKS].shape)
    encoder.projection.bias.zero_()
    memory[LOOKS : LOOKS + REST, :LOOKS] = memory[LOOKS : LOOKS + REST, seen:] = 0.0
    memory[LOOKS + REST :] = 0.0
    memory[LOOKS + REST :, -MASK:] = torch.eye(MASK)


def _write_norm(layer: Any, looks: torch.Tensor) -> None:
    """The fuser's block adds -z^2 / 2: GELU(u) + GELU(-u) is nearly a square where u is small."""
    reach = looks.abs().amax(0)
    centre = layer.depthwise_conv.weight.shape[-1] // 2
    layer.depthwise_conv.weight[:LOOKS] = 0.0
    layer.depthwise_conv.bias[:LOOKS] = 0.0
    layer.depthwise_conv.weight[:DISCRIMINANTS, 0, centre, centre] = 1 / reach
    layer.depthwise_conv.bias[NORM] = STEADY
    hidden = 2 * DISCRIMINANTS
    width = layer.pointwise_conv1.weight.shape[1]
    # What the norm divides by, and subtracts, if STEADY were all there is.
    spread = STEADY * math.sqrt((width - 1) / width**2)
    signs = torch.eye(DISCRIMINANTS, width) * spread
    layer.pointwise_conv1.weight[:hidden] = torch.cat([signs, -signs])
    layer.pointwise_conv1.bias[:hidden] = torch.tensor([1.0, -1.0]).repeat_interleave(DISCRIMINANTS) * STEADY / width
    scaled = F.gelu(torch.cat([looks / reach, -looks / reach], dim=1))
    weight, bias = _regression(scaled, -0.5 * looks.square().sum(1, keepdim=True))
    layer.pointwise_conv2.weight[:LOOKS] = 0.0
    layer.pointwise_conv2.bias[:LOOKS] = 0.0
    layer.pointwise_conv2.weight[NORM, :hidden], layer.pointwise_conv2.bias[NORM] = weight[0], bias[0]
    layer.scale[NORM] = 1.0


def _compare_looks(layer: Any, read: tuple[torch.Tensor, torch.Tensor], told: float) -> None:
    """Set what a layer of the memory attention compares, and that it adds the mask, `told` times 1 or -1."""
    attention = layer.cross_attn_image
    width = attention.q_proj.weight.shape[0]
    half = width // 2
    # The second half of the pairs of either axis turns by less than a hundredth of a radian a cell.
    slow = [*range(half // 2, half), *range(half + half // 2, width)][:: half // LOOKS][:LOOKS]
    near = [axis + 2 * pair for axis in (0, half) for pair in NEAR_PAIRS]
    turned = [*near, *(channel + 1 for channel in near)]
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.mul_(0.1)
        projection.bias.zero_()
        projection.weight[turned] = 0.0
        projection.bias[near] = math.sqrt(NEARNESS_GAIN * math.sqrt(width) / len(NEAR_PAIRS))
    # Attention divides by the root of the width.
    weight, bias = read
    attention.q_proj.weight[slow] = math.sqrt(width) * torch.cat([weight, torch.zeros_like(weight[:1])])
    attention.q_proj.bias[slow] = math.sqrt(width) * torch.cat([bias, torch.ones_like(bias[:1])])
    attention.k_proj.weight[slow] = torch.eye(LOOKS, attention.k_proj.weight.shape[1]) / LOOKS_SCALE
    attention.v_proj.weight[:MASK] = torch.eye(attention.v_proj.weight.shape[1])[LOOKS + REST :]
    attention.v_proj.weight[MASK:].mul_(0.1)
    attention.v_proj.weight[MASK:, :LOOKS].div_(LOOKS_SCALE)
    attention.v_proj.bias.zero_()
    attention.o_proj.weight[:, :MASK] = told / MASK * torch.randn(width, 1).sign()
    for branch in (layer.self_attn.o_proj, layer.linear2):
        branch.weight.mul_(0.1)


def _keep_scale(tracker: Any, features: torch.Tensor) -> None:
    """What the decoder gets with memory looks like what it gets without."""
    wanted = features + tracker.no_memory_embedding.reshape(1, -1)
    normed = F.layer_norm(features, features.shape[-1:])
    scale = ((normed - normed.mean(0)) * wanted).mean(0) / normed.var(0, unbiased=False)
    tracker.memory_attention.layer_norm.weight.copy_(scale)
    tracker.memory_attention.layer_norm.bias.copy_(wanted.mean(0) - scale * normed.mean(0))
