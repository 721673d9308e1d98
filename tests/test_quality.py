"""The shapes checkpoints do what they are for, on scenes they have not seen.

The limits stand slightly below models/shapes/README.md. A pipeline that ignored the text, the boxes, the presence score
or Florence-2 fails here; the last tests take each away and show it.
"""

from __future__ import annotations

import numpy as np
import pytest
import supervision as sv
import torch
from autodistill.detection import CaptionOntology
from scenes import held_out_scenes

from autodistill_sam3 import GroundedSAM3
from autodistill_sam3.evaluation import evaluate_detections
from autodistill_sam3.instances import Boxes
from autodistill_sam3.training.batches import normalise, object_masks, realise
from autodistill_sam3.training.box_decoder import points_inside, run_box_decoder
from autodistill_sam3.training.configs import IMAGE_SIZE
from autodistill_sam3.training.detector import PIXEL_MEAN, PIXEL_STD
from autodistill_sam3.training.scenes import MIN_VISIBLE
from autodistill_sam3.training.validation import held_out_plans


def truth_of(scene):
    masks = np.concatenate([scene.masks(index) for index in range(len(scene.prompts))])
    class_id = np.concatenate([np.full(len(items), index) for index, items in enumerate(scene.objects)])
    return sv.Detections(xyxy=sv.mask_to_xyxy(masks).astype(float), mask=masks, class_id=class_id.astype(int))


def score(prompting, change=lambda model: None, scenes=None):
    """Scores at mask IoU 0.5 over all scenes, each with its own four prompts."""
    # Prompts of a scene may ask for the same objects, such as "red circle" and "circle", and both are right.
    model = GroundedSAM3(
        CaptionOntology({"star": "star"}), checkpoint="shapes", prompting=prompting, overlapping_classes="keep",
        device="cpu",
    )  # fmt: skip
    change(model)
    predicted, truth = {}, {}
    for index, scene in enumerate(scenes or held_out_scenes()):
        model.set_ontology(CaptionOntology({prompt: prompt for prompt in scene.prompts}))
        predicted[str(index)] = model.predict(scene.image[..., ::-1])
        truth[str(index)] = truth_of(scene)
    return evaluate_detections(predicted, truth, ["a", "b", "c", "d"])[-1]


def test_text():
    result = score("text")
    assert result.f1 >= 0.95
    assert result.mean_iou >= 0.88


def test_boxes_alone():
    result = score("boxes")
    assert result.recall >= 0.85
    assert result.f1 >= 0.9


@pytest.mark.parametrize("count", [6, pytest.param(None, marks=pytest.mark.slow)])
def test_both(count):
    scenes = held_out_scenes()[:count]
    assert score("both", scenes=scenes).f1 >= score("text", scenes=scenes).f1 - 0.02


@pytest.fixture(scope="module")
def features(shapes_segmenter):
    """Of each scene."""
    return [shapes_segmenter.encode([scene.image]) for scene in held_out_scenes()]


@pytest.fixture(scope="module")
def text_instances(shapes_segmenter, features):
    """Of each scene, also unsure ones."""
    pairs = zip(held_out_scenes(), features, strict=True)
    results = [shapes_segmenter.segment_text(seen, scene.prompts, [0.1] * 4) for scene, seen in pairs]
    return [result.instances for [result] in results]


def test_absent_prompts_find_little(text_instances):
    false_alarms, asked = 0, 0
    for scene, instances in zip(held_out_scenes(), text_instances, strict=True):
        absent = [index for index, items in enumerate(scene.objects) if not items]
        found = set(instances.prompt_index[instances.scores > 0.5].tolist())
        asked += len(absent)
        false_alarms += len(found & set(absent))
    assert false_alarms / asked <= 0.03


def box_iou(shapes_segmenter, features, change=lambda xyxy: xyxy):
    """Mean mask IoU of box prompts, each box jittered by up to 5 % of its size."""
    rng = np.random.default_rng(0)
    values = []
    for scene, seen in zip(held_out_scenes(), features, strict=True):
        truth = truth_of(scene)
        size = np.tile(truth.xyxy[:, 2:] + 1 - truth.xyxy[:, :2], 2)
        xyxy = truth.xyxy + [0, 0, 1, 1] + rng.uniform(-0.05, 0.05, truth.xyxy.shape) * size
        count = len(xyxy)
        boxes = Boxes(change(xyxy).astype(np.float32), np.ones(count, np.float32), np.arange(count))
        [found] = shapes_segmenter.segment_boxes(seen, [boxes])
        masks = np.zeros(truth.mask.shape, bool)
        masks[found.prompt_index] = found.masks.to_dense()
        values += [(mask & true).sum() / (mask | true).sum() for mask, true in zip(masks, truth.mask, strict=True)]
    return float(np.mean(values))


def test_box_prompts(shapes_segmenter, features):
    assert box_iou(shapes_segmenter, features) >= 0.86


def test_unknown_words_find_nothing(shapes_segmenter, shapes_grounder, features):
    words = ["zebra", "a red car", "qwopx"]
    found = asked = 0
    for scene, seen in zip(held_out_scenes()[:20], features[:20], strict=True):
        [text] = shapes_segmenter.segment_text(seen, words, [0.5] * len(words))
        [boxes] = shapes_grounder.ground([scene.image], words)
        found += len(set(text.instances.prompt_index)) + len(set(boxes.prompt_index))
        asked += 2 * len(words)
    assert found / asked <= 0.05


def test_one_point_is_enough_for_most_objects(shapes_segmenter):
    model = shapes_segmenter._model
    generator = torch.Generator().manual_seed(0)
    overlaps = []
    for plan in held_out_plans(32):
        batch = realise(plan, IMAGE_SIZE, torch.device("cpu"))
        points = points_inside(batch.scenes, generator)
        with torch.inference_mode():
            logits, _ = run_box_decoder(model, normalise(batch.scenes.images, PIXEL_MEAN, PIXEL_STD), None, points)
        rows, slots = (batch.scenes.visible >= MIN_VISIBLE).nonzero(as_tuple=True)
        truth = object_masks(batch.scenes, rows, slots, logits.shape[-1]) > 0
        masks = logits[rows, slots, 0] > 0
        overlaps.append((masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2)))
    assert torch.cat(overlaps).mean() >= 0.85


def test_florence_recall(shapes_grounder):
    found, total = 0, 0
    for scene in held_out_scenes():
        [boxes] = shapes_grounder.ground([scene.image], scene.prompts)
        for index, items in enumerate(scene.objects):
            own = boxes.xyxy[boxes.prompt_index == index]
            truth = np.array([item.box_xyxy for item in items], float).reshape(-1, 4)
            total += len(truth)
            if len(own) and len(truth):
                found += int((sv.box_iou_batch(truth, own).max(axis=1) >= 0.5).sum())
    assert found / total >= 0.85


def test_confidence_tells_right_from_wrong(text_instances):
    right = {"sure": [], "unsure": []}
    for scene, instances in zip(held_out_scenes(), text_instances, strict=True):
        for mask, value, prompt in zip(instances.masks, instances.scores, instances.prompt_index, strict=True):
            overlaps = [(mask & true).sum() / (mask | true).sum() for true in scene.masks(prompt)]
            kind = "sure" if value >= 0.5 else "unsure" if value < 0.3 else None
            if kind:
                right[kind].append(max(overlaps, default=0) >= 0.5)
    assert np.mean(right["sure"]) > np.mean(right["unsure"]) + 0.3


@pytest.mark.slow
def test_a_pipeline_that_ignored_the_text_would_fail():
    def same_prompt(model):
        begin = model.segmenter.begin_text
        model.segmenter.begin_text = lambda features, prompts, scores: begin(
            features, ["object"] * len(prompts), scores
        )

    assert score("text", same_prompt).f1 < 0.72


@pytest.mark.slow
def test_a_pipeline_that_ignored_the_presence_would_fail(shapes_segmenter, features):
    """Without it, absent prompts find far more."""
    alarms = {True: 0, False: 0}
    for scene, seen in zip(held_out_scenes(), features, strict=True):
        for *_, queries in shapes_segmenter._detect_pairs(seen, scene.prompts):
            absent = np.array([not items for items in scene.objects])
            for with_presence in alarms:
                values = queries.scores if with_presence else queries.logits.sigmoid()
                alarms[with_presence] += int((values.max(dim=1).values > 0.5).numpy()[absent].sum())
    assert alarms[True] < alarms[False]


def test_a_pipeline_that_ignored_the_boxes_would_fail(shapes_segmenter, features):
    assert box_iou(shapes_segmenter, features, lambda xyxy: xyxy[::-1]) < 0.5


@pytest.mark.slow
def test_a_pipeline_that_ignored_florence_would_fail():
    def nothing(model):
        model.grounder.ground = lambda images, prompts, wanted=None: [Boxes.empty()] * len(images)

    assert score("boxes", nothing).recall == 0
