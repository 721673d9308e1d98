"""Meta's video predictor as an engine, on the CPU with a narrow model; its own answers are the reference."""

from __future__ import annotations

import gc
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autodistill_sam3 import CheckpointError, DeviceError, SettingError
from autodistill_sam3.video.official_engine import OfficialVideoEngine
from autodistill_sam3.video.official_predictor import OfficialPredictor
from autodistill_sam3.video.tracks import NO_TEXT, ObjectPrompt

from . import narrow, narrow_video
from .leaks import nothing_leaks

TEXTS = ("red circle", "blue square")
FRAMES = 5


@pytest.fixture(scope="module")
def video_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "sam3.pt"
    narrow_video.write_narrow_video(path)
    return path


@pytest.fixture(scope="module")
def built(video_file: Path) -> OfficialVideoEngine:
    return narrow_video.narrow_engine(video_file)


@pytest.fixture
def engine(built):
    yield built
    assert not sessions(built)


@pytest.fixture(scope="module")
def images() -> list[narrow.Array]:
    return narrow_video.drawn_clip(FRAMES)


@pytest.fixture(scope="module")
def clip(images):
    return narrow_video.ListClip(images)


def sessions(engine):
    return dict(engine.predictor._predictor._ALL_INFERENCE_STATES)


def in_parts(engine, part_frames, overlap):
    """The same model, with other settings."""
    other = OfficialVideoEngine.__new__(OfficialVideoEngine)
    other.__dict__ |= engine.__dict__ | {"_part_frames": part_frames, "_overlap": overlap}
    return other


def prompt(frame_index, points=(), labels=(), box=None):
    points = np.array(points, np.float32).reshape(-1, 2)
    box = None if box is None else np.array(box, np.float32)
    return ObjectPrompt(frame_index, points, np.array(labels, np.int64), box)


def dense(tracks):
    """Masks by id."""
    return {int(number): np.asarray(mask) for number, mask in zip(tracks.object_ids, tracks.masks, strict=True)}


class Official:
    """Meta's predictor with the whole clip in one session, asked directly."""

    def __init__(self, engine, images):
        self.predictor = engine.predictor
        frames = [Image.fromarray(image) for image in images]
        self.session = self.ask("start_session", resource_path=frames)["session_id"]

    def ask(self, kind, **request):
        session = {"session_id": self.session} if hasattr(self, "session") else {}
        return self.predictor.request({"type": kind, **session, **request})

    def run(self, **request):
        request = {"type": "propagate_in_video", "session_id": self.session, **request}
        return {answer["frame_index"]: answer["outputs"] for answer in self.predictor.stream(request)}

    def text(self, text):
        self.ask("add_prompt", frame_index=0, text=text)
        return self.run(propagation_direction="forward", start_frame_index=0)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.ask("close_session")


def assert_same(tracks, outputs, names):
    """Masks and scores are the official ones, under ids that `names` learns and then keeps."""
    kept = outputs["out_binary_masks"].any(axis=(1, 2))
    assert len(tracks) == kept.sum()
    official = (outputs[name][kept] for name in ("out_obj_ids", "out_binary_masks", "out_probs"))
    for number, mask, score in zip(*official, strict=True):
        found = [own for own, ours in dense(tracks).items() if (ours == mask).all()]
        own = names.setdefault(int(number), found[0] if found else None)
        place = tracks.object_ids.tolist().index(own)
        assert (np.asarray(tracks.masks[place]) == mask).all()
        assert tracks.scores[place] == pytest.approx(score)


def test_texts_give_the_official_tracks(engine, clip, images):
    with engine.open(clip) as session:
        session.set_texts(TEXTS)
        found = list(session.propagate())
    assert [tracks.frame_index for tracks in found] == list(range(FRAMES))
    names = [{}, {}]
    with Official(engine, images) as official:
        for index, text in enumerate(TEXTS):
            outputs = official.text(text)
            assert sum(len(frame["out_obj_ids"]) for frame in outputs.values()) >= FRAMES
            for tracks in found:
                own = tracks.select(tracks.prompt_index == index)
                assert_same(own, outputs[tracks.frame_index], names[index])
    # Both runs count from 0; here ids are unique.
    assert not set(names[0].values()) & set(names[1].values())
    assert {str(source) for tracks in found for source in tracks.source} == {"text"}


def test_points_and_boxes_give_the_official_masks(engine, clip, images):
    height, width = clip.hw
    click, box = (30.0, 40.0), (20.0, 30.0, 90.0, 100.0)
    with engine.open(clip) as session:
        first, shown = session.prompt_object(prompt(1, [click], [1]))
        second, boxed = session.prompt_object(prompt(2, box=box))
        refined = session.prompt_object(prompt(2, [(80, 90)], [0]), second)[1]
        found = list(session.propagate())
    with Official(engine, images) as official:
        # As the first thing, it takes no points.
        with pytest.raises(AssertionError, match="No cached outputs"):
            official.ask("add_prompt", frame_index=0, obj_id=0, points=[[0.5, 0.5]], point_labels=[1])
        official.ask("reset_session")
        # Without prompts, it finds nothing, and takes points from then on.
        assert not any(len(frame["out_obj_ids"]) for frame in official.run(start_frame_index=0).values())

        def point(frame, number, points, labels):
            points = [[x / width, y / height] for x, y in points]
            answer = official.ask("add_prompt", frame_index=frame, obj_id=number, points=points, point_labels=labels)[
                "outputs"
            ]
            return answer["out_binary_masks"][answer["out_obj_ids"].tolist().index(number)]

        corners = [box[:2], box[2:]]
        assert (dense(shown)[first] == point(1, first, [click], [1])).all()
        assert (dense(boxed)[second] == point(2, second, corners, [2, 3])).all()
        assert (dense(refined)[second] == point(2, second, [*corners, (80, 90)], [2, 3, 0])).all()
        outputs = official.run(propagation_direction="forward", start_frame_index=1)
    assert [set(dense(tracks)) for tracks in found[:2]] == [set(), {first}]
    for tracks in found[2:]:
        assert_same(tracks, outputs[tracks.frame_index], {first: first, second: second})
        assert set(tracks.prompt_index.tolist()) == {NO_TEXT}
        assert set(tracks.source.tolist()) == {"prompt"}


@pytest.mark.slow
def test_parts_show_every_frame_once_and_keep_ids(engine, clip):
    with in_parts(engine, 3, 2).open(clip) as session:
        session.set_texts(TEXTS[:1])
        pointed, _ = session.prompt_object(prompt(0, box=(20, 30, 90, 100)))
        found = list(session.propagate())
    assert [tracks.frame_index for tracks in found] == list(range(FRAMES))
    assert all(pointed in tracks.object_ids for tracks in found)
    for tracks in found:
        assert len(set(tracks.object_ids.tolist())) == len(tracks)
    # An object of the text goes on under its id in frames that the first part lacks.
    texts = [set(tracks.object_ids[tracks.prompt_index == 0].tolist()) for tracks in found]
    assert set.union(*texts[:3]) & set.union(*texts[4:])


@pytest.mark.slow
def test_end_of_a_part_shows_only_what_the_next_one_confirms(engine, clip):
    """Random weights track nothing that they detect, so that Meta's code takes each new object back a frame later."""
    model = engine.predictor.model
    model.hotstart_delay, model.hotstart_unmatch_thresh, model.new_det_thresh = 2, 1, 0.5

    def shown(part_frames):
        with in_parts(engine, part_frames, 2).open(clip) as session:
            session.set_texts(["green"])
            return [len(tracks) > 0 for tracks in session.propagate()]

    try:
        whole = shown(FRAMES)
        assert whole == [False] * (FRAMES - 1) + [True]
        assert shown(3) == whole
    finally:
        narrow_video.only_first_objects(model)


@pytest.mark.slow
def test_range_and_direction(engine, clip):
    with engine.open(clip) as session:
        session.set_texts(TEXTS[:1])
        forward = list(session.propagate(2, 2))
        assert [tracks.frame_index for tracks in forward] == [2, 3]
        backward = list(session.propagate(2, reverse=True))
        assert [tracks.frame_index for tracks in backward] == [2, 1, 0]
        again = list(session.propagate(2, 2))
        # Both directions begin with one frame, and so with the same objects.
        assert len(forward[0])
        assert dense(forward[0]).keys() == dense(backward[0]).keys()
        for one, other in zip(forward, again, strict=True):
            assert one.object_ids.tolist() == other.object_ids.tolist()
            assert all((dense(one)[number] == dense(other)[number]).all() for number in dense(one))
        for start, count in ((-1, None), (FRAMES, None), (0, 0)):
            with pytest.raises(SettingError, match="received"):
                session.propagate(start, count)


def test_object_pointed_at_before_the_start_is_there(engine, clip):
    with engine.open(clip) as session:
        number, _ = session.prompt_object(prompt(1, box=(20, 30, 90, 100)))
        assert [(tracks.frame_index, tracks.object_ids.tolist()) for tracks in session.propagate(3, 2)] == [
            (3, [number]),
            (4, [number]),
        ]
        found = [(tracks.frame_index, tracks.object_ids.tolist()) for tracks in session.propagate(2, reverse=True)]
        assert found == [(2, []), (1, [number]), (0, [number])]


@pytest.mark.slow
def test_removed_objects_stay_away(engine, clip):
    with engine.open(clip) as session:
        session.set_texts(TEXTS[:1])
        pointed, _ = session.prompt_object(prompt(0, box=(20, 30, 90, 100)))
        ids = {number for tracks in session.propagate(0, 2) for number in dense(tracks)}
        gone = min(ids - {pointed})
        session.remove_object(gone)
        session.remove_object(pointed)
        assert {number for tracks in session.propagate(0, 2) for number in dense(tracks)} == ids - {gone, pointed}
        for number in (gone, pointed, 99):
            with pytest.raises(SettingError, match=f"no object {number}"):
                session.remove_object(number)
        with pytest.raises(SettingError, match=f"no object {gone}"):
            session.prompt_object(prompt(0, [(5, 5)], [1]), gone)


@pytest.mark.slow
def test_ids_of_new_objects_may_be_chosen(engine, clip):
    with engine.open(clip) as session:
        assert [session.prompt_object(prompt(0, [(30, 40)], [1]), 7)[0] for _ in range(2)] == [7, 7]
        assert session.prompt_object(prompt(0, [(80, 90)], [1]))[0] == 8
        session.remove_object(7)
        assert session.prompt_object(prompt(0, [(30, 40)], [1]), 7)[0] == 7
        assert [tracks.object_ids.tolist() for tracks in session.propagate(0, 1)] == [[7, 8]]


@pytest.mark.slow
def test_what_was_said_can_be_replaced(engine, clip):
    point, other = prompt(0, [(30, 40)], [1]), prompt(0, [(80, 90)], [1])
    with engine.open(clip) as session:
        alone = dense(session.prompt_object(point, 0)[1])[0]
        session.prompt_object(other, 1)
        both = dense(session.prompt_object(point, 1)[1])[1]
        session.prompt_object(other, 2)
        replaced = dense(session.prompt_object(point, 2, replace=True)[1])[2]
    assert (replaced == alone).all()
    assert not (both == alone).all()


@pytest.mark.slow
def test_object_of_a_text_can_be_refined(engine, clip):
    with engine.open(clip) as session:
        session.set_texts(TEXTS[:1])
        before = [dense(tracks) for tracks in session.propagate(0, 3)]
        number = max(before[2], key=lambda one: before[2][one].sum())
        y, x = np.argwhere(before[2][number])[0]
        same, shown = session.prompt_object(prompt(2, [(float(x), float(y))], [0]), number)
        assert same == number
        assert shown.prompt_index.tolist() == [0]
        after = list(session.propagate(0, 4))
    assert [tracks.object_ids.tolist().count(number) for tracks in after[2:]] == [1, 1]
    assert not (dense(after[2])[number] == before[2][number]).all()
    # Up to there it is what it was.
    for tracks, earlier in zip(after[:2], before[:2], strict=True):
        assert dense(tracks).keys() == earlier.keys()


def test_reset_forgets(engine, clip):
    with engine.open(clip) as session:
        session.set_texts(TEXTS[:1])
        number, _ = session.prompt_object(prompt(0, box=(20, 30, 90, 100)))
        session.reset()
        with pytest.raises(SettingError):
            session.remove_object(number)
        assert [len(tracks) for tracks in session.propagate(0, 2)] == [0, 0]


def test_unreadable_frames_are_left_out(engine, images):
    with engine.open(narrow_video.ListClip(images, missing=(1, 3))) as session:
        session.set_texts(TEXTS[:1])
        assert [tracks.frame_index for tracks in session.propagate()] == [0, 2, 4]
        with pytest.raises(SettingError, match="no frame 3"):
            session.prompt_object(prompt(3, [(5, 5)], [1]))


@pytest.mark.parametrize(
    "wrong",
    [
        prompt(0),
        prompt(0, [(1, 1)], [1, 0]),
        prompt(0, [(1, 1)], [2]),
        prompt(0, box=(5, 5, 5, 9)),
        prompt(99, [(1, 1)], [1]),
        prompt(-1, [(1, 1)], [1]),
    ],
)
def test_wrong_prompts(engine, clip, wrong):
    with engine.open(clip) as session, pytest.raises(SettingError):
        session.prompt_object(wrong)


# Sessions end, and the process stays as it was.


def test_abandoned_run_leaves_nothing(engine, clip):
    session = in_parts(engine, 3, 1).open(clip)
    session.set_texts(TEXTS[:1])
    run = session.propagate()
    next(run)
    assert not sessions(engine)
    run.close()
    session.close()
    session.close()
    with pytest.raises(SettingError, match="closed"):
        session.propagate()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("broken"), torch.OutOfMemoryError("full\nmore")])
def test_interrupted_run_leaves_nothing(engine, clip, error):
    decoder = engine.predictor.model.tracker.sam_mask_decoder

    def interrupt(*_):
        raise error

    with engine.open(clip) as session:
        session.set_texts(TEXTS[:1])
        hook = decoder.register_forward_pre_hook(interrupt)
        try:
            with nothing_leaks(), pytest.raises((KeyboardInterrupt, RuntimeError), match=r"broken|part_frames|^$"):
                list(session.propagate())
        finally:
            hook.remove()
        assert not sessions(engine)
        assert len(list(session.propagate(0, 1))) == 1


@pytest.mark.slow
def test_nothing_of_a_session_is_kept(engine, clip):
    def tensors():
        gc.collect()
        # Asked of the type, since some objects answer questions of themselves with a warning.
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    def run():
        with engine.open(clip) as session:
            session.set_texts(TEXTS[:1])
            session.prompt_object(prompt(0, box=(20, 30, 90, 100)))
            list(session.propagate(0, 1))

    run()
    before = tensors()
    run()
    assert tensors() == before


@pytest.mark.slow
def test_process_is_the_same_between_results(video_file, clip):
    with nothing_leaks():
        engine = narrow_video.narrow_engine(video_file, part_frames=3, overlap=1)
    with engine.open(clip) as session:
        with nothing_leaks():
            session.set_texts(TEXTS[:1])
            run = session.propagate(0, 4)
            next(run)
        with nothing_leaks():
            list(run)
    engine.close()
    engine.close()
    with pytest.raises(SettingError, match="closed"):
        engine.open(clip).prompt_object(prompt(0, [(5, 5)], [1]))


@pytest.mark.gpu
def test_gpu_gives_the_masks_of_the_cpu(engine, video_file, clip):
    """On a GPU it is what Meta's own builder makes, without the patches for the CPU."""

    def run(one):
        with nothing_leaks(), one.open(clip) as session:
            session.set_texts(TEXTS)
            session.prompt_object(prompt(1, box=(20, 30, 90, 100)))
            return list(session.propagate())

    with nothing_leaks():
        other = narrow_video.narrow_engine(video_file, device="cuda")
    before = torch.cuda.memory_allocated()
    found = run(other)
    assert torch.cuda.memory_allocated() == before
    other.close()
    for ours, expected in zip(found, run(engine), strict=True):
        assert ours.object_ids.tolist() == expected.object_ids.tolist()
        for number, mask in dense(expected).items():
            other_mask = dense(ours)[number]
            assert (mask & other_mask).sum() > 0.9 * (mask | other_mask).sum() or mask.sum() < 50


# What it refuses.


def test_clear_refusals(video_file, tmp_path, monkeypatch):
    def no_network(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    bpe = narrow.clip_vocabulary()
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="needs a CUDA device"):
            OfficialVideoEngine(video_file, bpe)
        with pytest.raises(DeviceError):
            OfficialPredictor(video_file, bpe, [0])
    with pytest.raises(SettingError, match="gpus_to_use"):
        OfficialPredictor(video_file, bpe, [0], device="cpu")
    for precision in ("bf16", "fp16", "int8"):
        with pytest.raises(SettingError, match=precision):
            OfficialPredictor(video_file, bpe, device="cpu", precision=precision)
    with pytest.raises(SettingError, match="overlap"):
        OfficialVideoEngine(video_file, bpe, device="cpu", part_frames=4, overlap=4)
    with pytest.raises(CheckpointError, match="missing"):
        OfficialVideoEngine(tmp_path / "missing.pt", bpe, device="cpu")
    tensors = torch.load(video_file, weights_only=True)
    torch.save({name: tensor for name, tensor in tensors.items() if name.startswith("detector.")}, tmp_path / "half.pt")
    with pytest.raises(CheckpointError, match="tracker"):
        OfficialVideoEngine(tmp_path / "half.pt", bpe, device="cpu")
    del tensors["tracker.no_mem_embed"]
    torch.save(tensors, tmp_path / "incomplete.pt")
    with narrow_video.narrowed_video(), pytest.raises(CheckpointError, match="no_mem_embed"):
        OfficialVideoEngine(tmp_path / "incomplete.pt", bpe, device="cpu")


def test_loading_finds_the_vocabulary(video_file):
    with narrow_video.narrowed_video():
        engine = OfficialVideoEngine.load(video_file, device="cpu")
    engine.close()
