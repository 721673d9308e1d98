"""transformers' `Sam3Model` as its documentation and the model card show it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from autodistill_sam3.benchmark.engines.florence2_card import Florence2Card, fixed_boxes
from autodistill_sam3.benchmark.engines.reference import Found, stacked
from autodistill_sam3.benchmark.settings import Prompting, Settings, Work
from autodistill_sam3.errors import CheckpointError


class TransformersCard:
    """`Sam3Model` in fp32, one image at a time; its features are computed once, as the card does for several prompts.

    With "both", the ten boxes go through `Sam3TrackerModel` in one call, which has an image encoder of its own, and
    Florence-2 runs beside it.

    Args:
        settings: Name the folder in transformers layout.
        prompting: "both" loads the model for boxes as well.
        device: Such as "cuda".

    Raises:
        CheckpointError: There is no such folder.
    """

    def __init__(self, settings: Settings, prompting: Prompting, device: str) -> None:
        from transformers import Sam3Model, Sam3Processor, Sam3TrackerModel, Sam3TrackerProcessor

        if settings.sam3_folder is None:
            raise CheckpointError(f"transformers needs a folder in its layout, received {settings.checkpoint}")
        folder = settings.sam3_folder
        self._device = device
        # transformers wraps `to` untyped.
        self._model: Any = Sam3Model.from_pretrained(folder).to(device)  # type: ignore[arg-type]
        self._processor: Any = Sam3Processor.from_pretrained(folder)
        self._tracker: Any = None
        self._florence2 = None
        if prompting == "both":
            self._tracker = Sam3TrackerModel.from_pretrained(folder).to(device)  # type: ignore[arg-type]  # as above
            size = self._model.config.image_size
            self._tracker_processor: Any = Sam3TrackerProcessor(self._processor.image_processor, target_size=size)
            if settings.florence2 is not None:
                self._florence2 = Florence2Card(settings.florence2, device)

    @torch.no_grad()
    def segment(self, image: Image.Image, work: Work) -> Found:
        """Masks of all prompts, and with "both" of ten boxes, brought to the host."""
        if self._florence2 is not None:
            self._florence2.ask(image, work.prompts)
        pixels = self._processor(images=image, return_tensors="pt").to(self._device)
        vision = self._model.get_vision_features(pixel_values=pixels.pixel_values)
        sizes = pixels.get("original_sizes").tolist()
        parts = []
        for class_id, prompt in enumerate(work.prompts):
            text = self._processor(text=prompt, return_tensors="pt").to(self._device)
            outputs = self._model(vision_embeds=vision, **text)
            [found] = self._processor.post_process_instance_segmentation(
                outputs, threshold=work.threshold, mask_threshold=0.5, target_sizes=sizes
            )
            if len(found["scores"]):
                parts.append((class_id, found["masks"].cpu().numpy().astype(np.bool_), found["scores"].cpu().numpy()))
        if self._tracker is not None:
            parts.append((0, *self._boxes(image)))
        return stacked(parts, image)

    def _boxes(self, image: Image.Image) -> tuple[Any, Any]:
        boxes = fixed_boxes((image.height, image.width)).tolist()
        inputs = self._tracker_processor(images=image, input_boxes=[boxes], return_tensors="pt").to(self._device)
        outputs = self._tracker(**inputs, multimask_output=False)
        [masks] = self._tracker_processor.post_process_masks(outputs.pred_masks.cpu(), inputs["original_sizes"])
        return masks[:, 0].numpy().astype(np.bool_), outputs.iou_scores.flatten().float().cpu().numpy()
