"""Tiles and stitching, against ideal detectors that read the truth off the pixels, and with the shapes checkpoint.

The truth of the drawn label maps is their pixels: a pixel's colour is the number of its object.
"""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import other_hand
import pytest
import supervision as sv
from hypothesis import given, settings
from hypothesis import strategies as st
from supervision.detection.utils.iou_and_nms import compact_mask_iou_batch

from autodistill_sam3 import SettingError
from autodistill_sam3.conflicts import add_removed, removed_counts
from autodistill_sam3.fusion import fuse, text_floor
from autodistill_sam3.instances import compact_masks, tight_xyxy
from autodistill_sam3.ontology import PromptTable
from autodistill_sam3.thresholds import Thresholds
from autodistill_sam3.tiling import DEFAULT_TILE, default_overlap, detect_in_tiles, runs, tiles_of

GRAY = (127 << 16) + (127 << 8) + 127


# Tiles.


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 120), st.data())
@settings(max_examples=100, deadline=None)
def test_tiles_cover_the_image(height, width, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    tiles = tiles_of((height, width), tile, overlap)
    seen = np.zeros((height, width), bool)
    for x1, y1, x2, y2 in tiles:
        assert (x2 - x1, y2 - y1) == (min(tile, width), min(tile, height))
        seen[y1:y2, x1:x2] = True
    assert seen.all()
    assert tiles[0][:2] == (0, 0)
    assert tiles[-1][2:] == (width, height)
    for low, high in ((0, 2), (1, 3)):
        spans = sorted({(box[low], box[high]) for box in tiles})
        assert all(first[1] - second[0] >= overlap for first, second in pairwise(spans))
        # With one tile less, some neighbours would overlap by less.
        assert len(spans) == 1 or tile + (len(spans) - 2) * (tile - overlap) < spans[-1][1]
    assert len(tiles) == 1 or max(height, width) > tile


def test_an_object_as_large_as_the_overlap_is_whole_in_some_tile():
    tiles = tiles_of((500, 777), 100, 30)
    for x in range(777 - 29):
        assert any(x1 <= x and x + 30 <= x2 for x1, _, x2, _ in tiles)


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (-5, 0), (10, 10), (10, -1)])
def test_impossible_tiles(tile, overlap):
    with pytest.raises(SettingError, match=r"Expected .* received"):
        tiles_of((10, 10), tile, overlap)
    with pytest.raises(SettingError, match=r"Expected .* received"):
        detect_in_tiles([np.zeros((5, 5, 3), np.uint8)], ideal(), tile=tile, overlap=overlap, batch_size=1)


def test_the_default_overlap_is_possible():
    assert 0 < default_overlap(DEFAULT_TILE) < DEFAULT_TILE
    assert tiles_of((3, 3), 1, default_overlap(1))[-1] == (2, 2, 3, 3)


# Detectors.


def image_of(labels):
    return np.stack([labels >> 16 & 255, labels >> 8 & 255, labels & 255], axis=-1).astype(np.uint8)


def detections_of(crops, hw, confidence, class_id, numbers):
    masks = compact_masks(crops, hw)
    return sv.Detections(
        tight_xyxy(masks),
        mask=masks,
        confidence=np.array(confidence, np.float32),
        class_id=np.array(class_id, np.int64),
        data={"number": np.array(numbers, np.int64)},
    )


def ideal(seed=0, *, blind_to=None, parts=False, change=lambda mask, rng: mask):
    """Finds every object that shows, sees nothing in images of one size, and on request takes parts for objects."""
    rng = np.random.default_rng(seed)

    def look(image):
        hw = image.shape[:2]
        labels = image.astype(np.int64) @ [1 << 16, 1 << 8, 1]
        masks = []
        for number in rng.permutation(np.setdiff1d(labels, [0, GRAY])) if hw != blind_to else []:
            shown = [labels == number]
            if parts:
                count, which = cv2.connectedComponents(shown[0].astype(np.uint8))
                shown = [which == index for index in range(1, count)]
            masks += [(number, change(mask, rng)) for mask in shown]
        masks = [(number, mask) for number, mask in masks if mask.any()]
        return detections_of(
            [(mask, 0, 0) for _, mask in masks],
            hw,
            np.sort(rng.random(len(masks)))[::-1],
            [number % 2 for number, _ in masks],
            [number for number, _ in masks],
        )

    return lambda images: [look(image) for image in images]


def assert_exact(found, labels):
    assert sorted(found.data["number"].tolist()) == np.setdiff1d(labels, [0]).tolist()
    for number, mask, box in zip(found.data["number"], found.mask, found.xyxy, strict=True):
        np.testing.assert_array_equal(mask, labels == number)
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert found.mask.image_shape == labels.shape
    assert (found.class_id == found.data["number"] % 2).all()
    assert (np.diff(found.confidence) <= 0).all()


# Runs, against pixels.


def random_mask(rng, height, width):
    kind = rng.integers(4)
    if kind == 0:
        return rng.random((height, width)) < rng.random()
    mask = np.zeros((height, width), bool)
    y, x = rng.integers(0, height), rng.integers(0, width)
    mask[y : rng.integers(y, height) + 1, x : rng.integers(x, width) + 1] = kind < 3
    return mask


def pixels_of(masks, hw):
    canvas = np.zeros(hw, bool)
    for x, first, last in masks.tolist():
        assert first < last
        assert not canvas[first:last, x].any()
        canvas[first:last, x] = True
    assert (np.lexsort((masks[:, 1], masks[:, 0])) == np.arange(len(masks))).all()
    return canvas


@given(st.integers(0, 100_000))
@settings(max_examples=80, deadline=None)
def test_runs_equal_pixels(seed):
    rng = np.random.default_rng(seed)
    hw = tuple(rng.integers(1, 12, 2).tolist())
    a, b = random_mask(rng, *hw), random_mask(rng, *hw)
    first, second = (runs.runs_of_crop(mask, 0, 0) for mask in (a, b))
    assert (pixels_of(first, hw) == a).all()
    assert runs.area(first) == a.sum()
    assert runs.overlap(first, second) == (a & b).sum()
    assert (pixels_of(runs.union([first, second, first]), hw) == (a | b)).all()
    x1, y1 = rng.integers(0, hw[1]), rng.integers(0, hw[0])
    box = (int(x1), int(y1), int(rng.integers(x1, hw[1]) + 1), int(rng.integers(y1, hw[0]) + 1))
    within = np.zeros(hw, bool)
    within[box[1] : box[3], box[0] : box[2]] = True
    assert (pixels_of(runs.runs_of_box(box), hw) == within).all()
    assert (pixels_of(runs.inside(first, box), hw) == (a & within)).all()
    assert (pixels_of(runs.outside(first, box), hw) == (a & ~within)).all()
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    assert runs.touch(first, second) == bool((cv2.dilate(a.astype(np.uint8), cross) & b).any())
    larger = tuple(int(side * rng.uniform(1, 4)) for side in hw)
    rows, columns = ((2 * np.arange(big) + 1) * side // (2 * big) for big, side in zip(larger, hw, strict=True))
    enlarged = a[np.ix_(rows, columns)]
    assert (pixels_of(runs.scale(first, hw, larger), larger) == enlarged).all()
    if a.any():
        compact = runs.compact_masks_of([first], hw)
        assert (compact[0] == a).all()
        assert compact == compact_masks([(a, 0, 0)], hw)
        assert runs.extent(first) == tuple(tight_xyxy(compact)[0].astype(int).tolist())


@given(st.integers(0, 100_000))
@settings(max_examples=30, deadline=None)
def test_parts_that_meet_equal_pixels(seed):
    rng = np.random.default_rng(seed)
    hw = tuple(rng.integers(2, 12, 2).tolist())
    masks = [random_mask(rng, *hw) for _ in range(2)]
    box = (1, 1, hw[1], hw[0])
    found = runs.parts_that_meet(*(runs.runs_of_crop(mask, 0, 0) for mask in masks), box)
    inner = [mask[1:, 1:] for mask in masks]
    for own, other, result in zip(inner, inner[::-1], found, strict=True):
        expected = np.zeros_like(own)
        count, parts = cv2.connectedComponents(own.astype(np.uint8))
        for part in range(1, count):
            if (other & (parts == part)).any():
                expected |= parts == part
        assert (pixels_of(result, hw)[1:, 1:] == expected).all()


# Drawn truth.


@st.composite
def cuts(draw):
    """Image height and width, tile and overlap."""
    tile = draw(st.integers(20, 60))
    return draw(st.integers(30, 140)), draw(st.integers(30, 140)), tile, draw(st.integers(4, tile // 2))


@given(cuts(), st.integers(0, 10_000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_objects_smaller_than_the_overlap_are_exact(cut, seed, blind):
    """Specks in several parts among them, side by side and on top of each other."""
    height, width, tile, overlap = cut
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.int64)
    for number in range(1, 30):
        size = rng.integers(1, overlap + 1, 2)
        y, x = rng.integers(0, np.maximum([height, width] - size, 0) + 1)
        part = labels[y : y + size[0], x : x + size[1]]
        part[rng.random(part.shape) < 0.7] = number
    detect = ideal(seed, blind_to=(height, width) if blind and tile < max(height, width) else None)
    [found] = detect_in_tiles([image_of(labels)], detect, tile=tile, overlap=overlap, batch_size=3)
    assert_exact(found, labels)


@given(cuts(), st.integers(0, 10_000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_large_objects_side_by_side_stay_apart(cut, seed, blind):
    """Every pixel belongs to one of a few regions, half of them neighbours of one class."""
    height, width, tile, overlap = cut
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, [height, width], (rng.integers(2, 12), 2))
    y, x = np.mgrid[:height, :width]
    labels = ((y[..., None] - seeds[:, 0]) ** 2 + (x[..., None] - seeds[:, 1]) ** 2).argmin(axis=-1) + 1
    detect = ideal(seed, blind_to=(height, width) if blind and tile < max(height, width) else None)
    [found] = detect_in_tiles([image_of(labels)], detect, tile=tile, overlap=overlap, batch_size=5)
    assert_exact(found, labels)


def winding(rng, height, width):
    """Polygons and thick winding lines that leave a tile and come back into it; each in one part."""
    labels = np.zeros((height, width), np.int64)
    for number in range(1, 5):
        canvas = np.zeros((height, width), np.uint8)
        points = rng.integers(0, [width, height], (rng.integers(3, 6), 2)).astype(np.int32)
        if rng.random() < 0.5:
            cv2.fillPoly(canvas, [points], 1)
        else:
            cv2.polylines(canvas, [points], False, 1, int(rng.integers(3, 12)))
        labels[canvas > 0] = number
    for number in range(1, 5):
        _, parts, statistics, _ = cv2.connectedComponentsWithStats((labels == number).astype(np.uint8), connectivity=4)
        areas = statistics[1:, cv2.CC_STAT_AREA].tolist()
        labels[(labels == number) & (parts != 1 + areas.index(max(areas, default=0)) if areas else False)] = 0
    return labels


@given(cuts(), st.integers(0, 10_000), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_large_objects_are_one_each(cut, seed, blind, parts):
    """Also for a detector that takes each part of an object that a tile shows for an object."""
    height, width, tile, overlap = cut
    labels = winding(np.random.default_rng(seed), height, width)
    detect = ideal(seed, blind_to=(height, width) if blind and tile < max(height, width) else None, parts=parts)
    [found] = detect_in_tiles([image_of(labels)], detect, tile=tile, overlap=overlap, batch_size=4)
    assert_exact(found, labels)


def shaken(mask, rng):
    """A mask that is a pixel larger or smaller, or moved by one."""
    kind = rng.integers(4)
    if kind < 2:
        change = cv2.dilate if kind else cv2.erode
        return change(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE) > 0
    result = np.zeros_like(mask)
    result[1:], result[:, 1:] = (mask[:-1], result[:, 1:]) if kind == 2 else (result[1:], mask[:, :-1])
    return result


@pytest.mark.parametrize("seed", range(6))
def test_inexact_masks_give_the_same_count(seed):
    rng = np.random.default_rng(seed)
    labels = np.zeros((300, 400), np.int64)
    number = 1
    for y in range(4, 270, 38):
        for x in range(4, 370, 38):
            radius = rng.integers(8, 17)
            cv2.circle(labels_of := np.zeros(labels.shape, np.uint8), (x + 15, y + 15), int(radius), 1, cv2.FILLED)
            labels[labels_of > 0] = number
            number += 1
    [found] = detect_in_tiles([image_of(labels)], ideal(seed, change=shaken), tile=120, overlap=40, batch_size=4)
    assert sorted(found.data["number"].tolist()) == list(range(1, number))
    for mask, own in zip(found.mask, found.data["number"], strict=True):
        assert (mask & (labels == own)).sum() / (mask | (labels == own)).sum() > 0.6


# Worked cases: an image of 100 x 60 pixels, tiles from 0 to 60 and from 40 to 100.

WHOLE, LEFT, RIGHT = 0, 1, 2


def worked(*items, **keywords):
    """Stitch (view, (x1, y1, x2, y2) in the image, confidence) of class 0; a fourth value is another class."""
    views = [(0, 0, 100, 60), (0, 0, 60, 60), (40, 0, 100, 60)]
    answers = []
    for view, (left, top, right, bottom) in enumerate(views):
        own = [(index, item) for index, item in enumerate(items) if item[0] == view]
        crops = [(np.ones((y2 - y1, x2 - x1), bool), x1 - left, y1 - top) for _, (_, (x1, y1, x2, y2), *_) in own]
        answers.append(
            detections_of(
                crops,
                (bottom - top, right - left),
                [item[2] for _, item in own],
                [item[3] if len(item) > 3 else 0 for _, item in own],
                [index for index, _ in own],
            )
        )
    image = np.zeros((60, 100, 3), np.uint8)
    [found] = detect_in_tiles([image], lambda images: answers, tile=60, overlap=20, batch_size=3, **keywords)
    boxes = [tuple(int(value) for value in box) for box in found.xyxy]
    assert [int(mask.sum()) for mask in found.mask] == found.mask.area.tolist()
    return list(zip(found.data["number"].tolist(), boxes, found.confidence.round(2).tolist(), strict=True)), found


def test_two_halves_are_one_with_the_confidence_of_the_surer():
    result, found = worked((LEFT, (20, 10, 60, 30), 0.6), (RIGHT, (40, 10, 90, 30), 0.7))
    assert result == [(1, (20, 10, 90, 30), pytest.approx(0.7))]
    assert removed_counts(found) == {"stitched": 1}


def test_the_tile_that_shows_all_of_it_gives_the_mask():
    """Also if the piece that the other tile shows is surer and larger than it should be."""
    result, found = worked((LEFT, (30, 10, 55, 30), 0.6), (RIGHT, (40, 8, 55, 32), 0.9))
    assert result == [(1, (30, 10, 55, 30), pytest.approx(0.9))]
    assert removed_counts(found) == {"stitched": 1}


def test_classes_are_not_stitched():
    result, found = worked((LEFT, (20, 10, 60, 30), 0.6), (RIGHT, (40, 10, 90, 30), 0.7, 1))
    assert len(result) == 2
    assert removed_counts(found) == {}


def test_boxes_that_overlap_are_not_enough():
    """Two L-shapes that fit into each other, each seen by one tile, have nearly the same box in the common strip."""
    image = np.zeros((60, 100, 3), np.uint8)
    first = np.zeros((60, 60), bool)
    first[5:50, 42:46] = first[46:50, 42:58] = True
    second = np.zeros((60, 60), bool)
    second[5:50, 14:18] = second[5:9, 7:18] = True
    answers = [
        detections_of([], (60, 100), [], [], []),
        detections_of([(first, 0, 0)], (60, 60), [0.9], [0], [1]),
        detections_of([(second, 0, 0)], (60, 60), [0.8], [0], [2]),
    ]
    [found] = detect_in_tiles([image], lambda images: answers, tile=60, overlap=20, batch_size=3)
    assert found.data["number"].tolist() == [1, 2]
    assert sv.box_iou_batch(found.xyxy, found.xyxy)[0, 1] > 0.6


def test_a_blurred_view_of_the_whole_does_not_glue_neighbours():
    """It takes two for one. Both are cut; it agrees best with the upper piece on the left, the lower on the right."""
    result, found = worked(
        (WHOLE, (20, 10, 90, 33), 0.95),
        (LEFT, (20, 10, 60, 24), 0.6), (LEFT, (20, 24, 60, 33), 0.7),
        (RIGHT, (40, 10, 90, 18), 0.5), (RIGHT, (40, 18, 90, 33), 0.8),
    )  # fmt: skip
    assert [(number, box) for number, box, _ in result] == [(0, (20, 18, 90, 33)), (1, (20, 10, 90, 24))]
    assert removed_counts(found) == {"stitched": 3}


def test_a_view_of_the_whole_that_goes_on_where_a_tile_shows_an_end():
    result, _ = worked((WHOLE, (30, 10, 95, 30), 0.9), (LEFT, (30, 10, 56, 30), 0.8))
    assert [box for _, box, _ in result] == [(30, 10, 95, 30), (30, 10, 56, 30)]


def test_small_outlines_that_differ_by_a_few_pixels():
    """An IoU of 0.4, one within the other."""
    result, _ = worked((LEFT, (44, 12, 54, 18), 0.6), (RIGHT, (42, 11, 57, 21), 0.7))
    assert [number for number, _, _ in result] == [1]


def test_half_agreement_of_equals_removes_neither():
    result, _ = worked((LEFT, (36, 10, 60, 30), 0.6), (RIGHT, (40, 18, 64, 38), 0.7))
    assert [number for number, _, _ in result] == [1, 0]


def test_the_border_of_the_image_cuts_nothing():
    """What a tile shows whole stays, also on top of something larger."""
    result, _ = worked((LEFT, (0, 10, 10, 20), 0.6), (LEFT, (0, 5, 30, 40), 0.7))
    assert [number for number, _, _ in result] == [1, 0]


def test_several_small_objects_that_the_whole_view_runs_together():
    small = [(LEFT, (x, 10, x + 8, 20), 0.6) for x in (5, 14, 23)]
    result, found = worked((WHOLE, (4, 9, 32, 21), 0.9), *small)
    assert [number for number, _, _ in result] == [1, 2, 3]
    assert removed_counts(found) == {"stitched": 1}


def test_what_the_whole_view_adds():
    """A large object that tiles do not see, and the far end of one that only one tile sees."""
    result, found = worked((WHOLE, (5, 30, 95, 50), 0.9), (WHOLE, (25, 2, 92, 20), 0.6), (LEFT, (24, 2, 60, 20), 0.7))
    assert result == [(0, (5, 30, 95, 50), pytest.approx(0.9)), (2, (24, 2, 92, 20), pytest.approx(0.7))]
    assert removed_counts(found) == {"stitched": 1}


def test_what_a_tile_sees_whole_is_for_the_tile_to_say():
    """A piece in the strip that the other tile shows with more around it, and a speck of the small view."""
    result, found = worked((WHOLE, (70, 30, 80, 40), 0.9), (LEFT, (50, 10, 60, 20), 0.8), (LEFT, (10, 40, 20, 50), 0.6))
    assert [number for number, _, _ in result] == [2]
    assert removed_counts(found) == {"unconfirmed": 2}


def test_a_cut_object_whose_other_half_was_missed_stays():
    result, found = worked((LEFT, (10, 10, 60, 30), 0.8))
    assert result == [(0, (10, 10, 60, 30), pytest.approx(0.8))]
    assert removed_counts(found) == {}


def test_a_sliver_whose_edges_do_not_agree_belongs_to_its_object():
    result, found = worked((LEFT, (52, 10, 60, 20), 0.8), (RIGHT, (55, 11, 90, 24), 0.7))
    assert [number for number, _, _ in result] == [1]
    assert removed_counts(found) == {"stitched": 1}


# Batches.


def test_batches_have_one_size_and_hold_no_copies():
    sizes = [(70, 130), (50, 40), (100, 60)]
    images = [np.full((*hw, 3), index + 1, np.uint8) for index, hw in enumerate(sizes)]
    batches = []

    def detect(batch):
        batches.append(batch)
        return ideal()(batch)

    found = detect_in_tiles(images, detect, tile=60, overlap=12, batch_size=4)
    assert {len(batch) for batch in batches} == {4}
    shown = [view for batch in batches for view in batch]
    # 2 x 3 tiles and the whole, the small one as it is, 2 tiles and the whole.
    assert sum(any(np.shares_memory(view, image) for image in images) for view in shown) == 7 + 1 + 3
    fillers = [view for view in shown if not any(np.shares_memory(view, image) for image in images)]
    assert len(fillers) == 1
    assert max(fillers[0].shape) <= 60
    assert len(np.unique(fillers[0])) == 1
    for image, detections in zip(images, found, strict=True):
        assert detections.mask.area.tolist() == [image.shape[0] * image.shape[1]]
        assert detections.mask.image_shape == image.shape[:2]
    assert detect_in_tiles([], detect, tile=60, batch_size=4) == []


def test_small_images_are_detected_in_as_they_are():
    answer = detections_of([(np.ones((2, 2), bool), 1, 1)] * 2, (9, 8), [0.5, 0.9], [0, 0], [1, 2])
    [found] = detect_in_tiles([np.zeros((9, 8, 3), np.uint8)], lambda images: [answer], tile=9, batch_size=1)
    assert found is answer


def test_a_batch_of_the_wrong_length():
    with pytest.raises(ValueError, match="zip"):
        detect_in_tiles([np.zeros((9, 8, 3), np.uint8)] * 2, lambda images: [], tile=9, batch_size=2)
    with pytest.raises(SettingError, match="batch_size"):
        detect_in_tiles([], ideal(), tile=9, batch_size=0)


def test_nothing_found():
    [found] = detect_in_tiles([np.zeros((90, 80, 3), np.uint8)], ideal(), tile=40, batch_size=2)
    assert found.xyxy.shape == (0, 4)
    assert found.mask.shape == (0, 90, 80)
    assert (found.class_id.dtype, found.confidence.dtype) == (np.int64, np.float32)
    assert list(found.data) == ["number"]
    assert found.metadata == {}


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_counts_add_up(seed):
    """Every piece is a detection or counted, what the detector counted stays, and the same comes out twice."""
    labels = winding(np.random.default_rng(seed), 90, 110)

    def detect(images, rng):
        answers = []
        for detections in ideal(seed, parts=True, change=shaken)(images):
            kept = detections[rng.random(len(detections)) < 0.7]
            add_removed(kept, "same_class", 2)
            pieces.append(len(kept))
            answers.append(kept)
        return answers

    results = []
    for _ in range(2):
        pieces, rng = [], np.random.default_rng(seed)
        [found] = detect_in_tiles(
            [image_of(labels)], lambda images, rng=rng: detect(images, rng), tile=40, overlap=12, batch_size=1
        )
        counts = removed_counts(found)
        assert counts.pop("same_class") == 2 * len(pieces)
        assert len(found) + sum(counts.values()) == sum(pieces)
        results.append(found)
    assert results[0] == results[1]


def test_boxes_without_masks():
    """Florence-2 alone gives boxes only."""
    boxes = [np.zeros((0, 4)), np.array([[20.2, 10, 60, 30.4], [5, 40, 15, 50]]), np.array([[0, 10, 50, 30]])]
    answers = [
        sv.Detections(
            xyxy.astype(np.float32), confidence=np.full(len(xyxy), 0.5, np.float32), class_id=np.zeros(len(xyxy), int)
        )
        for xyxy in boxes
    ]
    [found] = detect_in_tiles([np.zeros((60, 100, 3), np.uint8)], lambda _: answers, tile=60, overlap=20, batch_size=3)
    assert found.mask is None
    assert found.xyxy.tolist() == [[20, 10, 90, 30], [5, 40, 15, 50]]


def test_a_very_large_image_is_never_decoded():
    """One mask of it would be 80 MB."""
    image = np.zeros((4000, 20_000, 3), np.uint8)
    image[100:3900, 100:19_900] = 1

    def detect(images):
        return [
            detections_of([(view[..., 0] == 1, 0, 0)], view.shape[:2], [0.9], [0], [1])
            if (view[..., 0] == 1).any()
            else detections_of([], view.shape[:2], [], [], [])
            for view in images
        ]

    tracemalloc.start()
    try:
        [found] = detect_in_tiles([image], detect, tile=2000, batch_size=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.xyxy.tolist() == [[100, 100, 19_900, 3900]]
    assert found.mask.area.tolist() == [3800 * 19_800]
    assert peak < 70_000_000


# The shapes checkpoint.

CLASSES = ("star", "circle", "cross")


def large_scene(seed, width, height, count, radii):
    """Many shapes apart from each other on one large paper, and the crop of each one's mask."""
    rng = np.random.default_rng(seed)
    canvas, papers = other_hand._paper(rng, width, height)
    palette = {
        name: [rgb for rgb in table if other_hand._stands_out(rgb, papers)]
        for name, table in other_hand.COLOURS.items()
    }
    palette = {name: table for name, table in palette.items() if table}
    drawings, crops = [], []
    while len(drawings) < count:
        radius = int(np.exp(rng.uniform(*np.log(radii))))
        reach = int(1.3 * radius) + 8
        x, y = (int(rng.integers(reach, side - reach)) for side in (width, height))
        if any(np.hypot(x - o.centre[0], y - o.centre[1]) < 1.25 * (radius + o.radius) + 6 for o in drawings):
            continue
        colour = str(rng.choice(list(palette)))
        rgb = palette[colour][rng.integers(len(palette[colour]))]
        item = other_hand._drawing(rng, colour, str(rng.choice(other_hand.SHAPES)), rgb, (x, y), radius, papers)
        other_hand._draw(canvas, item, rgb, item.ink, cv2.LINE_AA if item.smooth else cv2.LINE_8)
        crop = np.zeros((2 * reach, 2 * reach), np.uint8)
        other_hand._draw(crop, replace(item, centre=(reach, reach)), 1, item.ink and 1, cv2.LINE_8)
        drawings.append(item)
        crops.append((crop > 0, x - reach, y - reach))
    return canvas, drawings, crops


def tally(found, drawings, crops, hw):
    """Objects, right detections, all detections, and detections that lie on an object that has one already."""
    objects = right = duplicates = 0
    for class_id, name in enumerate(CLASSES):
        truth = compact_masks([crop for crop, item in zip(crops, drawings, strict=True) if item.shape == name], hw)
        own = found[found.class_id == class_id]
        iou = compact_mask_iou_batch(own.mask, truth)
        lies_on = compact_mask_iou_batch(own.mask, truth, sv.OverlapMetric.IOS)
        taken = set()
        for row in range(len(own)):
            best = int(iou[row].argmax())
            if iou[row, best] >= 0.5 and best not in taken:
                taken.add(best)
            elif (lies_on[row] >= 0.5).any():
                duplicates += 1
        objects, right = objects + len(truth), right + len(taken)
    return objects, right, len(found), duplicates


def with_and_without_tiles(segmenter, seed, width, height, count, tile, radii=(20, 60)):
    table = PromptTable(CLASSES, CLASSES, tuple(range(len(CLASSES))))
    floor = text_floor(Thresholds(), table, fused=False)

    def detect(images):
        results = segmenter.segment_text(segmenter.encode(images), table.prompts, floor)
        return [fuse(result.instances, None, table, Thresholds()) for result in results]

    image, drawings, crops = large_scene(seed, width, height, count, radii)
    tiled = detect_in_tiles([image], detect, tile=tile, batch_size=4)
    return [tally(found, drawings, crops, (height, width)) for found in (*detect([image]), *tiled)]


def test_small_shapes_in_a_large_image(shapes_segmenter):
    (objects, plain, _, before), (_, tiled, found, after) = with_and_without_tiles(
        shapes_segmenter, 2, 1600, 1200, 30, tile=480
    )
    assert plain / objects < 0.5
    assert tiled / objects > 0.85
    assert tiled / found > 0.7
    assert after <= before


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "width", "height"), [(1, 4000, 4000), (2, 4000, 3000), (3, 3000, 4000)])
def test_small_shapes_in_a_very_large_image(shapes_segmenter, seed, width, height):
    (objects, plain, _, before), (_, tiled, found, after) = with_and_without_tiles(
        shapes_segmenter, seed, width, height, 150, tile=480
    )
    print(f"\n{objects} objects; without tiles {plain} right, {before} twice; with {tiled} of {found}, {after} twice")
    assert plain / objects < 0.1
    assert tiled / objects > 0.9
    assert tiled / found > 0.8
    assert after <= before
