"""One call from a clip to a tensor of masks, and what is kept of it."""

from __future__ import annotations

import hashlib
import json

import clips
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco

import autodistill_sam3
from autodistill_sam3 import OntologyError, SettingError, VideoError, video_masks
from autodistill_sam3.video.mask_cache import MaskCache

# pycocotools has not followed numpy's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FRAMES = 3
SHAPES = {"checkpoint": "shapes", "device": "cpu"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return clips.write_mp4(tmp_path_factory.mktemp("clips") / "clip.mp4", FRAMES)


def mean_iou(masks, place):
    return np.mean([clips.iou(masks[index].numpy(), clips.mask_of(place, index)) for index in range(len(masks))])


def test_a_text(clip):
    masks = video_masks(str(clip), "red circle", **SHAPES)
    assert (masks.dtype, masks.shape) == (torch.bool, (FRAMES, clips.HEIGHT, clips.WIDTH))
    assert mean_iou(masks, clips.red_circle) > 0.85


def test_several_texts_are_united():
    masks = video_masks(clips.bgr_frames(1), ["red circle", "blue square", "green star"], **SHAPES)
    both = clips.mask_of(clips.red_circle, 0) | clips.mask_of(clips.blue_square, 0)
    assert clips.iou(masks[0].numpy(), both) > 0.9


def test_an_object_that_is_pointed_at():
    frames = clips.bgr_frames(FRAMES)
    masks = video_masks(frames, box=clips.blue_square(1), frame=1, **SHAPES)
    assert clips.iou(masks[1].numpy(), clips.mask_of(clips.blue_square, 1)) > 0.9
    assert masks.flatten(1).any(1).tolist() == [True] * FRAMES
    x0, y0, x1, y1 = clips.red_circle(0)
    middle = [(x0 + x1) / 2 / clips.WIDTH, (y0 + y1) / 2 / clips.HEIGHT]
    masks = video_masks(frames, points=[middle], labels=[1], max_frames=1, **SHAPES)
    assert clips.iou(masks[0].numpy(), clips.mask_of(clips.red_circle, 0)) > 0.8
    assert not masks[1:].any()


def test_every_frame_has_a_mask(tmp_path):
    for index in range(4):
        Image.fromarray(clips.draw(index)).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    masks = video_masks(tmp_path, "red circle", max_frames=3, **SHAPES)
    assert masks.flatten(1).any(1).tolist() == [True, False, True, False]
    assert not video_masks(clips.bgr_frames(2), "green star", on_empty="retry", **SHAPES).any()


def test_the_other_name():
    assert autodistill_sam3.sam3_inference is video_masks


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, SettingError, "received neither"),
        ({"text": []}, SettingError, "received neither"),
        ({"text": "a", "box": [1, 1, 9, 9]}, SettingError, "received both"),
        ({"text": "a", "on_empty": "skip"}, SettingError, "mask for every frame"),
        ({"text": ""}, OntologyError, "character"),
        ({"text": "a", "start_frame": 9}, SettingError, "start_frame"),
        ({"text": "a", "max_frames": 0}, SettingError, "max_frames"),
        ({"box": [9, 9, 1, 1]}, SettingError, "x1 < x2"),
        ({"points": [[0.5, 0.5]], "frame": 9}, SettingError, "between 0 and 0"),
        ({"text": "a", "confidence": 2}, SettingError, "confidence"),
    ],
)
@pytest.mark.parametrize("is_cached", [False, True])
def test_what_cannot_be(tmp_path, arguments, error, message, is_cached):
    cache = tmp_path / "cache" if is_cached else None
    with pytest.raises(error, match=message):
        video_masks(clips.bgr_frames(1), **arguments, **SHAPES, cache=cache)
    assert not (tmp_path / "cache").exists()


def test_clips_that_cannot_be(tmp_path):
    with pytest.raises(SettingError, match="stream"):
        video_masks(iter(clips.bgr_frames(1)), "a", **SHAPES)
    with pytest.raises(VideoError, match="does not exist"):
        video_masks(tmp_path / "none.mp4", "a", **SHAPES)
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="folder for cache"):
        video_masks(clips.bgr_frames(1), "a", **SHAPES, cache=tmp_path / "file")


# The cache.


def kept(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_second_time_needs_no_model(tmp_path, clip, monkeypatch):
    cache = tmp_path / "cache"
    first = video_masks(clip, "red circle", cache=cache, max_frames=2, **SHAPES)
    assert first.any()
    elsewhere = tmp_path / "other name.mp4"
    elsewhere.write_bytes(clip.read_bytes())
    # Nothing is left that could compute it.
    monkeypatch.setattr("autodistill_sam3.video.one_call.SAM3Video", None)
    second = video_masks(elsewhere, "red circle", cache=cache, max_frames=2, **SHAPES)
    assert torch.equal(first, second)
    assert len(kept(cache)) == 1


class ModelAskedError(Exception):
    pass


def ask_model(*_, **__):
    raise ModelAskedError


def test_what_makes_a_difference(tmp_path, monkeypatch):
    frames = clips.bgr_frames(1)
    box = np.array(clips.red_circle(0)) / [clips.WIDTH, clips.HEIGHT, clips.WIDTH, clips.HEIGHT]
    keep = {"cache": tmp_path, **SHAPES}
    known = video_masks(frames, "red circle", **keep), video_masks(frames, box=box.tolist(), **keep)
    monkeypatch.setattr("autodistill_sam3.video.one_call.SAM3Video", ask_model)
    # The same place in other words, the same text as a list, the same pixels as one array.
    assert torch.equal(video_masks(frames, box=clips.red_circle(0), **keep), known[1])
    assert torch.equal(video_masks(np.array(frames), ["red circle"], **keep), known[0])
    changed = frames[0].copy()
    changed[0, 0] += 1
    for way in (
        {"text": "red circle", "confidence": 0.4},
        {"text": "red circle", "on_empty": "retry"},
        {"text": "red circle", "max_frames": 1},
        {"text": "red circle", "start_frame": 0},
        {"text": ["red circle", "star"]},
        {"box": box.tolist(), "points": [[0.2, 0.5]]},
        {"text": "red circle", "video_path": [changed]},
        {"text": "red circle", "video_path": frames * 2},
    ):
        with pytest.raises(ModelAskedError):
            video_masks(**{"video_path": frames, **way, **keep})


def test_damaged_files_are_made_anew(tmp_path, caplog):
    first = video_masks(clips.bgr_frames(1), "red circle", cache=tmp_path, **SHAPES)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert torch.equal(video_masks(clips.bgr_frames(1), "red circle", cache=tmp_path, **SHAPES), first)
    assert "is damaged and is made anew" in caplog.text
    assert path.read_bytes() == whole


@given(st.data())
def test_damage_is_noticed(tmp_path_factory, data):
    cache, masks = MaskCache(tmp_path_factory.mktemp("cache")), np.eye(5, dtype=bool)[None]
    cache.store({}, masks)
    [path] = cache._folder.iterdir()
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(place, len(content)))] + content[place + 1 :])
    found = cache.load({}, masks.shape)
    assert found is None or (found == masks).all()


def test_a_folder_that_cannot_be_written(tmp_path, caplog):
    cache = MaskCache(tmp_path / "x" / "y")
    (tmp_path / "x").touch()
    cache.store({}, np.zeros((1, 2, 3), bool))
    assert "cannot be written" in caplog.text


def stored(folder, content):
    """As a cache would find it, with a digest that is right."""
    cache = MaskCache(folder)
    cache.store({}, np.zeros((1, 2, 3), bool))
    [path] = folder.iterdir()
    body = json.dumps(content).encode() if not isinstance(content, bytes) else content
    path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    return cache


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        None,
        {"size": [1, 2, 3], "counts": []},
        {"size": [9, 2, 3], "counts": [None] * 9},
        {"size": [1, 2, 3], "counts": [5]},
        {"size": [1, 2, 3], "counts": ["\u00e4"]},
        {"size": [1, 2, 3], "counts": ["7"]},
        {"size": [1, 2, 3], "counts": ["o"]},
        {"size": [1, 2, 3], "counts": [[]]},
        b"\x80\x04",
        b"[" * 100_000,
    ],
)
def test_nothing_else_is_believed(tmp_path, content, caplog):
    assert stored(tmp_path, content).load({}, (1, 2, 3)) is None
    assert "made anew" in caplog.text


@given(arrays(np.bool_, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))))
def test_what_is_stored_comes_back(tmp_path_factory, masks):
    folder = tmp_path_factory.mktemp("cache")
    cache = MaskCache(folder)
    cache.store({"a": 1}, masks)
    assert (cache.load({"a": 1}, masks.shape) == masks).all()
    assert cache.load({"a": 2}, masks.shape) is None
    assert cache.load({"a": 1}, (*masks.shape[:2], 10)) is None
    # And others can read it.
    [path] = folder.iterdir()
    content = json.loads(path.read_text().partition("\n")[2])
    for mask, counts in zip(masks, content["counts"], strict=True):
        if counts is not None:
            assert (coco.decode({"size": list(mask.shape), "counts": counts.encode()}) == mask).all()
