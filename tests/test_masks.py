"""Masks survive upsampling, compact storage, RLE and polygons."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import supervision as sv
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from torch.nn.functional import interpolate

from autodistill_sam3.instances import compact_masks, compact_masks_from_runs, tight_xyxy, trim_crop
from autodistill_sam3.labeling.outlines import closed_walk
from autodistill_sam3.labeling.polygons import crop_to_yolo, polygon_iou
from autodistill_sam3.rle import crop_to_rle, rle_to_crop, rle_to_mask
from autodistill_sam3.segmentation.grouping import group_by_image
from autodistill_sam3.segmentation.masks import mask_runs, upsample_logits


@st.composite
def masks(draw, max_side=24):
    """Random masks with at least one pixel: noise, discs with holes, lines, edges, everything."""
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["noise", "blobs", "ring", "line", "full"]))
    if kind == "noise":
        mask = rng.random((height, width)) < draw(st.floats(0.05, 0.95))
    elif kind == "blobs":
        mask = cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), 2) > 0
    elif kind == "ring":
        y, x = np.mgrid[:height, :width]
        distance = np.hypot(y - rng.integers(0, height), x - rng.integers(0, width))
        mask = (distance < rng.integers(2, max_side)) & (distance > rng.integers(0, 6))
    elif kind == "line":
        canvas = np.zeros((height, width), np.uint8)
        ends = rng.integers(0, (width, height), (2, 2)).tolist()
        mask = cv2.line(canvas, ends[0], ends[1], 1).astype(bool)
    else:
        mask = np.ones((height, width), bool)
    if not mask.any():
        mask[rng.integers(0, height), rng.integers(0, width)] = True
    return mask


@given(masks())
@settings(max_examples=300, deadline=None)
def test_rle_equals_pycocotools(mask):
    crop, x, y = trim_crop(mask, 0, 0)
    rle = crop_to_rle(crop, x, y, mask.shape)
    oracle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert rle == {"size": list(mask.shape), "counts": oracle["counts"].decode()}
    np.testing.assert_array_equal(rle_to_mask(rle), mask)
    height, width = crop.shape
    np.testing.assert_array_equal(rle_to_crop(rle, (x, y, width, height)), crop)


@pytest.mark.parametrize("image_hw", [(1080, 1920), (1079, 1), (1, 1921), (333, 517)])
@pytest.mark.parametrize("kind", ["ring", "full", "stripes", "corners"])
def test_rle_of_large_masks_equals_pycocotools(image_hw, kind):
    y, x = np.mgrid[: image_hw[0], : image_hw[1]]
    distance = np.hypot(y - image_hw[0] // 2, x - image_hw[1] // 2)
    mask = {
        "ring": (distance < 400) & ((distance > 100) | (distance < 2)),
        "full": distance >= 0,
        "stripes": x % 7 < 2,
        "corners": (distance == distance.max()) | (distance == distance.min()),
    }[kind]
    crop, left, top = trim_crop(mask, 0, 0)
    oracle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    rle = crop_to_rle(crop, left, top, image_hw)
    assert rle["counts"] == oracle
    np.testing.assert_array_equal(rle_to_mask(rle), mask)


def test_rle_of_a_mask_in_an_image_of_400_megapixels_equals_pycocotools():
    """Runs of so many pixels take six characters. Decoded by box, for the whole is 400 MB."""
    height = width = 20_000
    crop = np.ones((3, 2), bool)
    rle = crop_to_rle(crop, width - 2, height - 5, (height, width))
    np.testing.assert_array_equal(rle_to_crop(rle, (width - 2, height - 5, 2, 3)), crop)
    assert coco_mask.toBbox(rle).tolist() == [width - 2, height - 5, 2, 3]
    assert coco_mask.area(rle) == 6


@given(st.lists(masks(max_side=16), min_size=0, max_size=4), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_compact_masks_are_tight_and_lossless(crops, x, y):
    compact = compact_masks(((crop, x, y) for crop in crops), (32, 32))
    dense = np.zeros((len(crops), 32, 32), bool)
    for mask, crop in zip(dense, crops, strict=True):
        mask[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    np.testing.assert_array_equal(compact.to_dense(), dense)
    expected = sv.mask_to_xyxy(dense).reshape(-1, 4) + [0, 0, 1, 1]
    np.testing.assert_array_equal(tight_xyxy(compact), expected)


def _pixels(line: str, image_hw: tuple[int, int], to_pixels=np.trunc) -> np.ndarray:
    """What readers make of a line: 32-bit numbers, scaled, and truncated by ultralytics or rounded by supervision."""
    points = np.array(line.split(), dtype=np.float32).reshape(-1, 2) * np.array(image_hw[::-1], dtype=np.float32)
    return to_pixels(points).astype(np.int32)


def _filled(line: str, image_hw: tuple[int, int], to_pixels=np.trunc) -> np.ndarray:
    return cv2.fillPoly(np.zeros(image_hw, np.uint8), [_pixels(line, image_hw, to_pixels)], 1).astype(bool)


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


@given(masks(), st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_polygon_of_a_single_part_is_the_mask(mask, x, y):
    _, labels = cv2.connectedComponents(mask.astype(np.uint8))
    crop, left, top = trim_crop(labels == labels[mask][0], 0, 0)
    image_hw = (64, 64)
    truth = np.zeros(image_hw, bool)
    truth[y + top : y + top + crop.shape[0], x + left : x + left + crop.shape[1]] = crop
    line = crop_to_yolo(crop, x + left, y + top, image_hw)
    assert len(line.split()) >= 6
    np.testing.assert_array_equal(_filled(line, image_hw), truth)
    np.testing.assert_array_equal(_filled(line, image_hw, np.round), truth)
    assert polygon_iou(crop) == 1


@given(masks())
@settings(max_examples=200, deadline=None)
def test_polygon_of_several_parts_is_worth_its_bridges(mask):
    crop, x, y = trim_crop(mask, 0, 0)
    image_hw = mask.shape[0] + 70, mask.shape[1] + 3
    truth = np.pad(mask, ((0, 70), (0, 3)))
    filled = _filled(crop_to_yolo(crop, x, y, image_hw), image_hw)
    np.testing.assert_array_equal(_filled(crop_to_yolo(crop, x, y, image_hw), image_hw, np.round), filled)
    assert polygon_iou(crop) == pytest.approx(_iou(filled, truth))
    # It is one part, and at least as good as the largest part alone.
    assert cv2.connectedComponents(filled.astype(np.uint8))[0] == 2
    areas = cv2.connectedComponentsWithStats(crop.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
    assert polygon_iou(crop) >= areas.max() / areas.sum() - 1e-9


@given(masks())
@settings(max_examples=100, deadline=None)
def test_walk_goes_along_rows_columns_and_diagonals(mask):
    crop, _, _ = trim_crop(mask, 0, 0)
    walk = closed_walk(crop)
    x, y = np.abs(np.diff(walk, axis=0, append=walk[:1])).T
    assert ((x == 0) | (y == 0) | (x == y)).all()
    assert len(walk) == 1 or ((x > 0) | (y > 0)).all()


@given(st.integers(10, 40_000), st.integers(10, 40_000), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_polygons_keep_their_pixels_in_images_of_any_size(height, width, seed):
    rng = np.random.default_rng(seed)
    x, y = int(rng.integers(0, width - 2)), int(rng.integers(0, height - 2))
    for left, top in ((x, y), (0, 0), (width - 3, height - 3)):
        line = crop_to_yolo(np.ones((3, 3), bool), left, top, (height, width))
        expected = {(left, top), (left, top + 2), (left + 2, top + 2), (left + 2, top)}
        for to_pixels in (np.trunc, np.round):
            assert {tuple(point) for point in _pixels(line, (height, width), to_pixels).tolist()} == expected


def test_polygon_of_parts_and_holes():
    mask = np.zeros((100, 160), np.uint8)
    cv2.circle(mask, (45, 50), 40, 1, -1)
    cv2.circle(mask, (45, 50), 15, 0, -1)
    cv2.circle(mask, (130, 50), 20, 1, -1)
    crop, x, y = trim_crop(mask.astype(bool), 0, 0)
    filled = _filled(crop_to_yolo(crop, x, y, (100, 160)), (100, 160))
    # Between the discs are 24 pixels, and nothing else is added.
    assert (filled & ~mask.astype(bool)).sum() == 24
    assert not (mask.astype(bool) & ~filled).any()


def test_a_part_that_is_smaller_than_its_bridge_is_left_out():
    mask = np.zeros((60, 200), bool)
    mask[10:50, 10:50] = True
    mask[20:25, 60:65] = mask[20:22, 190:193] = True
    filled = _filled(crop_to_yolo(mask, 0, 0, mask.shape), mask.shape)
    assert filled[22, 62]
    assert not filled[:, 70:].any()
    assert polygon_iou(mask) == pytest.approx((1600 + 25) / (1600 + 25 + 6 + 10))


def test_a_chain_of_parts_is_left_out_if_all_of_it_is_worth_less_than_its_bridges():
    mask = np.zeros((30, 120), bool)
    mask[5:25, 5:25] = mask[14, 40:50] = mask[14, 65:75] = True
    assert polygon_iou(mask) == pytest.approx(400 / 420)
    mask[14, 80:120] = True
    assert polygon_iou(mask) == pytest.approx(460 / (460 + 15 + 15 + 5))


def test_polygon_of_hundreds_of_holes_and_parts():
    rng = np.random.default_rng(0)
    mask = np.zeros((1080, 1920), np.uint8)
    mask[100:900, 100:1500] = 1
    for y, x in rng.integers((120, 120), (880, 1480), (400, 2)):
        cv2.circle(mask, (int(x), int(y)), 6, 0, -1)
    for y, x in rng.integers((910, 20), (1060, 1900), (300, 2)):
        cv2.circle(mask, (int(x), int(y)), 2, 1, -1)
    crop, x, y = trim_crop(mask.astype(bool), 0, 0)
    filled = _filled(crop_to_yolo(crop, x, y, mask.shape), mask.shape)
    assert _iou(filled, mask.astype(bool)) > 0.99


def test_polygon_of_noise_takes_no_minutes():
    """Foliage, fences, text: thousands of parts and holes."""
    rng = np.random.default_rng(0)
    mask = rng.random((360, 640)) < 0.35
    assert cv2.connectedComponents(mask.astype(np.uint8))[0] > 4000
    assert 0.3 < polygon_iou(mask) < 1
    assert _iou(_filled(crop_to_yolo(mask, 0, 0, mask.shape), mask.shape), mask) == pytest.approx(polygon_iou(mask))


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 9), (9, 1)])
def test_polygon_of_one_row_or_column_has_an_extent(shape):
    """Boxes that trainers derive from a polygon must not be flat."""
    line = crop_to_yolo(np.ones(shape, bool), 3, 4, (20, 20))
    points = np.array(line.split(), dtype=np.float64).reshape(-1, 2) * 20
    assert len(points) >= 3
    extent = np.array(shape[::-1]) - 1
    assert (np.ptp(points, axis=0) >= np.where(extent, extent - 1e-5, 0.4)).all()


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.sampled_from([0.0, 0.3, 0.8]),
)
@settings(max_examples=150, deadline=None)
def test_upsampling_equals_the_full_interpolation(seed, image_hw, offset):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.nn.functional.avg_pool2d(torch.randn(1, 1, 28, 28, generator=generator), 5, 1, 2) * 5 - offset
    expected = torch.nn.functional.interpolate(logits, size=image_hw, mode="bilinear", align_corners=False)[
        0, 0
    ].numpy()
    result = upsample_logits(logits[0, 0].numpy(), image_hw)
    mask = np.zeros(image_hw, bool)
    if result is not None:
        crop, x, y = result
        mask[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    undecided = np.abs(expected) < 1e-4
    assert ((mask == (expected > 0)) | undecided).all()


def test_an_image_with_empty_masks_alone_has_no_instances():
    logits = torch.full((4, 8, 8), -1.0)
    logits[1, 2:5, 2:5] = logits[3, :4, :4] = 1.0
    images, prompts = np.array([2, 0, 0, 0]), np.array([5, 6, 7, 8])
    scores = np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)
    [(image, found)] = group_by_image([(16, 16)] * 3, "text", (images, prompts), scores, logits)
    assert image == 0
    assert found.prompt_index.tolist() == [6, 8]
    np.testing.assert_array_equal(found.scores, scores[[1, 3]])
    assert [found.masks.area[index] for index in range(2)] == [36, 64]
    none = np.zeros(0, dtype=np.int64)
    assert not list(group_by_image([(16, 16)], "text", (none, none), scores[:0], torch.zeros(0, 8, 8)))


def test_masks_of_images_of_several_sizes_stay_with_their_images():
    sizes = [(16, 16), (8, 24), (16, 16)]
    logits = torch.full((5, 8, 8), -1.0)
    for index in range(5):
        logits[index, : index + 1] = 1.0
    images, prompts = np.array([2, 0, 1, 2, 0]), np.arange(5)
    found = dict(group_by_image(sizes, "text", (images, prompts), prompts.astype(np.float32), logits))
    assert {image: part.prompt_index.tolist() for image, part in found.items()} == {0: [1, 4], 1: [2], 2: [0, 3]}
    for image, part in found.items():
        assert part.masks.shape[1:] == sizes[image]
        np.testing.assert_array_equal(part.scores, part.prompt_index)
        height, width = sizes[image]
        assert part.masks.area.tolist() == [(index + 1) * height // 8 * width for index in part.prompt_index]


@given(
    hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9), elements=st.integers(-3, 3)
    ),
    st.integers(1, 23),
    st.integers(1, 23),
)
@settings(max_examples=60, deadline=None)
def test_runs_equal_the_dense_masks(logits, height, width):
    tensor = torch.from_numpy(logits)
    values = interpolate(tensor[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0].numpy()
    columns = np.zeros((len(values), width * height), dtype=bool)
    for flat, (starts, stops) in zip(columns, mask_runs(tensor, (height, width)), strict=True):
        for start, stop in zip(starts, stops, strict=True):
            assert start < stop
            flat[start:stop] = True
    dense = columns.reshape(-1, width, height).transpose(0, 2, 1)
    # Where a value is 0 but for rounding, the order of the sums decides.
    np.testing.assert_array_equal(dense[np.abs(values) > 1e-5], values[np.abs(values) > 1e-5] > 0)
    runs = [run for run in mask_runs(tensor, (height, width)) if len(run[0])]
    masks = compact_masks_from_runs(runs, (height, width))
    expected = compact_masks([(mask, 0, 0) for mask in dense if mask.any()], (height, width))
    np.testing.assert_array_equal(masks.to_dense(), dense[dense.any(axis=(1, 2))])
    assert masks.bbox_xyxy.tolist() == expected.bbox_xyxy.tolist()
    assert [rle.tolist() for rle in masks._rles] == [rle.tolist() for rle in expected._rles]
