"""Clips of drawn shapes through `SAM3Video`, against what was drawn."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import supervision as sv
import torch

from autodistill_sam3 import SAM3Video, SettingError, VideoError
from autodistill_sam3.instances import compact_masks
from autodistill_sam3.ontology import PromptPairs, PromptTable
from autodistill_sam3.segmentation.transformers_segmenter import TransformersSegmenter
from autodistill_sam3.training.clips import draw_clip
from autodistill_sam3.training.video_table import overlaps
from autodistill_sam3.video.clip_session import ClipSession, Presentation
from autodistill_sam3.video.tracks import FrameTracks

LENGTH = 10


def ontology(*names):
    return PromptPairs(tuple((name, name) for name in names))


def named(clip):
    return list(dict.fromkeys(f"{a} {b}" for a, b in zip(clip.colours, clip.shapes, strict=True)))


def bgr(clip):
    return [np.ascontiguousarray(frame[..., ::-1]) for frame in clip.frames]


def as_tracks(results, shape):
    """(M, T, H, W) by id."""
    found = {}
    for index, detections in results:
        for object_id, mask in zip(detections.tracker_id, detections.mask, strict=True):
            found.setdefault(int(object_id), np.zeros(shape, bool))[index] = mask
    return found


def of(clip, **keywords):
    return SAM3Video(ontology(*named(clip)), checkpoint="shapes", device="cpu", **keywords)


@pytest.fixture(scope="module")
def clip():
    return draw_clip(3, 200, 150, length=LENGTH)


@pytest.fixture(scope="module")
def forward(clip):
    with of(clip) as video:
        return list(video.track(bgr(clip)))


def test_objects_are_tracked_by_text(clip, forward):
    assert [index for index, _ in forward] == list(range(LENGTH))
    tracks = as_tracks(forward, clip.masks.shape[1:])
    iou = overlaps(clip.masks, np.stack(list(tracks.values()))).mean(axis=2)
    assert iou.max(axis=1).mean() >= 0.8
    # Each has a track of its own. The small tracker loses one now and then, which begins anew.
    assert len(set(iou.argmax(axis=1))) == len(clip.masks) >= len(tracks) - 1


def test_what_users_get(clip, forward):
    for _, detections in forward:
        count = len(detections)
        assert isinstance(detections, sv.Detections)
        assert detections.mask.shape == (count, 150, 200) and detections.mask.dtype == bool
        assert detections.tracker_id.dtype == np.int64 and len(set(detections.tracker_id)) == count
        assert (detections.confidence > 0).all() and (detections.confidence <= 1).all()
        assert set(detections.data) == {"class_name", "prompt", "source"}
        np.testing.assert_allclose(detections.xyxy, sv.mask_to_xyxy(detections.mask) + [0, 0, 1, 1])
        assert [named(clip)[index] for index in detections.class_id] == detections.data["class_name"].tolist()
    confidence = np.concatenate([detections.confidence for _, detections in forward])
    assert len(set(confidence.tolist())) > LENGTH


def test_features_are_computed_once_for_all_classes(clip, monkeypatch):
    seen = []
    encode = TransformersSegmenter.encode

    def counted(self, images):
        seen.extend(images)
        return encode(self, images)

    monkeypatch.setattr(TransformersSegmenter, "encode", counted)
    with of(clip) as video:
        list(video.track(bgr(clip)[:3]))
    assert len(named(clip)) > 1 and len(seen) == 3


def test_both_directions_cover_all_frames_with_the_same_ids(clip, forward):
    with of(clip) as video:
        results = list(video.track(bgr(clip), start_frame=6, direction="both"))
    assert [index for index, _ in results] == [*range(6, LENGTH), *range(5, -1, -1)]
    tracks = as_tracks(results, clip.masks.shape[1:])
    iou = overlaps(clip.masks, np.stack(list(tracks.values()))).mean(axis=2)
    assert iou.max(axis=1).mean() >= 0.75


def test_backward_from_the_end(clip):
    with of(clip) as video:
        results = list(video.track(bgr(clip), direction="backward", max_frames=4))
    assert [index for index, _ in results] == [9, 8, 7, 6]
    assert all(len(detections) for _, detections in results)


def test_an_object_is_tracked_from_its_box_refined_and_removed(clip):
    target = int(clip.masks[:, 0].sum(axis=(1, 2)).argmax())
    [left, top, right, bottom] = sv.mask_to_xyxy(clip.masks[[target], 0])[0].tolist()
    with SAM3Video(ontology("toy"), checkpoint="shapes", device="cpu") as video, video.open(bgr(clip)) as session:
        object_id, shown = session.add_object(0, box=[left, top, right + 1, bottom + 1], class_name="toy")
        truth = clip.masks[target]
        assert (shown.mask[0] & truth[0]).sum() / (shown.mask[0] | truth[0]).sum() > 0.7
        assert shown.tracker_id.tolist() == [object_id] and shown.data["source"].tolist() == ["prompt"]
        results = as_tracks(session.track(), clip.masks.shape[1:])
        assert overlaps(truth[None], results[object_id][None]).mean() > 0.75
        # A point beside the object takes nothing of it away that is not there.
        centre = [(left + right) / 2, (top + bottom) / 2]
        refined = session.refine_object(object_id, 4, points=[centre, [1, 1]], labels=[1, 0], coordinates="absolute")
        assert refined.tracker_id.tolist() in ([object_id], [])
        session.remove_object(object_id)
        assert not any(len(detections) for _, detections in session.track(max_frames=2))
        with pytest.raises(SettingError, match="Expected the id"):
            session.remove_object(object_id)
        with pytest.raises(SettingError, match="Expected the id"):
            session.refine_object(object_id, 4, box=[0, 0, 9, 9])


def test_what_a_person_points_at_is_not_tracked_twice(clip):
    target = int(clip.masks[:, 0].sum(axis=(1, 2)).argmax())
    [left, top, right, bottom] = sv.mask_to_xyxy(clip.masks[[target], 0])[0].tolist()
    with of(clip) as video, video.open(bgr(clip)[:4]) as session:
        object_id, _ = session.add_object(0, box=[left, top, right + 1, bottom + 1])
        last = list(session.track())[-1][1]
    assert object_id in last.tracker_id
    own = last.tracker_id.tolist().index(object_id)
    assert last.data["class_name"][own] == f"{clip.colours[target]} {clip.shapes[target]}"
    iou = [(mask & last.mask[own]).sum() / (mask | last.mask[own]).sum() for mask in last.mask]
    assert sum(value > 0.5 for value in iou) == 1


@pytest.mark.parametrize("prompting", ["boxes", "both"])
def test_florence2_proposes_in_key_frames(clip, prompting):
    with of(clip, prompting=prompting, key_frames=4) as video:
        results = list(video.track(bgr(clip)[:6]))
    tracks = as_tracks(results, (6, 150, 200))
    sources = {source for _, detections in results for source in detections.data["source"]}
    assert sources <= ({"boxes"} if prompting == "boxes" else {"text", "boxes", "both"}) and sources
    if prompting == "both":
        assert "both" in sources and len(clip.masks) <= len(tracks) <= len(clip.masks) + 1


def test_prompts_of_one_class_give_one_track(clip):
    colour = clip.colours[0]
    pairs = ((f"{colour} {clip.shapes[0]}", "thing"), (f"{colour} shape", "thing"), (clip.shapes[0], "thing"))
    with SAM3Video(PromptPairs(pairs), checkpoint="shapes", device="cpu") as video:
        for _, detections in video.track(bgr(clip)[:4]):
            iou = [[(a & b).sum() / (a | b).sum() for a in detections.mask] for b in detections.mask]
            assert (np.array(iou) > 0.5).sum() == len(detections) > 0


class Given:
    """A session that answers with one object, tracked under two classes with these scores in each frame."""

    def __init__(self, scores):
        self.scores = scores

    def propagate(self, start_frame=0, max_frames=None, *, reverse=False):
        mask = (np.ones((4, 5), bool), 1, 2)
        for index, scores in enumerate(self.scores):
            one, confidence = np.arange(2), np.array(scores, np.float32)
            yield FrameTracks(
                index, one, compact_masks([mask, mask], (12, 16)), confidence, one, np.array(["text"] * 2)
            )


@pytest.mark.parametrize(
    ("scores", "shown"),
    [
        # For a frame the other class seems surer.
        ([(0.9, 0.5), (0.9, 0.5), (0.5, 0.9), (0.9, 0.5)], [0, 0, 0, 0]),
        # It was the other class all along.
        ([(0.6, 0.5), (0.5, 0.9), (0.4, 0.9)], [0, 1, 1]),
    ],
)
def test_an_object_under_two_classes_keeps_the_one_that_was_surer_so_far(clip, scores, shown):
    table = PromptTable(("red", "star"), ("red", "star"), (0, 1))
    session = ClipSession(clip, Given(scores), Presentation(table, "zeros", False, "auto"))
    for _ in range(2):
        results = list(session.track(0))
        assert [detections.tracker_id.tolist() for _, detections in results] == [[one] for one in shown]
        kept = [row[one] for row, one in zip(scores, shown, strict=True)]
        np.testing.assert_allclose([detections.confidence[0] for _, detections in results], kept, rtol=1e-6)
    both = ClipSession(clip, Given(scores), Presentation(table, "zeros", True, "auto"))
    assert all(len(detections) == 2 for _, detections in both.track(0))


def test_a_stream_is_answered_frame_by_frame(clip):
    read = []

    def stream():
        for index, frame in enumerate(bgr(clip)[:4]):
            read.append(index)
            yield frame

    with of(clip) as video:
        for answered, (index, detections) in enumerate(video.track(stream())):
            assert index == answered and max(read) <= answered + 1
            assert len(detections)


def test_frames_without_objects(clip):
    blank = [np.full((60, 80, 3), 127, np.uint8)] * 2
    frames = [*blank, np.ascontiguousarray(clip.frames[0, :60, :80, ::-1])]
    for on_empty, expected in (("zeros", [0, 1, 2]), ("retry", [0, 1, 2]), ("skip", [2])):
        with of(clip, on_empty=on_empty, confidence=0.4) as video:
            results = list(video.track([*blank, frames[2]]))
        assert [index for index, _ in results][: len(expected) - 1] == expected[:-1]
        assert all(detections.mask.shape[1:] == (60, 80) for _, detections in results)


def test_what_cannot_be_is_refused(clip):
    with pytest.raises(SettingError, match="prompting"):
        of(clip, prompting="voice")
    with pytest.raises(SettingError, match="key_frames"):
        of(clip, key_frames=0)
    with of(clip) as video:
        with pytest.raises(VideoError):
            video.track([])
        with pytest.raises(SettingError, match="direction"):
            video.track(bgr(clip), direction="sideways")
        with pytest.raises(SettingError, match="start_frame"):
            video.track(bgr(clip), start_frame=LENGTH)
        with pytest.raises(SettingError, match="max_frames"):
            video.track(bgr(clip), max_frames=0)
        session = video.open(bgr(clip))
        session.close()
        session.close()
        with pytest.raises(SettingError, match="closed"):
            session.track()
        with video.open(bgr(clip)) as session, pytest.raises(SettingError, match="frame between"):
            session.add_object(99, box=[1, 1, 9, 9])


def held_bytes():
    gc.collect()
    return sum(item.nbytes for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter))


def test_memory_does_not_grow_with_the_clip(clip):
    frames = bgr(clip)
    sizes = []
    with SAM3Video(ontology(named(clip)[0]), checkpoint="shapes", device="cpu") as video:
        list(video.track(frames[:2]))
        before = held_bytes()
        # There and back, again and again.
        tracks = video.track((frames[:6] + frames[5:0:-1])[index % 11] for index in range(27))
        for index, _ in tracks:
            if index in (18, 26):
                sizes.append(held_bytes())
        assert sizes[1] <= 1.1 * sizes[0]
        assert held_bytes() == before
