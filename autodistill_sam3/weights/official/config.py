"""The configuration of the transformers model that an official checkpoint becomes, read off its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import Sam3VideoConfig

# transformers' default, 1e-6, is not what the official model has (sam3/model/vitdet.py).
VIT_NORM_EPSILON = 1e-5

_DETECTOR, _TRACKER = "detector_model.", "tracker_model."
_ROTATIONS = re.compile(r"detector\.backbone\.vision_backbone\.trunk\.blocks\.(\d+)\.attn\.freqs_cis(_real)?")
_NECK_SCALES = (4.0, 2.0, 1.0, 0.5)
# CLIP's text encoders have heads of this width whatever their size.
_TEXT_HEAD_WIDTH = 64
# Of the published models; for files that leave the rotary tables out.
_DEPTH, _HEADS, _GLOBAL_LAYERS = 32, 16, (7, 15, 23, 31)


def video_config(official: Mapping[str, torch.Tensor], converted: Mapping[str, torch.Tensor]) -> Sam3VideoConfig:
    """The configuration of a model with these tensors.

    Widths and depths are those of the tensors; a tracker that is not there gets the detector's width.

    Args:
        official: Tensors by their names in `sam3.pt`; its rotary tables say which layers attend over the whole image.
        converted: What `to_transformers` makes of them.

    Raises:
        KeyError: A tensor that says a width is missing.
        ValueError: The tables do not fit the image encoder.
    """
    from transformers import Sam3Config, Sam3VideoConfig

    vision = _vision(official, converted)
    width = len(converted[f"{_DETECTOR}text_projection.weight"])

    def layers(part: str) -> dict[str, int]:
        return {
            "hidden_size": width,
            "intermediate_size": len(converted[f"{_DETECTOR}{part}.layers.0.mlp.fc1.weight"]),
            "num_layers": _depth(converted, f"{_DETECTOR}{part}.layers."),
        }

    queries = len(converted[f"{_DETECTOR}detr_decoder.query_embed.weight"])
    detector = Sam3Config(
        vision_config=vision,
        text_config=_text(converted),
        geometry_encoder_config=layers("geometry_encoder"),
        detr_encoder_config=layers("detr_encoder"),
        detr_decoder_config=layers("detr_decoder") | {"num_queries": queries},
        mask_decoder_config={"hidden_size": width},
    )
    return Sam3VideoConfig(detector_config=detector, tracker_config=_tracker(converted, vision, width))


def _vision(official: Mapping[str, torch.Tensor], converted: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    backbone = f"{_DETECTOR}vision_encoder.backbone."
    width = len(converted[f"{backbone}embeddings.patch_embeddings.projection.weight"])
    depth = _depth(converted, f"{backbone}layers.")
    heads, global_layers = _attention(official, width, depth)
    levels = _depth(converted, f"{_DETECTOR}vision_encoder.neck.fpn_layers.")
    return {
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": width,
            "intermediate_size": len(converted[f"{backbone}layers.0.mlp.fc1.weight"]),
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "global_attn_indexes": list(global_layers),
            "layer_norm_eps": VIT_NORM_EPSILON,
        },
        "fpn_hidden_size": len(converted[f"{_DETECTOR}text_projection.weight"]),
        "scale_factors": list(_NECK_SCALES[:levels]),
    }


def _attention(official: Mapping[str, torch.Tensor], width: int, depth: int) -> tuple[int, tuple[int, ...]]:
    """Heads of the ViT, and the layers that attend over the whole image, from the tables of rotations.

    A table has a row for each patch that a layer sees and a column for each pair of channels of a head.
    """
    tables = {int(match[1]): table for name, table in official.items() if (match := _ROTATIONS.fullmatch(name))}
    if not tables and depth == _DEPTH:
        return _HEADS, _GLOBAL_LAYERS
    if sorted(tables) != list(range(depth)):
        raise ValueError(f"{len(tables)} tables of rotations for {depth} layers of the image encoder")
    most = max(len(table) for table in tables.values())
    heads, rest = divmod(width, 2 * tables[0].shape[1])
    if rest or not heads:
        raise ValueError(f"tables of {tables[0].shape[1]} rotations for a width of {width}")
    return heads, tuple(layer for layer, table in sorted(tables.items()) if len(table) == most)


def _text(converted: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    model = f"{_DETECTOR}text_encoder.text_model."
    vocabulary, width = converted[f"{model}embeddings.token_embedding.weight"].shape
    return {
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": len(converted[f"{model}encoder.layers.0.mlp.fc1.weight"]),
        "projection_dim": len(converted[f"{_DETECTOR}text_encoder.text_projection.weight"]),
        "num_hidden_layers": _depth(converted, f"{model}encoder.layers."),
        "num_attention_heads": width // _TEXT_HEAD_WIDTH,
        "max_position_embeddings": len(converted[f"{model}embeddings.position_embedding.weight"]),
        "hidden_act": "gelu",
    }


def _tracker(converted: Mapping[str, torch.Tensor], vision: dict[str, Any], width: int) -> dict[str, Any]:
    decoder: dict[str, int] = {"hidden_size": width}
    memory: dict[str, int] = {
        "memory_attention_hidden_size": width,
        "memory_encoder_hidden_size": width,
        "mask_downsampler_embed_dim": width,
        "memory_fuser_embed_dim": width,
    }
    if f"{_TRACKER}mask_decoder.iou_prediction_head.proj_in.weight" in converted:
        decoder["mlp_dim"] = len(converted[f"{_TRACKER}mask_decoder.transformer.layers.0.mlp.proj_in.weight"])
        decoder["iou_head_hidden_dim"] = len(converted[f"{_TRACKER}mask_decoder.iou_prediction_head.proj_in.weight"])
    if f"{_TRACKER}memory_encoder.projection.weight" in converted:
        attention, fuser = f"{_TRACKER}memory_attention.layers.", f"{_TRACKER}memory_encoder.memory_fuser.layers."
        memory |= {
            "memory_attention_num_layers": _depth(converted, attention),
            "memory_attention_feed_forward_hidden_size": len(converted[f"{attention}0.linear1.weight"]),
            "memory_encoder_output_channels": len(converted[f"{_TRACKER}memory_encoder.projection.weight"]),
            "memory_fuser_num_layers": _depth(converted, fuser),
            "memory_fuser_intermediate_dim": len(converted[f"{fuser}0.pointwise_conv1.weight"]),
        }
    return {
        "model_type": "sam3_tracker_video",
        "vision_config": vision,
        "prompt_encoder_config": {"hidden_size": width},
        "mask_decoder_config": decoder,
        **memory,
    }


def _depth(names: Iterable[str], prefix: str) -> int:
    """How many layers there are under this prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})
