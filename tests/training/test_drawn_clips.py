"""Clips are seeded, move smoothly, and hide objects for as long as asked; their masks are exact."""

import numpy as np
import pytest

from autodistill_sam3.training.clips import draw_clip, plan_clips
from autodistill_sam3.training.drawing import draw
from autodistill_sam3.training.world import is_held_out


def test_the_same_seed_gives_the_same_clip_and_another_does_not():
    first, again, other = (draw_clip(seed, 48, 36, length=14) for seed in (3, 3, 4))
    assert first.frames.shape == (14, 36, 48, 3)
    assert first.masks.shape == (len(first.colours), 14, 36, 48)
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.masks, again.masks)
    assert (first.frames != other.frames).any()


def test_masks_never_overlap_and_names_are_of_the_world():
    clips = [draw_clip(seed, 48, 36, length=8) for seed in range(6)]
    assert all(clip.masks.sum(0).max() <= 1 for clip in clips)
    assert all(3 <= len(clip.masks) <= 6 for clip in clips)
    assert not any(is_held_out(*pair) for clip in clips for pair in zip(clip.colours, clip.shapes, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_an_object_is_hidden_for_as_long_as_asked_and_comes_back(seed):
    clip = draw_clip(seed, 96, 72, hidden=10)
    seen = clip.masks.any((2, 3))
    longest = 0
    for row in seen:
        gaps = np.diff(np.flatnonzero(row)) - 1
        longest = max(longest, gaps.max(initial=0))
    assert seen[:, 0].all()
    assert longest >= 10


def test_frames_can_be_drawn_in_any_order_and_the_background_stays():
    times = np.arange(5)
    forward, backward = (plan_clips(np.random.default_rng(1), 3, t, hiding=0.0) for t in (times, times[::-1]))
    np.testing.assert_allclose(
        forward.scenes.centre.reshape(3, 5, -1, 2), backward.scenes.centre.reshape(3, 5, -1, 2)[:, ::-1], atol=1e-6
    )
    still = plan_clips(np.random.default_rng(1), 2, [7, 7])
    still.scenes.noise[:], still.scenes.jpeg[:] = 0, 0
    images = draw(still.scenes, 40, 40, length=2, camera=still.camera).images
    assert (images[0] == images[1]).all()
    assert (images[0] != images[2]).any()


def test_the_camera_moves_the_background_as_it_moves_objects():
    """A shift by a whole number of pixels shows the same pixels elsewhere."""
    plan = plan_clips(np.random.default_rng(2), 8, [0], aspect=1.0).frames(slice(0, 1))
    for name in ("noise", "jpeg", "blur", "edge"):
        getattr(plan.scenes, name)[:] = 0
    plan.scenes.texture[:] = [0.2, 20.0, 9.0, 0, 0.3]
    plan.camera[:] = [0, 0, 1, 0]
    before = draw(plan.scenes, 50, 50, camera=plan.camera).images[0].numpy().astype(int)
    plan.camera[:, 0] = 0.2
    plan.scenes.centre[..., 0] += 0.2
    after = draw(plan.scenes, 50, 50, camera=plan.camera).images[0].numpy().astype(int)
    assert np.abs(after[:, :, 10:] - before[:, :, :-10]).max() <= 1


def test_objects_move_leave_and_return():
    plan = plan_clips(np.random.default_rng(0), 40, np.arange(60), aspect=1.0)
    centre = plan.scenes.centre.reshape(40, 60, -1, 2)
    valid = plan.scenes.valid.reshape(40, 60, -1)[:, 0]
    step = np.linalg.norm(np.diff(centre, axis=1), axis=-1).transpose(0, 2, 1)[valid]
    assert (step.max(1) < 1e-6).mean() > 0.02  # stands still
    assert np.quantile(step.max(1), 0.9) > 0.03  # fast
    assert step.max() < 0.25
    outside = ((centre < -0.05) | (centre > 1.05)).any(-1).transpose(0, 2, 1)[valid]
    returned = outside.any(1) & ~outside[:, -1]
    assert outside.any(1).mean() > 0.1
    assert returned.any()
