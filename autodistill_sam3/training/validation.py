"""Scores while training, on held-out scenes drawn at the models' input size; `table` measures finished checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from transformers import Florence2ForConditionalGeneration, PreTrainedTokenizerFast, Sam3VideoModel

from autodistill_sam3.training import detector as sam3
from autodistill_sam3.training import florence2
from autodistill_sam3.training.batches import Batch, Plan, normalise, object_masks, realise
from autodistill_sam3.training.box_decoder import jitter_boxes, points_inside, run_box_decoder
from autodistill_sam3.training.boxes import cxcywh_to_xyxy, iou_and_giou
from autodistill_sam3.training.configs import FLORENCE2_IMAGE_SIZE, IMAGE_SIZE
from autodistill_sam3.training.prompts import plan_prompts
from autodistill_sam3.training.scenes import MIN_VISIBLE, plan_scenes
from autodistill_sam3.training.tokenizers import first_location

HELD_OUT_SEED = 20_261_121
PROMPTS_PER_SCENE = 4
SCENES_PER_BATCH = 16
MATCH_IOU = 0.5
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
LEAST_SCORE = 0.04
MAX_ANSWER = 48

Floats = npt.NDArray[np.float32]


def held_out_plans(count: int) -> list[Plan]:
    """Scenes that training never draws: another stream of seeds. Half of the prompts ask for something absent."""
    plans = []
    for index in range(0, count, SCENES_PER_BATCH):
        rng = np.random.default_rng([HELD_OUT_SEED, index])
        scenes = plan_scenes(rng, min(SCENES_PER_BATCH, count - index))
        prompts = plan_prompts(rng, scenes, PROMPTS_PER_SCENE, present=0.5)
        plans.append(Plan(index, HELD_OUT_SEED, scenes, prompts))
    return plans


@dataclass(frozen=True, eq=False)
class PairResult:
    """The answer to one (image, prompt) pair.

    Attributes:
        scores: (D,) of the detections, highest first.
        iou: (D, T) with the T objects asked for.
    """

    scores: Floats
    iou: Floats

    @staticmethod
    def of(scores: torch.Tensor, iou: torch.Tensor, ignored_iou: torch.Tensor) -> PairResult:
        """Without the detections that fall on one of I hardly visible objects: (D,), (D, T), (D, I)."""
        best, best_ignored = (torch.nn.functional.pad(part, (0, 1)).amax(1) for part in (iou, ignored_iou))
        keep = (best_ignored < MATCH_IOU) | (best >= MATCH_IOU)
        return PairResult(scores[keep].cpu().numpy(), iou[keep].cpu().numpy())

    def matched(self, threshold: float) -> tuple[int, list[float]]:
        """Detections at or above the threshold, and the IoU of each that found an object of its own."""
        kept = int((self.scores >= threshold).sum())
        free = np.ones(self.iou.shape[1], dtype=bool)
        found: list[float] = []
        for row in self.iou[:kept]:
            candidates = np.where(free, row, -1.0)
            if candidates.size and candidates.max() >= MATCH_IOU:
                free[int(candidates.argmax())] = False
                found.append(float(candidates.max()))
        return kept, found


def detection_scores(results: list[PairResult], threshold: float) -> dict[str, float]:
    """F1, recall, precision, mean matched IoU, and the share of absent prompts with any detection.

    Example:
        >>> right = PairResult(np.array([0.9], np.float32), np.array([[0.8]], np.float32))
        >>> wrong = PairResult(np.array([0.6], np.float32), np.zeros((1, 0), np.float32))
        >>> scores = detection_scores([right, wrong], 0.5)
        >>> round(scores["f1"], 3), scores["false_alarms"]
        (0.667, 1.0)
    """
    detections = objects = hits = alarms = absent = 0
    overlap = 0.0
    for result in results:
        kept, found = result.matched(threshold)
        detections, objects, hits = detections + kept, objects + result.iou.shape[1], hits + len(found)
        overlap += sum(found)
        if not result.iou.shape[1]:
            absent, alarms = absent + 1, alarms + (kept > 0)
    return {
        "f1": 2 * hits / max(detections + objects, 1),
        "recall": hits / max(objects, 1),
        "precision": hits / max(detections, 1),
        "matched_iou": overlap / max(hits, 1),
        "false_alarms": alarms / max(absent, 1),
    }


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


@torch.no_grad()
def text_results(model: Sam3VideoModel, tokenizer: PreTrainedTokenizerFast, plans: list[Plan]) -> list[PairResult]:
    """The detector's answers to held-out prompts."""
    device = next(model.parameters()).device
    stage = sam3.DetectorStage(model, tokenizer)
    results: list[PairResult] = []
    for plan in plans:
        batch = realise(plan, IMAGE_SIZE, device)
        with _autocast(device):
            output = stage.run(batch)
            logits, _ = sam3.run_mask_head(model.detector_model, output, torch.arange(len(output.encoded)).to(device))
        results += [_text_result(logits[pair], batch, scores, pair) for pair, scores in enumerate(output.scores)]
    return results


def _text_result(logits: torch.Tensor, batch: Batch, scores: torch.Tensor, pair: int) -> PairResult:
    order = scores.argsort(descending=True)
    order = order[scores[order] >= LEAST_SCORE]
    wanted, ignored = batch.targets[pair].nonzero()[:, 0], batch.ignored[pair].nonzero()[:, 0]
    slots = torch.cat([wanted, ignored])
    images = torch.full_like(slots, pair // batch.per_scene)
    iou = _mask_iou(logits[order], object_masks(batch.scenes, images, slots, IMAGE_SIZE))
    return PairResult.of(scores[order], iou[:, : len(wanted)], iou[:, len(wanted) :])


def _mask_iou(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """IoU (D, T) of mask logits (D, h, w) with masks (T, H, W), at the masks' size."""
    size = truth.shape[-2:]
    predicted = F.interpolate(logits.float()[:, None], size, mode="bilinear", align_corners=False)[:, 0] > 0
    first, second = predicted.flatten(1).float(), truth.flatten(1)
    intersection = first @ second.T
    return intersection / (first.sum(1)[:, None] + second.sum(1)[None] - intersection).clamp(min=1)


@torch.no_grad()
def box_results(model: Sam3VideoModel, plans: list[Plan], *, jitter: float = 0.05) -> dict[str, float]:
    """Mean IoU of the masks of jittered boxes, and what the model itself thinks of it."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(HELD_OUT_SEED)
    found = []
    for plan in plans:
        batch = realise(plan, IMAGE_SIZE, device)
        found.append(_prompted(model, batch, boxes=jitter_boxes(batch.scenes.boxes_xyxy, jitter, generator)))
    overlap, prediction = (torch.cat(values) for values in zip(*found, strict=True))
    return {
        "box_iou": float(overlap.mean()),
        "box_predicted_iou": float(prediction.mean()),
        "box_iou_error": float((overlap - prediction).abs().mean()),
    }


@torch.no_grad()
def point_results(model: Sam3VideoModel, plans: list[Plan]) -> dict[str, float]:
    """Mean IoU of the best-looking of the three masks of a point inside each object."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(HELD_OUT_SEED)
    overlaps = []
    for plan in plans:
        batch = realise(plan, IMAGE_SIZE, device)
        overlaps.append(_prompted(model, batch, points=points_inside(batch.scenes, generator))[0])
    return {"point_iou": float(torch.cat(overlaps).mean())}


def _prompted(
    model: Sam3VideoModel, batch: Batch, *, boxes: torch.Tensor | None = None, points: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU and predicted IoU, (M,) each, of the best-looking masks of the objects that can be seen."""
    images = normalise(batch.scenes.images, sam3.PIXEL_MEAN, sam3.PIXEL_STD)
    with _autocast(images.device):
        logits, predicted = run_box_decoder(model, images, boxes, points, multimask=points is not None)
    rows, slots = (batch.scenes.visible >= MIN_VISIBLE).nonzero(as_tuple=True)
    prediction, best = predicted[rows, slots].float().max(1)
    truth = object_masks(batch.scenes, rows, slots, IMAGE_SIZE)
    chosen = logits[rows, slots, best]
    overlap = [_mask_iou(one[None], mask[None])[0] for one, mask in zip(chosen, truth, strict=True)]
    return torch.cat(overlap), prediction


@torch.no_grad()
def grounding_results(
    model: Florence2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, plans: list[Plan]
) -> list[PairResult]:
    """Florence-2's answers to held-out prompts, by box IoU; scores are the loc tokens' likelihood."""
    device = next(model.parameters()).device
    results = []
    for plan in plans:
        batch = realise(plan, FLORENCE2_IMAGE_SIZE, device)
        answers = generate(model, tokenizer, batch)
        truth = cxcywh_to_xyxy(batch.boxes_cxcywh)
        for pair, (boxes, scores) in enumerate(answers):
            order = scores.argsort(descending=True)
            iou, ignored_iou = (
                iou_and_giou(boxes[order][:, None], truth[pair][which[pair]][None].cpu())[0]
                for which in (batch.targets, batch.ignored)
            )
            results.append(PairResult.of(scores[order], iou, ignored_iou))
    return results


def generate(
    model: Florence2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, batch: Batch
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Boxes (D, 4) in 0..1 and their scores (D,) for every pair, decoded greedily, on the CPU."""
    images = normalise(batch.scenes.images, florence2.PIXEL_MEAN, florence2.PIXEL_STD)
    with _autocast(images.device):
        ids, mask = florence2.task_tokens(tokenizer, batch.texts, images.device)
        encoded, mask, _ = florence2.encode(model, images, ids, mask)
        language: Any = model
        output = language.generate(
            encoder_outputs=encoded,
            attention_mask=mask,
            max_new_tokens=MAX_ANSWER,
            do_sample=False,
            num_beams=1,
            output_logits=True,
            return_dict_in_generate=True,
        )
    tokens = output.sequences[:, 1:].cpu()
    steps = [step.float().log_softmax(-1).cpu() for step in output.logits]
    chosen = torch.stack([step.gather(1, tokens[:, i, None])[:, 0] for i, step in enumerate(steps)], dim=1)
    first = first_location(tokenizer)
    return [_read_answer(*row, first) for row in zip(tokens, chosen, strict=True)]


def _read_answer(tokens: torch.Tensor, logs: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One phrase is asked for, so its location tokens in a row are its boxes, four and four."""
    is_location = tokens >= first
    count = int(is_location.sum()) // 4
    boxes = florence2.boxes_from_bins(tokens[is_location][: 4 * count] - first).reshape(-1, 4)
    scores = logs[is_location][: 4 * count].reshape(-1, 4).mean(1).exp()
    proper = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return boxes[proper], scores[proper]


def quick_text_scores(model: Sam3VideoModel, tokenizer: PreTrainedTokenizerFast, scenes: int) -> dict[str, float]:
    """The detector's scores at the pipeline's threshold, and the best threshold there is."""
    results = text_results(model, tokenizer, held_out_plans(scenes))
    scores = detection_scores(results, 0.5)
    best = max(THRESHOLDS, key=lambda threshold: detection_scores(results, threshold)["f1"])
    return scores | {"best_threshold": best, "best_f1": detection_scores(results, best)["f1"]}


def quick_grounding_scores(
    model: Florence2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, scenes: int
) -> dict[str, float]:
    """Florence-2's scores without a threshold, and the mean confidence of boxes that found an object."""
    results = grounding_results(model, tokenizer, held_out_plans(scenes))
    good = [score for r in results if r.iou.shape[1] for score in r.scores[r.iou.max(1) >= MATCH_IOU].tolist()]
    return detection_scores(results, 0.0) | {"good_box_score": float(np.mean(good)) if good else 0.0}
