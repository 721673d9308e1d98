"""Matcher and losses against values worked by hand, scipy, and the official functions where they are installed."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from autodistill_sam3.training.batches import object_masks, realise
from autodistill_sam3.training.boxes import cxcywh_to_xyxy
from autodistill_sam3.training.checkpoints import new_sam3
from autodistill_sam3.training.configs import IMAGE_SIZE, DetectorWeights
from autodistill_sam3.training.dense import LOOKS, looks_losses, object_coverage
from autodistill_sam3.training.detector import DetectorStage, _mask_terms
from autodistill_sam3.training.losses import (
    MAX_MASK_POINTS,
    LayerOutputs,
    box_losses,
    focal_loss,
    layer_losses,
    mask_losses,
    presence_loss,
    score_loss,
    semantic_losses,
)
from autodistill_sam3.training.matcher import Matches, hungarian, matching_cost, one_to_many
from autodistill_sam3.training.validation import held_out_plans
from autodistill_sam3.training.world import COLOURS

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
    cost = torch.rand(4, 10, 5, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]).bool()
    found = hungarian(cost, valid)
    for row in range(4):
        columns = np.flatnonzero(valid[row])
        queries, targets = linear_sum_assignment(cost[row][:, columns])
        own = found.rows == row
        assert found.queries[own].tolist() == queries.tolist()
        assert found.targets[own].tolist() == columns[targets].tolist()


def test_nothing_to_match():
    found = hungarian(torch.rand(2, 4, 3), torch.zeros(2, 3).bool())
    assert found.rows.tolist() == found.queries.tolist() == found.targets.tolist() == []


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
    ours = hungarian(matching_cost(logits, boxes, targets), valid)
    assert set(zip(rows.tolist(), queries.tolist(), strict=True)) == set(
        zip(ours.rows.tolist(), ours.queries.tolist(), strict=True)
    )


def test_one_to_many_equals_the_official_matcher_where_no_query_fits_two_objects():
    from sam3.train import matcher as official

    targets = torch.tensor([[[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.3, 0.3]], [[0.5, 0.5, 0.4, 0.4], [0.1, 0.9, 0.1, 0.1]]])
    generator = torch.Generator().manual_seed(0)
    boxes = targets.repeat_interleave(8, 1) + 0.02 * torch.randn(2, 16, 4, generator=generator)
    logits = torch.randn(2, 16, generator=generator)
    rows, queries, order = official.BinaryOneToManyMatcher(alpha=0.3, threshold=0.4, topk=4)(
        {"pred_logits": logits[..., None], "pred_boxes": boxes},
        {"num_boxes": torch.tensor([2, 2]), "boxes_padded": targets},
        target_is_valid_padded=torch.ones(2, 2).bool(),
    )
    nothing = Matches(*torch.zeros(3, 0, dtype=torch.long))
    ours = one_to_many(logits, boxes, targets, torch.ones(2, 2).bool(), one_to_one=nothing)
    flat = torch.arange(4).reshape(2, 2)
    assert set(zip(rows.tolist(), queries.tolist(), order.tolist(), strict=True)) == set(
        zip(ours.rows.tolist(), ours.queries.tolist(), flat[ours.rows, ours.targets].tolist(), strict=True)
    )
    assert len(ours.rows) > 8


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
    focal, dice = mask_losses(logits, targets, num_boxes=torch.tensor(5))
    flat = logits.flatten(1), targets.flatten(1)
    expected = official.sigmoid_focal_loss(*flat, 5, alpha=0.25, gamma=2, triton=False)
    torch.testing.assert_close(focal, expected)
    torch.testing.assert_close(dice, official.dice_loss(*flat, 5))


def test_semantic_losses_equal_the_official_ones():
    from sam3.train.loss import loss_fns as official

    logits, masks = torch.randn(3, 8, 8), torch.rand(3, 8, 8) > 0.5
    criterion = official.SemanticSegCriterion(weight_dict={}, presence_head=True, presence_loss=False)
    expected = criterion.get_loss(
        {"semantic_seg": logits[:, None], "presence_logit": torch.zeros(3)}, {"semantic_masks": masks}
    )
    entropy, dice = semantic_losses(logits, masks.float())
    torch.testing.assert_close(entropy, expected["loss_semantic_seg"])
    torch.testing.assert_close(dice, expected["loss_semantic_dice"])


def one_layer(logits, boxes, presence):
    return LayerOutputs(logits, boxes, presence, layers=1)


def test_score_and_presence_losses_equal_the_official_ones(monkeypatch):
    from sam3.train.loss import loss_fns as official

    # By default it asks for a GPU.
    monkeypatch.setattr(official, "sigmoid_focal_loss", partial(official.sigmoid_focal_loss, triton=False))
    generator = torch.Generator().manual_seed(3)
    logits, presence = torch.randn(3, 6, generator=generator), torch.randn(3, generator=generator)
    boxes, targets = random_boxes(3, 6), random_boxes(3, 2, seed=5)
    # The last prompt is absent.
    found = match((0, 1, 0), (0, 4, 1), (1, 2, 0))
    criterion = official.IABCEMdetr(
        pos_weight=10.0, weight_dict={}, gamma=2, weak_loss=False, alpha=0.25, use_presence=True
    )
    ids = torch.tensor([[0, 1], [0, -1], [-1, -1]])
    expected = criterion.get_loss(
        {
            "pred_logits": logits[..., None],
            "pred_boxes_xyxy": cxcywh_to_xyxy(boxes),
            "presence_logit_dec": presence,
        },
        {
            "boxes_xyxy": cxcywh_to_xyxy(targets[[0, 0, 1], [0, 1, 0]]),
            "object_ids_padded": ids,
            "boxes_padded": targets * (ids >= 0)[..., None],
        },
        (found.rows, found.queries, None),
        num_boxes=3,
    )
    outputs, present = one_layer(logits, boxes, presence), torch.tensor([True, True, False])
    [score] = score_loss(outputs, found, targets, present, 10.0)
    torch.testing.assert_close(score, expected["loss_ce"])
    [ours] = presence_loss(outputs, present, torch.ones(3).bool())
    torch.testing.assert_close(ours, expected["presence_loss"])


def test_box_losses_equal_the_official_ones():
    from sam3.train.loss import loss_fns as official

    boxes, targets, found = random_boxes(1, 4), random_boxes(1, 2, seed=2), match((0, 1, 0), (0, 3, 1))
    expected = official.Boxes(weight_dict={}).get_loss(
        {"pred_boxes": boxes, "pred_boxes_xyxy": cxcywh_to_xyxy(boxes)},
        {"boxes": targets[0], "boxes_xyxy": cxcywh_to_xyxy(targets[0])},
        (found.rows, found.queries, None),
        num_boxes=5,
    )
    l1, giou = box_losses(one_layer(torch.zeros(1, 4), boxes, torch.zeros(1)), found, targets, torch.tensor(5))
    torch.testing.assert_close(l1[0], expected["loss_bbox"])
    torch.testing.assert_close(giou[0], expected["loss_giou"])


def test_absent_prompts_carry_no_score_loss_but_presence():
    outputs = one_layer(torch.full((1, 4), 3.0), random_boxes(1, 4), torch.tensor([2.0]))
    nothing = Matches(*torch.zeros(3, 0, dtype=torch.long))
    absent = torch.tensor([False])
    assert score_loss(outputs, nothing, random_boxes(1, 2), absent, 3.0).tolist() == [0]
    expected = 0.5 * math.log(1 + math.exp(2.0))
    assert presence_loss(outputs, absent, torch.tensor([True])).item() == pytest.approx(expected)
    assert presence_loss(outputs, absent, torch.tensor([False])).item() == 0


def test_score_loss_by_hand():
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1]]])
    outputs = one_layer(torch.zeros(1, 2), boxes, torch.zeros(1))
    value = score_loss(outputs, match((0, 0, 0)), boxes[:, :1], torch.tensor([True]), positive_weight=3.0)
    # Any soft target costs ln 2 at probability 1/2; the other query is a negative with weight (1/2)^2.
    assert value.item() == pytest.approx((3 * math.log(2) + 0.25 * math.log(2)) / 2, rel=1e-5)


def test_box_losses_by_hand_and_normalised_by_boxes():
    predicted, target = torch.tensor([[[0.5, 0.5, 0.4, 0.4]]]), torch.tensor([[[0.5, 0.5, 0.4, 0.2]]])
    outputs = one_layer(torch.zeros(1, 1), predicted, torch.zeros(1))
    l1, giou = box_losses(outputs, match((0, 0, 0)), target, num_boxes=torch.tensor(2))
    assert l1.item() == pytest.approx(0.2 / 2)
    assert giou.item() == pytest.approx(0.5 / 2)
    assert cxcywh_to_xyxy(target)[0, 0].tolist() == pytest.approx([0.3, 0.4, 0.7, 0.6])


def test_terms_carry_the_official_names_and_weights():
    outputs = LayerOutputs(torch.zeros(3, 1), random_boxes(3, 1), torch.zeros(3), layers=3)
    weights = DetectorWeights(one_to_many=0.5, one_to_many_layers=1)
    yes = torch.tensor([True])
    found = match((0, 0, 0), (1, 0, 0), (2, 0, 0))
    terms = layer_losses(outputs, found, random_boxes(1, 1), yes, yes, torch.tensor(1), weights)
    names = ("loss_ce", "presence_loss", "loss_bbox", "loss_giou")
    assert set(terms) == {f"{name}{suffix}" for name in names for suffix in ("", "_aux_0", "_aux_1")}
    assert terms["presence_loss"].item() == pytest.approx(20 * 0.5 * math.log(2))
    assert terms["presence_loss_aux_0"].item() == pytest.approx(10 * 0.5 * math.log(2))


def test_layers_are_scored_each_for_itself():
    """All layers at once give what each gives alone."""
    outputs = LayerOutputs(torch.randn(6, 4), random_boxes(6, 4), torch.randn(6), layers=3)
    targets, present = random_boxes(2, 2, seed=4), torch.tensor([True, False])
    found = match((0, 1, 0), (0, 2, 1), (2, 0, 1), (4, 3, 0), (4, 2, 1))
    together = score_loss(outputs, found, targets, present, 3.0)
    boxes = torch.stack(box_losses(outputs, found, targets, torch.tensor(2)), dim=1)
    for index in range(3):
        alone = outputs.layer(index)
        own = found.where(found.rows // 2 == index)
        own = Matches(own.rows % 2, own.queries, own.targets)
        torch.testing.assert_close(score_loss(alone, own, targets, present, 3.0)[0], together[index])
        torch.testing.assert_close(torch.cat(box_losses(alone, own, targets, torch.tensor(2))), boxes[index])


def drawn_batch(size=96):
    return realise(held_out_plans(4)[0], size, torch.device("cpu"))


def test_looks_losses_vanish_for_a_head_that_knows():
    batch = drawn_batch()
    grid = 12
    covered = object_coverage(batch, grid)
    told = torch.full((len(covered), grid * grid, LOOKS + 4), -20.0)
    share, owner = covered.max(1)
    told[..., LOOKS:] = batch.boxes_cxcywh[:: batch.per_scene].gather(1, owner[..., None].expand(-1, -1, 4))
    perfect = told.clone()
    kinds = torch.stack([batch.colour, batch.shape + len(COLOURS)], dim=-1)
    wanted = torch.zeros(*covered.shape[::2], LOOKS)
    for slot in range(covered.shape[1]):
        for kind in range(2):
            index = kinds[:, slot, kind, None, None].expand(-1, grid * grid, 1)
            wanted.scatter_add_(2, index, covered[:, slot, :, None])
    perfect[..., :LOOKS] = torch.logit(wanted.clamp(max=1.0), eps=1e-6)
    good, bad = looks_losses(perfect, batch), looks_losses(told, batch)
    assert good["loss_looks_box"] == 0
    assert (share > 0).any()
    entropy = torch.special.entr(wanted) + torch.special.entr((1 - wanted).clamp(min=0))
    torch.testing.assert_close(good["loss_looks"], entropy.sum(-1).mean(), rtol=1e-3, atol=1e-3)
    assert bad["loss_looks"] > good["loss_looks"] + 1


@pytest.mark.slow
def test_a_batch_without_anything_asked_for_still_trains_the_presence():
    model, tokenizer = new_sam3(0)
    batch = drawn_batch(IMAGE_SIZE)
    nothing = torch.zeros_like(batch.targets)
    batch = dataclasses.replace(batch, targets=nothing, ignored=nothing, present_rows=torch.zeros(0).long())
    terms = DetectorStage(model, tokenizer).losses(batch)
    assert terms["presence_loss"] > 0
    assert terms["loss_bbox"] == terms["loss_ce"] == 0
    sum(terms.values()).backward()


def test_perfect_masks_cost_nothing_and_shifted_ones_do():
    """Of several layers and prompts, each matched mask is held against its own object."""
    batch = drawn_batch()
    prompts, objects = batch.targets.nonzero(as_tuple=True)
    # The last of two layers; query 3 + slot answers for each object.
    matches = Matches(len(batch.targets) + prompts, 3 + objects, objects)
    place = torch.searchsorted(batch.present_rows, prompts)
    truth = object_masks(batch.scenes, prompts // batch.per_scene, objects, 96)
    logits = torch.full((len(batch.present_rows), 16, 96, 96), -30.0)
    logits[place, 3 + objects] = truth * 60 - 30
    semantic = logits.amax(1)
    terms = _mask_terms((logits, semantic), matches, batch, torch.tensor(len(objects)), DetectorWeights())
    assert {name: round(float(value), 3) for name, value in terms.items()} == dict.fromkeys(terms, 0)
    shifted = logits.roll(1, dims=1), semantic.roll(20, dims=2)
    wrong = _mask_terms(shifted, matches, batch, torch.tensor(len(objects)), DetectorWeights())
    assert all(value > 1 for value in wrong.values())


def test_large_masks_are_sampled():
    logits, targets = torch.full((2, 150, 150), 4.0), torch.ones(2, 150, 150)
    focal, dice = mask_losses(logits, targets, torch.tensor(2))
    assert focal == pytest.approx(focal_loss(logits[:, :1, :1], targets[:, :1, :1], 0.25, 2.0).mean().item(), rel=1e-4)
    assert MAX_MASK_POINTS < 150 * 150
    probability = torch.sigmoid(torch.tensor(4.0)).item()
    expected = 1 - (2 * probability * MAX_MASK_POINTS + 1) / ((probability + 1) * MAX_MASK_POINTS + 1)
    assert dice.item() == pytest.approx(expected, rel=1e-3)
