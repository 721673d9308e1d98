"""Stage 3: SAM 3's tracker on clips: its memory, its prompts and its decoder. The ViT and the tracker's neck stay."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Sam3VideoModel

from autodistill_sam3.training.batches import Batch, ClipBatch, normalise
from autodistill_sam3.training.box_decoder import (
    JITTER,
    MULTIMASK_SHARE,
    POINTS_SHARE,
    box_decoder_losses,
    jitter_boxes,
    mask_errors,
    points_inside,
    run_box_decoder,
)
from autodistill_sam3.training.configs import GRID, HIDDEN, IMAGE_SIZE
from autodistill_sam3.training.dense import presence_map_loss
from autodistill_sam3.training.detector import PIXEL_MEAN, PIXEL_STD
from autodistill_sam3.training.drawing import SceneBatch
from autodistill_sam3.training.memory import FrameOutput, Prompt, encode_frames, track
from autodistill_sam3.training.scenes import MIN_VISIBLE

# The memory starts with directions in the neck's features, which must not move away from under it.
TRAINED_PARTS = ("tracker_model.",)
# Shares of steps whose first frame has masks, boxes and points (SAM 2's: 1/2, 1/4, 1/4), and of steps in which a later
# frame's memory is kept like a prompted one's, as happens where the detector confirms a track.
PROMPT_KINDS = {"mask": 0.5, "box": 0.3, "point": 0.2}
CONFIRMED_SHARE = 0.25
# Objects are out of sight in a twentieth of the frames, which count more. The score does not learn of that: it is moved
# by the logarithm of their weight (Menon et al. 2021).
SCORE_WEIGHT, HIDDEN_WEIGHT = 2.0, 3.0
TOLD_WEIGHT = 0.5
# Pixels of the model's input: fewer are neither an object nor none, and a track begins with more.
LEAST_AREA, LEAST_FIRST_AREA = 12, 40
LEAST_FIRST_VISIBLE = 0.25
# Objects followed in each clip, on average; two clips in three hold as many or more.
ROWS_PER_CLIP = 3


def object_truth(scenes: SceneBatch, images: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Visible masks (M, S, S) ``float32`` of objects at the size they are drawn."""
    return (scenes.top.index_select(0, images) == slots[:, None, None]).float()


def to_input_size(logits: torch.Tensor) -> torch.Tensor:
    """(M, m, 4g, 4g) logits at the size of the model's input: edges between the decoder's cells count."""
    return F.interpolate(logits.float(), (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)


def first_prompt(kind: str, scenes: SceneBatch, images: torch.Tensor, slots: torch.Tensor) -> Prompt:
    """What an inexact person or detector would say of R objects.

    Args:
        kind: Of `PROMPT_KINDS`.
        scenes: N drawn frames.
        images: (R,) which frame.
        slots: (R,) which object.
    """
    if kind == "mask":
        return Prompt(masks=_disturb(object_truth(scenes, images, slots)[:, None]))
    if kind == "box":
        points = jitter_boxes(scenes.boxes_xyxy[images, slots], JITTER).reshape(-1, 1, 2, 2) * IMAGE_SIZE
        labels = torch.tensor([2, 3], device=points.device).expand(len(points), 1, 2)
        return Prompt(points=points, labels=labels)
    truth = object_truth(scenes, images, slots)
    place = (torch.rand_like(truth) * truth).flatten(1).argmax(1)
    points = torch.stack([place % IMAGE_SIZE + 0.5, place // IMAGE_SIZE + 0.5], dim=-1)[:, None, None]
    return Prompt(points=points, labels=torch.ones_like(points[..., 0], dtype=torch.int))


def _disturb(masks: torch.Tensor) -> torch.Tensor:
    """(R, 1, S, S) masks at the decoder's size, half of them with edges as wrong as a detector's."""
    size = (4 * GRID, 4 * GRID)
    cover = F.adaptive_avg_pool2d(masks, size)
    noise = torch.randn(len(masks), 1, 2 * GRID, 2 * GRID, device=masks.device)
    wobble = F.interpolate(noise, size, mode="bilinear", align_corners=False)
    bias = 0.3 * torch.randn(len(masks), 1, 1, 1, device=masks.device)
    rough = (F.avg_pool2d(cover, 3, stride=1, padding=1) > 0.5 + (0.3 * wobble + bias).clamp(-0.45, 0.45)).float()
    disturbed = (torch.rand(len(masks), 1, 1, 1, device=masks.device) < 0.5) & rough.flatten(1).any(1)[
        :, None, None, None
    ]
    return torch.where(disturbed, rough, (cover >= 0.5).float())


class TrackerStage:
    """Trains the tracker's neck, prompts, decoder and memory, on clips and, so that images stay good, on scenes."""

    name = "tracker"
    image_size = IMAGE_SIZE

    def __init__(self, model: Sam3VideoModel) -> None:
        self.model = model
        self.told = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(self.told.weight)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that this stage changes."""
        own = [(name, value) for name, value in self.model.named_parameters() if name.startswith(TRAINED_PARTS)]
        return [*own, *nn.ModuleDict({"told": self.told}).named_parameters()]

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Weighted loss terms of a batch."""
        terms = self._image_losses(batch.scenes)
        if batch.clips is not None:
            terms |= self._clip_losses(batch.clips)
        return terms

    def _image_losses(self, scenes: SceneBatch) -> dict[str, torch.Tensor]:
        images = normalise(scenes.images, PIXEL_MEAN, PIXEL_STD)
        rows, slots = (scenes.visible >= MIN_VISIBLE).nonzero(as_tuple=True)
        multimask, pointed = (bool(torch.rand(()) < share) for share in (MULTIMASK_SHARE, POINTS_SHARE))
        boxes = None if pointed else jitter_boxes(scenes.boxes_xyxy, JITTER)
        points = points_inside(scenes) if pointed else None
        logits, iou = run_box_decoder(self.model, images, boxes, points, multimask=multimask)
        logits = to_input_size(logits[rows, slots])
        return box_decoder_losses(logits, iou[rows, slots], object_truth(scenes, rows, slots))

    def _clip_losses(self, clips: ClipBatch) -> dict[str, torch.Tensor]:
        scenes, length = clips.scenes, clips.length
        shares, area = scenes.visible[::length], scenes.visible_area[::length]
        begins = (shares >= LEAST_FIRST_VISIBLE) & (area >= LEAST_FIRST_AREA)
        which, slots = begins.nonzero(as_tuple=True)
        rows = ROWS_PER_CLIP * len(area)
        # One shape for all steps: convolutions of another number of rows are planned anew, for most of a second.
        some = torch.cat([torch.randperm(len(which)) for _ in range(rows // len(which) + 1)])[:rows].to(which.device)
        which, slots = which[some], slots[some]
        kind = list(PROMPT_KINDS)[int(torch.multinomial(torch.tensor(list(PROMPT_KINDS.values())), 1))]
        confirmed = [int(torch.randint(1, length, ()))] if torch.rand(()) < CONFIRMED_SHARE else []
        levels = encode_frames(self.model, normalise(scenes.images, PIXEL_MEAN, PIXEL_STD))
        images = torch.cat([which * length + index for index in range(length)])
        truth = object_truth(scenes, images, slots.repeat(length)).reshape(length, rows, IMAGE_SIZE, IMAGE_SIZE)
        cells = (F.adaptive_avg_pool2d(truth, 4 * GRID) >= 0.5).float()
        outputs = track(
            self.model.tracker_model,
            [levels.select(which * length + index) for index in range(length)],
            first_prompt(kind, scenes, which * length, slots),
            numbers=clips.numbers,
            confirmed=confirmed,
            truth=cells if clips.guided else None,
        )
        return clip_losses(outputs, truth, self.told)


def clip_losses(outputs: list[FrameOutput], truth: torch.Tensor, told: nn.Module) -> dict[str, torch.Tensor]:
    """Focal, dice and IoU error where an object is seen, whether it is seen, and which cells memory says are its own.

    Args:
        outputs: Of T frames.
        truth: (T, R, S, S), 0 or 1.
        told: Reads (..., C) recalled features, one logit each.
    """
    area = truth.flatten(2).sum(2)
    seen = area >= LEAST_AREA
    count = seen.sum().clamp(min=1)
    terms: dict[str, Any] = {}
    # The first frame's prompt may ask for one mask, the others have three. Which object is followed is no question:
    # if the best of three were enough, they would be three objects, and nothing would be remembered.
    for frames in (slice(0, 1), slice(1, None)):
        logits, iou = (
            torch.cat([getattr(output, name) for output in outputs[frames]]).float() for name in ("logits", "iou")
        )
        for name, value in _mask_errors(logits, iou, truth[frames].flatten(0, 1)).items():
            terms[f"clip_{name}"] = terms.get(f"clip_{name}", 0.0) + (value * seen[frames].flatten()).sum() / count
    scores = torch.stack([output.score for output in outputs]).float()
    weight = (seen + HIDDEN_WEIGHT * (area == 0)).float()
    entropy = F.binary_cross_entropy_with_logits(scores - math.log(HIDDEN_WEIGHT), seen.float(), reduction="none")
    terms["clip_loss_score"] = SCORE_WEIGHT * (entropy * weight).sum() / weight.sum().clamp(min=1)
    recalled = torch.cat([output.recalled for output in outputs if output.recalled is not None])
    cover = F.adaptive_avg_pool2d(truth[1:].flatten(0, 1), GRID).flatten(1)
    cells = told(recalled.flatten(2).transpose(1, 2))[..., 0]
    return terms | {"clip_loss_told": TOLD_WEIGHT * presence_map_loss(cells, cover[:, None])}


def _mask_errors(logits: torch.Tensor, iou: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """Each (M,), of (M, m, 4g, 4g) logits, their (M, m) predicted IoU and (M, S, S) truth."""
    return mask_errors(to_input_size(logits), iou, truth, ambiguous=False)
