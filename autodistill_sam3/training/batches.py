"""One step's worth of scenes and prompts: planned in numpy by a loader process, drawn on the training device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from autodistill_sam3.training.boxes import xyxy_to_cxcywh
from autodistill_sam3.training.clips import ClipPlan, plan_clips, training_moments
from autodistill_sam3.training.configs import Recipe
from autodistill_sam3.training.drawing import SceneBatch, draw
from autodistill_sam3.training.prompts import PromptPlan, plan_prompts
from autodistill_sam3.training.scenes import MIN_VISIBLE, ScenePlan, plan_scenes, training_rng

# Share of a run's first steps that are guided; it falls to none at half time. What is found at first is not worth
# remembering.
GUIDED = 0.8
# Share of training clips in which an object is hidden by another one.
HIDING = 0.7
# Between the seed of a step's scenes and that of its clips.
CLIPS_SEED = 500_009


@dataclass(frozen=True, eq=False)
class Plan:
    """A step before drawing.

    Attributes:
        step: Its number.
        seed: Of the run.
        scenes: B scenes.
        prompts: P prompts for each.
        clips: Where the stage trains on clips.
        numbers: Of the clips' frames.
        guided: Whether a tracker remembers the truth of a frame, and not what it found there.
    """

    step: int
    seed: int
    scenes: ScenePlan
    prompts: PromptPlan
    clips: ClipPlan | None = None
    numbers: Sequence[int] = ()
    guided: bool = False


class Plans(Dataset[Plan]):
    """The plans of a run by step; each depends on seed and step alone, so that a resumed run sees the same."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe = recipe
        self.seed = seed

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> Plan:
        rng = training_rng(self.seed, step)
        recipe = self.recipe
        scenes = plan_scenes(rng, recipe.scenes, hiding=recipe.hiding if step % 2 else 0.0)
        prompts = plan_prompts(rng, scenes, recipe.prompts, present=recipe.present)
        if not recipe.clips:
            return Plan(step, self.seed, scenes, prompts)
        times = 2 if step >= (1 - recipe.long_share) * recipe.steps else 1
        moments, numbers = training_moments(rng, times * recipe.frames)
        clips = plan_clips(rng, recipe.clips // times, moments, hiding=HIDING)
        guided = rng.random() < GUIDED * (1 - 2 * step / recipe.steps)
        return Plan(step, self.seed, scenes, prompts, clips, numbers, guided)


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """Drawn clips.

    Attributes:
        scenes: Their B * T frames, clip by clip.
        numbers: T numbers of the frames, with a gap where time has passed.
        guided: As in `Plan`.
    """

    scenes: SceneBatch
    numbers: Sequence[int]
    guided: bool

    @property
    def length(self) -> int:
        """T."""
        return len(self.numbers)


@dataclass(frozen=True, eq=False)
class Batch:
    """A step as the model sees it; N = B * P pairs, scene by scene.

    Attributes:
        scenes: B drawn scenes.
        texts: N prompts.
        targets: (N, K) ``bool``, the objects that each prompt asks for and that are visible enough to count.
        ignored: (N, K) ``bool``, those that it asks for and that show too little to be one. Scores leave out what
            lies on them; training leaves out the presence of a prompt that asks for nothing else.
        boxes_cxcywh: (N, K, 4) ``float32`` in 0..1, of all K objects.
        colour: (B, K) index into `COLOURS`.
        shape: (B, K) index into `SHAPES`.
        present_rows: (R,) the pairs with a target.
        per_scene: P.
        clips: Where the stage trains on clips.
    """

    scenes: SceneBatch
    texts: list[str]
    targets: torch.Tensor
    ignored: torch.Tensor
    boxes_cxcywh: torch.Tensor
    colour: torch.Tensor
    shape: torch.Tensor
    present_rows: torch.Tensor
    per_scene: int
    clips: ClipBatch | None = None

    @property
    def present(self) -> torch.Tensor:
        """(N,) ``bool``."""
        return self.targets.any(1)


def realise(
    plan: Plan, size: int, device: torch.device, *, min_visible: float = MIN_VISIBLE, compiled: bool = False
) -> Batch:
    """Draw a plan into squares of `size` pixels and find out what is visible.

    Args:
        plan: What to draw.
        size: Pixels.
        device: Where to draw.
        min_visible: Share of an object that must be visible for it to count.
        compiled: As in `draw`.
    """
    # Seeds of drawing must differ from step to step and from run to run.
    seed = plan.seed * 1_000_003 + plan.step
    scenes = draw(plan.scenes, size, size, seed=seed, device=device, compiled=compiled)
    matches = torch.from_numpy(plan.prompts.matches).to(device)
    per_scene = matches.shape[1]
    counts = (scenes.visible >= min_visible)[:, None]
    targets = (matches & counts).flatten(0, 1)
    return Batch(
        scenes,
        plan.prompts.texts,
        targets,
        (matches & ~counts & (scenes.visible > 0)[:, None]).flatten(0, 1),
        xyxy_to_cxcywh(scenes.boxes_xyxy).repeat_interleave(per_scene, dim=0),
        torch.from_numpy(plan.scenes.colour).to(device),
        torch.from_numpy(plan.scenes.shape).to(device),
        targets.any(1).nonzero()[:, 0],
        per_scene,
        _draw_clips(plan, size, device, seed, compiled=compiled),
    )


def _draw_clips(plan: Plan, size: int, device: torch.device, seed: int, *, compiled: bool) -> ClipBatch | None:
    if plan.clips is None:
        return None
    scenes = draw(
        plan.clips.scenes,
        size,
        size,
        seed=seed + CLIPS_SEED,
        device=device,
        compiled=compiled,
        length=plan.clips.length,
        camera=plan.clips.camera,
    )
    return ClipBatch(scenes, plan.numbers, plan.guided)


def object_masks(scenes: SceneBatch, images: torch.Tensor, slots: torch.Tensor, size: int) -> torch.Tensor:
    """Visible masks of M objects as (M, size, size) ``float32`` of zeros and ones; a pixel is the majority's."""
    seen = (scenes.top[images] == slots[:, None, None]).float()
    if seen.shape[-1] == size:
        return seen
    return (torch.nn.functional.adaptive_avg_pool2d(seen[:, None], size)[:, 0] >= 0.5).float()


def normalise(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """(B, 3, H, W) ``uint8`` -> ``float32`` as the models take it."""
    shift, scale = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, std))
    return (images.float() / 255 - shift) / scale


def tokenize(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], device: torch.device, length: int, **options: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, (N, `length`) each: one shape for all steps, so that nothing compiles twice."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt", **options)
    return encoded["input_ids"].to(device), encoded["attention_mask"].to(device)
