"""What objects remember while they are followed, many at a time and differentiable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import get_1d_sine_pe


@dataclass(frozen=True, eq=False)
class Trace:
    """What a frame leaves in the mind of R objects.

    Attributes:
        memory: (g * g, R, D).
        pointer: (R, C).
    """

    memory: torch.Tensor
    pointer: torch.Tensor


class Recollection:
    """Prompted frames, and of the tracked ones those in which an object was seen, and the last.

    So Meta's tracker chooses at inference, for each object by itself (`frame_filter` of
    sam3/model/sam3_tracker_base.py). As all objects need equally many here, who has fewer repeats the oldest.

    Args:
        tracker: The `Sam3TrackerVideoModel`.
        max_pointers: Of how many frames pointers are used, one more than of tracked ones.
        worth: A frame counts where its quality is above this.

    Attributes:
        memories: (K, g * g, R, D) of tracked frames, the newest first; None before there are any.
        pointers: (P, R, C), the same.
    """

    def __init__(self, tracker: Any, max_pointers: int, worth: float) -> None:
        self._tracker, self._reach, self._worth = tracker, max_pointers, worth
        self._spatial = _spatial_positions(tracker)
        self._prompted: dict[int, Trace] = {}
        self.memories: torch.Tensor | None = None
        self.pointers: torch.Tensor | None = None
        # (R,), how many frames count, and whether the last does.
        self._counts: torch.Tensor | None = None
        self._last_counts: torch.Tensor | None = None

    def prompt(self, number: int, trace: Trace) -> None:
        """Keep a frame in which objects were pointed at, for good."""
        self._prompted[number] = trace

    def keep(self, trace: Trace, quality: torch.Tensor) -> None:
        """Keep a tracked frame, in place of the last one where that was not worth it.

        Args:
            trace: Of the frame.
            quality: (R,) in 0..1, how surely each object was seen in it.
        """
        is_added = self._last_counts
        if self._counts is None or is_added is None:
            self._counts, is_added = torch.ones_like(quality, dtype=torch.long), quality.new_ones(len(quality)).bool()
        else:
            self._counts = self._counts + is_added
        self.memories = _after(self.memories, trace.memory, self._counts, is_added, self._tracker.num_maskmem - 1)
        self.pointers = _after(self.pointers, trace.pointer, self._counts, is_added, self._reach - 1)
        self._last_counts = quality > self._worth

    def recall(self, coarse: torch.Tensor, position: torch.Tensor, number: int) -> torch.Tensor:
        """The features of a frame with what is remembered (`_prepare_memory_conditioned_features`).

        Args:
            coarse: (R, C, g, g).
            position: (g * g, 1, C).
            number: Of the frame.

        Returns:
            (R, C, g, g).
        """
        count, channels, grid, _ = coarse.shape
        chosen = _closest(self._prompted, number, self._tracker.config.max_cond_frame_num)
        memories = [(0, trace.memory) for trace in chosen.values()]
        memories += list(enumerate(() if self.memories is None else self.memories, 1))
        # The last of these encodings is for prompted frames.
        temporal = self._tracker.memory_temporal_positional_encoding
        positions = [(self._spatial + temporal[rank - 1]).expand(-1, count, -1) for rank, _ in memories]
        tokens, token_positions = self._pointer_tokens(number)
        conditioned = self._tracker.memory_attention(
            current_vision_features=coarse.flatten(2).permute(2, 0, 1),
            current_vision_position_embeddings=position,
            memory=torch.cat([*(memory.float() for _, memory in memories), tokens]),
            memory_posision_embeddings=torch.cat([*positions, token_positions]),
            num_object_pointer_tokens=len(tokens),
        )
        result: torch.Tensor = conditioned.reshape(count, grid, grid, channels).permute(0, 3, 1, 2)
        return result

    def _pointer_tokens(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pointers cut into tokens of the memory's width, and where they lie in time: (P * C / D, R, D) each."""
        pointed = [(number - index, trace.pointer) for index, trace in self._prompted.items() if index <= number]
        recent = enumerate(() if self.pointers is None else self.pointers, 1)
        ages, pointers = zip(*pointed, *recent, strict=True)
        stacked = torch.stack(pointers).float()
        width = self._tracker.mem_dim
        splits = stacked.shape[-1] // width
        share = torch.tensor(ages, dtype=torch.float32, device=stacked.device) / (self._reach - 1)
        sines = get_1d_sine_pe(share, dim=stacked.shape[-1])  # type: ignore[no-untyped-call]  # as transformers has it
        projected = self._tracker.temporal_positional_encoding_projection_layer(sines)[:, None].float()
        tokens = stacked.reshape(len(ages), -1, splits, width).permute(0, 2, 1, 3).flatten(0, 1)
        return tokens, projected.expand(-1, stacked.shape[1], -1).repeat_interleave(splits, dim=0)


def _spatial_positions(tracker: Any) -> torch.Tensor:
    """(g * g, 1, D), of every memory."""
    grid = tracker.prompt_encoder.image_embedding_size
    device = tracker.no_memory_embedding.device
    encoding: torch.Tensor = tracker.memory_encoder.position_encoding(
        (1, tracker.mem_dim, *grid), device, torch.float32
    )
    return encoding.flatten(2).permute(2, 0, 1)


def _after(
    before: torch.Tensor | None, new: torch.Tensor, counts: torch.Tensor, is_added: torch.Tensor, most: int
) -> torch.Tensor:
    """What is kept once a new one has come.

    Args:
        before: (K, ..., R, D), the newest first.
        new: (..., R, D).
        counts: (R,), how many are then different ones.
        is_added: (R,), whether the new one comes in front of the newest, or takes its place.
        most: How many are kept.
    """
    if before is None:
        return new[None]
    everything = torch.cat([new[None], before])
    rank = torch.arange(min(len(everything), most), device=new.device)[:, None].minimum(counts - 1)
    place = rank + ((rank > 0) & ~is_added)
    shape = (len(place), *[1] * (new.ndim - 2), -1, 1)
    return everything.gather(0, place.reshape(shape).expand(-1, *new.shape))


def _closest(prompted: dict[int, Trace], number: int, most: int) -> dict[int, Trace]:
    """`_select_closest_cond_frames`: the closest before, the closest after, and whichever else are close."""
    if most == -1 or len(prompted) <= most:
        return prompted
    first = [
        max((i for i in prompted if i < number), default=None),
        min((i for i in prompted if i >= number), default=None),
    ]
    chosen = [index for index in first if index is not None]
    others = sorted((index for index in prompted if index not in chosen), key=lambda index: abs(index - number))
    chosen += others[: most - len(chosen)]
    return {index: prompted[index] for index in chosen}
