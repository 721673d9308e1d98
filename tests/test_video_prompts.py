"""Where a person points: relative or absolute, and nothing but clear errors for what cannot be."""

from __future__ import annotations

import contextlib
import logging

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autodistill_sam3 import SettingError
from autodistill_sam3.video.prompts import read_official_prompt, read_prompt

SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
BELOW_ONE = st.floats(0, 1, exclude_max=True, width=32)
FRACTIONS = st.floats(0, 1, exclude_min=True, exclude_max=True, width=32)
PIXELS = st.integers(2, 100)
LARGE = (101, 120)


@contextlib.contextmanager
def warnings_logged():
    found = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = found.append
    logger = logging.getLogger("autodistill_sam3")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def points_of(values):
    return st.lists(st.tuples(values, values), min_size=1, max_size=5)


@given(SIZES, points_of(BELOW_ONE))
def test_values_below_one_are_shares_of_the_frame(hw, points):
    with warnings_logged() as logged:
        prompt = read_prompt(3, hw, points=points)
    expected = np.array(points, np.float64) * (hw[1], hw[0])
    assert prompt.points_xy == pytest.approx(expected, rel=1e-6)
    assert read_prompt(3, hw, points=points, coordinates="relative").points_xy.tolist() == prompt.points_xy.tolist()
    absolute = read_prompt(3, hw, points=expected, coordinates="absolute")
    assert absolute.points_xy.tolist() == prompt.points_xy.tolist()
    assert (prompt.frame_index, prompt.labels.tolist(), prompt.box_xyxy) == (3, [1] * len(points), None)
    assert prompt.points_xy.dtype == np.float32
    assert prompt.labels.dtype == np.int64
    assert not logged


@given(points_of(st.integers(0, 100)))
def test_whole_numbers_above_one_are_pixels(points):
    assume(max(max(point) for point in points) > 1)
    with warnings_logged() as logged:
        prompt = read_prompt(0, LARGE, points=points)
    assert prompt.points_xy.tolist() == [list(point) for point in points]
    assert not logged


@given(points_of(BELOW_ONE), st.data())
def test_exactly_one_warns(points, data):
    values = np.array(points, np.float64)
    values[tuple(data.draw(st.integers(0, size - 1)) for size in values.shape)] = 1.0
    with warnings_logged() as logged:
        prompt = read_prompt(0, LARGE, points=values)
    assert prompt.points_xy.tolist() == values.tolist()
    assert ["taken for pixels" in record.getMessage() for record in logged] == [True]
    with warnings_logged() as logged:
        told = read_prompt(0, LARGE, points=values, coordinates="relative")
        read_prompt(0, LARGE, points=values, coordinates="absolute")
    assert told.points_xy == pytest.approx(values * LARGE[::-1], rel=1e-6)
    assert not logged


@given(points_of(PIXELS), FRACTIONS, st.data())
def test_mixed_values_warn(points, fraction, data):
    values = np.array(points, np.float64)
    values[tuple(data.draw(st.integers(0, size - 1)) for size in values.shape)] = fraction
    with warnings_logged() as logged:
        assert read_prompt(0, LARGE, points=values).points_xy.tolist() == values.tolist()
    assert len(logged) == 1
    with pytest.raises(SettingError, match="between 0 and 1"):
        read_prompt(0, LARGE, points=values, coordinates="relative")


def test_points_and_box_are_judged_together():
    with warnings_logged() as logged:
        both = read_prompt(0, LARGE, points=[[0.5, 0.5]], box=[0.25, 0.25, 0.75, 0.5])
        assert not logged
        # Points that could be either are pixels beside a box that is.
        assert read_prompt(0, LARGE, points=[[0.5, 0.5]], box=[10, 10, 50, 60]).points_xy.tolist() == [[0.5, 0.5]]
    assert both.points_xy.tolist() == [[60.0, 50.5]]
    assert both.box_xyxy.tolist() == [30.0, 25.25, 90.0, 50.5]
    assert len(logged) == 1


@given(SIZES, *[st.floats(-50, 3100)] * 4)
def test_boxes_are_cut_to_the_frame(hw, x1, y1, x2, y2):
    height, width = hw
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if left < right and top < bottom:
        box = read_prompt(0, hw, box=[x1, y1, x2, y2], coordinates="absolute").box_xyxy
        assert box == pytest.approx([left, top, right, bottom], rel=1e-6)
        assert box.dtype == np.float32
    else:
        with pytest.raises(SettingError, match="x1 < x2"):
            read_prompt(0, hw, box=[x1, y1, x2, y2], coordinates="absolute")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither"),
        ({"points": [[1, 2, 3]]}, "x, y in points"),
        ({"points": [1, 2]}, "x, y in points"),
        ({"points": [["a", "b"]]}, "numbers"),
        ({"points": [[1, 2], [3]]}, "numbers"),
        ({"points": [[float("nan"), 2]]}, "finite"),
        ({"points": [[1, 200]]}, "within the 120 x 101 frame"),
        ({"points": [[-1, 20]]}, "within the 120 x 101 frame"),
        ({"points": [[5, 5]], "labels": [2]}, "out of .0, 1."),
        ({"points": [[5, 5]], "labels": [1, 0]}, "for each of 1"),
        ({"points": [[5, 5]], "labels": 1}, "for each of 1"),
        ({"points": [[5, 5]], "labels": [[1], [1, 0]]}, "numbers"),
        ({"box": [1, 2, 3]}, "x1, y1, x2, y2"),
        ({"box": [[1, 2, 3, 4]]}, "x1, y1, x2, y2"),
        ({"box": [9, 9, 3, 12]}, "x1 < x2"),
        ({"box": [200, 9, 300, 12]}, "x1 < x2"),
        ({"points": [[5, 5]], "coordinates": "pixels"}, "auto"),
    ],
)
def test_what_cannot_be(arguments, message):
    with pytest.raises(SettingError, match=message):
        read_prompt(0, LARGE, **arguments)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
ANYTHING = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4))


@given(ANYTHING, ANYTHING, ANYTHING, st.sampled_from(["auto", "relative", "absolute"]))
def test_whatever_comes_is_read_or_refused(points, labels, box, coordinates):
    with contextlib.suppress(SettingError):
        prompt = read_prompt(0, LARGE, points=points, labels=labels, box=box, coordinates=coordinates)
        assert np.isfinite(prompt.points_xy).all()
        assert prompt.points_xy.shape == (len(prompt.labels), 2)
    with contextlib.suppress(SettingError):
        read_official_prompt(
            0, LARGE, points=points, point_labels=labels, bounding_boxes=box, bounding_box_labels=labels
        )


# Meta's way of saying it.

UNIT = st.floats(0, 1, width=32)


@given(SIZES, st.lists(st.tuples(UNIT, UNIT, st.integers(0, 1)), max_size=4), *[UNIT] * 4, st.randoms())
def test_corners_are_a_box_wherever_they_stand(hw, clicks, x1, y1, x2, y2, random):
    (x1, x2), (y1, y2) = sorted((x1, x2)), sorted((y1, y2))
    assume(x1 * hw[1] + 1e-3 < x2 * hw[1] and y1 * hw[0] + 1e-3 < y2 * hw[0])
    rows = [(x1, y1, 2), (x2, y2, 3), *clicks]
    random.shuffle(rows)
    points, labels = [row[:2] for row in rows], [row[2] for row in rows]
    prompt = read_official_prompt(1, hw, points=points, point_labels=labels)
    assert prompt.box_xyxy == pytest.approx(np.array([x1, y1, x2, y2]) * np.tile(hw[::-1], 2), rel=1e-5)
    shown = [[*point, label] for point, label in zip(prompt.points_xy.tolist(), prompt.labels.tolist(), strict=True)]
    expected = [[x * hw[1], y * hw[0], label] for x, y, label in rows if label < 2]
    assert np.array(shown) == pytest.approx(np.array(expected), rel=1e-5)
    width, height = min(np.float32(x2) - np.float32(x1), 1), min(np.float32(y2) - np.float32(y1), 1)
    boxed = read_official_prompt(1, hw, bounding_boxes=[[x1, y1, width, height]], bounding_box_labels=[1])
    assert boxed.box_xyxy == pytest.approx(prompt.box_xyxy, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": [[0.5, 0.5]]}, "label"),
        ({"points": [[0.5, 0.5]], "point_labels": [4]}, "label out of"),
        ({"points": [[50, 50]], "point_labels": [1]}, "between 0 and 1"),
        ({"points": [[0.1, 0.1]], "point_labels": [2]}, "one box"),
        ({"points": [[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]], "point_labels": [2, 3, 3]}, "one box"),
        ({"points": [[0.5, 0.5], [0.2, 0.2]], "point_labels": [2, 3]}, "x1 < x2"),
        ({"bounding_boxes": [[0.1, 0.1, 0.2, 0.2]] * 2}, "one box"),
        ({"bounding_boxes": [[0.1, 0.1, 0.2, 1.2]]}, "between 0 and 1"),
        ({"bounding_boxes": [0.1, 0.1, 0.2, 0.2]}, "width, height in bounding_boxes"),
        ({"bounding_boxes": [[0.1, 0.1, 0.2, 0.2]], "bounding_box_labels": [0]}, "label out of"),
        ({"points": [], "point_labels": []}, "x, y in points"),
    ],
)
def test_official_requests_that_cannot_be(arguments, message):
    with pytest.raises(SettingError, match=message):
        read_official_prompt(0, LARGE, **arguments)
