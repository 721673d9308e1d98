"""What the models see in frames, before any tracking: ViT features, detections by text, masks of proposed boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autodistill_sam3.images import RGBImage
from autodistill_sam3.instances import Boxes
from autodistill_sam3.segmentation.logits import MaskLogits
from autodistill_sam3.segmentation.memory import FrameMaps, MemoryTracker
from autodistill_sam3.segmentation.transformers_segmenter import TransformersSegmenter
from autodistill_sam3.video.association import Found, TrackingRules, suppress_duplicates
from autodistill_sam3.video.clip import Frame
from autodistill_sam3.video.masks import mask_iou

# A box and a text detection, or a box and a track, with this IoU show one object, as in images (fusion.py).
SAME_OBJECT_IOU = 0.5
DEFAULT_EVERY = 10


@dataclass(frozen=True)
class Detecting:
    """What is looked for, and how.

    Attributes:
        prompts: Text prompts; nothing is detected without.
        class_of_prompt: For each text prompt, its class id.
        min_scores: For each text prompt, what a detection must exceed.
        retry_scores: The same for frames in which nothing is seen with those; None to leave such frames empty.
        use_text: Whether SAM 3 looks for the prompts itself.
        propose: Boxes for images, those that are worth a mask; None for text alone.
        propose_every: Frames from one to the next for which boxes are asked.
    """

    prompts: tuple[str, ...] = ()
    class_of_prompt: tuple[int, ...] = ()
    min_scores: tuple[float, ...] = ()
    retry_scores: tuple[float, ...] | None = None
    use_text: bool = True
    propose: Callable[[Sequence[RGBImage]], list[Boxes]] | None = None
    propose_every: int = DEFAULT_EVERY


class Seen(NamedTuple):
    """What the models say of one frame."""

    frame: Frame
    maps: FrameMaps
    text: MaskLogits
    boxes: MaskLogits


@dataclass(frozen=True, eq=False)
class Detections:
    """What was detected in a frame, without duplicates.

    Attributes:
        masks: Logits, scores and prompts.
        found: What tracks are held against.
        source: (D,) text, "text", "boxes" or "both".
    """

    masks: MaskLogits
    found: Found
    source: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.masks)


@dataclass(frozen=True, eq=False)
class FrameViewer:
    """The models that know no time, and whose frames they see.

    Attributes:
        segmenter: SAM 3's image half.
        tracker: Its other half, on the same ViT features.
    """

    segmenter: TransformersSegmenter
    tracker: MemoryTracker

    @property
    def is_on_gpu(self) -> bool:
        """Whether batches of frames pay."""
        return self.segmenter.device.type != "cpu"

    def see(self, frames: Sequence[Frame], detecting: Detecting) -> list[Seen]:
        """What the models say of frames, as one batch."""
        images = [frame.image for frame in frames]
        features = self.segmenter.encode(images)
        nothing = MaskLogits.empty(self.segmenter.mask_side, self.segmenter.device)
        texts, boxed = [nothing] * len(frames), [nothing] * len(frames)
        if detecting.prompts and detecting.use_text:
            texts = self.segmenter.detect(features, detecting.prompts, detecting.retry_scores or detecting.min_scores)
        key = [place for place, frame in enumerate(frames) if frame.index % detecting.propose_every == 0]
        if detecting.prompts and detecting.propose is not None and key:
            boxes = [Boxes.empty()] * len(frames)
            for place, found in zip(key, detecting.propose([images[place] for place in key]), strict=True):
                boxes[place] = found
            boxed = self.segmenter.detect_boxes(features, boxes)
        maps = self.tracker.maps(features.vision)
        return [Seen(*part) for part in zip(frames, maps, texts, boxed, strict=True)]


def detections_of(seen: Seen, detecting: Detecting, rules: TrackingRules, *, retry: bool) -> Detections:
    """What a frame's tracks are held against.

    Args:
        seen: The frame.
        detecting: Whose thresholds count.
        rules: The numbers.
        retry: Whether the lower thresholds count.
    """
    minima = detecting.retry_scores if retry and detecting.retry_scores else detecting.min_scores
    classes = np.array(detecting.class_of_prompt, dtype=np.int64)
    floor = np.array(minima, dtype=np.float32)
    above = seen.text.scores > floor[seen.text.prompt_index] if len(seen.text) else np.zeros(0, dtype=bool)
    text = _distinct(seen.text.select(np.flatnonzero(above)), classes, rules.nms_iou)
    boxes = _distinct(seen.boxes, classes, SAME_OBJECT_IOU)
    begins = np.where(retry, floor, np.maximum(floor, rules.new_confidence)).astype(np.float32)
    text, alone, source = _paired(text, boxes, classes)
    boxes = boxes.select(alone)
    masks = MaskLogits.join([text, boxes])
    # Boxes that are not worth a mask were left out before.
    confidence = np.concatenate([begins[text.prompt_index], np.zeros(len(boxes), np.float32)])
    iou = np.repeat([rules.new_iou, SAME_OBJECT_IOU], [len(text), len(boxes)]).astype(np.float32)
    found = Found(masks.scores, classes[masks.prompt_index], confidence, iou)
    return Detections(masks, found, np.concatenate([source, np.full(len(boxes), "boxes")]).astype("<U6"))


def _distinct(masks: MaskLogits, classes: npt.NDArray[np.int64], limit: float) -> MaskLogits:
    """Without duplicates within a class, and without empty masks."""
    if not len(masks):
        return masks
    positive = masks.logits > 0
    filled = np.flatnonzero(positive.flatten(1).any(1).cpu().numpy())
    masks, positive = masks.select(filled), positive[filled]
    kept = suppress_duplicates(mask_iou(positive, positive), masks.scores, classes[masks.prompt_index], limit)
    return masks.select(kept)


def _paired(
    text: MaskLogits, boxes: MaskLogits, classes: npt.NDArray[np.int64]
) -> tuple[MaskLogits, npt.NDArray[np.int64], npt.NDArray[np.str_]]:
    """Text detections, surer where a box shows the same object; the boxes that no text detection shows; sources."""
    source, scores = np.full(len(text), "text", dtype="<U6"), text.scores.copy()
    iou = mask_iou(boxes.logits > 0, text.logits > 0)
    iou = np.where(classes[boxes.prompt_index][:, None] == classes[text.prompt_index][None], iou, 0)
    alone = []
    for index, row in enumerate(iou):
        if len(row) and row.max() >= SAME_OBJECT_IOU:
            best = int(row.argmax())
            source[best] = "both"
            scores[best] = 1 - (1 - scores[best]) * (1 - boxes.scores[index])
        else:
            alone.append(index)
    return MaskLogits(text.logits, scores, text.prompt_index), np.array(alone, dtype=np.int64), source
