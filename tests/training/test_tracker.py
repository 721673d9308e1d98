"""The training forward is transformers' tracker; the stage changes the tracker alone; scores say what happened."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoInferenceSession

from autodistill_sam3.training.__main__ import main
from autodistill_sam3.training.batches import Plans, normalise, realise
from autodistill_sam3.training.checkpoints import load_sam3
from autodistill_sam3.training.clips import draw_clip
from autodistill_sam3.training.configs import GRID, IMAGE_SIZE, Recipe
from autodistill_sam3.training.detector import PIXEL_MEAN, PIXEL_STD
from autodistill_sam3.training.memory import Prompt, encode_frames, track
from autodistill_sam3.training.tracker import TRAINED_PARTS, TrackerStage, first_prompt, object_truth
from autodistill_sam3.training.tracking import Followed, held_out_clips, occlusion_scores, quick_track_scores

SHAPES = Path(__file__).parents[2] / "models" / "shapes" / "sam3"
LENGTH = 6

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def model():
    return load_sam3(SHAPES)[0].eval()


@pytest.fixture(scope="module")
def clip():
    """Two objects, and a black frame in the middle, in which the tracker finds neither."""
    drawn = draw_clip(1, IMAGE_SIZE, IMAGE_SIZE, length=LENGTH)
    images = normalise(torch.from_numpy(drawn.frames).permute(0, 3, 1, 2), PIXEL_MEAN, PIXEL_STD)
    images[3] = images[3].mean()
    return images, torch.from_numpy(drawn.masks[:2, 0])


def prompts_for(masks):
    cells = (F.adaptive_avg_pool2d(masks[:, None].float(), 4 * GRID) >= 0.5).float()
    corners = []
    for mask in masks.numpy():
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        corners.append([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]])
    box = torch.tensor(corners).float()[:, None]
    inside = torch.stack([torch.nonzero(mask)[mask.sum() // 2].flip(0) for mask in masks]).float()[:, None, None]
    return {
        "mask": Prompt(masks=cells),
        "box": Prompt(points=box, labels=torch.tensor([[[2, 3]]] * len(masks))),
        "point": Prompt(points=inside, labels=torch.ones(len(masks), 1, 1).int()),
    }


def transformers_masks(model, images, prompt, monkeypatch):
    """(T, R, 4g, 4g) logits of the tracker that `Sam3VideoModel` drives, with features cached as it caches them.

    What begins with a mask has the pointer of the single mask, as Meta's tracker gives it.
    """
    count = 2
    session = Sam3TrackerVideoInferenceSession(
        video=images, video_height=IMAGE_SIZE, video_width=IMAGE_SIZE, dtype=torch.float32
    )
    found = []
    with torch.inference_mode():
        for index in range(len(images)):
            vision = model.detector_model.get_vision_features(images[index : index + 1])
            features, positions = model.get_vision_features_for_tracker(vision)
            session.cache.cache_vision_features(index, {"vision_feats": features, "vision_pos_embeds": positions})
            if not index:
                for row in range(count):
                    place = session.obj_id_to_idx(row)
                    if prompt.masks is not None:
                        session.add_mask_inputs(place, 0, prompt.masks[row : row + 1])
                    else:
                        inputs = {
                            "point_coords": prompt.points[row : row + 1],
                            "point_labels": prompt.labels[row : row + 1],
                        }
                        session.add_point_inputs(place, 0, inputs)
                session.obj_with_new_inputs = list(range(count))
            with monkeypatch.context() as patch:
                if not index and prompt.masks is not None:
                    decode = functools.partial(model.tracker_model._single_frame_forward, multimask_output=False)
                    patch.setattr(model.tracker_model, "_single_frame_forward", decode)
                found.append(model.tracker_model(inference_session=session, frame_idx=index).pred_masks[:, 0])
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["mask", "box", "point"])
def test_the_forward_equals_transformers_tracker_over_many_frames(model, clip, kind, monkeypatch):
    # Both round memories to it: where these are large, a last bit that differs is more than the bound.
    monkeypatch.setattr(torch, "bfloat16", torch.float32)
    images, masks = clip
    prompt = prompts_for(masks)[kind]
    theirs = transformers_masks(model, images, prompt, monkeypatch)
    with torch.no_grad():
        levels = encode_frames(model, images)
        frames = [levels.select(torch.full((len(masks),), index)) for index in range(len(images))]
        # A session of fewer frames than that looks back no further than it is long.
        outputs = track(model.tracker_model, frames, prompt, max_pointers=len(images), worth=-1.0)
    torch.testing.assert_close(torch.stack([output.mask for output in outputs]), theirs, rtol=1e-4, atol=1e-4)


def test_every_part_of_the_tracker_learns_and_nothing_else(model):
    recipe = Recipe(steps=4, scenes=1, prompts=1, learning_rate=1e-3, clips=1, frames=3)
    stage = TrackerStage(model)
    model.requires_grad_(False)
    for _, parameter in stage.trained():
        parameter.requires_grad_(True)
    batch = realise(Plans(recipe, 0)[1], IMAGE_SIZE, torch.device("cpu"))
    reached = set()
    for seed in range(3):
        torch.manual_seed(seed)
        terms = stage.losses(batch)
        assert {"loss_mask", "clip_loss_mask", "clip_loss_score"} <= terms.keys()
        torch.stack(list(terms.values())).sum().backward()
        reached |= {name for name, parameter in stage.trained() if parameter.grad is not None}
        model.zero_grad(set_to_none=True)
    silent = {name for name, _ in stage.trained()} - reached
    # Masks come from one prompt in two steps; the rest is for what this world has not.
    assert not [name for name in silent if "memory_attention" in name or "memory_encoder" in name], silent
    assert all(name.startswith((*TRAINED_PARTS, "told.")) for name in reached)
    model.requires_grad_(True)


@pytest.mark.parametrize("kind", ["mask", "box", "point"])
def test_prompts_lie_on_their_objects(kind):
    scenes = next(held_out_clips(1, torch.device("cpu"), length=2))
    slots = (scenes.visible_area[0] > 0).nonzero()[:, 0]
    first = torch.zeros_like(slots)
    # How a prompt misses its object is drawn at random.
    torch.manual_seed(0)
    prompt = first_prompt(kind, scenes, first, slots)
    truth = object_truth(scenes, first, slots)
    for row, mask in enumerate(truth):
        if kind == "mask":
            cells = F.adaptive_avg_pool2d(mask[None], 4 * GRID)[0]
            overlap = (prompt.masks[row, 0] * cells).sum() / torch.maximum(prompt.masks[row, 0], cells).sum()
            assert overlap > 0.5
        else:
            x, y = prompt.points[row, 0].mean(0).long().tolist()
            if kind == "point":
                assert mask[y, x]
            else:
                rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
                assert rows[0] <= y <= rows[-1] + 1
                assert columns[0] <= x <= columns[-1] + 1


def test_an_occlusion_is_judged_by_what_comes_before_and_after():
    area = torch.full((30, 2), 50)
    area[10:20, 0] = 0
    overlap = torch.full((30, 2), 0.9)
    overlap[10:20], overlap[20:, 0], overlap[:, 1] = 0.0, 0.6, 0.1
    scores = occlusion_scores(Followed(overlap, area, torch.zeros(30, 2)))
    assert scores == pytest.approx({"j_before_hidden": 0.9, "j_after_hidden": 0.6})


def test_quick_scores_are_shares(model):
    scores = quick_track_scores(model, 1, length=3)
    assert {"j_box", "j_mask", "presence"} <= scores.keys()
    assert all(0 <= value <= 1 for value in scores.values())


@pytest.mark.slow
def test_the_stage_trains_resumes_and_leaves_the_detector_alone(tmp_path):
    fast = ["--device", "cpu", "--scenes", "1", "--clips", "1", "--evaluate-scenes", "1", "--evaluate-clips", "1"]
    for steps in ("1", "2"):
        main(["fit", "tracker", "--init", str(SHAPES), "--output", str(tmp_path), "--steps", steps, *fast])
    before, after = load_sam3(SHAPES)[0].state_dict(), load_sam3(tmp_path / "sam3")[0].state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert all(name.startswith(TRAINED_PARTS) for name in changed)
