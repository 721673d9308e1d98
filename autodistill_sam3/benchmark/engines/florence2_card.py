"""Florence-2 as its model card on the hub and transformers' documentation show it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from autodistill_sam3.benchmark.settings import BOXES_PER_IMAGE, FLORENCE2_TOKENS

TASK = "<CAPTION_TO_PHRASE_GROUNDING>"
_BEAMS = 3


class Florence2Card:
    """One image and one phrase a call, three beams, bf16 on a GPU; 64 tokens where the card allows 1,024.

    Args:
        folder: In transformers layout.
        device: Such as "cuda".
    """

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoProcessor, Florence2ForConditionalGeneration

        self._device = device
        self._dtype = torch.float32 if device == "cpu" else torch.bfloat16
        load_model: Any = Florence2ForConditionalGeneration.from_pretrained
        load_processor: Any = AutoProcessor.from_pretrained
        self._model: Any = load_model(folder, dtype=self._dtype).to(device)
        self._processor: Any = load_processor(folder)

    def ask(self, image: Image.Image, prompts: Sequence[str]) -> None:
        """Answers to all prompts, parsed and dropped: random weights give no boxes."""
        for prompt in prompts:
            inputs = self._processor(text=TASK + prompt, images=image, return_tensors="pt")
            inputs = inputs.to(self._device, self._dtype)
            ids = self._model.generate(**inputs, max_new_tokens=FLORENCE2_TOKENS, num_beams=_BEAMS)
            [text] = self._processor.batch_decode(ids, skip_special_tokens=False)
            # The small bundled checkpoint says nothing of parsing.
            if self._processor.post_processor_config is not None:
                self._processor.post_process_generation(text, task=TASK, image_size=image.size)


def fixed_boxes(image_hw: tuple[int, int]) -> npt.NDArray[np.float32]:
    """The boxes that stand in for Florence-2's, the same for all engines.

    Returns:
        (10, 4) ``float32``, xyxy in pixels.

    Example:
        >>> boxes = fixed_boxes((960, 1280))
        >>> len(boxes), bool((boxes[:, 2:] > boxes[:, :2]).all())
        (10, True)
    """
    rng = np.random.default_rng(3)
    centres, halves = rng.uniform(0.2, 0.8, (BOXES_PER_IMAGE, 2)), rng.uniform(0.05, 0.15, (BOXES_PER_IMAGE, 2))
    height, width = image_hw
    corners = np.concatenate([centres - halves, centres + halves], axis=1) * [width, height, width, height]
    return corners.astype(np.float32)
