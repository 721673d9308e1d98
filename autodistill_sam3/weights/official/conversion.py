"""The tensors of an official SAM 3 checkpoint -> those of `transformers.Sam3VideoModel`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from autodistill_sam3.weights.official.names import DROPPED, translate

if TYPE_CHECKING:
    import torch

_FUSED = re.compile(r"(?P<start>.*\.)(qkv\.|in_proj_)(?P<end>weight|bias)")
_POINT_EMBEDDING = re.compile(r"(?P<start>.*\.)point_embeddings\.\d+\.weight")
_POSITIONS = "tracker_model.prompt_encoder.shared_embedding.positional_embedding"
_POSITIONS_AGAIN = "tracker_model.shared_image_embedding.positional_embedding"


def to_transformers(official: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Translate names and layouts; numbers stay as they are.

    Args:
        official: Tensors by their names in `sam3.pt`, `detector.*` and, if there, `tracker.*`.

    Returns:
        Tensors by their names in `Sam3VideoModel`, views of the given ones where the layout allows.

    Raises:
        KeyError: A name is not known, or two tensors would have one name.
        ValueError: A fused tensor does not divide into its parts, or one is not of floating-point numbers.
    """
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in _reshape({name: official[name] for name in official if not DROPPED.fullmatch(name)}):
        target = translate(name)
        if target in converted:
            raise KeyError(f"Two tensors of the checkpoint would be {target}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is of {tensor.dtype}")
        converted[target] = tensor.contiguous()
    # The prompt encoder and the image share one matrix; transformers keeps it twice.
    if _POSITIONS in converted:
        converted[_POSITIONS_AGAIN] = converted[_POSITIONS].clone()
    return converted


def _reshape(official: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Split, join, cut and transpose where the two models store a tensor differently; names stay official."""
    import torch

    points = sorted(name for name in official if _POINT_EMBEDDING.fullmatch(name))
    for name, tensor in official.items():
        if match := _FUSED.fullmatch(name):
            for part, weight in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{match['start']}{part}_proj.{match['end']}", weight
        elif match := _POINT_EMBEDDING.fullmatch(name):
            if name == points[0]:
                yield f"{match['start']}point_embed.weight", torch.cat([official[point] for point in points])
        elif name.endswith(".trunk.pos_embed"):
            yield name, tensor[:, 1:]  # the first row was of the class token in pretraining
        elif name.endswith(".encoder.text_projection"):
            yield name, tensor.T
        else:
            yield name, tensor
