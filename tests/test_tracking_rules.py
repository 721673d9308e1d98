"""What is done with masks and tracks between the models' answers: numbers in, numbers out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.morphology import remove_small_holes, remove_small_objects

from autodistill_sam3.instances import compact_masks
from autodistill_sam3.segmentation.logits import MaskLogits
from autodistill_sam3.segmentation.memory import Decoded, Memory
from autodistill_sam3.training.video_table import Tracked, score
from autodistill_sam3.video.association import (
    ANY_CLASS,
    Found,
    Probation,
    TrackingRules,
    associate,
    give_way,
    suppress_duplicates,
    within_reach,
)
from autodistill_sam3.video.detections import Detections
from autodistill_sam3.video.masks import mask_iou, without_overlap, without_shrunk, without_specks
from autodistill_sam3.video.objects import MemoryLimits, ObjectMemory, TrackedObject
from autodistill_sam3.video.step import FrameStep

RULES = TrackingRules(
    nms_iou=0.1, new_iou=0.1, match_iou=0.5, new_confidence=0.7, hotstart_delay=15, hotstart_unmatched=8,
    hotstart_duplicate=8, renew_every=16, renew_confidence=0.8, renew_iou=0.8, occluded_iou=0.7, fill_area=16,
    max_objects=99,
)  # fmt: skip


def found(scores, classes=None):
    count = len(scores)
    classes = np.zeros(count, np.int64) if classes is None else np.array(classes)
    return Found(
        np.array(scores, np.float32), classes, np.full(count, 0.7, np.float32), np.full(count, 0.1, np.float32)
    )


def test_a_detection_that_no_track_shows_is_new_if_it_is_sure():
    iou = np.array([[0.9, 0.0], [0.0, 0.0], [0.0, 0.0]], np.float32)
    told = associate(iou, found([0.9, 0.8, 0.6]), np.zeros(2, np.int64), RULES)
    assert told.new == [1]
    assert told.supporters.tolist() == [0, -1]
    assert told.renewed == {0: 0}


def test_where_detections_are_believed_each_shows_one_track():
    iou = np.array([[0.85, 0.9, 0.0], [0.0, 0.0, 0.8]], np.float32)
    one, sure = np.zeros(3, np.int64), found([0.9, 0.9])
    assert associate(iou, sure, one, RULES).supporters.tolist() == [0, 0, 1]
    believed = replace(RULES, is_corrected=True)
    told = associate(iou, sure, one, believed)
    assert told.supporters.tolist() == [-1, 0, 1] and told.renewed == {1: 0, 2: 1}
    # Who is not the first choice of a detection takes the next one.
    beside = np.array([[0.85, 0.9, 0.0], [0.8, 0.0, 0.0]], np.float32)
    told = associate(beside, sure, one, believed)
    assert told.supporters.tolist() == [1, 0, -1] and told.renewed == {1: 0, 0: 1}
    assert associate(np.zeros((2, 3), np.float32), sure, one, believed).supporters.tolist() == [-1] * 3


def logits_of(*boxes):
    """(N, 40, 40), positive in boxes xyxy."""
    logits = torch.full((len(boxes), 40, 40), -9.0)
    for one, (left, top, right, bottom) in zip(logits, boxes, strict=True):
        one[top:bottom, left:right] = 9.0
    return logits


def matched(was, carried, detected, rules, unsupported=0):
    """What a frame's detections say of tracks that were at boxes `was` and are drawn at boxes `carried`."""
    limits = MemoryLimits(frames=3, pointers=16, conditioning=4)
    objects = [
        TrackedObject(place, 0, 0, "text", ObjectMemory(limits), 0.9, unsupported=unsupported,
                      last_xyxy=np.array(box, np.float32))
        for place, box in enumerate(was)
    ]  # fmt: skip
    logits, ones = logits_of(*carried), torch.ones(len(carried))
    sure = found([0.9] * len(detected))
    masks = MaskLogits(logits_of(*detected), sure.scores, np.zeros(len(detected), np.int64))
    step = FrameStep(7, (40, 40), None, None, rules, 16, False)
    detections = Detections(masks, sure, np.array(["text"] * len(detected)))
    return step.match(objects, Decoded(logits, logits, ones, ones, ones[:, None]), detections)


def test_an_object_whose_mask_was_drawn_away_is_found_where_it_was():
    here, there = (2, 2, 12, 12), (25, 25, 35, 35)
    believed = replace(RULES, is_corrected=True, match_iou=0.1)
    # Two that look alike: what is carried over of the second lies on the first.
    told = matched([here, there], [here, here], [here, (26, 25, 36, 35)], believed)
    assert told.supporters.tolist() == [0, 1] and not told.new
    # One that has not been there for a while may be anywhere.
    told = matched([here, there], [here, here], [here, (26, 25, 36, 35)], replace(believed, relink=None), unsupported=1)
    assert told.supporters.tolist().count(-1) == 1 and told.new == [1]
    # Who believes tracks takes their word.
    assert matched([here, there], [here, here], [here, (26, 25, 36, 35)], RULES).new == [1]
    # Another object that appears beside it is another object.
    assert matched([here], [here], [here, (8, 13, 18, 23)], believed).new == [1]


def test_without_tracks_everything_is_new():
    assert associate(np.zeros((2, 0), np.float32), found([0.9, 0.55]), np.zeros(0, np.int64), RULES).new == [0, 1]


def again(detections, tracks, gaps, same=None):
    """Track -> detection, of boxes xyxy."""
    boxes = np.array(detections, np.float32), np.array(tracks, np.float32)
    told = associate(np.zeros((len(detections), len(tracks)), np.float32), found([0.9] * len(detections)),
                     np.zeros(len(tracks), np.int64), RULES)  # fmt: skip
    same = np.ones((len(detections), len(tracks)), bool) if same is None else np.array(same)
    told = within_reach(told, boxes, same, np.array(gaps), (1.0, 0.5))
    return told.found_again, told.new


def test_a_new_detection_within_reach_is_the_hidden_object():
    # 20 pixels large: 20 at once, and 10 more a frame.
    track = [0, 0, 20, 20]
    assert again([[29, 0, 49, 20]], [track], [1]) == ({0: 0}, [])
    assert again([[31, 0, 51, 20]], [track], [1]) == ({}, [0])
    assert again([[31, 0, 51, 20]], [track], [2]) == ({0: 0}, [])
    assert again([[0, 0, 20, 20]], [track], [1], [[False]]) == ({}, [0])


def test_who_was_last_seen_in_part_reaches_as_far_as_it_is_large():
    edge = [0, 8, 4, 12]
    assert again([[28, 0, 48, 20]], [edge], [3]) == ({0: 0}, [])
    assert again([[28, 8, 32, 12]], [edge], [3]) == ({}, [0])


def test_the_nearest_in_reach_goes_first_and_each_once():
    tracks = [[0, 0, 20, 20], [40, 0, 60, 20]]
    assert again([[12, 0, 32, 20], [44, 0, 64, 20]], tracks, [4, 4]) == ({0: 0, 1: 1}, [])
    assert again([[20, 0, 40, 20]], tracks, [4, 4])[1] == []
    assert again([[0, 0, 20, 20], [4, 0, 24, 20]], tracks[:1], [4]) == ({0: 0}, [1])


def test_another_class_supports_nothing_but_what_was_pointed_at():
    iou = np.ones((1, 2), np.float32)
    told = associate(iou, found([0.9], [1]), np.array([0, ANY_CLASS]), RULES)
    assert told.supporters.tolist() == [-1, 0]
    assert associate(iou[:, :1], found([0.9], [1]), np.array([0]), RULES).new == [0]


def test_two_tracks_on_one_detection_are_noted():
    told = associate(np.array([[0.6, 0.4, 0.05]], np.float32), found([0.9]), np.zeros(3, np.int64), RULES)
    assert told.duplicates == [[0, 1]]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_suppression_leaves_no_duplicates_and_drops_only_them(data):
    count = data.draw(st.integers(0, 7))
    scores = np.array(data.draw(st.lists(st.floats(0, 1), min_size=count, max_size=count)))
    classes = np.array(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), np.int64)
    masks = torch.from_numpy(np.random.default_rng(count).random((count, 4, 4)) > 0.5)
    iou = mask_iou(masks, masks)
    kept = suppress_duplicates(iou, scores, classes, 0.3).tolist()
    same = (iou > 0.3) & (classes[:, None] == classes[None])
    for index in range(count):
        better = [other for other in kept if other != index and same[index, other]]
        assert bool(better) != (index in kept)
        if index not in kept:
            assert max(scores[better]) >= scores[index]


def test_who_was_hidden_later_gives_way():
    iou = np.array([[1, 0.9, 0.9], [0.9, 1, 0.9], [0.9, 0.9, 1]], np.float32)
    classes = np.array([0, 0, 1])
    assert give_way(iou, [3, 7, 9], classes, RULES, reverse=False).tolist() == [False, True, False]
    assert give_way(iou, [3, 7, 9], classes, RULES, reverse=True).tolist() == [True, False, False]
    # One that was never hidden makes nobody give way.
    assert not give_way(iou, [-1, 7, 9], classes, RULES, reverse=False).any()


def test_young_tracks_without_support_end():
    own = Probation(first_frame=10)
    own.unmatched = 7
    assert not own.failed(RULES)
    own.unmatched = 8
    assert own.failed(RULES)
    assert own.is_over(25, RULES) and own.is_over(-5, RULES) and not own.is_over(24, RULES)
    twin = Probation(first_frame=0)
    for _ in range(8):
        twin.share(3)
    assert twin.failed(RULES)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 20), st.floats(0.2, 0.8))
def test_holes_and_specks_go_as_scikit_image_removes_them(seed, area, share):
    mask = np.random.default_rng(seed).random((1, 24, 24)) < share
    logits = torch.from_numpy(np.where(mask, 3.0, -3.0))
    cleaned = without_specks(logits, area)
    filled = remove_small_holes(mask[0], max_size=area, connectivity=2)
    least = min(area, int(filled.sum()) // 2)
    expected = remove_small_objects(filled, max_size=least, connectivity=2)
    assert ((cleaned[0] > 0).numpy() == expected).all()
    # What stays is as the model said it.
    assert (cleaned == logits)[0].numpy()[(mask[0] == filled) & (filled == expected)].all()


def test_nothing_is_filled_without_an_area():
    logits = torch.randn(2, 8, 8)
    assert without_specks(logits, 0) is logits


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_each_pixel_goes_to_one_object_of_a_class(seed, count):
    rng = np.random.default_rng(seed)
    dense = np.zeros((count, 12, 16), bool)
    for mask in dense:
        y, x = rng.integers(0, 8, 2)
        mask[y : y + rng.integers(1, 8), x : x + rng.integers(1, 8)] = True
    scores, classes = rng.random(count).tolist(), rng.integers(0, 2, count)
    kept, places = without_overlap(compact_masks([(mask, 0, 0) for mask in dense], (12, 16)), scores, classes, (12, 16))
    expected = dense.copy()
    for index in range(count):
        for other in range(count):
            if scores[other] > scores[index] and classes[other] == classes[index]:
                expected[index] &= ~dense[other]
    filled = expected.any(axis=(1, 2))
    assert places.tolist() == np.flatnonzero(filled).tolist()
    assert (kept.to_dense() == expected[filled]).all()


def test_a_mask_that_would_shrink_is_not_remembered():
    logits = torch.full((2, 4, 4), -5.0)
    logits[0], logits[1, :, :] = 2.0, 3.0
    told = without_shrunk(logits, np.zeros(2, np.int64), 0.3)
    assert not (told[0] > 0).any() and (told[1] > 0).all()
    assert (without_shrunk(logits, np.array([0, 1]), 0.3) == logits).all()


def memory(value):
    return Memory(torch.full((3, 2), float(value)), torch.full((4,), float(value)))


def test_a_memory_is_bounded_and_keeps_what_was_seen():
    own = ObjectMemory(MemoryLimits(frames=6, pointers=16, conditioning=4))
    own.condition(0, memory(0))
    for frame in range(1, 100):
        # From frame 60 on the object is hidden.
        own.keep(frame, memory(frame), 0.9 if frame < 60 else 0.0)
        if frame % 16 == 0:
            own.condition(frame, memory(frame), is_renewal=True)
    recall = own.recall(100, reverse=False)
    assert len(recall.spatial) <= 4 + 6 and len(recall.pointers) <= 4 + 15
    tracked = [int(part[0, 0]) for rank, part in recall.spatial if rank]
    # The last frame, and before it those in which it was seen.
    assert tracked == [99, 59, 58, 57, 56, 55]
    assert len(own.conditioning) <= 5
    kept = sum(kept.memory.spatial.shape[0] > 0 for kept in own._recent)
    assert kept <= 7


def test_a_frame_pointed_at_counts_from_its_side():
    own = ObjectMemory(MemoryLimits(frames=6, pointers=16, conditioning=4))
    own.condition(10, memory(10))
    assert [age for age, _ in own.recall(12, reverse=False).pointers] == [2]
    assert [age for age, _ in own.recall(8, reverse=True).pointers] == [2]
    # Looking ahead, its features count and its pointer does not.
    assert own.recall(8, reverse=False).pointers == () and len(own.recall(8, reverse=False).spatial) == 1


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_scores_of_tracks_are_those_of_what_was_done_to_them():
    truth = np.zeros((2, 12, 20, 20), bool)
    truth[0, :, 2:10, 2:10] = True
    truth[1, :, 11:18, 11:18] = True
    perfect = score([Tracked(truth, truth)])
    assert (perfect.j, perfect.hota, perfect.switches) == (1, pytest.approx(1), 0)
    swapped = truth.copy()
    swapped[[0, 1], 6:] = truth[[1, 0], 6:]
    assert score([Tracked(truth, swapped)]).switches == 1.0
    nothing = score([Tracked(truth, truth[:0])])
    assert nothing.j == 0 and nothing.switches == 0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_an_object_that_comes_back_is_judged_on_both_sides_of_the_gap():
    truth = np.zeros((1, 50, 20, 20), bool)
    truth[:, [*range(20), *range(30, 50)], 2:10, 2:10] = True
    # One track has the object half to begin with, then whole, and not when it comes back: another one has it then.
    found = np.zeros((2, *truth.shape[1:]), bool)
    found[0, :5], found[0, 5:20] = truth[0, :5], truth[0, 5:20]
    found[0, :5, 6:] = False
    found[1, 30:] = truth[0, 30:]
    scores = score([Tracked(truth, found)])
    assert scores.before_hidden == pytest.approx((5 * 0.5 + 15) / 20)
    assert (scores.just_before, scores.after_hidden, scores.after_by_any) == (1, 0, 1)
    assert np.isnan(score([Tracked(truth[:, :20], found[:, :20])]).just_before)
