"""The tracker's memory starts by comparing looks: before any training, cells are told what the mask was."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from autodistill_sam3.training.batches import normalise
from autodistill_sam3.training.checkpoints import load_sam3, with_memory
from autodistill_sam3.training.configs import GRID
from autodistill_sam3.training.detector import PIXEL_MEAN, PIXEL_STD
from autodistill_sam3.training.memory import Prompt, encode_frames, track
from autodistill_sam3.training.memory_start import DISCRIMINANTS, Cells, discriminants
from autodistill_sam3.training.tracker import object_truth
from autodistill_sam3.training.tracking import held_out_clips

SHAPES = Path(__file__).parents[2] / "models" / "shapes" / "sam3"
LENGTH = 6

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def test_a_class_has_variance_one_along_discriminants_and_classes_lie_apart():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(40, 40)) * 10.0
    kinds = torch.from_numpy(rng.integers(-1, 6, 6000))
    centres = rng.normal(size=(7, 40)) * 3.0
    features = torch.from_numpy((centres[kinds.numpy() + 1] + rng.normal(size=(6000, 40))) @ mixing).float()
    mean, directions = discriminants(Cells(features, kinds))
    assert directions.shape == (40, DISCRIMINANTS)
    looks = (features - mean) @ directions
    within = torch.stack([looks[kinds == kind].var(0) for kind in range(6)]).mean(0)
    # Six classes lie in five directions.
    assert within[:5].numpy() == pytest.approx(np.ones(5), abs=0.15)
    means = torch.stack([looks[kinds == kind].mean(0) for kind in range(6)])
    nearest = torch.cdist(looks, means).argmin(1)
    assert (nearest == kinds)[kinds >= 0].float().mean() > 0.99


@torch.no_grad()
def test_cells_are_told_the_mask_before_any_training():
    torch.manual_seed(0)
    loaded, tokenizer = load_sam3(SHAPES)
    model = with_memory(loaded, tokenizer).eval()
    scenes = next(held_out_clips(1, torch.device("cpu"), length=LENGTH))
    slots = (scenes.visible_area.amin(0) > 100).nonzero()[:, 0]
    levels = encode_frames(model, normalise(scenes.images, PIXEL_MEAN, PIXEL_STD))
    truth = torch.stack([object_truth(scenes, torch.full_like(slots, index), slots) for index in range(LENGTH)])
    cells = (F.adaptive_avg_pool2d(truth, 4 * GRID) >= 0.5).float()
    frames = [levels.select(torch.full_like(slots, index)) for index in range(LENGTH)]
    outputs = track(model.tracker_model, frames, Prompt(masks=truth[0][:, None]), truth=cells)
    # What the first layer adds for a mask lies along one direction.
    told = model.tracker_model.memory_attention.layers[0].cross_attn_image.o_proj.weight[:, 0].sign()
    cover = F.adaptive_avg_pool2d(truth[-1][:, None], GRID)[:, 0]
    along = torch.einsum("rcyx,c->ryx", outputs[-1].recalled, told)
    # The frame's own features lie along it as well, alike for all objects.
    along = along - along.median(0).values
    found = [float(one[share > 0.9].mean() - one[share == 0].mean()) for one, share in zip(along, cover, strict=True)]
    noise = float(along[cover == 0].std())
    assert len(found) >= 3
    assert min(found) > 4 * noise
