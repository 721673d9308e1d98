"""How well the tracker follows objects of held-out clips from a box or a mask on the first frame.

J is the IoU of a frame's mask with what is seen of the object, 1 where both are empty (Perazzi et al. 2016).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import Sam3VideoModel

from autodistill_sam3.training.batches import normalise
from autodistill_sam3.training.clips import plan_clips
from autodistill_sam3.training.configs import IMAGE_SIZE
from autodistill_sam3.training.detector import PIXEL_MEAN, PIXEL_STD
from autodistill_sam3.training.drawing import SceneBatch, draw
from autodistill_sam3.training.memory import Levels, Prompt, encode_frames, track
from autodistill_sam3.training.tracker import LEAST_AREA, object_truth, to_input_size

HELD_OUT_SEED = 20_261_122
LENGTH = 60
OBJECTS = (3, 6)
OCCLUSION = 10
# An object counts as hidden after so many frames out of sight; then it is judged on so many of those it is seen in.
LEAST_HIDDEN, AFTERWARDS = 8, 15


@dataclass(frozen=True, eq=False)
class Followed:
    """R objects of a clip of T frames.

    Attributes:
        overlap: (T, R) J.
        area: (T, R) visible pixels at the input's size.
        scores: (T, R) logits of being in the frame.
    """

    overlap: torch.Tensor
    area: torch.Tensor
    scores: torch.Tensor


def held_out_clips(count: int, device: torch.device, *, length: int = LENGTH) -> Iterator[SceneBatch]:
    """Clips that training never draws, at the model's input size; in each, an object is hidden for 10 frames."""
    for index in range(count):
        rng = np.random.default_rng([HELD_OUT_SEED, index])
        plan = plan_clips(
            rng,
            1,
            np.arange(length),
            min_objects=OBJECTS[0],
            max_objects=OBJECTS[1],
            hiding=1.0,
            hidden=(OCCLUSION, OCCLUSION),
        )
        seed = HELD_OUT_SEED + index
        yield draw(plan.scenes, IMAGE_SIZE, IMAGE_SIZE, seed=seed, device=device, length=length, camera=plan.camera)


def exact_prompt(kind: str, scenes: SceneBatch, slots: torch.Tensor) -> Prompt:
    """The true box or mask of R objects in the first of these frames."""
    first = torch.zeros_like(slots)
    if kind == "mask":
        return Prompt(masks=object_truth(scenes, first, slots)[:, None])
    points = scenes.boxes_xyxy[0, slots].reshape(-1, 1, 2, 2) * IMAGE_SIZE
    return Prompt(points=points, labels=torch.tensor([2, 3], device=points.device).expand(len(points), 1, 2))


@torch.no_grad()
def follow(model: Sam3VideoModel, clips: Sequence[SceneBatch], kind: str) -> Followed:
    """Track all objects seen in the clips' first frames from their exact box or mask there.

    Args:
        model: In evaluation mode.
        clips: Each T frames at the input's size.
        kind: "box" or "mask".
    """
    which, slots = torch.stack([scenes.visible_area[0] >= LEAST_AREA for scenes in clips]).nonzero(as_tuple=True)
    prompts = [exact_prompt(kind, scenes, slots[which == index]) for index, scenes in enumerate(clips)]
    device = slots.device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        outputs = track(model.tracker_model, _levels(model, clips, which), _join(prompts))
    overlap = []
    for index, output in enumerate(outputs):
        top = torch.stack([scenes.top[index] for scenes in clips])
        truth = top[which] == slots[:, None, None]
        found = to_input_size(output.mask[:, None])[:, 0] > 0
        union = (found | truth).flatten(1).sum(1)
        overlap.append(torch.where(union > 0, (found & truth).flatten(1).sum(1) / union.clamp(min=1), 1.0))
    area = torch.stack([scenes.visible_area for scenes in clips])[which, :, slots].T
    scores = torch.stack([output.score for output in outputs])
    return Followed(torch.stack(overlap).float().cpu(), area.cpu(), scores.float().cpu())


def _levels(model: Sam3VideoModel, clips: Sequence[SceneBatch], which: torch.Tensor) -> Iterator[Levels]:
    for index in range(len(clips[0].images)):
        images = torch.stack([scenes.images[index] for scenes in clips])
        yield encode_frames(model, normalise(images, PIXEL_MEAN, PIXEL_STD)).select(which)


def _join(prompts: Sequence[Prompt]) -> Prompt:
    if prompts[0].masks is not None:
        return Prompt(masks=torch.cat([prompt.masks for prompt in prompts if prompt.masks is not None]))
    points = torch.cat([prompt.points for prompt in prompts if prompt.points is not None])
    return Prompt(points=points, labels=torch.cat([prompt.labels for prompt in prompts if prompt.labels is not None]))


def quick_track_scores(model: Sam3VideoModel, clips: int, *, length: int = LENGTH) -> dict[str, float]:
    """J from a box and from a mask, how much of it an occlusion costs, and how often presence is right."""
    device = next(model.parameters()).device
    drawn = list(held_out_clips(clips, device, length=length))
    results = {kind: follow(model, drawn, kind) for kind in ("box", "mask")}
    scores = {f"j_{kind}": float(found.overlap[1:].mean()) for kind, found in results.items()}
    scores |= occlusion_scores(results["mask"])
    area = results["mask"].area
    right = (results["mask"].scores > 0) == (area > 0)
    scores["presence"] = float(right[(area >= LEAST_AREA) | (area == 0)].float().mean())
    return scores


def occlusion_scores(one: Followed) -> dict[str, float]:
    """Mean J where an object is seen, before it is hidden for long and after it has come back."""
    before, after = [], []
    for overlap, area in zip(one.overlap.T, one.area.T, strict=True):
        seen = (area >= LEAST_AREA).nonzero()[:, 0]
        gaps = (seen.diff() > LEAST_HIDDEN).nonzero()[:, 0]
        if len(gaps):
            first = int(gaps[0]) + 1
            before.append(overlap[seen[:first]].mean())
            after.append(overlap[seen[first : first + AFTERWARDS]].mean())
    if not before:
        return {}
    return {"j_before_hidden": float(torch.stack(before).mean()), "j_after_hidden": float(torch.stack(after).mean())}
