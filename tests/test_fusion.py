"""Fusion by hand-worked cases and by properties; numpy only."""

from __future__ import annotations

import numpy as np
import pytest
import supervision as sv
from hypothesis import given, settings
from hypothesis import strategies as st

from autodistill_sam3 import SettingError
from autodistill_sam3.conflicts import add_removed, removed_counts, resolve_conflicts
from autodistill_sam3.fusion import fuse, text_floor
from autodistill_sam3.instances import Instances, compact_masks
from autodistill_sam3.ontology import PromptTable
from autodistill_sam3.thresholds import Thresholds

IMAGE_HW = (50, 60)
TABLE = PromptTable(prompts=("flask", "can", "milk bottle"), classes=("bottle", "tin"), class_of_prompt=(0, 1, 0))
LEFT, SHIFTED, RIGHT = (0, 0, 20, 20), (2, 0, 20, 20), (30, 5, 20, 20)


def instances(source, *items):
    """(x, y, width, height), score, prompt."""
    crops = [(np.ones((height, width), bool), x, y) for (x, y, width, height), _, _ in items]
    scores = np.array([score for _, score, _ in items], np.float32)
    return Instances(
        compact_masks(crops, IMAGE_HW), scores, np.array([prompt for *_, prompt in items], np.int64), source
    )


def summary(detections):
    return [
        (str(name), str(source), round(float(confidence), 3), xyxy.tolist())
        for name, source, confidence, xyxy in zip(
            detections.data["class_name"],
            detections.data["source"],
            detections.confidence,
            detections.xyxy,
            strict=True,
        )
    ]


def test_pair_becomes_one_detection_with_the_better_mask():
    found = fuse(instances("text", (LEFT, 0.6, 0)), instances("boxes", (SHIFTED, 0.8, 0)), TABLE, Thresholds())
    assert summary(found) == [("bottle", "both", 0.92, [2, 0, 22, 20])]
    assert found.data["prompt"].tolist() == ["flask"]
    found = fuse(instances("text", (LEFT, 0.9, 2)), instances("boxes", (SHIFTED, 0.8, 0)), TABLE, Thresholds())
    assert summary(found) == [("bottle", "both", 0.98, [0, 0, 20, 20])]
    assert found.data["prompt"].tolist() == ["milk bottle"]


def test_singles_keep_their_own_confidence():
    found = fuse(instances("text", (LEFT, 0.6, 0)), instances("boxes", (RIGHT, 0.35, 0)), TABLE, Thresholds())
    assert summary(found) == [("bottle", "text", 0.6, [0, 0, 20, 20]), ("bottle", "boxes", 0.35, [30, 5, 50, 25])]


def test_halves_that_reach_the_threshold_only_together():
    text, boxes = instances("text", (LEFT, 0.4, 0)), instances("boxes", (SHIFTED, 0.4, 0))
    assert summary(fuse(text, boxes, TABLE, Thresholds())) == [("bottle", "both", 0.64, [0, 0, 20, 20])]
    assert len(fuse(text, None, TABLE, Thresholds())) == 0


def test_weak_text_does_not_take_a_box_along():
    text, boxes = instances("text", (LEFT, 0.1, 0)), instances("boxes", (LEFT, 0.35, 0))
    assert summary(fuse(text, boxes, TABLE, Thresholds())) == [("bottle", "boxes", 0.35, [0, 0, 20, 20])]


def test_presence_informs_and_does_not_veto():
    boxes = instances("boxes", (LEFT, 0.8, 0), (RIGHT, 0.5, 0))
    for presence, expected in ((0.0, [0.4]), (0.5, [0.6, 0.375]), (1.0, [0.8, 0.5])):
        found = fuse(
            Instances.empty(IMAGE_HW, "text"), boxes, TABLE, Thresholds(), np.array([presence, 0, 0], np.float32)
        )
        # Nothing is reported below the threshold that it had to reach.
        assert found.confidence.tolist() == pytest.approx(expected)


def test_prompts_of_one_class_merge_and_classes_do_not():
    text = instances("text", (LEFT, 0.6, 0), (SHIFTED, 0.7, 2), (LEFT, 0.8, 1), (RIGHT, 0.9, 0))
    found = fuse(text, None, TABLE, Thresholds())
    assert [(name, confidence) for name, _, confidence, _ in summary(found)] == [
        ("bottle", 0.9), ("tin", 0.8), ("bottle", 0.7)
    ]  # fmt: skip
    assert found.class_id.tolist() == [0, 1, 0]


def test_box_on_what_text_found_is_dropped_when_the_text_has_a_partner():
    text = instances("text", (LEFT, 0.9, 0))
    boxes = instances("boxes", (LEFT, 0.9, 0), ((4, 0, 20, 20), 0.4, 2))
    assert len(fuse(text, boxes, TABLE, Thresholds())) == 1


def test_thresholds_per_class():
    text = instances("text", (LEFT, 0.6, 0), (RIGHT, 0.6, 1))
    found = fuse(text, None, TABLE, Thresholds(per_class={"tin": 0.7}))
    assert found.data["class_name"].tolist() == ["bottle"]
    assert text_floor(Thresholds(per_class={"tin": 0.7}), TABLE, fused=False) == [0.5, 0.7, 0.5]
    # Together with a box such text may reach more.
    assert text_floor(Thresholds(per_class={"tin": 0.7}), TABLE, fused=True) == [0.25, 0.25, 0.25]
    assert text_floor(Thresholds(per_class={"tin": 0.3}), TABLE, fused=True) == [0.25, 0.15, 0.25]


def test_nothing_found():
    found = fuse(Instances.empty(IMAGE_HW, "text"), Instances.empty(IMAGE_HW, "boxes"), TABLE, Thresholds())
    assert found.xyxy.shape == (0, 4)
    assert np.asarray(found.mask).shape == (0, *IMAGE_HW)
    assert found.class_id.dtype == np.int64
    assert set(found.data) == {"class_name", "prompt", "source"}


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", True, None])
@pytest.mark.parametrize("name", ["confidence", "box_confidence"])
def test_thresholds_out_of_range(name, value):
    with pytest.raises(SettingError, match=name):
        Thresholds(**{name: value})
    with pytest.raises(SettingError, match="tin"):
        Thresholds(per_class={"tin": value})


def test_threshold_of_an_unknown_class():
    with pytest.raises(SettingError, match="spoon"):
        Thresholds(per_class={"spoon": 0.5}).check_classes(("bottle",))


def test_thresholds_per_class_hold_for_boxes_too():
    boxes = instances("boxes", (LEFT, 0.9, 0), (RIGHT, 0.2, 1))
    found = fuse(None, boxes, TABLE, Thresholds(per_class={"bottle": 0.95, "tin": 0.1}))
    assert found.data["class_name"].tolist() == ["tin"]


def test_a_threshold_of_a_class_is_for_what_its_halves_reach_together():
    text, boxes = instances("text", (LEFT, 0.5, 0)), instances("boxes", (LEFT, 0.4, 0))
    for value, expected in ((0.55, [0.7]), (0.71, [])):
        found = fuse(text, boxes, TABLE, Thresholds(per_class={"bottle": value}))
        assert found.confidence.tolist() == pytest.approx(expected)


def test_duplicates_are_counted_where_they_reach_the_threshold_of_their_class():
    text = instances("text", (LEFT, 0.9, 0), (LEFT, 0.8, 0), (LEFT, 0.6, 0))
    assert removed_counts(fuse(text, None, TABLE, Thresholds(per_class={"bottle": 0.7}))) == {"same_class": 1}


def test_no_two_detections_of_a_class_show_one_object():
    """A box that lies on two text instances takes its mask to one of them, and then covers the other."""
    text = instances("text", ((0, 0, 20, 20), 0.9, 0), ((8, 0, 20, 20), 0.8, 0))
    boxes = instances("boxes", ((4, 0, 20, 20), 0.95, 0))
    found = fuse(text, boxes, TABLE, Thresholds())
    dense = np.asarray(found.mask)
    for index, mask in enumerate(dense):
        for other in dense[:index]:
            assert (mask & other).sum() / (mask | other).sum() < 0.5


items = st.lists(
    st.tuples(
        st.tuples(st.integers(0, 30), st.integers(0, 25), st.integers(1, 25), st.integers(1, 25)),
        st.integers(0, 100).map(lambda value: value / 100),
        st.integers(0, 2),
    ),
    max_size=6,
)


@given(items, items)
@settings(max_examples=200, deadline=None)
def test_properties(text_items, box_items):
    text, boxes = instances("text", *text_items), instances("boxes", *box_items)
    found = fuse(text, boxes, TABLE, Thresholds(), np.array([0.0, 0.5, 1.0], np.float32))
    assert len(found) <= len(text) + len(boxes)
    assert (np.diff(found.confidence) <= 0).all()
    minimum = np.where(found.data["source"] == "boxes", Thresholds.box_confidence, Thresholds.confidence)
    assert (found.confidence >= minimum - 1e-6).all()
    for part in fuse(text, None, TABLE, Thresholds()).confidence:
        assert (found.confidence >= part - 1e-6).any()
    # The order in which candidates come in is of no matter (but for equal scores, which have no better mask).
    if len({score for _, score, _ in text_items + box_items}) == len(text_items) + len(box_items):
        reverse = np.arange(len(text))[::-1], np.arange(len(boxes))[::-1]
        presence = np.array([0.0, 0.5, 1.0], np.float32)
        again = fuse(text.select(reverse[0]), boxes.select(reverse[1]), TABLE, Thresholds(), presence)
        assert sorted(summary(again)) == sorted(summary(found))


@given(items, items, st.integers(50, 100).map(lambda value: value / 100), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_threshold_of_a_class_keeps_what_has_that_confidence(text_items, box_items, value, with_presence):
    """As thresholds are learned: on the confidences of what was found without them."""
    # Half of the boxes lie on texts, or there would be few pairs.
    box_items = box_items + [
        (xywh, score, prompt) for (xywh, _, prompt), (_, score, _) in zip(text_items, box_items, strict=False)
    ]
    text, boxes = instances("text", *text_items), instances("boxes", *box_items)
    presence = np.array([0.0, 0.5, 1.0], np.float32) if with_presence else None
    everything = fuse(text, boxes, TABLE, Thresholds(), presence)
    chosen = fuse(text, boxes, TABLE, Thresholds(per_class={"bottle": value}), presence)
    is_kept = (everything.class_id != 0) | (everything.confidence >= value)
    assert summary(chosen) == summary(everything[is_kept])


# What is taken away is counted.


def test_duplicates_of_a_class_are_counted():
    text = instances("text", (LEFT, 0.6, 0), (SHIFTED, 0.7, 2), (LEFT, 0.8, 1), (RIGHT, 0.9, 0), (RIGHT, 0.3, 0))
    # The last one would not have been a detection.
    assert removed_counts(fuse(text, None, TABLE, Thresholds())) == {"same_class": 1}


def test_a_text_and_a_box_of_one_object_are_no_removal():
    found = fuse(instances("text", (LEFT, 0.6, 0)), instances("boxes", (SHIFTED, 0.8, 0)), TABLE, Thresholds())
    assert "removed" not in found.metadata
    text, boxes = instances("text", (LEFT, 0.9, 0)), instances("boxes", (LEFT, 0.9, 0), ((4, 0, 20, 20), 0.4, 2))
    assert removed_counts(fuse(text, boxes, TABLE, Thresholds())) == {"same_class": 1}


def test_a_taken_over_mask_that_covers_another_is_counted():
    text = instances("text", ((0, 0, 20, 20), 0.9, 0), ((8, 0, 20, 20), 0.8, 0))
    boxes = instances("boxes", ((4, 0, 20, 20), 0.95, 0))
    found = fuse(text, boxes, TABLE, Thresholds())
    assert (len(found), removed_counts(found)) == (1, {"same_class": 1})


@given(items, st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_one_source_found_is_kept_or_counted(found_items, from_text):
    found_by = instances("text" if from_text else "boxes", *found_items)
    found = fuse(*((found_by, None) if from_text else (None, found_by)), TABLE, Thresholds())
    minimum = np.float32(Thresholds.confidence if from_text else Thresholds.box_confidence)
    assert len(found) + removed_counts(found).get("same_class", 0) == (found_by.scores >= minimum).sum()


def test_counts_are_not_shared_between_selections():
    found = fuse(instances("text", (LEFT, 0.6, 0), (LEFT, 0.7, 0), (RIGHT, 0.8, 0)), None, TABLE, Thresholds())
    part = found[found.confidence > 0.75]
    add_removed(part, "nms", 1)
    add_removed(part, "same_class", 2)
    add_removed(part, "other_class", 0)
    assert removed_counts(part) == {"same_class": 3, "nms": 1}
    assert removed_counts(found) == {"same_class": 1}
    removed_counts(found)["same_class"] = 5
    assert removed_counts(found) == {"same_class": 1}


# Conflicts between classes.


def detections(*items, dense=False, masks=True):
    """(x, y, width, height), confidence, class."""
    stored = instances("text", *items)
    mask = (stored.masks.to_dense() if dense else stored.masks) if masks else None
    return sv.Detections(stored.xyxy, mask=mask, confidence=stored.scores, class_id=stored.prompt_index)


@pytest.mark.parametrize("dense", [False, True])
def test_an_object_under_two_classes_goes_to_the_surer(dense):
    # The masks of the first two have an IoU of 18 / 20, the third lies elsewhere.
    found = detections((LEFT, 0.6, 0), ((0, 0, 20, 18), 0.7, 1), (RIGHT, 0.5, 2), dense=dense)
    best = resolve_conflicts(found)
    assert best.class_id.tolist() == [1, 2]
    assert removed_counts(best) == {"other_class": 1}
    assert removed_counts(found) == {}
    assert resolve_conflicts(found, keep_both=True) is found


def test_where_a_part_ends_and_an_object_begins():
    """IoU 0.80 is one object, 0.75 a whole and its part."""
    for height, expected in ((16, [0]), (15, [0, 1])):
        found = resolve_conflicts(detections((LEFT, 0.9, 0), ((0, 0, 20, height), 0.8, 1)))
        assert found.class_id.tolist() == expected


def test_one_class_is_left_alone():
    assert len(resolve_conflicts(detections((LEFT, 0.9, 0), (LEFT, 0.8, 0)))) == 2


def test_equal_confidence_goes_to_the_smaller_class():
    for order in (1, -1):
        found = resolve_conflicts(detections(*[(LEFT, 0.5, 1), (LEFT, 0.5, 0), (LEFT, 0.5, 2)][::order]))
        assert found.class_id.tolist() == [0]
        assert removed_counts(found) == {"other_class": 2}


def test_what_is_removed_removes_nothing():
    """The second is the first's duplicate, the third the second's, and the third is not the first's."""
    found = resolve_conflicts(
        detections((LEFT, 0.9, 0), ((2, 0, 20, 20), 0.8, 1), ((4, 0, 20, 20), 0.7, 2)),
    )
    assert found.class_id.tolist() == [0, 2]


def test_boxes_alone_need_more_overlap():
    pairs = ((18, [0]), (17, [0, 1]))
    for height, expected in pairs:
        found = resolve_conflicts(detections((LEFT, 0.9, 0), ((0, 0, 20, height), 0.8, 1), masks=False))
        assert found.class_id.tolist() == expected


def test_conflicts_among_nothing():
    empty = fuse(Instances.empty(IMAGE_HW, "text"), None, TABLE, Thresholds())
    assert resolve_conflicts(empty) is empty
    assert len(resolve_conflicts(sv.Detections.empty())) == 0
    with pytest.raises(ValueError, match="class_id"):
        resolve_conflicts(sv.Detections(np.zeros((2, 4))))


close_items = st.lists(
    st.tuples(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(18, 20), st.integers(18, 20)),
        st.integers(0, 4).map(lambda value: value / 4),
        st.integers(0, 2),
    ),
    max_size=8,
)


@given(close_items)
@settings(max_examples=60, deadline=None)
def test_conflicts_against_dense_masks(close):
    found = detections(*close)
    masks = found.mask.to_dense()
    kept = []
    for index in sorted(range(len(close)), key=lambda i: (-found.confidence[i], found.class_id[i], i)):
        for other in kept:
            iou = (masks[index] & masks[other]).sum() / (masks[index] | masks[other]).sum()
            if found.class_id[other] != found.class_id[index] and iou >= 0.8:
                break
        else:
            kept.append(index)
    best = resolve_conflicts(found)
    assert best.confidence.tolist() == found.confidence[sorted(kept)].tolist()
    assert best.xyxy.tolist() == found.xyxy[sorted(kept)].tolist()
    assert removed_counts(best).get("other_class", 0) == len(close) - len(kept)


def test_many_masks_are_compared_quickly():
    """All pairs would decode each mask 300 times; boxes and areas rule nearly all of them out."""
    rng = np.random.default_rng(0)
    crops = [(np.ones((300, 200), bool), int(x), int(y)) for x, y in rng.integers(0, 1500, (300, 2))]
    masks = compact_masks(crops, (2000, 2000))
    found = sv.Detections(
        masks.bbox_xyxy.astype(np.float32), mask=masks, confidence=rng.random(300), class_id=np.arange(300)
    )
    decoded = []
    original = sv.CompactMask.crop
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sv.CompactMask, "crop", lambda self, index: decoded.append(index) or original(self, index))
        resolve_conflicts(found)
    assert len(decoded) < 300
