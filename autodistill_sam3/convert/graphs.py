"""SAM 3 as four graphs that take and return tensors alone, for exporters.

vision encoder -> detector, text encoder -> detector, vision encoder -> box decoder. They run the functions of
`segmentation`, so that an exported graph equals the package's own engine; where such a function cannot be traced with a
free batch size, the modules behind it are called, and the reason stands there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from autodistill_sam3.segmentation.box_decoder import tracker_features
from autodistill_sam3.segmentation.detector import Prompts, detect, encode_texts, image_tokens
from autodistill_sam3.segmentation.vision import encode_images

if TYPE_CHECKING:
    from transformers import Sam3Model, Sam3VideoModel


@dataclass(frozen=True)
class Port:
    """An input or output of a graph.

    Attributes:
        name: Its name in the graph; an input is called as the output that feeds it.
        axes: Names of the leading axes whose sizes are free; all others are fixed.
        meaning: What it holds, in words.
    """

    name: str
    axes: tuple[str, ...]
    meaning: str


@dataclass(frozen=True, eq=False)
class Graph:
    """One graph: a module whose `forward` takes `inputs` in order and returns a tuple of `outputs`."""

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def build_graphs(model: Sam3VideoModel, *, with_boxes: bool = True) -> tuple[Graph, ...]:
    """The graphs of a model, in the order in which data flows; they share its weights.

    Args:
        model: The model.
        with_boxes: Whether to have the box decoder, and what it needs of the vision encoder. Without it the model's
            tracker is not touched and may be missing.
    """
    detector = model.detector_model
    graphs = [
        Graph(
            "vision_encoder",
            VisionEncoderGraph(model, with_boxes=with_boxes),
            (Port("pixel_values", ("batch",), "RGB images, resized and normalised as `preprocessing` says"),),
            (*_levels("batch"), *(_tracker_maps() if with_boxes else ())),
        ),
        Graph(
            "text_encoder",
            TextEncoderGraph(detector),
            (
                Port("input_ids", ("prompts",), "token ids, padded on the right"),
                Port("attention_mask", ("prompts",), "1 at tokens, 0 at padding"),
            ),
            _texts("prompts"),
        ),
        Graph("detector", DetectorGraph(detector), (*_levels("pairs"), *_texts("pairs")), _instances()),
    ]
    if with_boxes:
        graphs.append(_box_decoder(model))
    return tuple(graphs)


class VisionEncoderGraph(nn.Module):
    """(B, 3, S, S) pixels -> the detector's three levels, then the three maps of the box decoder."""

    def __init__(self, model: Sam3VideoModel, *, with_boxes: bool) -> None:
        super().__init__()
        self.model = model
        self.with_boxes = with_boxes

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        vision = encode_images(self.model.detector_model, pixel_values)
        if not self.with_boxes:
            return vision.levels
        tracker = tracker_features(self.model, vision)
        return (*vision.levels, tracker.image_embeddings, *tracker.high_resolution)


class TextEncoderGraph(nn.Module):
    """(P, T) token ids and attention mask -> (P, T, C) features and (P, T) `bool` mask."""

    def __init__(self, detector: Sam3Model) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        texts = encode_texts(self.detector, input_ids, attention_mask)
        return texts.features, texts.mask


class DetectorGraph(nn.Module):
    """N (image, prompt) pairs, image and text features already gathered -> all queries, with their masks.

    Returns logits (N, Q), presence logits (N,), boxes (N, Q, 4) and mask logits (N, Q, 4g, 4g).
    """

    def __init__(self, detector: Sam3Model) -> None:
        super().__init__()
        self.detector = detector
        # Position encodings do not depend on the image, so they are a constant of the graph.
        self.positions: torch.Tensor
        self.register_buffer("positions", _coarse_positions(detector), persistent=False)

    def forward(
        self,
        fine: torch.Tensor,
        middle: torch.Tensor,
        coarse: torch.Tensor,
        text_features: torch.Tensor,
        text_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        # Everything is gathered already, and an index would stay in the graph.
        everything = cast(torch.Tensor, slice(None))
        tokens = image_tokens(self.detector, coarse, self.positions)
        queries = detect(self.detector, everything, Prompts(text_features, text_mask), tokens)
        masks = self.detector.mask_decoder(
            decoder_queries=queries.hidden_states,
            backbone_features=[fine, middle, coarse],
            encoder_hidden_states=queries.encoder_hidden_states,
            prompt_features=queries.prompts.features,
            prompt_mask=queries.prompts.mask,
        ).pred_masks
        return queries.logits, queries.presence_logits, queries.boxes_xyxy, masks


class BoxDecoderGraph(nn.Module):
    """The tracker's maps of B images and their boxes (B, N, 4) in 0..1 -> mask logits (B, N, 4g, 4g) and IoU (B, N).

    The same as `segmentation.box_decoder.decode_boxes`, with each box as an image of its own: that function asks for
    `len()` of a tensor and the mask decoder repeats images by a free number, and both freeze the sizes when traced.
    """

    def __init__(self, model: Sam3VideoModel) -> None:
        super().__init__()
        self.tracker: Any = model.tracker_model
        self.positions: torch.Tensor
        self.register_buffer("positions", self.tracker.get_image_wide_positional_embeddings(), persistent=False)

    def forward(
        self, image_embeddings: torch.Tensor, fine: torch.Tensor, middle: torch.Tensor, boxes_xyxy: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch, count = boxes_xyxy.shape[:2]
        embeddings, fine, middle = (
            level.unsqueeze(1).expand(-1, count, -1, -1, -1).flatten(0, 1) for level in (image_embeddings, fine, middle)
        )
        sparse, dense = self.tracker.prompt_encoder(
            input_points=None,
            input_labels=None,
            input_boxes=boxes_xyxy.reshape(-1, 1, 4) * self.tracker.prompt_encoder.input_image_size,
            input_masks=None,
        )
        logits, iou, _, _ = self.tracker.mask_decoder(
            image_embeddings=embeddings,
            image_positional_embeddings=self.positions.expand(batch * count, -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
            high_resolution_features=[fine, middle],
        )
        return logits.reshape(batch, count, *logits.shape[-2:]), iou.reshape(batch, count)


def _coarse_positions(detector: Any) -> torch.Tensor:
    """(1, C, g, g) position encodings of the coarsest level."""
    backbone = detector.config.vision_config.backbone_config
    grid = backbone.image_size // backbone.patch_size
    encoding: torch.Tensor = detector.vision_encoder.neck.position_encoding(
        (1, 1, grid, grid), torch.device("cpu"), torch.float32
    )
    return encoding


def _levels(axis: str) -> tuple[Port, ...]:
    return tuple(
        Port(f"detector_{name}", (axis,), f"the detector's features, {factor} cells to each side of a patch")
        for name, factor in (("fine", 4), ("middle", 2), ("coarse", 1))
    )


def _tracker_maps() -> tuple[Port, ...]:
    return (
        Port("image_embeddings", ("batch",), "the box decoder's features, with the embedding of no memory added"),
        Port("high_resolution_fine", ("batch",), "the box decoder's features, 4 cells to each side of a patch"),
        Port("high_resolution_middle", ("batch",), "the box decoder's features, 2 cells to each side of a patch"),
    )


def _texts(axis: str) -> tuple[Port, ...]:
    return (
        Port("text_features", (axis,), "text embeddings in the detector's width"),
        Port("text_mask", (axis,), "true at tokens, false at padding"),
    )


def _instances() -> tuple[Port, ...]:
    return (
        Port("logits", ("pairs",), "per query; its score is sigmoid(logits) * sigmoid(presence_logits)"),
        Port("presence_logits", ("pairs",), "whether the image shows anything of the prompt"),
        Port("boxes_xyxy", ("pairs",), "left, top, right, bottom in 0..1 of the image, unclipped"),
        Port("mask_logits", ("pairs",), "per query, over the whole image; upsample bilinearly, a mask is where > 0"),
    )


def _box_decoder(model: Sam3VideoModel) -> Graph:
    boxes = Port("boxes_xyxy", ("batch", "boxes"), "left, top, right, bottom in 0..1 of the image; pad with anything")
    outputs = (
        Port("mask_logits", ("batch", "boxes"), "over the whole image; upsample bilinearly, a mask is where > 0"),
        Port("iou", ("batch", "boxes"), "predicted IoU of the mask, 0..1"),
    )
    return Graph("box_decoder", BoxDecoderGraph(model), (*_tracker_maps(), boxes), outputs)
