"""The session dictionaries over Meta's predictor, beside what it answers itself."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from autodistill_sam3 import SettingError
from autodistill_sam3.ontology import PromptPairs, PromptTable
from autodistill_sam3.video.clip_session import ClipSession, Presentation
from autodistill_sam3.video.requests import RequestSessions
from autodistill_sam3.video.sources import open_clip

from . import narrow_video

FRAMES = 4
BOX = {"points": [[0.1, 0.25], [0.45, 0.8]], "point_labels": [2, 3]}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "sam3.pt"
    narrow_video.write_narrow_video(path)
    return narrow_video.narrow_engine(path)


@pytest.fixture(scope="module")
def pictures():
    return [Image.fromarray(image) for image in narrow_video.drawn_clip(FRAMES)]


class Sides:
    """One session of each side, asked the same."""

    def __init__(self, engine, pictures):
        self.ours, self.meta = RequestSessions(engine), engine.predictor
        start = {"type": "start_session", "resource_path": pictures, "session_id": "same"}
        assert self.ours.handle(start) == self.meta.request(start) == {"session_id": "same"}

    def ask(self, kind, **request):
        request = {"type": kind, "session_id": "same", **request}
        return self.ours.handle(request), self.meta.request(request)

    def run(self, **request):
        request = {"type": "propagate_in_video", "session_id": "same", **request}
        return list(self.ours.stream(request)), list(self.meta.stream(request))

    def close(self):
        assert self.ask("close_session") == ({"is_success": True},) * 2
        assert self.ask("close_session") == ({"is_success": True},) * 2


@pytest.fixture
def sides(engine, pictures):
    both = Sides(engine, pictures)
    yield both
    both.close()


def assert_same(own, official):
    """Keys, types, masks and scores; objects with empty masks, which Meta's answers may have, are left out of ours."""
    assert set(own) == {*official, "out_prompt_index"}
    kept = official["out_binary_masks"].any(axis=(1, 2))
    for key in ("out_obj_ids", "out_probs", "out_boxes_xywh", "out_binary_masks"):
        assert own[key].dtype == official[key].dtype
        assert own[key].shape == official[key][kept].shape
    assert (own["out_binary_masks"] == official["out_binary_masks"][kept]).all()
    assert own["out_probs"] == pytest.approx(official["out_probs"][kept])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("direction", "start", "most"),
    [("both", 2, None), ("both", 2, 1), ("both", 1, 0), ("forward", 0, 2), ("backward", 3, 2), ("backward", 0, None)],
)
def test_frames_are_the_same(sides, direction, start, most):
    """Nothing is looked for, which takes no time."""
    request = {"propagation_direction": direction, "start_frame_index": start}
    if most is not None:
        request["max_frame_num_to_track"] = most
    own, official = sides.run(**request)
    assert [answer["frame_index"] for answer in own] == [answer["frame_index"] for answer in official]
    for first, second in zip(own, official, strict=True):
        assert_same(first["outputs"], second["outputs"])


def test_a_text_gives_the_same(sides):
    own, official = sides.ask("add_prompt", frame_index=0, text="red circle")
    assert own["frame_index"] == official["frame_index"] == 0
    assert set(own) == set(official)
    assert len(own["outputs"]["out_obj_ids"])
    own, official = sides.run(start_frame_index=0, propagation_direction="forward")
    for first, second in zip(own, official, strict=True):
        assert first["frame_index"] == second["frame_index"]
        assert_same(first["outputs"], second["outputs"])


def test_an_object_gives_the_same(sides):
    # Officially, points must not come first.
    sides.run(start_frame_index=0)
    own, official = sides.ask("add_prompt", frame_index=1, obj_id=4, **BOX)
    assert own["outputs"]["out_obj_ids"].tolist() == [4]
    assert_same(own["outputs"], official["outputs"])
    own, official = sides.run(start_frame_index=1, propagation_direction="forward")
    for first, second in zip(own, official, strict=True):
        assert first["frame_index"] == second["frame_index"]
        assert (first["outputs"]["out_binary_masks"] == second["outputs"]["out_binary_masks"]).all()


@pytest.mark.slow
def test_both_directions_name_objects_alike(engine, pictures, sides):
    sides.ours.handle({"type": "add_prompt", "session_id": "same", "frame_index": 2, "text": "red circle"})
    request = {"type": "propagate_in_video", "session_id": "same", "start_frame_index": 2}
    by_request = {
        answer["frame_index"]: answer["outputs"]["out_obj_ids"].tolist() for answer in sides.ours.stream(request)
    }
    table = PromptTable.from_ontology(PromptPairs((("red circle", "ball"),)))
    with open_clip(pictures) as clip, engine.open(clip) as session:
        session.set_texts(table.prompts)
        tracks = ClipSession(clip, session, Presentation(table, "zeros", False, "auto")).track(2, direction="both")
        by_track = {index: found.tracker_id.tolist() for index, found in tracks}
    for found in (by_request, by_track):
        assert list(found) == [2, 3, 1, 0]
        assert found[2]
        assert set(found[2]) <= set(found[1])


@pytest.mark.slow
def test_several_sessions_and_several_texts(engine, pictures):
    ours = RequestSessions(engine)
    one, two = (ours.handle({"type": "start_session", "resource_path": pictures[:2]})["session_id"] for _ in range(2))
    prompt = {"type": "add_prompt", "frame_index": 0}
    alone = ours.handle({**prompt, "session_id": one, "text": "red circle"})["outputs"]
    both = ours.handle({**prompt, "session_id": two, "text": ["blue square", "red circle"]})["outputs"]
    assert {*both["out_prompt_index"].tolist()} == {0, 1}
    own = both["out_binary_masks"][both["out_prompt_index"] == 1]
    assert np.array_equal(own, alone["out_binary_masks"])
    ours.close()
    with pytest.raises(SettingError, match="open session"):
        ours.handle({"type": "reset_session", "session_id": one})
