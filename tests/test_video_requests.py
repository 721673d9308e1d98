"""Meta's session dictionaries, with the small checkpoint."""

from __future__ import annotations

import re
from dataclasses import replace

import clips
import numpy as np
import pytest
from PIL import Image

from autodistill_sam3 import SAM3Video, SettingError, VideoError
from autodistill_sam3.ontology import PromptPairs, PromptTable
from autodistill_sam3.thresholds import Thresholds
from autodistill_sam3.video.association import TrackingRules
from autodistill_sam3.video.engine import TransformersVideoEngine
from autodistill_sam3.video.looking import Lookout
from autodistill_sam3.video.requests import RequestSessions

FRAMES = 4
DTYPES = {
    "out_obj_ids": (np.int64, ()),
    "out_probs": (np.float32, ()),
    "out_boxes_xywh": (np.float32, (4,)),
    "out_binary_masks": (np.bool_, (clips.HEIGHT, clips.WIDTH)),
    "out_prompt_index": (np.int64, ()),
}


@pytest.fixture(scope="module")
def video():
    with SAM3Video(checkpoint="shapes", device="cpu") as model:
        yield model


class Asking:
    """A session, asked in few words."""

    def __init__(self, video, source=None, **request):
        self.video = video
        request = {"resource_path": clips.bgr_frames(FRAMES) if source is None else source, **request}
        self.id = video.handle_request({"type": "start_session", **request})["session_id"]

    def ask(self, kind, **request):
        return self.video.handle_request({"type": kind, "session_id": self.id, **request})

    def prompt(self, frame_index=0, **request):
        answer = self.ask("add_prompt", frame_index=frame_index, **request)
        assert answer["frame_index"] == frame_index
        return checked(answer["outputs"])

    def stream(self, **request):
        return self.video.handle_stream_request({"type": "propagate_in_video", "session_id": self.id, **request})

    def run(self, **request):
        return [(answer["frame_index"], checked(answer["outputs"])) for answer in self.stream(**request)]


@pytest.fixture
def asking(video):
    session = Asking(video)
    yield session
    session.ask("close_session")


def checked(outputs):
    """What holds for every answer."""
    assert set(outputs) == {*DTYPES, "frame_stats"}
    count = len(outputs["out_obj_ids"])
    for key, (dtype, shape) in DTYPES.items():
        assert outputs[key].dtype == dtype
        assert outputs[key].shape == (count, *shape)
    assert (np.diff(outputs["out_obj_ids"]) > 0).all()
    assert ((outputs["out_probs"] >= 0) & (outputs["out_probs"] <= 1)).all()
    assert outputs["frame_stats"] == {"num_obj_tracked": count, "num_obj_dropped": 0}
    for box, mask in zip(outputs["out_boxes_xywh"], outputs["out_binary_masks"], strict=True):
        y, x = np.nonzero(mask)
        edges = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
        assert box * np.tile([clips.WIDTH, clips.HEIGHT], 2) == pytest.approx(np.array(edges), abs=1e-4)
    return outputs


def ids(outputs):
    return outputs["out_obj_ids"].tolist()


def mask_with(outputs, object_id):
    return outputs["out_binary_masks"][ids(outputs).index(object_id)]


def corners(place, index):
    """A box as two points with labels."""
    x0, y0, x1, y1 = place(index)
    return {
        "points": [[x0 / clips.WIDTH, y0 / clips.HEIGHT], [x1 / clips.WIDTH, y1 / clips.HEIGHT]],
        "point_labels": [2, 3],
    }


def test_a_text_is_found_in_its_frame_and_tracked(asking):
    outputs = asking.prompt(1, text="red circle")
    assert ids(outputs) == [0]
    assert clips.iou(outputs["out_binary_masks"][0], clips.mask_of(clips.red_circle, 1)) > 0.9
    assert outputs["out_probs"][0] > 0.5
    found = asking.run(start_frame_index=0)
    assert [index for index, _ in found] == list(range(FRAMES))
    for index, outputs in found:
        assert clips.iou(outputs["out_binary_masks"].any(0), clips.mask_of(clips.red_circle, index)) > 0.9


def test_a_text_replaces_the_one_before(asking):
    asking.prompt(text="red circle")
    asking.prompt(obj_id=5, **corners(clips.blue_square, 0))
    outputs = asking.prompt(text="blue square")
    assert ids(outputs) == [0]
    assert clips.iou(outputs["out_binary_masks"][0], clips.mask_of(clips.blue_square, 0)) > 0.9
    assert ids(asking.prompt(text="green star")) == []


def test_several_texts_are_told_apart(asking):
    outputs = asking.prompt(text=["green star", "blue square", "red circle"])
    assert sorted(outputs["out_prompt_index"].tolist()) == [1, 2]
    for index, place in ((1, clips.blue_square), (2, clips.red_circle)):
        mask = outputs["out_binary_masks"][outputs["out_prompt_index"].tolist().index(index)]
        assert clips.iou(mask, clips.mask_of(place, 0)) > 0.9


def test_a_text_that_the_ontology_does_not_have():
    """And one that it has keeps the threshold of its class."""
    ontology = PromptPairs((("red circle", "ball"),))
    with SAM3Video(ontology, checkpoint="shapes", device="cpu", thresholds={"ball": 1.0}) as model:
        session = Asking(model)
        assert ids(session.prompt(text="red circle")) == []
        assert len(ids(session.prompt(text="blue square"))) == 1


def test_objects_are_pointed_at_in_any_order(asking):
    """Officially, they could not be the first prompt."""
    first = asking.prompt(2, obj_id=7, **corners(clips.blue_square, 2))
    assert ids(first) == [7]
    x0, y0, x1, y1 = clips.red_circle(2)
    box = [[x0 / clips.WIDTH, y0 / clips.HEIGHT, (x1 - x0) / clips.WIDTH, (y1 - y0) / clips.HEIGHT]]
    both = asking.prompt(2, obj_id=3, bounding_boxes=box)
    # All objects of the frame.
    assert ids(both) == [3, 7]
    assert both["out_prompt_index"].tolist() == [-1, -1]
    assert clips.iou(mask_with(both, 3), clips.mask_of(clips.red_circle, 2)) > 0.9
    assert (mask_with(both, 7) == mask_with(first, 7)).all()
    assert clips.iou(mask_with(both, 7), clips.mask_of(clips.blue_square, 2)) > 0.9
    assert [index for index, _ in asking.run()] == [2, 3, 1, 0]


def test_points_of_a_frame_are_said_anew(asking):
    circle, square = corners(clips.red_circle, 0), corners(clips.blue_square, 0)
    alone = asking.prompt(obj_id=1, **square)
    asking.prompt(obj_id=2, **circle)
    corrected = asking.prompt(obj_id=2, **square)
    assert (mask_with(corrected, 2) == mask_with(alone, 1)).all()


def test_removed_objects_are_gone_everywhere(asking):
    asking.prompt(obj_id=1, **corners(clips.red_circle, 0))
    asking.prompt(obj_id=2, **corners(clips.blue_square, 0))
    asking.run(max_frame_num_to_track=1)
    assert asking.ask("remove_object", obj_id=1) == {"is_success": True}
    with pytest.raises(SettingError, match=r"\[2\].*received 1"):
        asking.ask("remove_object", obj_id=1)
    assert all(1 not in ids(outputs) for _, outputs in asking.run())
    assert 1 not in ids(asking.prompt(1, obj_id=4, **corners(clips.blue_square, 1)))
    # The number may be used again.
    assert 1 in ids(asking.prompt(obj_id=1, **corners(clips.red_circle, 0)))


def test_reset_forgets_text_and_objects(asking):
    asking.prompt(text="red circle")
    asking.prompt(obj_id=9, **corners(clips.blue_square, 0))
    assert asking.ask("reset_session") == {"is_success": True}
    with pytest.raises(SettingError, match="add_prompt before"):
        asking.run()
    assert [ids(outputs) for _, outputs in asking.run(start_frame_index=0, max_frame_num_to_track=1)] == [[], []]


@pytest.mark.parametrize(
    ("request_", "frames"),
    [
        ({}, [1, 2, 3, 0]),
        ({"start_frame_index": 2, "max_frame_num_to_track": 1}, [2, 3, 1]),
        ({"start_frame_index": 3, "max_frame_num_to_track": 2, "propagation_direction": "backward"}, [2, 1]),
        ({"max_frame_num_to_track": 0}, [1]),
        ({"max_frame_num_to_track": 0, "propagation_direction": "backward"}, []),
    ],
)
def test_frames_are_the_official_ones(asking, request_, frames):
    """As tests/official/test_video_requests.py finds them with Meta's predictor."""
    asking.prompt(1, text="green star")
    assert [index for index, _ in asking.run(**request_)] == frames


@pytest.fixture
def prompt_answers(shapes_segmenter):
    """A session whose frames are answered at once, so that runs can be left half way."""
    rules = replace(TrackingRules.from_config(shapes_segmenter.config), hotstart_delay=0)
    lookout = Lookout(PromptTable((), (), ()), Thresholds(), True, None, 1, False)
    sessions = RequestSessions(TransformersVideoEngine(shapes_segmenter, lookout, rules))
    sessions.handle_request, sessions.handle_stream_request = sessions.handle, sessions.stream
    yield Asking(sessions)
    sessions.close()


def test_dropping_the_stream_leaves_the_session_usable(prompt_answers):
    prompt_answers.prompt(text="red circle")
    before = prompt_answers.run(max_frame_num_to_track=1)
    run = prompt_answers.stream()
    next(run)
    del run
    for (_, first), (_, second) in zip(before, prompt_answers.run(max_frame_num_to_track=1), strict=True):
        assert ids(first) == ids(second)
        assert (first["out_binary_masks"] == second["out_binary_masks"]).all()


def test_a_run_is_not_mixed_with_a_later_one(prompt_answers):
    prompt_answers.prompt(text="green star")
    first, second = prompt_answers.stream(), prompt_answers.stream()
    assert [next(run)["frame_index"] for run in (first, second)] == [0, 0]
    # The earlier one has ended.
    assert list(first) == []
    assert next(second)["frame_index"] == 1


def test_sessions_do_not_know_of_each_other(video):
    one, two = Asking(video), Asking(video, session_id="two")
    assert two.id == "two" != one.id
    one.prompt(text="red circle")
    two.prompt(text="blue square")
    for first, second in zip(one.stream(), two.stream(), strict=True):
        for answer, place in ((first, clips.red_circle), (second, clips.blue_square)):
            mask = answer["outputs"]["out_binary_masks"].any(0)
            assert clips.iou(mask, clips.mask_of(place, answer["frame_index"])) > 0.9
    # track() is another matter, too.
    assert [len(found) for _, found in video.track(clips.bgr_frames(1))] == [0]
    one.ask("close_session")
    assert len(ids(two.prompt(text="red circle"))) == 1
    # The same name once more: the one before is closed.
    again = Asking(video, session_id="two")
    with pytest.raises(SettingError, match="add_prompt before"):
        again.run()
    again.ask("close_session")


def test_closing_is_harmless():
    with SAM3Video(checkpoint="shapes", device="cpu") as model:
        session, other = Asking(model), Asking(model)
        for _ in range(2):
            assert session.ask("close_session") == {"is_success": True}
        assert model.handle_request({"type": "close_session", "session_id": "never"}) == {"is_success": True}
        with pytest.raises(SettingError, match=f"{other.id}.*received '{session.id}'.*start_session"):
            session.prompt(text="red circle")
    with pytest.raises(SettingError, match="none"):
        other.ask("reset_session")
    model.close()


@pytest.mark.parametrize("kind", ["file", "folder", "image", "pictures"])
def test_what_a_session_may_begin_with(video, tmp_path, kind):
    pictures = [Image.fromarray(clips.draw(index)) for index in range(2)]
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / f"{index}.png")
    source = {
        "file": lambda: str(clips.write_mp4(tmp_path / "clip.mp4", 2)),
        "folder": lambda: str(tmp_path),
        "image": lambda: tmp_path / "0.png",
        "pictures": lambda: pictures,
    }[kind]()
    session = Asking(video, source)
    outputs = session.prompt(text="red circle")
    assert clips.iou(outputs["out_binary_masks"][0], clips.mask_of(clips.red_circle, 0)) > 0.9
    assert [index for index, _ in session.run()] == ([0] if kind == "image" else [0, 1])
    session.ask("close_session")


def test_unreadable_frames_are_left_out(video, tmp_path):
    for index in range(3):
        Image.fromarray(clips.draw(index)).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    session = Asking(video, str(tmp_path))
    session.prompt(0, text="green star")
    assert [index for index, _ in session.run()] == [0, 2]
    for prompt in ({"text": "red circle"}, {"obj_id": 1, "points": [[0.5, 0.5]], "point_labels": [1]}):
        with pytest.raises(SettingError, match="can be read, received 1"):
            session.prompt(1, **prompt)
    session.ask("close_session")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"text": "red circle", "points": [[0.5, 0.5]]}, "text alone"),
        ({"text": "red circle", "bounding_boxes": [[0.1, 0.1, 0.2, 0.2]]}, "text alone"),
        ({}, "text, points or bounding_boxes"),
        ({"text": ""}, "blank"),
        ({"text": []}, "blank"),
        ({"text": ["a", "a"]}, "different"),
        ({"text": 5}, "blank"),
        ({"points": [[0.5, 0.5]], "point_labels": [1]}, "obj_id"),
        ({"bounding_boxes": [[0.1, 0.1, 0.2, 0.2]]}, "examples .* not supported"),
        ({"points": [[0.5, 0.5]], "obj_id": 1}, "label"),
        ({"points": [[50, 50]], "point_labels": [1], "obj_id": 1}, "between 0 and 1"),
        ({"points": [[0.5, 0.5]], "point_labels": [1], "obj_id": -1}, "obj_id as a whole number"),
        ({"points": [[0.5, 0.5]], "point_labels": [1], "obj_id": 1.5}, "obj_id as a whole number"),
        ({"text": "red circle", "frame_index": FRAMES}, "from 0 to 3, received 4"),
        ({"text": "red circle", "frame_index": -1}, "from 0 to 3"),
        ({"text": "red circle", "frame_index": True}, "from 0 to 3"),
        ({"text": "red circle", "frame_index": None}, "without ['frame_index']"),
        ({"text": "red circle", "frame_idx": 0}, "received ['frame_idx'] as well"),
    ],
)
def test_prompts_that_cannot_be(asking, request_, message):
    with pytest.raises(SettingError) as caught:
        asking.prompt(**request_)
    assert re.search(message.replace("[", r"\["), str(caught.value))
    assert ids(asking.prompt(text="red circle")) == [0]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("start_session", "as a dictionary, received str"),
        ({}, "'start_session'.*received None"),
        ({"type": "cancel_propagation", "session_id": "x"}, "'add_prompt'.*received 'cancel_propagation'"),
        ({"type": ["add_prompt"]}, "'type'"),
        ({"type": "propagate_in_video", "session_id": "x"}, "handle_stream_request"),
        ({"type": "start_session"}, "without \\['resource_path'\\]"),
        ({"type": "start_session", "resource_path": "x", "session_id": 5}, "session_id as text"),
        ({"type": "start_session", "resource_path": iter([np.zeros((4, 4, 3), np.uint8)])}, "stream"),
        ({"type": "reset_session"}, "without \\['session_id'\\]"),
        ({"type": "reset_session", "session_id": "x"}, "open session"),
        ({"type": "reset_session", "session_id": ["x"]}, "open session"),
        ({"type": "remove_object", "session_id": "x"}, "without \\['obj_id'\\]"),
    ],
)
def test_requests_that_cannot_be(video, request_, message):
    with pytest.raises(SettingError, match=message):
        video.handle_request(request_)


def test_a_clip_that_cannot_be(video, tmp_path):
    with pytest.raises(VideoError, match="does not exist"):
        Asking(video, str(tmp_path / "none.mp4"))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"type": "add_prompt"}, "handle_request"),
        ({"session_id": "x"}, "open session"),
        ({"propagation_direction": "sideways"}, "'forward', 'backward', 'both'"),
        ({"start_frame_index": FRAMES}, "from 0 to 3"),
        ({"start_frame_index": 0, "max_frame_num_to_track": -1}, "at least 0"),
        ({"max_frames": 3}, "max_frames"),
        ({}, "add_prompt before"),
    ],
)
def test_streams_that_cannot_be_say_so_at_once(asking, video, request_, message):
    with pytest.raises(SettingError, match=message):
        video.handle_stream_request({"type": "propagate_in_video", "session_id": asking.id, **request_})
