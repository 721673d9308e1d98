"""SAM 3's tracker as a video model: what is remembered of objects -> their masks in the next frame.

The steps of `transformers.Sam3TrackerVideoModel` (Meta's: sam3/model/sam3_tracker_base.py), for all objects of a frame
at once and without a session: what is kept of which frame is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import interpolate

from autodistill_sam3.devices import autocast, full_precision
from autodistill_sam3.segmentation.box_decoder import tracker_levels
from autodistill_sam3.segmentation.vision import VisionFeatures

if TYPE_CHECKING:
    from transformers import Sam3VideoModel

# The logit of every pixel of an object that is not there, as in the reference.
ABSENT = -1024.0
# Labels of points: two corners of a box, and what pads prompts of different lengths.
BOX_CORNERS = (2, 3)
PADDING = -10
# Objects that go through the memory attention at a time: at full size each has 36,000 keys.
_OBJECTS_PER_PASS = 16


@dataclass(frozen=True, eq=False)
class FrameMaps:
    """What the tracker's neck says of one frame.

    Attributes:
        coarse: (1, C, g, g).
        high_resolution: (1, C/8, 4g, 4g) and (1, C/4, 2g, 2g).
    """

    coarse: torch.Tensor
    high_resolution: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Memory:
    """What is remembered of one object in one frame.

    Attributes:
        spatial: (g*g, M) ``bfloat16``, the frame's features with the object's mask.
        pointer: (C,) ``float32``, the object in one vector.
    """

    spatial: torch.Tensor
    pointer: torch.Tensor


@dataclass(frozen=True, eq=False)
class Recall:
    """What one object remembers when a frame comes.

    Attributes:
        spatial: (frames back, features): 0 for frames where the object was pointed at, 1 to 6 for those just tracked.
        pointers: (frames back, pointer).
    """

    spatial: tuple[tuple[int, torch.Tensor], ...]
    pointers: tuple[tuple[int, torch.Tensor], ...]


@dataclass(frozen=True, eq=False)
class Decoded:
    """What the mask decoder says of N objects.

    Attributes:
        logits: (N, 4g, 4g) ``float32``; `ABSENT` where the object is not in the frame.
        drawn: The same, as if every object were there.
        object_logits: (N,) ``float32``, that it is.
        iou: (N,) ``float32`` in 0..1, predicted for the mask.
        pointers: (N, C) ``float32``.
    """

    logits: torch.Tensor
    drawn: torch.Tensor
    object_logits: torch.Tensor
    iou: torch.Tensor
    pointers: torch.Tensor


class MemoryTracker:
    """The tracker half of a `Sam3VideoModel`.

    Args:
        model: The model.
        device: Where it is.
        dtype: What to compute in; None for ``float32``.
    """

    def __init__(self, model: Sam3VideoModel, device: torch.device, dtype: torch.dtype | None) -> None:
        self._model = model
        self._tracker: Any = model.tracker_model
        self._device, self._dtype = device, dtype
        config = self._tracker.config
        self.memory_frames: int = config.num_maskmem - 1
        self.max_pointers: int = config.max_object_pointers_in_encoder
        self.max_conditioning: int = config.max_cond_frame_num
        self.mask_side: int = self._tracker.prompt_encoder.mask_input_size[0]
        self.memory_side = 4 * self.mask_side
        grid = self._tracker.prompt_encoder.image_embedding_size[0]
        shape = (1, self._tracker.mem_dim, grid, grid)
        with full_precision(device):
            self._image_positions: torch.Tensor = self._tracker.get_image_wide_positional_embeddings()
            memory_positions = self._tracker.memory_encoder.position_encoding(shape, device, torch.float32)
            neck: Any = model.tracker_neck
            places = neck.position_encoding((1, self._tracker.hidden_dim, grid, grid), device, torch.float32)
        # (g*g, M), and (g*g, 1, C).
        self._memory_positions: torch.Tensor = memory_positions[0].flatten(1).T.contiguous()
        self._places: torch.Tensor = places.flatten(2).permute(2, 0, 1)

    @torch.inference_mode()
    def maps(self, vision: VisionFeatures) -> list[FrameMaps]:
        """The neck's maps of each frame of a batch."""
        with autocast(self._device, self._dtype):
            fine, middle, coarse = tracker_levels(self._model, vision)
        frames = range(len(coarse))
        return [FrameMaps(coarse[i : i + 1], (fine[i : i + 1], middle[i : i + 1])) for i in frames]

    @torch.inference_mode()
    def propagate(self, maps: FrameMaps, recalls: Sequence[Recall], max_pointers: int) -> Decoded:
        """The masks of N objects in a frame, from memory alone.

        Args:
            maps: Of the frame.
            recalls: What each object remembers.
            max_pointers: What counts as the most frames back: 16, or the clip's length if that is less.
        """
        if not recalls:
            return self._nothing()
        features = self._remembering(maps, recalls, max_pointers)
        # A single padding point, as in the reference.
        points = torch.zeros(len(recalls), 1, 2, device=self._device)
        labels = torch.full((len(recalls), 1), -1, device=self._device, dtype=torch.int32)
        config = self._tracker.config
        multimask = config.multimask_output_for_tracking and config.multimask_min_pt_num == 0
        return self._decode(maps, features, points, labels, None, multimask=multimask)

    def _nothing(self) -> Decoded:
        numbers = torch.zeros(0, device=self._device)
        masks = numbers.new_zeros(0, self.mask_side, self.mask_side)
        return Decoded(masks, masks, numbers, numbers, numbers.new_zeros(0, self._tracker.hidden_dim))

    @torch.inference_mode()
    def prompt(
        self,
        maps: FrameMaps,
        points: torch.Tensor,
        labels: torch.Tensor,
        recall: Recall | None = None,
        max_pointers: int = 0,
    ) -> Decoded:
        """The mask of one object where it is pointed at.

        Args:
            maps: Of the frame.
            points: (1, P, 2) ``float32`` in 0..1 of the frame.
            labels: (1, P): 1 on the object, 0 beside it, `BOX_CORNERS` for the corners of a box.
            recall: What it remembers, if it was tracked before.
            max_pointers: As in :meth:`propagate`.
        """
        config = self._tracker.config
        count = points.shape[1]
        multimask = (
            config.multimask_output_in_sam
            and (recall is None or config.multimask_output_for_tracking)
            and config.multimask_min_pt_num <= count <= config.multimask_max_pt_num
        )
        if recall is None:
            features = maps.coarse + self._tracker.no_memory_embedding.reshape(1, -1, 1, 1)
        else:
            features = self._remembering(maps, [recall], max_pointers)
        points, labels = points.to(self._device), labels.to(self._device)
        return self._decode(maps, features, points, labels, None, multimask=multimask)

    @torch.inference_mode()
    def from_masks(self, maps: FrameMaps, masks: torch.Tensor) -> tuple[Decoded, torch.Tensor]:
        """Objects that are what masks say.

        As Meta's `_use_mask_as_output` (sam3/model/sam3_tracker_base.py), at four times the side of the model's masks;
        transformers works at the side of its input.

        Args:
            maps: Of the frame.
            masks: (N, 16g, 16g) ``bool``, each with at least one pixel.

        Returns:
            The objects, and their masks as logits of -10 and 10, (N, 16g, 16g).
        """
        large = masks.float()
        logits = large * 20.0 - 10.0
        with autocast(self._device, self._dtype):
            asked = self._tracker.mask_downsample(large[:, None]).float()
        points = torch.zeros(len(masks), 1, 2, device=self._device)
        labels = torch.full((len(masks), 1), -1, device=self._device, dtype=torch.int32)
        features = maps.coarse.expand(len(masks), -1, -1, -1)
        # The pointer of the single mask's token, as in Meta's; transformers takes the best of three.
        told = self._decode(maps, features, points, labels, asked, multimask=False)
        sure = torch.ones_like(told.iou)
        small = _resized(logits, self.mask_side)
        return Decoded(small, small, 10 * sure, sure, told.pointers), logits

    @torch.inference_mode()
    def remember(
        self, maps: FrameMaps, logits: torch.Tensor, pointers: torch.Tensor, *, is_prompted: bool
    ) -> list[Memory]:
        """What to keep of N objects in a frame.

        Args:
            maps: Of the frame.
            logits: (N, h, w) of any size.
            pointers: (N, C), of what :meth:`propagate` and the others gave.
            is_prompted: Whether the masks are from prompts: they count as certain.
        """
        tracker = self._tracker
        there = (logits > 0).flatten(1).any(1)
        masks = _resized(logits.float(), self.memory_side)[:, None]
        masks = (masks > 0).float() if is_prompted else masks.sigmoid()
        config = tracker.config
        masks = masks * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
        with autocast(self._device, self._dtype):
            spatial, _ = tracker.memory_encoder(maps.coarse.expand(len(masks), -1, -1, -1), masks)
        hidden = tracker.occlusion_spatial_embedding_parameter
        if hidden is not None:
            spatial = spatial + torch.where(there, 0.0, 1.0)[:, None, None, None] * hidden[..., None, None]
        flat = spatial.to(torch.bfloat16).flatten(2).transpose(1, 2)
        # Each in memory of its own, which goes when it is forgotten.
        return [Memory(part.clone(), pointer.clone()) for part, pointer in zip(flat, pointers, strict=True)]

    def _remembering(self, maps: FrameMaps, recalls: Sequence[Recall], max_pointers: int) -> torch.Tensor:
        """(N, C, g, g): the frame as objects see it that remember."""
        grid = maps.coarse.shape[-1]
        queries = maps.coarse.flatten(2).permute(2, 0, 1)
        found: list[torch.Tensor | None] = [None] * len(recalls)
        for members in _of_one_length(recalls):
            keys, positions, count = self._keys([recalls[index] for index in members], max_pointers)
            with autocast(self._device, self._dtype):
                attended = self._tracker.memory_attention(
                    current_vision_features=queries.expand(-1, len(members), -1),
                    current_vision_position_embeddings=self._places,
                    memory=keys,
                    memory_posision_embeddings=positions,
                    num_object_pointer_tokens=count,
                )
            maps_of = attended[0] if attended.ndim == 4 else attended.transpose(0, 1)
            for index, map_ in zip(members, maps_of, strict=True):
                found[index] = map_
        told = torch.stack([map_ for map_ in found if map_ is not None])
        return told.transpose(1, 2).reshape(len(recalls), -1, grid, grid)

    def _keys(self, recalls: Sequence[Recall], max_pointers: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Keys and their positions, (L, N, M) each, and how many of the L are pointers, of equally long memories."""
        tracker = self._tracker
        spatial = torch.stack([torch.stack([part for _, part in recall.spatial]) for recall in recalls])
        back = torch.tensor([[frames for frames, _ in recall.spatial] for recall in recalls], device=self._device)
        # The last of the encodings is for prompted frames.
        times = tracker.memory_temporal_positional_encoding[back - 1][:, :, 0]
        keys, positions = [spatial.flatten(1, 2)], [(self._memory_positions + times).flatten(1, 2)]
        if recalls[0].pointers:
            pointers = torch.stack([torch.stack([part for _, part in recall.pointers]) for recall in recalls])
            ages = torch.tensor([[frames for frames, _ in recall.pointers] for recall in recalls], device=self._device)
            sines = _sine_positions(ages / max(max_pointers - 1, 1), pointers.shape[-1])
            with full_precision(self._device):
                told = tracker.temporal_positional_encoding_projection_layer(sines)
            parts = pointers.shape[-1] // tracker.mem_dim
            keys.append(pointers.reshape(len(recalls), -1, tracker.mem_dim).to(keys[0].dtype))
            positions.append(told.repeat_interleave(parts, dim=1))
        count = keys[1].shape[1] if len(keys) > 1 else 0
        dtype = self._dtype or torch.float32
        joined, places = (torch.cat(part, dim=1).transpose(0, 1).to(dtype) for part in (keys, positions))
        return joined, places, count

    def _decode(
        self,
        maps: FrameMaps,
        features: torch.Tensor,
        points: torch.Tensor,
        labels: torch.Tensor,
        masks: torch.Tensor | None,
        *,
        multimask: bool,
    ) -> Decoded:
        """One mask for each of N objects: points (N, P, 2) in 0..1, labels (N, P), masks (N, 1, 4g, 4g)."""
        tracker = self._tracker
        count = len(points)
        with full_precision(self._device):
            encoder = tracker.prompt_encoder
            sparse, dense = encoder(
                input_points=(points * encoder.input_image_size)[:, None],
                input_labels=labels[:, None],
                input_boxes=None,
                input_masks=None if masks is None else masks.float(),
            )
        with autocast(self._device, self._dtype):
            logits, iou, tokens, present = tracker.mask_decoder(
                image_embeddings=features,
                image_positional_embeddings=self._image_positions.expand(count, -1, -1, -1),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
                high_resolution_features=[level.expand(count, -1, -1, -1) for level in maps.high_resolution],
            )
            pointers = tracker.object_pointer_proj(tokens[:, 0]).float()
        rows, best = torch.arange(count, device=self._device), iou[:, 0].float().argmax(-1)
        object_logits = present[:, 0, 0].float()
        is_there = object_logits > 0
        # Without several masks there is one token.
        chosen = pointers[rows, best] if pointers.shape[1] > 1 else pointers[:, 0]
        drawn = logits[rows, 0, best].float()
        return Decoded(
            logits=torch.where(is_there[:, None, None], drawn, ABSENT),
            drawn=drawn,
            object_logits=object_logits,
            iou=iou[rows, 0, best].float(),
            pointers=torch.where(is_there[:, None], chosen, tracker.no_object_pointer),
        )


def _resized(masks: torch.Tensor, side: int) -> torch.Tensor:
    """(N, h, w) -> (N, side, side), as the reference resizes masks."""
    if masks.shape[-2:] == (side, side):
        return masks
    return interpolate(masks[:, None], size=(side, side), mode="bilinear", antialias=True)[:, 0]


def _of_one_length(recalls: Sequence[Recall]) -> Iterator[list[int]]:
    """Positions of objects that remember equally much, not too many at a time."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, recall in enumerate(recalls):
        groups.setdefault((len(recall.spatial), len(recall.pointers)), []).append(index)
    for members in groups.values():
        for start in range(0, len(members), _OBJECTS_PER_PASS):
            yield members[start : start + _OBJECTS_PER_PASS]


def _sine_positions(places: torch.Tensor, width: int) -> torch.Tensor:
    """(..., width) encodings of places, half sines and half cosines (`get_1d_sine_pe` of the reference)."""
    half = width // 2
    powers = torch.arange(half, dtype=torch.float32, device=places.device)
    angles = places[..., None] / 10000 ** (2 * (powers // 2) / half)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
