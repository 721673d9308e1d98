"""SAM 3's tracker over clips, many objects at a time and differentiable.

It computes what `Sam3TrackerVideoModel` does a frame and an object at a time under inference mode: SAM 2's memory (Ravi
et al. 2024), with its prompted frames, memories of the last frames and object pointers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import Sam3VideoModel

from autodistill_sam3.training.recollection import Recollection, Trace

# What transformers writes where the object is not in the frame.
NO_OBJECT = -1024.0
# Logits of a mask that is given: `_use_mask_as_output`.
GIVEN_SCALE, GIVEN_BIAS = 20.0, -10.0
# A frame in which an object is seen less surely is not worth remembering: Meta's `mf_threshold`.
WORTH_REMEMBERING = 0.01


@dataclass(frozen=True, eq=False)
class Levels:
    """Tracker features of N images.

    Attributes:
        fine: (N, C/8, 4g, 4g).
        middle: (N, C/4, 2g, 2g).
        coarse: (N, C, g, g), before any memory.
        position: (g * g, 1, C), of the coarse level.
    """

    fine: torch.Tensor
    middle: torch.Tensor
    coarse: torch.Tensor
    position: torch.Tensor

    def select(self, index: torch.Tensor) -> Levels:
        """Those of some images, (R,) of them."""
        fine, middle, coarse = (level.index_select(0, index) for level in (self.fine, self.middle, self.coarse))
        return Levels(fine, middle, coarse, self.position)


@dataclass(frozen=True, eq=False)
class Prompt:
    """What says where R objects are in their first frame: points (a box is two of them), or masks.

    Attributes:
        points: (R, 1, P, 2) in pixels of the model's input.
        labels: (R, 1, P), 1 on the object, 0 beside it, 2 and 3 for a box's corners.
        masks: (R, 1, 4g, 4g), 0 or 1.
    """

    points: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    masks: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class FrameOutput:
    """What the tracker says of R objects in one frame.

    Attributes:
        logits: (R, m, 4g, 4g), m = 3 masks or 1, whether or not the object is there.
        iou: (R, m), what it thinks of them.
        score: (R,), logit of the object being in the frame.
        quality: (R,) in 0..1, how surely the chosen mask is the object's.
        mask: (R, 4g, 4g) logits of the chosen mask, `NO_OBJECT` where there is no object.
        memory: (g * g, R, D).
        pointer: (R, C).
        recalled: (R, C, g, g), coarse features with what is remembered; none in a prompted frame.
    """

    logits: torch.Tensor
    iou: torch.Tensor
    score: torch.Tensor
    quality: torch.Tensor
    mask: torch.Tensor
    memory: torch.Tensor
    pointer: torch.Tensor
    recalled: torch.Tensor | None = None


def encode_frames(model: Sam3VideoModel, images: torch.Tensor) -> Levels:
    """Features of (N, 3, S, S) normalised images; the ViT gets no gradient."""
    with torch.no_grad():
        vision = model.detector_model.vision_encoder.backbone(images)
    levels, positions = model.get_vision_features_for_tracker(vision)
    tracker: Any = model.tracker_model
    grid = tracker.prompt_encoder.image_embedding_size[0]
    fine, middle, coarse = (
        level.permute(1, 2, 0).unflatten(2, (factor * grid, factor * grid))
        for level, factor in zip(levels, (4, 2, 1), strict=True)
    )
    return Levels(fine, middle, coarse, positions[-1][:, :1])


def track(
    tracker: Any,
    frames: Iterable[Levels],
    prompt: Prompt,
    *,
    numbers: Sequence[int] | None = None,
    confirmed: Collection[int] = (),
    max_pointers: int | None = None,
    truth: torch.Tensor | None = None,
    worth: float = WORTH_REMEMBERING,
) -> list[FrameOutput]:
    """Follow R objects from their prompt in the first frame through all others.

    Args:
        tracker: The `Sam3TrackerVideoModel`.
        frames: T times the features of R images, one for each object.
        prompt: For the first frame.
        numbers: T numbers of the frames, rising; 0 to T - 1 without. Where numbers are left out, time has passed.
        confirmed: Positions of later frames whose memory is kept like that of a prompted one.
        max_pointers: Of how many frames back pointers are used; the configuration's number without.
        truth: (T, R, 4g, 4g), 0 or 1: what to remember of each frame instead of what was found in it.
        worth: See `Recollection`; below 0 the last frames are remembered whatever they show, as transformers does.

    Returns:
        T outputs.
    """
    reach = tracker.config.max_object_pointers_in_encoder if max_pointers is None else max_pointers
    mind = Recollection(tracker, reach, worth)
    outputs = []
    unprompted: _Embedded | None = None
    for position, levels in enumerate(frames):
        number = position if numbers is None else numbers[position]
        if position == 0:
            output = _first_frame(tracker, levels, prompt)
        else:
            unprompted = unprompted or _embed(tracker, Prompt(), len(levels.coarse))
            recalled = mind.recall(levels.coarse, levels.position, number)
            output = _remember(tracker, levels, _decode(tracker, levels, recalled, unprompted), binary=False)
            output = replace(output, recalled=recalled)
            if truth is not None:
                output = _corrected(tracker, levels, output, truth[position][:, None])
        trace = Trace(output.memory, output.pointer)
        if position == 0 or position in confirmed:
            mind.prompt(number, trace)
        else:
            mind.keep(trace, output.quality)
        outputs.append(output)
    return outputs


def _first_frame(tracker: Any, levels: Levels, prompt: Prompt) -> FrameOutput:
    if prompt.masks is None:
        features = levels.coarse + tracker.no_memory_embedding.reshape(1, -1, 1, 1)
        return _remember(
            tracker, levels, _decode(tracker, levels, features, _embed(tracker, prompt, len(features))), binary=True
        )
    size = (tracker.image_size, tracker.image_size)
    masks = prompt.masks.float()
    if masks.shape[-2:] != size:
        masks = F.interpolate(masks, size, mode="bilinear", align_corners=False, antialias=True)
    given = masks * GIVEN_SCALE + GIVEN_BIAS
    low_size = tracker.prompt_encoder.mask_input_size
    low = F.interpolate(given, low_size, mode="bilinear", align_corners=False, antialias=True)
    # The decoder is asked for the pointer alone: that of the single mask, as in Meta's; transformers' is of three.
    embedded = _embed(tracker, Prompt(masks=tracker.mask_downsample(masks)), len(masks))
    decoded = _decode(tracker, levels, levels.coarse, embedded, multimask=False)
    shown = (masks > 0).flatten(1).any(1)
    memory = _encode_memory(tracker, levels.coarse, given, shown, binary=True)
    pointer = torch.where(shown[:, None], decoded.pointer, tracker.no_object_pointer.to(decoded.pointer.dtype))
    sure = torch.ones_like(decoded.score)
    return FrameOutput(decoded.logits, decoded.iou, decoded.score, sure, low[:, 0], memory, pointer)


class _Embedded(NamedTuple):
    """Sparse and dense prompt embeddings, the image's positions, and the number of points."""

    sparse: torch.Tensor
    dense: torch.Tensor
    positions: torch.Tensor
    points: int


class _Decoded(NamedTuple):
    logits: torch.Tensor
    iou: torch.Tensor
    score: torch.Tensor
    quality: torch.Tensor
    mask: torch.Tensor
    pointer: torch.Tensor


def _decode(
    tracker: Any, levels: Levels, features: torch.Tensor, prompt: _Embedded, *, multimask: bool = True
) -> _Decoded:
    """`_single_frame_forward`.

    Args:
        tracker: The model.
        levels: Of R images.
        features: (R, C, g, g), coarse features with what is remembered.
        prompt: Of R objects.
        multimask: Whether there may be three masks.
    """
    config = tracker.config
    several = config.multimask_min_pt_num <= prompt.points <= config.multimask_max_pt_num
    logits, iou, tokens, score = tracker.mask_decoder(
        image_embeddings=features,
        image_positional_embeddings=prompt.positions.expand(len(features), -1, -1, -1),
        sparse_prompt_embeddings=prompt.sparse,
        dense_prompt_embeddings=prompt.dense,
        multimask_output=multimask and config.multimask_output_in_sam and several,
        high_resolution_features=[levels.fine, levels.middle],
    )
    logits, iou, tokens, score = logits[:, 0], iou[:, 0], tokens[:, 0], score[:, 0, 0]
    rows, best = torch.arange(len(iou), device=iou.device), iou.argmax(1)
    shown = score > 0
    pointer = tracker.object_pointer_proj(tokens[rows, best])
    pointer = torch.where(shown[:, None], pointer, tracker.no_object_pointer.to(pointer.dtype))
    mask = torch.where(shown[:, None, None], logits[rows, best].float(), NO_OBJECT)
    # `eff_iou_score` of sam3/model/sam3_tracker_base.py.
    quality = (2 * score.detach().float().sigmoid() - 1).clamp(min=0) * iou.detach()[rows, best].float()
    return _Decoded(logits, iou, score, quality, mask, pointer)


def _remember(tracker: Any, levels: Levels, decoded: _Decoded, *, binary: bool) -> FrameOutput:
    """What was found, with the memory of it."""
    size = (tracker.image_size, tracker.image_size)
    # Memories teach the memory's own parts; the mask has a loss of its own.
    mask = F.interpolate(decoded.mask.detach()[:, None], size, mode="bilinear", align_corners=False)
    memory = _encode_memory(tracker, levels.coarse, mask, decoded.score > 0, binary=binary)
    return FrameOutput(
        decoded.logits, decoded.iou, decoded.score, decoded.quality, decoded.mask, memory, decoded.pointer
    )


def _corrected(tracker: Any, levels: Levels, output: FrameOutput, truth: torch.Tensor) -> FrameOutput:
    """The output with the memory that the true masks (R, 1, 4g, 4g) leave."""
    shown = truth.flatten(1).any(1)
    memory = _encode_memory(tracker, levels.coarse, truth * GIVEN_SCALE + GIVEN_BIAS, shown, binary=False)
    return replace(output, memory=memory, quality=shown.float())


def _embed(tracker: Any, prompt: Prompt, count: int) -> _Embedded:
    """Prompts of R objects; masks are those that `mask_downsample` has seen."""
    device = tracker.no_memory_embedding.device
    points, labels, masks = prompt.points, prompt.labels, prompt.masks
    if points is None:
        points, labels = torch.zeros(count, 1, 1, 2, device=device), -torch.ones(count, 1, 1, device=device).int()
    size = tracker.prompt_encoder.mask_input_size
    # bf16 has too few bits for a coordinate.
    with torch.autocast(device.type, enabled=False):
        if masks is not None:
            masks = F.interpolate(masks.float(), size, mode="bilinear", align_corners=False, antialias=True)
        sparse, dense = tracker.prompt_encoder(points, labels, None, masks)
        positions = tracker.get_image_wide_positional_embeddings()
    return _Embedded(sparse, dense, positions, 0 if prompt.points is None else prompt.points.shape[2])


def _encode_memory(
    tracker: Any, coarse: torch.Tensor, mask: torch.Tensor, shown: torch.Tensor, *, binary: bool
) -> torch.Tensor:
    """`_encode_new_memory`: (g * g, R, D) from (R, 1, S, S) logits, rounded to bf16 as there."""
    size = [4 * side for side in tracker.prompt_encoder.mask_input_size]
    mask = F.interpolate(mask.float(), size, mode="bilinear", align_corners=False, antialias=True)
    share = (mask > 0).to(mask.dtype) if binary else mask.sigmoid()
    scaled = share * tracker.config.sigmoid_scale_for_mem_enc + tracker.config.sigmoid_bias_for_mem_enc
    encoder = tracker.memory_encoder
    fused = encoder.feature_projection(coarse) + _shrink_mask(encoder.mask_downsampler, scaled)
    memory: torch.Tensor = encoder.projection(encoder.memory_fuser(fused))
    hidden = tracker.occlusion_spatial_embedding_parameter[..., None, None]
    memory = memory + (~shown).to(memory.dtype)[:, None, None, None] * hidden
    return memory.to(torch.bfloat16).flatten(2).permute(2, 0, 1)


def _shrink_mask(downsampler: Any, mask: torch.Tensor) -> torch.Tensor:
    """The encoder's own layers, but for their norm: over 4 channels a GPU's kernel for it wastes a third of a step."""
    for layer in downsampler.layers:
        mask = layer.conv(mask).float()
        mask = mask - mask.mean(1, keepdim=True)
        mask = mask * (mask.square().mean(1, keepdim=True) + layer.layer_norm.eps).rsqrt()
        weight, bias = layer.layer_norm.weight[:, None, None], layer.layer_norm.bias[:, None, None]
        mask = layer.activation(mask * weight + bias)
    shrunk: torch.Tensor = downsampler.final_conv(mask)
    return shrunk
