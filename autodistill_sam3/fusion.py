"""Box-prompted and text-prompted instances of one image -> `sv.Detections`.

Class ids are assigned here and nowhere else. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import supervision as sv
from supervision.detection.utils.iou_and_nms import compact_mask_iou_batch

from autodistill_sam3.conflicts import add_removed, greatest_iou
from autodistill_sam3.instances import Boxes, Instances, tight_xyxy
from autodistill_sam3.ontology import PromptTable
from autodistill_sam3.thresholds import Thresholds

SAME_OBJECT_IOU = 0.5


def text_floor(thresholds: Thresholds, table: PromptTable, *, fused: bool) -> list[float]:
    """Per prompt, the score below which text instances are not looked at.

    Text alone must reach its threshold. A box and a text instance can reach it together when neither half does, so with
    `fused` the floor is half of `confidence`, or of the value for the class where that is lower. Text below is left out
    all the same: its masks would cost more than the rare pair is worth.
    """
    names = [table.classes[class_id] for class_id in table.class_of_prompt]
    return [0.5 * thresholds.before_pairing(name)[0] if fused else thresholds.for_text(name) for name in names]


def fuse(
    text: Instances | None,
    boxes: Instances | None,
    table: PromptTable,
    thresholds: Thresholds,
    presence: npt.NDArray[np.float32] | None = None,
) -> sv.Detections:
    """Combine what text and boxes found.

    Instances of one class whose masks have an IoU of 0.5 or more are one object, whatever prompts found them. A text
    and a box instance of one object become a detection with the higher-scoring mask and confidence 1 - (1 - a)(1 - b),
    if that reaches the threshold; a single keeps its own confidence. A threshold above the default for a class takes
    away the detections below it, and changes no other: text and boxes are paired as without it. Text never vetoes a
    box: the presence of the prompt scales the confidence of what boxes alone found, by (1 + presence) / 2, so that a
    good box stands against a text that sees nothing, and a poor one does not.

    Args:
        text: Instances from text prompts, or None if none were asked for.
        boxes: Instances from box prompts, or None.
        table: The prompts that `prompt_index` counts in, and their classes.
        thresholds: What is kept.
        presence: (P,) in 0..1 from the text pass, or None.

    Returns:
        Detections sorted by falling confidence: tight `xyxy`, `mask` (a `CompactMask`), `confidence`, `class_id`, and
        in `data` the `class_name`, the `prompt` and the `source` ("text", "boxes" or "both") of each. What reached its
        threshold and was dropped as a duplicate is counted under "same_class" (see :func:`removed_counts`); a text and
        a box instance that become one detection are none.
    """
    either = text if text is not None else boxes
    if either is None:
        raise ValueError("fuse() needs instances from text, from boxes, or from both")
    image_hw = either.masks.image_shape
    found: list[_Candidate] = []
    dropped = 0
    text_classes = table.class_ids(text.prompt_index) if text is not None else None
    box_classes = table.class_ids(boxes.prompt_index) if boxes is not None else None
    for class_id, name in enumerate(table.classes):
        text_part = _of_class(text, text_classes, class_id, image_hw)
        box_part = _of_class(boxes, box_classes, class_id, image_hw)
        minima, floors = (thresholds.for_text(name), thresholds.for_boxes(name)), thresholds.before_pairing(name)
        box_part = box_part.select(box_part.scores >= floors[1])
        (texts, fewer_texts), (rest, fewer_boxes) = (
            _without_duplicates(part, minimum) for part, minimum in zip((text_part, box_part), minima, strict=True)
        )
        candidates = [item for item in _fuse_class(texts, rest, floors, presence) if item.reaches(*minima)]
        kept = _distinct([candidate.mask for candidate in candidates])
        found += [candidates[index] for index in kept]
        dropped += fewer_texts + fewer_boxes + len(candidates) - len(kept)
    found.sort(key=lambda candidate: -candidate.confidence)
    detections = _to_detections(found, table, image_hw)
    add_removed(detections, "same_class", dropped)
    return detections


class Found(NamedTuple):
    """What the models found in one image, for :func:`fuse`: instances from text and from boxes, and the presence."""

    text: Instances | None = None
    boxes: Instances | None = None
    presence: npt.NDArray[np.float32] | None = None


def fuse_found(found: Found, table: PromptTable, thresholds: Thresholds) -> sv.Detections:
    """:func:`fuse` of one image, with the arguments in the order in which a run has them."""
    return fuse(found.text, found.boxes, table, thresholds, found.presence)


def boxes_to_detections(boxes: Boxes, table: PromptTable, thresholds: Thresholds) -> sv.Detections:
    """Boxes alone, without masks, sorted by falling confidence; those below the threshold for boxes are dropped."""
    order = np.argsort(-boxes.scores, kind="stable")
    kept = order[boxes.scores[order] >= thresholds.box_confidence]
    prompts, class_id = boxes.prompt_index[kept], table.class_ids(boxes.prompt_index[kept])
    return sv.Detections(
        xyxy=boxes.xyxy[kept],
        confidence=boxes.scores[kept],
        class_id=class_id,
        data={
            "class_name": np.array(table.classes, dtype=np.str_)[class_id],
            "prompt": np.array(table.prompts, dtype=np.str_)[prompts],
            "source": np.full(len(kept), "boxes", dtype="<U5"),
        },
    )


@dataclass(frozen=True)
class _Candidate:
    mask: sv.CompactMask
    prompt: int
    source: str
    confidence: float

    def reaches(self, minimum: float, box_minimum: float) -> bool:
        # In the precision that confidences have in detections, on which thresholds are learned.
        return bool(np.float32(self.confidence) >= np.float32(box_minimum if self.source == "boxes" else minimum))


def _fuse_class(
    text: Instances, boxes: Instances, floors: tuple[float, float], presence: npt.NDArray[np.float32] | None
) -> list[_Candidate]:
    minimum, box_minimum = floors
    iou = compact_mask_iou_batch(text.masks, boxes.masks)
    partner = _match(iou, text.scores, boxes.scores, minimum)
    found = []
    for index, score in enumerate(text.scores):
        if index in partner:
            other = partner[index]
            better = text.select([index]) if score >= boxes.scores[other] else boxes.select([other])
            fused = 1 - (1 - float(score)) * (1 - float(boxes.scores[other]))
            found.append(_Candidate(better.masks, int(better.prompt_index[0]), "both", fused))
        elif score >= minimum:
            found.append(_Candidate(text.masks[[index]], int(text.prompt_index[index]), "text", float(score)))
    for index in sorted(set(range(len(boxes))) - set(partner.values())):
        prompt = int(boxes.prompt_index[index])
        scale = 1.0 if presence is None else (1 + float(presence[prompt])) / 2
        # Still float32, as where the boxes were first held against the threshold.
        confidence = boxes.scores[index] * scale
        if confidence >= box_minimum:
            found.append(_Candidate(boxes.masks[[index]], prompt, "boxes", float(confidence)))
    # A mask that was taken over from a partner may lie on a third instance: the caller keeps the distinct ones.
    return sorted(found, key=lambda candidate: -candidate.confidence)


def _match(
    iou: npt.NDArray[np.floating],
    text_scores: npt.NDArray[np.float32],
    box_scores: npt.NDArray[np.float32],
    minimum: float,
) -> dict[int, int]:
    """Pairs (text, box) of one object, each used once, best overlap first, that reach `minimum` together."""
    fused = 1 - (1 - text_scores[:, None].astype(np.float64)) * (1 - box_scores[None, :])
    pairs = np.argwhere((iou >= SAME_OBJECT_IOU) & (fused >= minimum))
    partner: dict[int, int] = {}
    for text_index, box_index in sorted(pairs.tolist(), key=lambda pair: -iou[pair[0], pair[1]]):
        if text_index not in partner and box_index not in partner.values():
            partner[text_index] = box_index
    return partner


def _without_duplicates(instances: Instances, minimum: float) -> tuple[Instances, int]:
    """Of instances of one class that overlap, the one with the highest score; and how many others reach `minimum`."""
    order = np.argsort(-instances.scores, kind="stable")
    ranked = instances.select(order)
    distinct = ranked.select(_distinct([ranked.masks[[index]] for index in range(len(ranked))]))
    return distinct, int((ranked.scores >= minimum).sum() - (distinct.scores >= minimum).sum())


def _distinct(masks: list[sv.CompactMask]) -> list[int]:
    """Positions of the masks that do not show the same object as an earlier one."""
    if not masks:
        return []
    merged = sv.CompactMask.merge(masks)
    boxes, areas = tight_xyxy(merged).astype(np.int64), merged.area
    is_free = np.ones(len(masks), dtype=bool)
    kept: list[int] = []
    for index in range(len(masks)):
        if not is_free[index]:
            continue
        kept.append(index)
        # Only with those that are kept: many copies of one object would else be compared with each other.
        later = np.flatnonzero(is_free[index + 1 :]) + index + 1
        near = later[greatest_iou(boxes, areas, index, later) >= SAME_OBJECT_IOU]
        if len(near):
            iou = compact_mask_iou_batch(merged[[index]], merged[near])[0]
            is_free[near] = iou < SAME_OBJECT_IOU
    return kept


def _of_class(
    instances: Instances | None, class_ids: npt.NDArray[np.int64] | None, class_id: int, image_hw: tuple[int, int]
) -> Instances:
    if instances is None or class_ids is None:
        return Instances.empty(image_hw, "text")
    return instances.select(class_ids == class_id)


def _to_detections(found: list[_Candidate], table: PromptTable, image_hw: tuple[int, int]) -> sv.Detections:
    prompt_index = np.array([candidate.prompt for candidate in found], dtype=np.int64)
    class_id = table.class_ids(prompt_index)
    empty = Instances.empty(image_hw, "text").masks
    masks = sv.CompactMask.merge([candidate.mask for candidate in found]) if found else empty
    return sv.Detections(
        xyxy=tight_xyxy(masks),
        mask=masks,
        confidence=np.array([candidate.confidence for candidate in found], dtype=np.float32),
        class_id=class_id,
        data={
            "class_name": np.array([table.classes[index] for index in class_id], dtype=np.str_),
            "prompt": np.array([table.prompts[index] for index in prompt_index], dtype=np.str_),
            "source": np.array([candidate.source for candidate in found], dtype=np.str_),
        },
    )
