"""Drawing is seeded and exact; prompts say what they match; held-out pairs stay out."""

import cv2
import numpy as np
import pytest
import torch

from autodistill_sam3.training.batches import Plans
from autodistill_sam3.training.configs import RECIPES
from autodistill_sam3.training.drawing import draw, draw_scene
from autodistill_sam3.training.jpeg import jpeg_artefacts
from autodistill_sam3.training.prompts import parse_text, plan_prompts
from autodistill_sam3.training.scenes import plan_scenes
from autodistill_sam3.training.validation import held_out_plans
from autodistill_sam3.training.world import COLOURS, HELD_OUT_PAIRS, SHAPES, is_held_out


def test_the_same_seed_gives_the_same_pixels_and_another_does_not():
    first, objects = draw_scene(3, 120, 90)
    again, _ = draw_scene(3, 120, 90)
    other, _ = draw_scene(4, 120, 90)
    assert first.shape == (90, 120, 3)
    assert objects
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_visible_masks_are_disjoint_and_shares_are_right():
    shares = []
    for seed in range(40):
        _, objects = draw_scene(seed, 64, 64)
        assert np.sum([item.mask for item in objects], axis=0).max() <= 1
        assert objects[-1].visible == 1.0  # nothing lies on the last one
        shares += [item.visible for item in objects]
    assert min(shares) < 1.0  # some are hidden in part


def test_a_lone_circle_covers_its_area():
    plan = plan_scenes(np.random.default_rng(0), 1, aspect=1.0, pairs=[(0, 0)], max_objects=1)
    plan.centre[:], plan.radius[:], plan.stretch[:] = 0.5, 0.25, 1.0
    batch = draw(plan, 200, 200)
    assert (batch.top == 0).float().mean().item() == pytest.approx(np.pi / 16, rel=0.01)
    np.testing.assert_allclose(batch.boxes_xyxy[0, 0], [0.25, 0.25, 0.75, 0.75], atol=0.006)


def test_an_image_of_another_aspect_is_the_same_scene():
    plan = plan_scenes(np.random.default_rng(5), 1, aspect=2.0)
    wide, square = draw(plan, 100, 200), draw(plan, 100, 100)
    np.testing.assert_allclose(wide.boxes_xyxy, square.boxes_xyxy, atol=0.02)


def test_held_out_pairs_are_never_drawn_or_asked_for_in_training():
    drawn, asked = set(), set()
    for step in range(4):
        plan = Plans(RECIPES["detector"], seed=0)[step]
        valid = plan.scenes.valid
        drawn |= set(zip(plan.scenes.colour[valid].tolist(), plan.scenes.shape[valid].tolist(), strict=True))
        asked |= {prompt.concept for row in plan.prompts.prompts for prompt in row}
    assert len(drawn) == len(COLOURS) * len(SHAPES) - len(HELD_OUT_PAIRS)
    assert not any(is_held_out(COLOURS[i], SHAPES[j]) for i, j in drawn)
    assert not any(is_held_out(concept.colour, concept.shape) for concept in asked)


def test_prompts_match_the_objects_that_their_words_say():
    rng = np.random.default_rng(1)
    scenes = plan_scenes(rng, 40)
    plan = plan_prompts(rng, scenes, 4)
    for index, row in enumerate(plan.prompts):
        for number, prompt in enumerate(row):
            parsed = parse_text(prompt.text)
            assert parsed == prompt.concept, prompt
            for slot in np.flatnonzero(scenes.valid[index]):
                colour, shape = COLOURS[scenes.colour[index, slot]], SHAPES[scenes.shape[index, slot]]
                assert plan.matches[index, number, slot] == parsed.matches(colour, shape)
    share = plan.matches.any(2).mean()
    assert 0.45 < share < 0.75


def test_training_and_held_out_scenes_differ():
    training, held_out = Plans(RECIPES["detector"], seed=0)[0].scenes, held_out_plans(16)[0].scenes
    assert not np.allclose(training.centre[:8], held_out.centre[:8])


@pytest.mark.parametrize("quality", [25, 60, 92])
def test_jpeg_artefacts_are_those_of_a_jpeg_file(quality):
    image, _ = draw_scene(3, 200, 120)
    _, file = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    expected = cv2.imdecode(file, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    ours = jpeg_artefacts(pixels, torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy() * 255
    lost, apart = np.abs(image - expected).mean(), np.abs(ours - expected).mean()
    # Rounding to whole pixels and chroma upsampling are the decoder's own business.
    assert apart < 0.4 * lost


def test_every_scene_is_within_the_world():
    plan = plan_scenes(np.random.default_rng(2), 400)
    count = plan.valid.sum(1)
    assert (count.min(), count.max()) == (1, 8)
    assert 0.5 <= plan.aspect.min() < 0.6
    assert 1.8 < plan.aspect.max() <= 2.0
    radius = plan.radius[plan.valid]
    assert radius.min() == pytest.approx(0.06, abs=0.002)
    assert (plan.jpeg > 0).mean() == pytest.approx(0.5, abs=0.1)
    for name, values in plan.arrays().items():
        assert np.isfinite(values).all(), name


def test_edges_are_jagged_or_soft():
    plan = plan_scenes(np.random.default_rng(0), 1, aspect=1.0, pairs=[(7, 0)], max_objects=1)
    plan.texture[:], plan.gradient[:], plan.blur[:], plan.noise[:], plan.jpeg[:] = 0, 0, 0, 0, 0
    plan.shading[:], plan.outline[:], plan.rgb[:], plan.background[:] = 0, 0, 0, 1
    colours = []
    for width in (0.0, 2.0):
        plan.edge[:] = width
        colours.append(len(draw(plan, 100, 100).images.unique()))
    assert colours[0] == 2
    assert colours[1] > 10


def test_objects_hide_each_other_as_often_as_asked():
    rng = np.random.default_rng(0)
    shares = []
    for hiding in (0.0, 0.5):
        plan = plan_scenes(rng, 60, hiding=hiding)
        visible = draw(plan, 80, 80).visible.numpy()[plan.valid]
        shares.append((visible < 0.99).mean())
    assert shares[0] < 0.12 < 0.18 < shares[1]
