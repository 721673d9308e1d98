"""Fusion by hand-worked cases and by properties; numpy only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autodistill_sam3 import SettingError
from autodistill_sam3.fusion import Thresholds, fuse, text_floor
from autodistill_sam3.instances import Instances, compact_masks
from autodistill_sam3.ontology import PromptTable

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
    assert text_floor(Thresholds(per_class={"tin": 0.7}), TABLE, fused=True) == [0.25, 0.35, 0.25]


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
