"""Inputs to trace the graphs with and to compare them on: what the model itself makes of drawn pixels and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from autodistill_sam3.convert.graphs import Graph, Port
from autodistill_sam3.segmentation.transformers_segmenter import MAX_PROMPT_TOKENS

if TYPE_CHECKING:
    from transformers import Sam3VideoModel

_COUNT = 2
_BOXES = 4
_WORDS = (3, 9)


def sample_inputs(model: Sam3VideoModel, graphs: Sequence[Graph]) -> dict[str, tuple[torch.Tensor, ...]]:
    """Inputs of each graph, the same whenever it is called.

    Args:
        model: The model.
        graphs: Its graphs in the order in which data flows.

    Returns:
        By the graph's name, its inputs in order: two along the first axis, and four boxes.
    """
    generator = torch.Generator().manual_seed(0)
    config: Any = model.config.detector_config
    values = {
        "pixel_values": _pixels(config.image_size, generator),
        "input_ids": torch.randint(0, config.text_config.vocab_size, (_COUNT, MAX_PROMPT_TOKENS), generator=generator),
        "attention_mask": (torch.arange(MAX_PROMPT_TOKENS) < torch.tensor(_WORDS)[:, None]).long(),
        "boxes_xyxy": torch.rand(_COUNT, _BOXES, 2, 2, generator=generator).sort(dim=2).values.flatten(2),
    }
    needed = {port.name for graph in graphs for port in graph.inputs}
    for graph in graphs:
        if any(port.name in needed - values.keys() for port in graph.outputs):
            with torch.no_grad():
                outputs = graph.module(*(values[port.name] for port in graph.inputs))
            values |= dict(zip((port.name for port in graph.outputs), outputs, strict=True))
    return {graph.name: tuple(values[port.name] for port in graph.inputs) for graph in graphs}


def resized(
    ports: Sequence[Port], inputs: Sequence[torch.Tensor], sizes: Mapping[str, int]
) -> tuple[torch.Tensor, ...]:
    """Inputs with their free axes at these sizes: cut, or repeated from the start.

    Example:
        >>> [ids] = resized([Port("ids", ("prompts",), "")], [torch.tensor([[1, 2], [3, 4]])], {"prompts": 3})
        >>> ids.tolist()
        [[1, 2], [3, 4], [1, 2]]
    """
    return tuple(_resized(port, value, sizes) for port, value in zip(ports, inputs, strict=True))


def _resized(port: Port, value: torch.Tensor, sizes: Mapping[str, int]) -> torch.Tensor:
    for axis, name in enumerate(port.axes):
        rows = torch.arange(sizes[name]) % value.shape[axis]
        value = value.index_select(axis, rows)
    return value


def _pixels(size: int, generator: torch.Generator) -> torch.Tensor:
    """Soft blotches of colour with some noise, in -1..1 like preprocessed images."""
    blotches = F.interpolate(torch.rand(_COUNT, 3, 8, 8, generator=generator), (size, size), mode="bicubic")
    noise = 0.1 * torch.randn(_COUNT, 3, size, size, generator=generator)
    return (2 * blotches - 1 + noise).clamp(-1, 1)
