"""Masks survive upsampling, compact storage, RLE and polygons."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import supervision as sv
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from autodistill_sam3.instances import compact_masks, tight_xyxy, trim_crop
from autodistill_sam3.labeling.polygons import crop_to_yolo, outline_of
from autodistill_sam3.labeling.rle import crop_to_rle, rle_to_crop, rle_to_mask
from autodistill_sam3.segmentation.grouping import group_by_image
from autodistill_sam3.segmentation.masks import upsample_logits


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


def test_rle_of_a_large_mask_equals_pycocotools():
    y, x = np.mgrid[:1080, :1920]
    mask = (np.hypot(y - 500, x - 900) < 400) & (np.hypot(y - 500, x - 900) > 100)
    crop, left, top = trim_crop(mask, 0, 0)
    oracle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert crop_to_rle(crop, left, top, mask.shape)["counts"] == oracle


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


def _fill_as_ultralytics_does(line: str, image_hw: tuple[int, int]) -> np.ndarray:
    """Scale to pixels, truncate, fill: ultralytics/data/utils.py, polygon2mask."""
    points = np.array(line.split(), dtype=np.float32).reshape(-1, 2) * np.array(image_hw[::-1], dtype=np.float32)
    return cv2.fillPoly(np.zeros(image_hw, np.uint8), [points.astype(np.int32)], 1).astype(bool)


@given(masks(), st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_polygon_keeps_every_pixel_of_single_parts(mask, x, y):
    _, labels = cv2.connectedComponents(mask.astype(np.uint8))
    crop, left, top = trim_crop(labels == labels[mask][0], 0, 0)
    image_hw = (64, 64)
    truth = np.zeros(image_hw, bool)
    truth[y + top : y + top + crop.shape[0], x + left : x + left + crop.shape[1]] = crop
    line = crop_to_yolo(crop, x + left, y + top, image_hw)
    assert len(line.split()) >= 6
    filled = _fill_as_ultralytics_does(line, image_hw)
    assert (truth <= filled).all()
    # What is added can only be holes of a pixel or two, which an outline through pixel centres cannot show.
    added = (filled & ~truth).astype(np.uint8)
    assert not cv2.erode(added, np.ones((3, 3), np.uint8)).any()


def test_polygon_of_parts_and_holes():
    mask = np.zeros((100, 160), np.uint8)
    cv2.circle(mask, (45, 50), 40, 1, -1)
    cv2.circle(mask, (45, 50), 15, 0, -1)
    cv2.circle(mask, (130, 50), 20, 1, -1)
    crop, x, y = trim_crop(mask.astype(bool), 0, 0)
    filled = _fill_as_ultralytics_does(crop_to_yolo(crop, x, y, (100, 160)), (100, 160))
    iou = (filled & mask.astype(bool)).sum() / (filled | mask.astype(bool)).sum()
    assert iou > 0.98
    assert not filled[50, 45]
    assert filled[50, 130]


def test_polygon_of_hundreds_of_holes_and_parts():
    """The outline must not take minutes for foliage, fences or text."""
    rng = np.random.default_rng(0)
    mask = np.zeros((1080, 1920), np.uint8)
    mask[100:900, 100:1500] = 1
    for y, x in rng.integers((120, 120), (880, 1480), (400, 2)):
        cv2.circle(mask, (int(x), int(y)), 6, 0, -1)
    for y, x in rng.integers((910, 20), (1060, 1900), (300, 2)):
        cv2.circle(mask, (int(x), int(y)), 2, 1, -1)
    crop, x, y = trim_crop(mask.astype(bool), 0, 0)
    filled = _fill_as_ultralytics_does(crop_to_yolo(crop, x, y, mask.shape), mask.shape)
    assert (filled & mask.astype(bool)).sum() / (filled | mask.astype(bool)).sum() > 0.98


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 9), (9, 1)])
def test_outline_of_degenerate_masks_has_three_points(shape):
    assert len(outline_of(np.ones(shape, bool))) >= 3


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
    images, prompts = torch.tensor([2, 0, 0, 0]), torch.tensor([5, 6, 7, 8])
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4])
    [(image, found)] = group_by_image([(16, 16)] * 3, "text", (images, prompts), scores, logits)
    assert image == 0
    assert found.prompt_index.tolist() == [6, 8]
    np.testing.assert_array_equal(found.scores, scores[[1, 3]].numpy())
    assert [found.masks.area[index] for index in range(2)] == [36, 64]
    none = torch.zeros(0, dtype=torch.int64)
    assert not list(group_by_image([(16, 16)], "text", (none, none), torch.zeros(0), torch.zeros(0, 8, 8)))
