"""The two prompts on plain transformers modules, each term that is easily forgotten behind a switch.

Independent of the package's engine: says whether a deviation is of the engine or of the converted weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Sam3VideoModel

Array = npt.NDArray[Any]

_NO_BOX = -10


@dataclass(frozen=True, eq=False)
class RawOutput:
    """Arrays of one forward pass by name, as in the official outputs."""

    arrays: dict[str, Array]

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]


@torch.inference_mode()
def encode(model: Sam3VideoModel, image: Array) -> Any:
    """ViT and detector neck for an RGB ``uint8`` image."""
    from transformers import Sam3ImageProcessor

    processor: Any = Sam3ImageProcessor(size={"height": 1008, "width": 1008})
    detector: Any = model.detector_model
    return detector.get_vision_features(processor(images=[image], return_tensors="pt")["pixel_values"])


@torch.inference_mode()
def text_prompt(
    model: Sam3VideoModel, tokenizer: PreTrainedTokenizerBase, vision: Any, prompt: str, *, geometry_token: bool = True
) -> RawOutput:
    """Detector outputs for one prompt; without `geometry_token`, what `Sam3Model` does by itself."""
    tokens = tokenizer([prompt], padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    no_boxes: dict[str, torch.Tensor] = {}
    if geometry_token:
        labels = torch.full((1, 1), _NO_BOX)
        no_boxes = {"input_boxes": torch.zeros(1, 1, 4), "input_boxes_labels": labels}
    output: Any = model.detector_model(
        vision_embeds=vision, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], **no_boxes
    )
    return RawOutput(
        {
            "logits": output.pred_logits[0].numpy(),
            "presence_logit": output.presence_logits[0, 0].numpy(),
            "boxes_xyxy": output.pred_boxes[0].numpy(),
            "mask_logits": output.pred_masks[0].numpy(),
        }
    )


@torch.inference_mode()
def box_prompt(
    model: Sam3VideoModel, vision: Any, image_hw: tuple[int, int], boxes_xyxy: Array, *, no_memory: bool = True
) -> RawOutput:
    """Tracker outputs for (N, 4) boxes in pixels; without `no_memory`, what `Sam3TrackerModel` does by itself."""
    tracker: Any = model.tracker_model
    levels, _ = model.get_vision_features_for_tracker(vision)
    if no_memory:
        levels[-1] = levels[-1] + tracker.no_memory_embedding
    grid = tracker.prompt_encoder.image_embedding_size[0]
    sizes = (4 * grid, 2 * grid, grid)
    maps = [level.permute(1, 2, 0).unflatten(2, (size, size)) for level, size in zip(levels, sizes, strict=True)]
    height, width = image_hw
    scale = np.array([width, height, width, height], dtype=np.float32) / 1008
    sparse, dense = tracker.prompt_encoder(
        input_points=None,
        input_labels=None,
        input_boxes=torch.from_numpy((boxes_xyxy / scale).astype(np.float32))[None],
        input_masks=None,
    )
    mask_logits, iou, _, _ = tracker.mask_decoder(
        image_embeddings=maps[2],
        image_positional_embeddings=tracker.get_image_wide_positional_embeddings(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
        high_resolution_features=maps[:2],
    )
    return RawOutput({"mask_logits": mask_logits[0, :, 0].numpy(), "iou": iou[0, :, 0].numpy()})
