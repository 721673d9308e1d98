"""Held-out scenes -> what the package's public API answers, matched with the truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import supervision as sv

from autodistill_sam3.base_models import GroundedSAM3
from autodistill_sam3.instances import Boxes, Instances, compact_masks
from autodistill_sam3.ontology import PromptPairs
from autodistill_sam3.training.held_out import HeldOutScene, SceneKey
from autodistill_sam3.training.matching import Match, box_overlaps, mask_overlaps, match_scene

BOX_JITTER = 0.05


@dataclass(frozen=True, eq=False)
class Answer:
    """What one way of prompting found in one scene.

    Attributes:
        key: Of the scene.
        detections: `class_id` counts in the scene's prompts; masks are compact, and None for boxes alone.
        matches: One per prompt.
    """

    key: SceneKey
    detections: sv.Detections
    matches: tuple[Match, ...]


@dataclass(frozen=True, eq=False)
class BoxAnswer:
    """The masks of box prompts in one scene, one prompt for each of the N objects that count.

    Attributes:
        key: Of the scene.
        boxes: The jittered boxes; `prompt_index` counts in `HeldOutScene.objects`.
        instances: What came back, under the same `prompt_index`; scores are predicted IoU.
        iou: (N,) with the object, 0 where nothing came back.
        predicted_iou: (N,), NaN where nothing came back.
    """

    key: SceneKey
    boxes: Boxes
    instances: Instances
    iou: npt.NDArray[np.floating]
    predicted_iou: npt.NDArray[np.floating]


def ask(model: GroundedSAM3, scene: HeldOutScene) -> Answer:
    """The pipeline's answer to a scene's prompts, each of them a class of its own."""
    model.set_ontology(PromptPairs(tuple((text, text) for text in scene.texts)))
    detections = model.predict(scene.image[..., ::-1])
    masks = np.asarray(detections.mask)
    matches = match_scene(scene, *_scores_and_prompts(detections), *mask_overlaps(masks, scene.masks))
    detections.mask = compact_masks([(mask, 0, 0) for mask in masks], scene.image.shape[:2])
    return Answer(scene.key, detections, matches)


def ask_florence2(model: GroundedSAM3, scene: HeldOutScene) -> Answer:
    """All of Florence-2's boxes for a scene's prompts, matched by box IoU."""
    assert model.grounder is not None, "prompting='text' loads no Florence-2"
    [boxes] = model.grounder.ground([scene.image], scene.texts)
    detections = sv.Detections(boxes.xyxy, confidence=boxes.scores, class_id=boxes.prompt_index)
    overlaps = box_overlaps(boxes.xyxy, scene.boxes_xyxy)
    return Answer(scene.key, detections, match_scene(scene, *_scores_and_prompts(detections), *overlaps))


def _scores_and_prompts(detections: sv.Detections) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.int64]]:
    assert detections.confidence is not None
    assert detections.class_id is not None
    return detections.confidence, detections.class_id.astype(np.int64)


def prompt_with_boxes(model: GroundedSAM3, scene: HeldOutScene) -> BoxAnswer:
    """Prompt the segmenter with a jittered box of every object that counts."""
    boxes = jittered_boxes(scene)
    [instances] = model.segmenter.segment_boxes(model.segmenter.encode([scene.image]), [boxes])
    # One row per object; where nothing came back, it stays empty.
    row = np.searchsorted(boxes.prompt_index, instances.prompt_index)
    masks = np.zeros((len(boxes), *scene.image.shape[:2]), dtype=bool)
    predicted = np.full(len(boxes), np.nan)
    masks[row], predicted[row] = instances.masks.to_dense(), instances.scores
    iou, _ = mask_overlaps(masks, scene.masks[boxes.prompt_index])
    return BoxAnswer(scene.key, boxes, instances, np.diagonal(iou), predicted)


def jittered_boxes(scene: HeldOutScene) -> Boxes:
    """Boxes of the objects that count, each side moved by up to 5 % of the box's width or height."""
    rng = np.random.default_rng([scene.key.seed, 4])
    xyxy = scene.boxes_xyxy[scene.clear]
    size = np.tile(xyxy[:, 2:] - xyxy[:, :2], 2)
    moved = xyxy + rng.uniform(-BOX_JITTER, BOX_JITTER, xyxy.shape) * size
    height, width = scene.image.shape[:2]
    inside = np.clip(moved, 0, [width, height, width, height]).astype(np.float32)
    return Boxes(inside, np.ones(len(xyxy), dtype=np.float32), scene.clear)


def matches_of(answers: Iterable[Answer], threshold: float = 0.0) -> list[Match]:
    """The matches of all scenes and prompts, in order, of detections that score at least `threshold`."""
    return [match.above(threshold) for answer in answers for match in answer.matches]
