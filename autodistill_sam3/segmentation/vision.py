"""SAM 3's vision encoder: pixels -> ViT tokens -> the detector's three levels.

Runs the modules of `transformers.Sam3VisionModel` with its tokens in another order. There, each of the 28 layers with
windowed attention cuts the grid into windows and puts it together again; here tokens lie window by window from the
first layer to the last. Attention, norms and MLPs do not depend on the order of tokens, and the rotary embedding of
the layers with global attention is given in the same order, so that the result is the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import gelu, linear, relu, scaled_dot_product_attention
from torchvision.transforms.v2.functional import resize

from autodistill_sam3.images import RGBImage

if TYPE_CHECKING:
    from transformers import Sam3Model

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"gelu": gelu, "relu": relu}

# Columns that are not worth a product of matrices.
_FEW = 2

# The necks of SAM 3 make a fourth level that nothing reads; those of SAM 3.1 do not.
LEVELS = 3

# From a function to one that gives the same, perhaps faster.
Faster = Callable[[Callable[..., Any]], Callable[..., Any]]


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as it is written."""
    return function


@dataclass(frozen=True, eq=False)
class VisionFeatures:
    """What the vision encoder says of B images.

    Attributes:
        last_hidden_state: (B, g*g, C_vit), the ViT's output on a g x g grid.
        levels: The detector neck's maps, finest first: (B, C, 4g, 4g), (B, C, 2g, 2g), (B, C, g, g).
        positions: Their position encodings, (1, C, ...), the same for all images.
    """

    last_hidden_state: torch.Tensor
    levels: tuple[torch.Tensor, ...]
    positions: tuple[torch.Tensor, ...]


def preprocess(images: Sequence[RGBImage], side: int, device: torch.device) -> torch.Tensor:
    """RGB ``uint8`` images of any sizes -> (B, 3, side, side) ``float32`` in -1..1.

    As `Sam3ImageProcessor` and the official package do it: resized as ``uint8``, bilinear and antialiased, whatever the
    aspect. The device gets the images as they lie in memory, since reordering channels is dear on a CPU.
    """
    # All are copied before the first is resized: each copy is waited for, with what was queued before it.
    copied = [torch.from_numpy(image).to(device) for image in images]
    resized = [resize(image.permute(2, 0, 1), [side, side], antialias=True) for image in copied]
    return (torch.stack(resized).float() - 127.5) / 127.5


def encode_images(detector: Sam3Model, pixel_values: torch.Tensor, faster: Faster = plain) -> VisionFeatures:
    """One pass of ViT and detector neck.

    Args:
        detector: The model.
        pixel_values: (B, 3, S, S), normalised.
        faster: What wraps the functions that are worth compiling.
    """
    backbone: Any = detector.vision_encoder.backbone
    tokens = _vit(backbone, pixel_values, faster(vit_layer))
    grid = pixel_values.shape[-1] // backbone.config.patch_size
    feature_map = tokens.transpose(1, 2).reshape(len(tokens), -1, grid, grid)
    neck: Any = detector.vision_encoder.neck
    level = faster(neck_level)
    levels = tuple(level(layer, feature_map) for layer in neck.fpn_layers[:LEVELS])
    positions = tuple(neck.position_encoding((1, *map_.shape[1:]), map_.device, map_.dtype) for map_ in levels)
    return VisionFeatures(tokens, levels, positions)


def neck_level(layer: nn.Module, feature_map: torch.Tensor) -> torch.Tensor:
    """One level of a neck: (B, C_vit, g, g) -> (B, C, h, h)."""
    level: torch.Tensor = layer(feature_map)
    return level


def vit_layer(
    layer: Any, tokens: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], windows: int
) -> torch.Tensor:
    """One layer of the ViT.

    Args:
        layer: A `Sam3ViTLayer`.
        tokens: (B, N, C), window by window.
        rotary: Cosines and sines, (N / windows, D) each, in the order of the tokens.
        windows: How many windows look at themselves alone; 1 is global attention.
    """
    attention = layer.attention
    batch, count, width = tokens.shape
    normed = layer.layer_norm1(tokens).view(batch * windows, count // windows, width)
    # One product of matrices in place of three; to join the weights costs next to nothing.
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    weight = torch.cat([projection.weight for projection in projections])
    joined = linear(normed, weight, torch.cat([projection.bias for projection in projections]))
    heads = batch * windows, count // windows, 3, attention.num_attention_heads, attention.head_dim
    query, key, value = joined.view(heads).unbind(2)
    query, key = _rotated(query, *rotary), _rotated(key, *rotary)
    attended = scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=attention.scaling
    )
    tokens = tokens + attention.o_proj(attended.transpose(1, 2).reshape(batch, count, width))
    return tokens + mlp(layer.mlp, layer.layer_norm2(tokens))


def mlp(module: Any, tokens: torch.Tensor) -> torch.Tensor:
    """A `Sam3MLP` over (..., C) tokens."""
    if module.config.hidden_act not in ACTIVATIONS or not is_half_on_gpu(module.fc1.weight):
        output: torch.Tensor = module(tokens)
        return output
    narrow: torch.Tensor = module.fc2(linear_with(module.fc1, module.config.hidden_act, tokens))
    return narrow


def linear_with(layer: nn.Linear, activation: str, tokens: torch.Tensor) -> torch.Tensor:
    """A linear layer over (..., C) tokens and what follows it.

    On a GPU in half precision that is part of the product of matrices, which saves reading and writing what are the
    widest tensors of the model. GELU is in its tanh form there: it deviates from the exact one by a fifteenth of what
    half precision does (docs/performance.md). ReLU is the same.

    Args:
        layer: The layer.
        activation: One of `ACTIVATIONS`.
        tokens: What it is applied to.
    """
    weight = layer.weight
    if not is_half_on_gpu(weight):
        return ACTIVATIONS[activation](layer(tokens))
    if layer.in_features <= _FEW and torch.compiler.is_compiling():
        return ACTIVATIONS[activation](_written_out(layer, tokens)).to(weight.dtype)
    rows, bias = tokens.to(weight.dtype).flatten(0, -2), layer.bias.to(weight.dtype)
    wide = torch._addmm_activation(bias, rows, weight.t(), use_gelu=activation == "gelu")
    return wide.view(*tokens.shape[:-1], -1)


def _written_out(layer: nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
    """A linear layer as sums, in ``float32``: compiled, twice as fast as a product of matrices of so few columns."""
    wide = layer.bias.float()
    for channel, column in zip(tokens.float().unbind(-1), layer.weight.float().unbind(-1), strict=True):
        wide = wide + channel[..., None] * column
    return wide


def is_half_on_gpu(weight: torch.Tensor) -> bool:
    """Whether this lies on a GPU in half precision, for which there are kernels that nothing else has."""
    return weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16)


def _vit(vit: Any, pixel_values: torch.Tensor, layer_function: Callable[..., Any]) -> torch.Tensor:
    """(B, g*g, C) tokens in rows of the grid."""
    config = vit.config
    grid = pixel_values.shape[-1] // config.patch_size
    window = config.window_size
    if grid % window:
        tokens: torch.Tensor = vit(pixel_values).last_hidden_state
        return tokens
    order = _window_order(grid, window, pixel_values.device)
    tokens = vit.layer_norm(_embed_patches(vit.embeddings, pixel_values, grid)[:, order])
    tables = {}
    for index, layer in enumerate(vit.layers):
        windows = 1 if index in config.global_attn_indexes else (grid // window) ** 2
        if windows not in tables:
            cos, sin = (table[0] for table in layer.rotary_emb(tokens, layer.position_ids))
            tables[windows] = (cos[order], sin[order]) if windows == 1 else (cos, sin)
        tokens = layer_function(layer, tokens, tables[windows], windows)
    return tokens[:, order.argsort()]


def _embed_patches(embeddings: Any, pixel_values: torch.Tensor, grid: int) -> torch.Tensor:
    """Patch and position embeddings; as a product of matrices, since convolutions of three channels are slow."""
    patch, batch = embeddings.patch_size, len(pixel_values)
    cells = pixel_values.view(batch, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
    kernel = embeddings.patch_embeddings.projection.weight
    embedded = linear(cells.reshape(batch, grid * grid, -1), kernel.flatten(1))
    output: torch.Tensor = embedded + embeddings._tile_position_embeddings(embeddings.position_embeddings, grid, grid)
    return output


def _window_order(grid: int, window: int, device: torch.device) -> torch.Tensor:
    """(g*g,) positions of the grid, window by window."""
    side = grid // window
    positions = torch.arange(grid * grid, device=device).view(side, window, side, window)
    return positions.permute(0, 2, 1, 3).flatten()


def _rotated(vectors: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """(B, N, heads, D) queries or keys, each pair of channels turned by its angle, in ``float32`` inside."""
    pairs = vectors.float().view(*vectors.shape[:-1], -1, 2)
    first, second = pairs.unbind(-1)
    cos, sin = cos[:, None, ::2], sin[:, None, ::2]
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.flatten(-2).to(vectors.dtype)
