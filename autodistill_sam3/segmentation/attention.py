"""Attention of image tokens to each other, the dearest operation with many prompts, and of a single token to them."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.flex_attention import flex_attention

from autodistill_sam3.segmentation.vision import is_half_on_gpu

# Rows and blocks of what is looked at are complete, so that the kernel need not check them.
_NOTHING_IS_HIDDEN: Any = {"PRESCALE_QK": True, "ROWS_GUARANTEED_SAFE": True, "BLOCKS_ARE_CONTIGUOUS": True}


def self_attention(attention: Any, placed: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """A `Sam3Attention` over (N, T, C) tokens each of which looks at all.

    With heads of 32 channels, `scaled_dot_product_attention` takes a third longer on a GPU than FlexAttention (Dong et
    al. 2024, torch.nn.attention.flex_attention), which exists in compiled code alone. There, scaled queries are rounded
    to half precision.

    Args:
        attention: The module.
        placed: The tokens with their positions, (N, T, C): queries and keys.
        tokens: The values, (N, T, C).
    """
    if not (torch.compiler.is_compiling() and is_half_on_gpu(attention.q_proj.weight)):
        output: torch.Tensor = attention(query=placed, key=placed, value=tokens)[0]
        return output
    projected = attention.q_proj(placed), attention.k_proj(placed), attention.v_proj(tokens)
    heads = attention.num_attention_heads, attention.head_dim
    query, key, value = (each.unflatten(-1, heads).transpose(1, 2) for each in projected)
    attended: Any = flex_attention(query, key, value, scale=attention.scaling, kernel_options=_NOTHING_IS_HIDDEN)
    joined: torch.Tensor = attention.o_proj(attended.transpose(1, 2).flatten(-2))
    return joined


def single_attention(attention: Any, token: torch.Tensor, placed: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """A `Sam3Attention` in which one token (N, 1, C) looks at (N, T, C).

    Written out, in ``float32`` between the projections: the kernel that `scaled_dot_product_attention` takes for a
    single query on a GPU is suspected of other results now and then (docs/performance.md, "Equal bytes").

    Args:
        attention: The module.
        token: What looks.
        placed: The tokens with their positions, (N, T, C): keys.
        tokens: The values, (N, T, C).
    """
    heads = attention.num_attention_heads, attention.head_dim
    projected = attention.q_proj(token), attention.k_proj(placed), attention.v_proj(tokens)
    query, key, value = (each.unflatten(-1, heads).float() for each in projected)
    weights = ((query * key).sum(-1) * attention.scaling).softmax(1)
    attended = (weights[..., None] * value).sum(1, keepdim=True)
    joined: torch.Tensor = attention.o_proj(attended.to(projected[2].dtype).flatten(-2))
    return joined
