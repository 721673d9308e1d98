"""A full-size SAM 3 with random weights whose masks look like masks.

Weights drawn without care give masks of single pixels, whose outlines cost many times what real ones cost. Here the
same random numbers are scaled so that features follow the flat regions of a picture: small residual branches, nearly
no position embedding, and the taps of a convolution nearly equal, so that it smooths instead of drawing patterns. Two
biases are set as well: one shifts mask logits so that a mask covers a small part of a picture, the other shifts scores
so that most queries score low, as in the trained model. Shapes, types and operations are those of the real checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autodistill_sam3.segmentation.official_model import building
from autodistill_sam3.segmentation.official_package import import_official

# Names in the official model -> factor on a matrix whose outputs would else be about as large as its inputs.
SCALES = (
    # The image encoder: 64 branches that together add less than they find.
    (r".*trunk\.pos_embed", 0.02),
    (r".*trunk\.blocks\.\d+\.(attn\.proj|mlp\.fc2)\.weight", 0.05),
    # The detector's encoder, likewise; the text still reaches every pixel.
    (r"detector\.transformer\.encoder\.layers\.\d+\.(self_attn\.out_proj|linear2)\.weight", 0.1),
    (r"detector\.transformer\.encoder\.layers\.\d+\.cross_attn_image\.out_proj\.weight", 0.3),
    (r"detector\.segmentation_head\.cross_attend_prompt\.out_proj\.weight", 0.3),
    # Queries: boxes that hardly move, scores that differ widely.
    (r"detector\.transformer\.decoder\.bbox_embed\.layers\.2\.weight", 0.1),
    (r"detector\.transformer\.decoder\.layers\.\d+\..*(out_proj|linear2)\.weight", 0.2),
    (r"detector\.transformer\.decoder\.presence_token_head\.layers\.2\.weight", 0.3),
    (r"detector\.dot_prod_scoring\.hs_proj\.weight", 8.0),
    # The box decoder keeps what it is told of the image, and its mask tokens listen to the box.
    (r".*sam_mask_decoder\.transformer\.layers\.\d+\.self_attn\.(out|v)_proj\.weight", 2.0),
    (r".*sam_mask_decoder\.(mask_tokens|iou_token|obj_score_token)\.weight", 0.3),
    (r".*sam_prompt_encoder\.point_embeddings\.\d\.weight", 0.3),
    (r".*sam_mask_decoder\.transformer\..*(token_to_image\.out_proj|lin2)\.weight", 0.3),
    (r".*sam_mask_decoder\.transformer\..*cross_attn_image_to_token\.out_proj\.weight", 0.1),
    (r".*sam_mask_decoder\.(no_mask_embed|conv_s\d)\.weight", 0.5),
)
# How much the taps of a convolution differ, of what they share.
_TAPS_APART = 0.3
# Lengths of the biases along one direction; what they add to a logit is their product over the root of the width.
_SCORE_BIAS = (6.0, -14.0)
_MASK_BIAS = (2.0, -4.2)
_PRESENCE_BIAS = 3.0


def write_random_sam3(path: Path, bpe_path: Path, fill: Callable[[torch.nn.Module], None] | None = None) -> None:
    """Write a random `sam3.pt`, both halves, by Meta's own builder.

    Args:
        path: The file, 3.4 GB at full size.
        bpe_path: The vocabulary, `bpe_simple_vocab_16e6.txt.gz`.
        fill: Fills the model's parameters; by default :func:`fill_with_blobs`.

    Raises:
        MissingPackageError: Meta's package is not installed.
    """
    builder = import_official()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with building(builder):
            model = builder.build_sam3_video_model(
                load_from_HF=False, checkpoint_path=None, bpe_path=str(bpe_path), device="cpu"
            )
        (fill or fill_with_blobs)(model)
    part = path.with_name(f"{path.name}.part")
    torch.save(model.state_dict(), part)
    part.replace(path)


@torch.no_grad()
def fill_with_blobs(model: torch.nn.Module) -> None:
    """Fill every parameter with torch's random numbers, scaled as the module's docstring says."""
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            _fill(module, f"{module_name}.{name}", parameter)
    _set_biases(dict(model.named_parameters()))


def _fill(module: torch.nn.Module, name: str, parameter: torch.Tensor) -> None:
    is_norm = isinstance(module, torch.nn.LayerNorm | torch.nn.GroupNorm) or type(module).__name__ == "LayerNorm2d"
    if (is_norm and name.endswith("weight")) or name.endswith("gamma"):
        parameter.fill_(1.0)
    elif parameter.ndim < 2:
        parameter.zero_()
    elif isinstance(module, torch.nn.Embedding) or parameter.shape[0] == 1:
        parameter.normal_()
    elif parameter.ndim == 4:
        _fill_convolution(parameter, transposed=isinstance(module, torch.nn.ConvTranspose2d))
    else:
        parameter.normal_(std=parameter[0].numel() ** -0.5)
    for pattern, factor in SCALES:
        if re.fullmatch(pattern, name):
            parameter.mul_(factor)


def _fill_convolution(weight: torch.Tensor, *, transposed: bool) -> None:
    """One random number for all taps of a pair of channels, and a little for each tap alone."""
    inputs = weight.shape[0] if transposed else weight.shape[1]
    # Transposed with a stride as large as the kernel, each output sees one tap; else their mean is taken.
    taps = 1 if transposed else weight[0, 0].numel()
    size = inputs**-0.5 / taps
    alone = torch.empty_like(weight).normal_(std=_TAPS_APART * size)
    weight.copy_(torch.empty_like(weight[:, :, :1, :1]).normal_(std=size) + (0 if transposed else alone))


def _set_biases(parameters: dict[str, Any]) -> None:
    score = "detector.dot_prod_scoring."
    mask = "detector.segmentation_head."
    pairs = (
        (f"{score}prompt_proj.bias", f"{score}hs_proj.bias", _SCORE_BIAS),
        (f"{mask}mask_predictor.mask_embed.layers.2.bias", f"{mask}instance_seg_head.bias", _MASK_BIAS),
    )
    for first, second, lengths in pairs:
        direction = torch.nn.functional.normalize(torch.randn_like(parameters[first]), dim=0)
        for name, length in zip((first, second), lengths, strict=True):
            parameters[name].copy_(direction * length)
    parameters["detector.transformer.decoder.presence_token_head.layers.2.bias"].fill_(_PRESENCE_BIAS)
