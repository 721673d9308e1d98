"""Matcher and losses against values worked by hand, scipy, and the official functions where they are installed."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from autodistill_sam3.training.boxes import cxcywh_to_xyxy
from autodistill_sam3.training.configs import DetectorWeights
from autodistill_sam3.training.losses import (
    LayerOutput,
    box_losses,
    focal_loss,
    layer_losses,
    mask_losses,
    presence_loss,
    score_loss,
)
from autodistill_sam3.training.matcher import Matches, hungarian, matching_cost, one_to_many

# The official trainer's modules script functions at import and miss CUDA.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning"),
]


def random_boxes(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 + 0.4 * torch.rand(*shape, 4, generator=generator)


def match(*triples):
    return Matches(*torch.tensor(triples).T)


def test_cost_of_a_perfect_box_by_hand():
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2]]])
    cost = matching_cost(torch.zeros(1, 1), boxes, boxes)
    # Classes: 2 * (0.25 * 0.25 * ln 2 - 0.75 * 0.25 * ln 2); boxes: no L1, GIoU 1 times -2.
    assert cost.item() == pytest.approx(2 * (0.0625 - 0.1875) * math.log(2) - 2, abs=1e-5)


def test_hungarian_equals_scipy_row_by_row():
    cost = torch.rand(3, 4, 10, 5, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]).bool()
    for layer, found in zip(cost, hungarian(cost, valid), strict=True):
        for row in range(4):
            columns = np.flatnonzero(valid[row])
            queries, targets = linear_sum_assignment(layer[row][:, columns])
            own = found.rows == row
            assert found.queries[own].tolist() == queries.tolist()
            assert found.targets[own].tolist() == columns[targets].tolist()


def test_hungarian_equals_the_official_matcher():
    from sam3.train import matcher as official

    logits, boxes, targets = torch.randn(2, 12), random_boxes(2, 12), random_boxes(2, 3, seed=1)
    valid = torch.tensor([[True, True, True], [True, True, False]])
    matcher = official.BinaryHungarianMatcherV2(
        cost_class=2.0, cost_bbox=5.0, cost_giou=2.0, focal=True, alpha=0.25, gamma=2.0
    )
    rows, queries, _ = matcher(
        {"pred_logits": logits[..., None], "pred_boxes": boxes},
        {"num_boxes": valid.sum(1), "boxes_padded": targets, "boxes": targets[valid]},
    )
    [ours] = hungarian(matching_cost(logits, boxes, targets)[None], valid)
    assert set(zip(rows.tolist(), queries.tolist(), strict=True)) == set(
        zip(ours.rows.tolist(), ours.queries.tolist(), strict=True)
    )


def test_one_to_many_takes_good_queries_and_keeps_the_one_to_one_match():
    target = torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]]])
    boxes = target[:, :1].repeat(1, 6, 1) + torch.linspace(0, 0.05, 6)[None, :, None]
    first = match((0, 5, 1))
    found = one_to_many(torch.zeros(1, 6), boxes, target, torch.ones(1, 2).bool(), one_to_one=first, top=3)
    assert sorted(zip(found.queries.tolist(), found.targets.tolist(), strict=True)) == [(0, 0), (1, 0), (2, 0), (5, 1)]


def test_focal_loss_by_hand():
    value = focal_loss(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]), alpha=0.25, gamma=2.0)
    torch.testing.assert_close(value, torch.tensor([0.25, 0.75]) * 0.25 * math.log(2))


def test_mask_losses_equal_the_official_ones():
    from sam3.train.loss import loss_fns as official

    logits, targets = torch.randn(3, 8, 8), (torch.rand(3, 8, 8) > 0.5).float()
    focal, dice = mask_losses(logits, targets, num_boxes=5)
    flat = logits.flatten(1), targets.flatten(1)
    expected = official.sigmoid_focal_loss(*flat, 5, alpha=0.25, gamma=2, triton=False)
    torch.testing.assert_close(focal, expected)
    torch.testing.assert_close(dice, official.dice_loss(*flat, 5))


def test_absent_prompts_carry_no_score_loss_but_presence():
    layer = LayerOutput(torch.full((1, 4), 3.0), random_boxes(1, 4), torch.tensor([2.0]))
    nothing = Matches(*torch.zeros(3, 0, dtype=torch.long))
    absent = torch.tensor([False])
    assert score_loss(layer, nothing, random_boxes(1, 2), absent, 3.0) == 0
    assert presence_loss(layer, absent).item() == pytest.approx(0.5 * math.log(1 + math.exp(2.0)))


def test_score_loss_by_hand():
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1]]])
    layer = LayerOutput(torch.zeros(1, 2), boxes, torch.zeros(1))
    value = score_loss(layer, match((0, 0, 0)), boxes[:, :1], torch.tensor([True]), positive_weight=3.0)
    # Any soft target costs ln 2 at probability 1/2; the other query is a negative with weight (1/2)^2.
    assert value.item() == pytest.approx((3 * math.log(2) + 0.25 * math.log(2)) / 2, rel=1e-5)


def test_box_losses_by_hand_and_normalised_by_boxes():
    predicted, target = torch.tensor([[[0.5, 0.5, 0.4, 0.4]]]), torch.tensor([[[0.5, 0.5, 0.4, 0.2]]])
    layer = LayerOutput(torch.zeros(1, 1), predicted, torch.zeros(1))
    l1, giou = box_losses(layer, match((0, 0, 0)), target, num_boxes=2)
    assert l1.item() == pytest.approx(0.2 / 2)
    assert giou.item() == pytest.approx(0.5 / 2)
    assert cxcywh_to_xyxy(target)[0, 0].tolist() == pytest.approx([0.3, 0.4, 0.7, 0.6])


def test_terms_carry_the_official_names_and_weights():
    layer = LayerOutput(torch.zeros(1, 1), random_boxes(1, 1), torch.zeros(1))
    weights = DetectorWeights()
    terms = layer_losses(layer, match((0, 0, 0)), random_boxes(1, 1), torch.tensor([True]), weights, "_aux_1")
    assert set(terms) == {"loss_ce_aux_1", "presence_loss_aux_1", "loss_bbox_aux_1", "loss_giou_aux_1"}
    assert terms["presence_loss_aux_1"].item() == pytest.approx(20 * 0.5 * math.log(2))
