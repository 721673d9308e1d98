"""The shrunken configurations, the recipes of the stages, and the weights of the detector's losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import Florence2Config, PreTrainedTokenizerFast, Sam3VideoConfig

from autodistill_sam3.training.tokenizers import CONTEXT_LENGTH

IMAGE_SIZE = 240
PATCH_SIZE = 10
GRID = IMAGE_SIZE // PATCH_SIZE
VISION_WIDTH = 160
HIDDEN = 128
FEATURE_SIZES = [[4 * GRID, 4 * GRID], [2 * GRID, 2 * GRID], [GRID, GRID]]

FLORENCE2_IMAGE_SIZE = 256
FLORENCE2_HIDDEN = 160
FLORENCE2_STRIDES = (4, 2, 2)
# One more for the mean over the image.
FLORENCE2_IMAGE_TOKENS = (FLORENCE2_IMAGE_SIZE // 16) ** 2 + 1


@dataclass(frozen=True)
class DetectorWeights:
    """Loss weights, SAM 3's but where the comment says so.

    The official recipe weighs positives by 10. At this size that moves all scores up and the best threshold with them;
    with 3 the F1 peaks near 0.5. It weighs one-to-many matches by 2, on a second set of queries that has no other
    matches; here the first layers' only queries have them, up to four an object, and 2 would drown the last layers. All
    terms of those layers have the weight, presence too.
    Its `loss_semantic_*` are off when it trains on instances.
    """

    loss_ce: float = 20.0
    presence_loss: float = 20.0
    loss_bbox: float = 5.0
    loss_giou: float = 2.0
    loss_mask: float = 200.0
    loss_dice: float = 10.0
    loss_semantic_seg: float = 20.0
    loss_semantic_dice: float = 10.0
    positive: float = 3.0
    one_to_many: float = 0.5
    one_to_many_layers: int = 2
    loss_dense: float = 10.0
    loss_looks: float = 10.0


@dataclass(frozen=True)
class Recipe:
    """One stage of training.

    Attributes:
        steps: Optimiser steps.
        scenes: Scenes a step.
        prompts: Prompts per scene.
        learning_rate: At its highest, after `warm_up` steps; falls along a cosine to 1 % of it.
        warm_up: Steps.
        weight_decay: AdamW's, for matrices only.
        clip: Largest norm of the gradient.
        present: Share of prompts that ask for something drawn.
        min_visible: Share of an object that must be visible for it to be a target. Lower than where evaluation draws
            the line, so that what counts there is learned with a margin.
        hiding: `plan_scenes`' share, in every other step.
        clips: Clips a step.
        frames: Frames a clip; in the last `long_share` of the steps there are half as many clips, twice as long.
        long_share: See `frames`.
    """

    steps: int
    scenes: int
    prompts: int
    learning_rate: float
    warm_up: int = 300
    weight_decay: float = 0.05
    clip: float = 1.0
    present: float = 0.6
    min_visible: float = 0.25
    hiding: float = 0.0
    clips: int = 0
    frames: int = 8
    long_share: float = 0.3


RECIPES = {
    "detector": Recipe(steps=6600, scenes=96, prompts=4, learning_rate=6e-4, warm_up=400),
    # Boxes need no prompts.
    "boxes": Recipe(steps=2800, scenes=64, prompts=1, learning_rate=1e-3, warm_up=100),
    # What the memory starts with is lost at a learning rate of 1e-3, and kept at this one.
    "tracker": Recipe(
        steps=1900, scenes=32, prompts=1, learning_rate=2e-4, warm_up=200, hiding=0.35, clips=16, frames=8
    ),
    "florence2": Recipe(steps=5400, scenes=64, prompts=4, learning_rate=6e-4, warm_up=500),
}


def sam3_config(tokenizer: PreTrainedTokenizerFast) -> Sam3VideoConfig:
    """SAM 3 for 240-pixel images, for this tokenizer."""
    vision = {
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 480,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "pretrain_image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "window_size": GRID // 2,
            "global_attn_indexes": [1, 3, 5],
            # The official model's; the class default of 1e-6 is not.
            "layer_norm_eps": 1e-5,
        },
        "fpn_hidden_size": HIDDEN,
        "backbone_feature_sizes": FEATURE_SIZES,
    }
    detector = {
        "model_type": "sam3",
        "vision_config": {"model_type": "sam3_vision_model", **vision},
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": len(tokenizer),
            "hidden_size": 96,
            "intermediate_size": 256,
            "projection_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT_LENGTH,
            "hidden_act": "gelu",
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        "geometry_encoder_config": {**_transformer(1), "roi_size": 3},
        "detr_encoder_config": _transformer(2),
        "detr_decoder_config": {**_transformer(4), "num_queries": 32},
        "mask_decoder_config": {"hidden_size": HIDDEN, "num_upsampling_stages": 3, "num_attention_heads": 8},
    }
    return Sam3VideoConfig(
        detector_config=detector, tracker_config=_tracker(vision), low_res_mask_size=4 * GRID, **VIDEO_RULES
    )


# Its detector sees nearly everything and its tracker loses much: whatever a detection shows is believed in every frame,
# and what none shows is hidden after two. The real model confirms tracks every 16th frame, and believes them.
VIDEO_RULES: dict[str, Any] = {
    "recondition_every_nth_frame": 1,
    "recondition_on_trk_masks": False,
    "high_conf_thresh": 0.5,
    "high_iou_thresh": 0.1,
    "trk_assoc_iou_thresh": 0.1,
    "suppress_unmatched_only_within_hotstart": False,
    "init_trk_keep_alive": 2,
    "max_trk_keep_alive": 2,
    # Masks have a ninth of the real model's pixels.
    "fill_hole_area": 2,
}


def _transformer(layers: int) -> dict[str, object]:
    # Dropout slows training from scratch on scenes that never repeat.
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": 384,
        "num_layers": layers,
        "num_attention_heads": 8,
        "dropout": 0.0,
        "layer_norm_eps": 1e-6,
    }


def _tracker(vision: dict[str, object]) -> dict[str, object]:
    """The tracker, with less memory than the real one has: four frames instead of seven, two layers instead of four.

    Reading memories is most of a frame's work on a CPU.
    """
    return {
        "model_type": "sam3_tracker_video",
        "image_size": IMAGE_SIZE,
        "vision_config": {"model_type": "sam3_vision_model", **vision},
        "prompt_encoder_config": {"hidden_size": HIDDEN, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE},
        "mask_decoder_config": {
            "hidden_size": HIDDEN,
            "mlp_dim": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "iou_head_hidden_dim": HIDDEN,
        },
        "memory_attention_hidden_size": HIDDEN,
        "num_maskmem": 4,
        "memory_attention_num_layers": 2,
        "memory_attention_feed_forward_hidden_size": 256,
        "memory_attention_rope_feat_sizes": [GRID, GRID],
        "memory_attention_dropout": 0.0,
        "memory_attention_rope_dropout": 0.0,
        "memory_encoder_hidden_size": HIDDEN,
        # transformers hard-codes 64 where it splits object pointers.
        "memory_encoder_output_channels": 64,
        "mask_downsampler_embed_dim": HIDDEN,
        "memory_fuser_num_layers": 1,
        "memory_fuser_embed_dim": HIDDEN,
        "memory_fuser_intermediate_dim": 256,
    }


def florence2_config(tokenizer: PreTrainedTokenizerFast) -> Florence2Config:
    """Florence-2 for 256-pixel images: three stages of DaViT instead of four, so that small things keep a token."""
    width = FLORENCE2_HIDDEN
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.eos_token_id,
    }
    return Florence2Config(
        vision_config={
            "depths": [1, 1, 3],
            "patch_size": [7, 3, 3],
            "patch_stride": list(FLORENCE2_STRIDES),
            "patch_padding": [3, 1, 1],
            "patch_prenorm": [False, True, True],
            "embed_dim": [48, 96, width],
            "num_heads": [2, 4, 5],
            "num_groups": [2, 4, 5],
            "window_size": 8,
            "drop_path_rate": 0.0,
            "projection_dim": width,
            "mlp_ratio": 3.0,
        },
        text_config={
            "model_type": "bart",
            "vocab_size": len(tokenizer),
            "d_model": width,
            "encoder_layers": 3,
            "decoder_layers": 3,
            "encoder_attention_heads": 5,
            "decoder_attention_heads": 5,
            "encoder_ffn_dim": 480,
            "decoder_ffn_dim": 480,
            "max_position_embeddings": 512,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "scale_embedding": False,
            **special,
            "forced_eos_token_id": None,
            "forced_bos_token_id": None,
        },
        image_token_id=tokenizer.image_token_id,
        **special,
    )
