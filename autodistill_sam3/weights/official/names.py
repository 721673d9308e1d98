"""Names of the official SAM 3 checkpoint (`sam3.pt`) -> names in `transformers.Sam3VideoModel`.

A name's first matching prefix in `_SECTIONS` is replaced, then that section's renames are applied to the rest. Names
that no section knows are an error, so that nothing is dropped without being named in `DROPPED`. Both sides were read in
sam3/model_builder.py (0.1.4) and transformers/models/sam3*/modeling_*.py (5.23).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Tables that transformers computes itself, and point prompts of the detector, which it does not have.
DROPPED = re.compile(
    r"(.*\.)?freqs_cis(_real|_imag)?|detector\.geometry_encoder\.points_(direct|pool|pos_enc)_project\.(weight|bias)"
)


@dataclass(frozen=True)
class Section:
    """One part of the model.

    Attributes:
        source: Prefix of its names in the official checkpoint.
        target: What replaces the prefix.
        renames: (pattern, replacement) pairs for the rest of the name, all applied in order.
    """

    source: str
    target: str
    renames: tuple[tuple[str, str], ...] = field(default=())


_ATTENTION = ((r"\bout_proj\b", "o_proj"),)
_MLP = ((r"\blinear1\b", "mlp.fc1"), (r"\blinear2\b", "mlp.fc2"))
_NORMS = ((r"\bnorm(\d)\b", r"layer_norm\1"),)
# MLPs of the detector count their layers from 0, transformers' from 1.
_DETECTOR_MLP = tuple((rf"\blayers\.{index}\b", f"layer{index + 1}") for index in range(3))
# MLPs of the tracker all have three layers; transformers names the outer two.
_TRACKER_MLP = ((r"\blayers\.0\b", "proj_in"), (r"\blayers\.2\b", "proj_out"), (r"\blayers\.1\b", "layers.0"))
_NECK = (
    (r"\bdconv_2x2(_0)?\b", "scale_layers.0"),
    (r"\bdconv_2x2_1\b", "scale_layers.2"),
    (r"\bconv_1x1\b", "proj1"),
    (r"\bconv_3x3\b", "proj2"),
)
_FUSION_LAYER = (*_ATTENTION, *_MLP, *_NORMS, (r"\bcross_attn_image\b", "cross_attn"))

_SECTIONS = (
    Section(
        "detector.backbone.vision_backbone.trunk.",
        "detector_model.vision_encoder.backbone.",
        (
            (r"^pos_embed$", "embeddings.position_embeddings"),
            (r"^patch_embed\.proj\b", "embeddings.patch_embeddings.projection"),
            (r"^ln_pre\b", "layer_norm"),
            (r"^blocks\b", "layers"),
            (r"\battn\.proj\b", "attention.o_proj"),
            (r"\battn\b", "attention"),
            *_NORMS,
        ),
    ),
    Section("detector.backbone.vision_backbone.convs.", "detector_model.vision_encoder.neck.fpn_layers.", _NECK),
    Section("detector.backbone.vision_backbone.sam2_convs.", "tracker_neck.fpn_layers.", _NECK),
    Section(
        "detector.backbone.language_backbone.encoder.",
        "detector_model.text_encoder.",
        (
            (r"^text_projection$", "text_projection.weight"),
            (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
            (r"^token_embedding\b", "text_model.embeddings.token_embedding"),
            (r"^ln_final\b", "text_model.final_layer_norm"),
            (r"^transformer\.resblocks\b", "text_model.encoder.layers"),
            (r"\battn\b", "self_attn"),
            (r"\bln_(\d)\b", r"layer_norm\1"),
            (r"\bc_fc\b", "fc1"),
            (r"\bc_proj\b", "fc2"),
        ),
    ),
    Section("detector.backbone.language_backbone.resizer.", "detector_model.text_projection."),
    Section(
        "detector.geometry_encoder.",
        "detector_model.geometry_encoder.",
        (
            (r"^norm\b", "prompt_layer_norm"),
            (r"^img_pre_norm\b", "vision_layer_norm"),
            (r"^encode_norm\b", "output_layer_norm"),
            (r"^encode\b", "layers"),
            *_FUSION_LAYER,
        ),
    ),
    Section("detector.transformer.encoder.", "detector_model.detr_encoder.", _FUSION_LAYER),
    Section(
        "detector.transformer.decoder.layers.",
        "detector_model.detr_decoder.layers.",
        (
            *_ATTENTION,
            *_MLP,
            (r"\bcross_attn\b", "vision_cross_attn"),
            (r"\bca_text\b", "text_cross_attn"),
            (r"\bnorm1\b", "vision_cross_attn_layer_norm"),
            (r"\bcatext_norm\b", "text_cross_attn_layer_norm"),
            (r"\bnorm2\b", "self_attn_layer_norm"),
            (r"\bnorm3\b", "mlp_layer_norm"),
        ),
    ),
    Section(
        "detector.transformer.decoder.",
        "detector_model.detr_decoder.",
        (
            (r"^norm\b", "output_layer_norm"),
            (r"^bbox_embed\b", "box_head"),
            (r"^boxRPB_embed_", "box_rpb_embed_"),
            (r"^presence_token_head\b", "presence_head"),
            (r"^presence_token_out_norm\b", "presence_layer_norm"),
            *_DETECTOR_MLP,
        ),
    ),
    Section(
        "detector.segmentation_head.",
        "detector_model.mask_decoder.",
        (
            (r"^mask_predictor\.mask_embed\b", "mask_embedder"),
            (r"^cross_attend_prompt\b", "prompt_cross_attn"),
            (r"^cross_attn_norm\b", "prompt_cross_attn_norm"),
            (r"^instance_seg_head\b", "instance_projection"),
            (r"^semantic_seg_head\b", "semantic_projection"),
            *_ATTENTION,
        ),
    ),
    Section(
        "detector.dot_prod_scoring.",
        "detector_model.dot_product_scoring.",
        (
            (r"^prompt_mlp\.out_norm\b", "text_mlp_out_norm"),
            (r"^prompt_mlp\b", "text_mlp"),
            (r"^prompt_proj\b", "text_proj"),
            (r"^hs_proj\b", "query_proj"),
            *_DETECTOR_MLP,
        ),
    ),
    Section(
        "tracker.transformer.encoder.",
        "tracker_model.memory_attention.",
        (*_ATTENTION, *_NORMS, (r"^norm\b", "layer_norm")),
    ),
    Section(
        "tracker.maskmem_backbone.mask_downsampler.encoder.",
        "tracker_model.memory_encoder.mask_downsampler.",
        # Four times convolution, norm, activation; then a last convolution.
        (
            *((rf"^{3 * index}\b", f"layers.{index}.conv") for index in range(4)),
            *((rf"^{3 * index + 1}\b", f"layers.{index}.layer_norm") for index in range(4)),
            (r"^12\b", "final_conv"),
        ),
    ),
    Section(
        "tracker.maskmem_backbone.",
        "tracker_model.memory_encoder.",
        (
            (r"^pix_feat_proj\b", "feature_projection"),
            (r"^out_proj\b", "projection"),
            (r"^fuser\b", "memory_fuser"),
            (r"\bgamma$", "scale"),
            (r"\bdwconv\b", "depthwise_conv"),
            (r"\bnorm\b", "layer_norm"),
            (r"\bpwconv(\d)\b", r"pointwise_conv\1"),
        ),
    ),
    Section(
        "tracker.sam_prompt_encoder.",
        "tracker_model.prompt_encoder.",
        (
            (r"^pe_layer\.positional_encoding_gaussian_matrix$", "shared_embedding.positional_embedding"),
            (r"^mask_downscaling\.0\b", "mask_embed.conv1"),
            (r"^mask_downscaling\.1\b", "mask_embed.layer_norm1"),
            (r"^mask_downscaling\.3\b", "mask_embed.conv2"),
            (r"^mask_downscaling\.4\b", "mask_embed.layer_norm2"),
            (r"^mask_downscaling\.6\b", "mask_embed.conv3"),
        ),
    ),
    Section(
        "tracker.sam_mask_decoder.transformer.",
        "tracker_model.mask_decoder.transformer.",
        (
            *_ATTENTION,
            (r"^norm_final_attn\b", "layer_norm_final_attn"),
            *_NORMS,
            (r"\blin1\b", "proj_in"),
            (r"\blin2\b", "proj_out"),
            (r"\bmlp\.layers\.0\b", "mlp.proj_in"),
            (r"\bmlp\.layers\.1\b", "mlp.proj_out"),
        ),
    ),
    Section(
        "tracker.sam_mask_decoder.",
        "tracker_model.mask_decoder.",
        (
            (r"^output_upscaling\.0\b", "upscale_conv1"),
            (r"^output_upscaling\.1\b", "upscale_layer_norm"),
            (r"^output_upscaling\.3\b", "upscale_conv2"),
            *_TRACKER_MLP,
        ),
    ),
    Section(
        "tracker.",
        "tracker_model.",
        (
            (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
            (r"^no_mem_embed$", "no_memory_embedding"),
            (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
            (r"^no_obj_ptr$", "no_object_pointer"),
            (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
            (r"^obj_ptr_proj\b", "object_pointer_proj"),
            (r"^obj_ptr_tpos_proj\b", "temporal_positional_encoding_projection_layer"),
            *_TRACKER_MLP,
        ),
    ),
)


def translate(name: str) -> str:
    """The name in `Sam3VideoModel` of a tensor of `sam3.pt` that is neither fused nor split.

    Example:
        >>> translate("detector.transformer.decoder.layers.3.norm1.bias")
        'detector_model.detr_decoder.layers.3.vision_cross_attn_layer_norm.bias'

    Raises:
        KeyError: The name is not known.
    """
    for section in _SECTIONS:
        if name.startswith(section.source):
            rest = name.removeprefix(section.source)
            for pattern, replacement in section.renames:
                rest = re.sub(pattern, replacement, rest)
            return section.target + rest
    raise KeyError(f"Not a tensor of SAM 3: {name}")
