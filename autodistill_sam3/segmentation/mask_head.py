"""SAM 3's mask head: surviving queries of (image, prompt) pairs -> mask logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import interpolate

from autodistill_sam3.segmentation.detector import QueryOutput
from autodistill_sam3.segmentation.vision import Faster, VisionFeatures, plain

if TYPE_CHECKING:
    from transformers import Sam3Model

# Pairs that go through the mask head at a time.
MASK_PAIRS_PER_PASS = 8


def mask_logits(
    detector: Sam3Model,
    vision: VisionFeatures,
    image_index: torch.Tensor,
    queries: QueryOutput,
    keep: torch.Tensor,
    faster: Faster = plain,
) -> torch.Tensor:
    """Mask logits of chosen queries; pairs without one cost nothing.

    Args:
        detector: The model.
        vision: Features of B images.
        image_index: (N,) which image each pair belongs to.
        queries: The detector's output for the N pairs.
        keep: (N, Q) ``bool``, the queries wanted; on the CPU, a GPU need not be waited for.
        faster: What wraps the functions that are worth compiling.

    Returns:
        (K, 4g, 4g), in the order of `keep.nonzero()`.
    """
    decoder: Any = detector.mask_decoder
    embed = faster(pixel_embeddings)
    weights, offsets = _mask_weights(decoder, queries.hidden_states[keep])
    counts = [(pair, count) for pair, count in enumerate(keep.sum(dim=1).tolist()) if count]
    found, done = [queries.logits.new_zeros(0, *vision.levels[0].shape[-2:])], 0
    # What is compiled gets passes of one size, padded with pairs that are there anyway.
    padding = 0 if faster is plain else -len(counts) % MASK_PAIRS_PER_PASS
    wanted = torch.tensor([pair for pair, _ in counts] + [pair for pair, _ in counts[:1] * padding], dtype=torch.long)
    wanted, image_index = wanted.to(queries.logits.device), image_index.to(queries.logits.device)
    for start in range(0, len(counts), MASK_PAIRS_PER_PASS):
        pairs = wanted[start : start + MASK_PAIRS_PER_PASS]
        tokens, prompts = queries.encoder_hidden_states[pairs], queries.prompts[pairs]
        pixels = embed(decoder, vision.levels[:-1], image_index[pairs], tokens, (prompts.features, prompts.mask))
        for place, (_, count) in enumerate(counts[start : start + MASK_PAIRS_PER_PASS]):
            own = slice(done, done + count)
            found.append(torch.einsum("qc,chw->qhw", weights[own], pixels[place]) + offsets[own, None, None])
            done += count
    return torch.cat(found)


def pixel_embeddings(
    decoder: Any,
    levels: tuple[torch.Tensor, ...],
    image_index: torch.Tensor,
    encoded: torch.Tensor,
    prompts: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """What the mask head makes of the pixels of N pairs, but for its last projection: (N, C, 4g, 4g).

    Args:
        decoder: The mask head.
        levels: The detector neck's finer maps of B images, (B, C, 4g, 4g) and (B, C, 2g, 2g).
        image_index: (N,) which image each pair belongs to.
        encoded: Encoder output (N, g*g, C), which takes the coarsest level's place.
        prompts: Prompt tokens (N, T, C) and their mask (N, T) ``bool``.
    """
    features, mask = prompts
    attended = decoder.prompt_cross_attn(
        query=decoder.prompt_cross_attn_norm(encoded), key=features, value=features, attention_mask=mask[:, None, None]
    )[0]
    grid = levels[-1].shape[-2] // 2, levels[-1].shape[-1] // 2
    coarse = (encoded + attended).transpose(1, 2).reshape(len(encoded), -1, *grid)
    # A third convolution and norm are in checkpoints and have no level to go with.
    stages = zip(reversed(levels), decoder.pixel_decoder.conv_layers, decoder.pixel_decoder.norms, strict=False)
    pixels: torch.Tensor = coarse
    for level, convolution, norm in stages:
        finer = interpolate(pixels, size=level.shape[-2:], mode="nearest") + level[image_index]
        pixels = _normalised(norm, convolution(finer)).relu()
    return pixels


def _normalised(norm: nn.GroupNorm, pixels: torch.Tensor) -> torch.Tensor:
    """Group normalisation of (N, C, h, w) by sums over columns, which a GPU reads three times as fast as groups."""
    values = pixels.float()
    groups = (len(values), norm.num_groups, -1)
    mean, square = (sums.view(groups).mean(dim=2) for sums in (values.mean(dim=(2, 3)), (values**2).mean(dim=(2, 3))))
    scale = (square - mean**2 + norm.eps).rsqrt()[..., None] * norm.weight.view(groups[1:])
    shift = norm.bias.view(groups[1:]) - mean[..., None] * scale
    scale, shift = (each.reshape(len(values), -1, 1, 1) for each in (scale, shift))
    return (values * scale + shift).to(pixels.dtype)


def _mask_weights(decoder: Any, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(K, C) queries -> what to multiply pixels by, (K, C), and what to add, (K,).

    The head would project all pixels first, W p + b, and then multiply by each query q. As q (W p + b) = (q W) p + q b,
    it is the few queries that are projected here.
    """
    embedded = decoder.mask_embedder(queries)
    projection: nn.Conv2d = decoder.instance_projection
    return embedded @ projection.weight.flatten(1), embedded @ projection.bias
