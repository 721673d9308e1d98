"""The shapes checkpoints on drawings by another hand, and whether those drawings are what they claim to be."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from other_hand import COLOURS, MIN_VISIBLE, SHAPES, SIZES_WH, contrast, other_hand_scenes, to_lab
from test_quality import score, truth_of

from autodistill_sam3.evaluation import evaluate_detections


@pytest.fixture(scope="module")
def scenes():
    return other_hand_scenes()


@pytest.mark.slow
def test_text_on_another_hands_drawings():
    result = score("text", scenes=other_hand_scenes())
    assert result.f1 >= 0.85


def test_the_truth_scores_one(scenes):
    truth = {str(index): truth_of(scene) for index, scene in enumerate(scenes)}
    result = evaluate_detections(truth, truth, ["a", "b", "c", "d"])[-1]
    assert result.objects >= 2 * len(scenes)
    assert result.f1 == 1.0
    assert result.mean_iou == 1.0


def test_scenes_are_deterministic(scenes):
    again = other_hand_scenes.__wrapped__(8)
    for scene, same in zip(scenes, again, strict=False):
        assert np.array_equal(scene.image, same.image)
        assert scene.prompts == same.prompts
        assert all(np.array_equal(scene.masks(index), same.masks(index)) for index in range(4))


def test_scenes_cover_the_words(scenes):
    assert len(scenes) == 36
    assert {scene.image.shape[1::-1] for scene in scenes} == set(SIZES_WH)
    assert all(scene.image.dtype == np.uint8 and 2 <= len(scene.drawn) <= 6 for scene in scenes)
    assert {item.colour for scene in scenes for item in scene.drawn} == set(COLOURS)
    assert {item.shape for scene in scenes for item in scene.drawn} == set(SHAPES)


def test_masks_are_disjoint_and_visible(scenes):
    for scene in scenes:
        masks = np.array([item.mask for item in scene.drawn])
        assert masks.sum(axis=0).max() == 1
        assert min(item.visible for item in scene.drawn) >= MIN_VISIBLE
    # Some objects do hide others.
    assert sum(item.visible < 1 for scene in scenes for item in scene.drawn) >= 5


def test_half_of_the_prompts_are_absent(scenes):
    for scene in scenes:
        assert len(set(scene.prompts)) == 4
        for prompt, found in zip(scene.prompts, scene.objects, strict=True):
            words = set(prompt.split()) - {"shape"}
            assert list(found) == [item for item in scene.drawn if words <= {item.colour, item.shape}]
        assert [bool(found) for found in scene.objects] == [True, True, False, False]
        for prompt in scene.prompts[2:]:
            assert any({item.colour, item.shape} & set(prompt.split()) for item in scene.drawn)


def test_colours_are_where_the_masks_are(scenes):
    for scene in scenes:
        # JPEG smears colours across edges.
        anything = cv2.dilate(np.any([item.mask for item in scene.drawn], axis=0).astype(np.uint8), np.ones((9, 9)))
        lab = cv2.cvtColor(scene.image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        for item in scene.drawn:
            middle = np.median(scene.image[item.mask], axis=0)
            names = [(contrast(middle, rgb), name) for name, table in COLOURS.items() for rgb in table]
            assert min(names)[1] == item.colour
            near = np.linalg.norm(lab - to_lab(item.rgb), axis=-1) < 20
            # A thin star's outline takes up to half of it.
            assert near[item.mask].mean() >= 0.45
            assert near[anything == 0].mean() <= 0.01
