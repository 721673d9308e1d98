"""The tracker's memory against transformers' own video model, which works on one object at a time."""

from __future__ import annotations

import pytest
import torch

from autodistill_sam3.segmentation.memory import BOX_CORNERS, MemoryTracker, Recall
from autodistill_sam3.segmentation.vision import encode_images
from autodistill_sam3.weights import SAM3, find_checkpoint
from autodistill_sam3.weights.sam3 import load_sam3

FRAMES = 11


@pytest.fixture(scope="module")
def model():
    """The shapes checkpoint, with a memory in which nothing is zero.

    With ten times that noise, transformers' own logits move by 2e-2 when its features move by 1e-7 of their size.
    """
    model = load_sam3(find_checkpoint(SAM3, "shapes"))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.tracker_model.named_parameters():
        if not name.startswith(("mask_decoder", "prompt_encoder", "shared_image_embedding")):
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def vision(model):
    pixels = torch.randn(FRAMES, 3, 240, 240, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        return encode_images(model.detector_model, pixels)


class Session:
    """Transformers' own, with the features of all frames."""

    def __init__(self, model, vision):
        from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoInferenceSession

        self.tracker = model.tracker_model
        self.session = Sam3TrackerVideoInferenceSession(
            video=torch.zeros(FRAMES, 3, 1, 1),
            video_height=240,
            video_width=240,
            dtype=torch.float32,
            max_vision_features_cache_size=99,
        )
        self.session.obj_with_new_inputs = []
        for frame in range(FRAMES):
            one = type(vision)(vision.last_hidden_state[frame : frame + 1], vision.levels, vision.positions)
            features, places = model.get_vision_features_for_tracker(one)
            self.session.cache.cache_vision_features(frame, {"vision_feats": features, "vision_pos_embeds": places})

    def ask(self, frame, reverse=False):
        out = self.tracker(self.session, frame_idx=frame, reverse=reverse)
        return out.pred_masks[:, 0], out.object_score_logits.flatten()

    def add_points(self, object_id, frame, points, labels):
        index = self.session.obj_id_to_idx(object_id)
        inputs = {"point_coords": points[None, None] * 240, "point_labels": labels[None, None]}
        self.session.add_point_inputs(index, frame, inputs)
        self.session.obj_with_new_inputs = [object_id]


def recall(tracker, memories, conditioning, frame, sign=1):
    """What an object that was asked in all frames remembers."""
    spatial = [(0, memories[at].spatial) for at in conditioning]
    back = [(age, memories.get(frame - sign * age)) for age in range(1, FRAMES)]
    tracked = [(age, memory) for age, memory in back if memory and frame - sign * age not in conditioning]
    spatial += [(age, memory.spatial) for age, memory in tracked if age <= tracker.memory_frames]
    pointers = [(sign * (frame - at), memories[at].pointer) for at in conditioning]
    return Recall(tuple(spatial), (*pointers, *((age, memory.pointer) for age, memory in tracked)))


def remembered(tracker, maps, decoded, is_prompted):
    """Of one object, with the mask in the size in which transformers hands it on."""
    large = torch.nn.functional.interpolate(decoded.logits[:, None], size=(240, 240), mode="bilinear")[:, 0]
    return tracker.remember(maps, large, decoded.pointers, is_prompted=is_prompted)[0]


@pytest.fixture
def exact_memories(monkeypatch):
    """Both keep memories in bf16: of a large one, a last bit that differs is more than these bounds."""
    monkeypatch.setattr(torch, "bfloat16", torch.float32)


@pytest.mark.usefixtures("exact_memories")
@torch.inference_mode()
def test_tracking_equals_transformers_one_object_at_a_time(model, vision):
    tracker, session = MemoryTracker(model, torch.device("cpu"), None), Session(model, vision)
    maps = tracker.maps(vision)
    # The first object begins with a point, the second with a box one frame later.
    point, on_it = torch.tensor([[0.4, 0.3]]), torch.tensor([1])
    session.add_points(7, 0, point, on_it)
    expected, _ = session.ask(0)
    decoded = tracker.prompt(maps[0], point[None], on_it[None])
    torch.testing.assert_close(decoded.logits, expected, atol=2e-4, rtol=1e-4)
    first = {0: remembered(tracker, maps[0], decoded, is_prompted=True)}
    corners, labels = torch.tensor([[0.1, 0.5], [0.4, 0.9]]), torch.tensor(BOX_CORNERS)
    session.add_points(8, 1, corners, labels)
    expected, _ = session.ask(1)
    decoded = tracker.prompt(maps[1], corners[None], labels[None])
    torch.testing.assert_close(decoded.logits, expected[1:], atol=2e-4, rtol=1e-4)
    second = {1: remembered(tracker, maps[1], decoded, is_prompted=True)}
    objects = [(first, [0]), (second, [1])]
    for frame in range(1, FRAMES):
        known = objects[: 1 if frame == 1 else 2]
        recalls = [recall(tracker, memories, conditioning, frame) for memories, conditioning in known]
        decoded = tracker.propagate(maps[frame], recalls, FRAMES)
        if frame > 1:
            expected, scores = session.ask(frame)
            torch.testing.assert_close(decoded.object_logits, scores, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(decoded.logits, expected[: len(known)], atol=2e-3, rtol=1e-3)
        large = torch.nn.functional.interpolate(decoded.logits[:, None], size=(240, 240), mode="bilinear")[:, 0]
        # Transformers treats all masks of a call as prompted if one is.
        kept = tracker.remember(maps[frame], large, decoded.pointers, is_prompted=frame == 1)
        for (memories, _), memory in zip(known, kept, strict=True):
            memories[frame] = memory


@pytest.mark.usefixtures("exact_memories")
@torch.inference_mode()
def test_backward_and_refined(model, vision):
    tracker, session = MemoryTracker(model, torch.device("cpu"), None), Session(model, vision)
    maps, last = tracker.maps(vision), FRAMES - 1
    corners, labels = torch.tensor([[0.3, 0.3], [0.6, 0.7]]), torch.tensor(BOX_CORNERS)
    session.add_points(1, last, corners, labels)
    session.ask(last)
    memories = {last: remembered(tracker, maps[last], tracker.prompt(maps[last], corners[None], labels[None]), True)}
    for frame in range(last - 1, 2, -1):
        expected, _ = session.ask(frame, reverse=True)
        decoded = tracker.propagate(maps[frame], [recall(tracker, memories, [last], frame, -1)], FRAMES)
        torch.testing.assert_close(decoded.logits, expected, atol=2e-3, rtol=1e-3)
        memories[frame] = remembered(tracker, maps[frame], decoded, False)
    # Points on a frame that was tracked: with what is remembered.
    points, labels = torch.tensor([[0.3, 0.3], [0.8, 0.1]]), torch.tensor([1, 0])
    session.add_points(1, 3, points, labels)
    expected, _ = session.ask(3, reverse=True)
    decoded = tracker.prompt(maps[3], points[None], labels[None], recall(tracker, memories, [last], 3, -1), FRAMES)
    torch.testing.assert_close(decoded.logits, expected, atol=2e-3, rtol=1e-3)


@torch.inference_mode()
def test_pointer_of_a_mask_is_of_the_single_masks_token(model, vision):
    tracker, inner = MemoryTracker(model, torch.device("cpu"), None), model.tracker_model
    maps = tracker.maps(vision)[0]
    masks = torch.zeros(2, tracker.memory_side, tracker.memory_side, dtype=torch.bool)
    masks[0, 20:90, 30:120], masks[1, 100:, :60] = True, True
    told, _ = tracker.from_masks(maps, masks)
    # As Meta's `_use_mask_as_output`, which asks for one mask; transformers' asks for three.
    for single in (True, False):
        expected = [
            inner._single_frame_forward(
                input_masks=inner.mask_downsample(mask[None, None].float()),
                image_embeddings=[*maps.high_resolution, maps.coarse],
                multimask_output=not single,
            ).object_pointer.reshape(-1)
            for mask in masks
        ]
        close = torch.allclose(told.pointers, torch.stack(expected), atol=1e-4)
        assert close == single
