"""The training loop: AdamW, warm-up and cosine, bf16 autocast, resumable, with a CSV curve and a progress line."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.utils.data import DataLoader, Sampler

from autodistill_sam3.training.batches import Batch, Plan, Plans, realise
from autodistill_sam3.training.configs import Recipe

# Logged steps in a row without a finite loss that end a run.
NOT_FINITE_LIMIT = 3


class Stage(Protocol):
    """What the loop trains."""

    name: str
    image_size: int

    @property
    def model(self) -> nn.Module:
        """The whole model, of which `trained` is a part."""

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that this stage changes."""

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Weighted loss terms of a batch."""


@dataclass(frozen=True)
class Settings:
    """How a stage is run.

    Attributes:
        output: Folder for `state.pt` and `curve.csv`.
        device: Where to train.
        seed: Of scenes and prompts.
        workers: Processes that plan scenes ahead; 0 plans in this one.
        evaluate_every: Steps between held-out scores and saved states; 0 for only at the end.
        log_every: Steps between progress lines.
        compile: Fuse the drawing of scenes with `torch.compile`. (Fusing the networks gained 6 % of a step.)
    """

    output: Path
    device: str = "cpu"
    seed: int = 0
    workers: int = 0
    evaluate_every: int = 1000
    log_every: int = 50
    compile: bool = False


class _StepsFrom(Sampler[int]):
    def __init__(self, first: int, last: int) -> None:
        self.steps = range(first, last)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine down to 1 %.

    Example:
        >>> recipe = Recipe(steps=100, scenes=1, prompts=1, learning_rate=1.0, warm_up=10)
        >>> [round(learning_rate(recipe, step), 2) for step in (0, 9, 100)]
        [0.1, 1.0, 0.01]
    """
    if step < recipe.warm_up:
        return recipe.learning_rate * (step + 1) / recipe.warm_up
    progress = (step - recipe.warm_up) / max(recipe.steps - recipe.warm_up, 1)
    return recipe.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def fit(
    stage: Stage,
    recipe: Recipe,
    settings: Settings,
    *,
    evaluate: Callable[[], dict[str, float]],
    save: Callable[[], None],
) -> dict[str, float]:
    """Train a stage to the end of its recipe, going on from `output/state.pt` where there is one.

    Args:
        stage: What to train.
        recipe: How.
        settings: Where.
        evaluate: Gives held-out scores of the model as it is.
        save: Writes the model as it is.

    Returns:
        The last held-out scores.
    """
    settings.output.mkdir(parents=True, exist_ok=True)
    device = torch.device(settings.device)
    optimizer = _optimizer(stage, recipe, device)
    state = settings.output / "state.pt"
    first = _resume(stage, optimizer, state)
    scores: dict[str, float] = {}
    # bf16 needs no scale, but there a step whose gradient is not finite must not reach the weights.
    scaler = GradScaler(device.type, init_scale=1.0, enabled=device.type == "cuda")
    progress = _Progress(recipe, settings, stage.name)
    for step, batch in _batches(stage, recipe, settings, first):
        # What stages draw at random depends on seed and step alone, so that a resumed run draws the same.
        torch.manual_seed(settings.seed * 1_000_003 + step)
        terms = _step(stage, recipe, optimizer, scaler, step, batch)
        done = step + 1
        progress.note(done, terms)
        at_end = done == recipe.steps
        if at_end or (settings.evaluate_every and done % settings.evaluate_every == 0):
            scores = _evaluate(stage, evaluate)
            progress.scores(done, scores)
            _save_state(stage, optimizer, done, state)
            save()
    return scores


def _plans(recipe: Recipe, settings: Settings, first: int) -> DataLoader[Plan]:
    return DataLoader(
        Plans(recipe, settings.seed),
        batch_size=None,
        sampler=_StepsFrom(first, recipe.steps),
        num_workers=settings.workers,
        prefetch_factor=4 if settings.workers else None,
    )


def _batches(stage: Stage, recipe: Recipe, settings: Settings, first: int) -> Iterator[tuple[int, Batch]]:
    """Steps and their batches, each drawn while the device still works on the step before.

    A batch is kept until the next one is drawn, and its memory goes back to the drawing stream. The one after that may
    be written into it once the step that read it is done, for which the event is there.
    """
    device = torch.device(settings.device)
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]  # as torch
    before_last: torch.cuda.Event | None = None
    for plan in _plans(recipe, settings, first):
        if stream is not None and before_last is not None:
            stream.wait_event(before_last)
        with torch.cuda.stream(stream):
            batch = realise(plan, stage.image_size, device, min_visible=recipe.min_visible, compiled=settings.compile)
        if stream is not None:
            # Recorded here, it says that all steps before this one are done.
            before_last = torch.cuda.current_stream(device).record_event()
            torch.cuda.current_stream(device).wait_stream(stream)
        yield plan.step, batch


def _optimizer(stage: Stage, recipe: Recipe, device: torch.device) -> torch.optim.AdamW:
    stage.model.to(device).requires_grad_(False).train()
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in stage.trained():
        parameter.data = parameter.data.to(device)
        parameter.requires_grad_(True)
        # Decay would pull positions, norms and embeddings of rare words to zero.
        decays = parameter.ndim >= 2 and "embed" not in name
        (matrices if decays else others).append(parameter)
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=device.type == "cuda")


def _step(
    stage: Stage,
    recipe: Recipe,
    optimizer: torch.optim.AdamW,
    scaler: GradScaler,
    step: int,
    batch: Batch,
) -> dict[str, torch.Tensor]:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, step)
    device = batch.targets.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        terms = stage.losses(batch)
    total = torch.stack(list(terms.values())).sum()
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(total).backward()  # type: ignore[no-untyped-call]  # as torch has it
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    nn.utils.clip_grad_norm_(parameters, recipe.clip)
    scaler.step(optimizer)
    scaler.update(1.0 if scaler.is_enabled() else None)
    return {name: value.detach() for name, value in terms.items()} | {"core_loss": total.detach()}


def _evaluate(stage: Stage, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
    stage.model.eval()
    try:
        return evaluate()
    finally:
        stage.model.train()


def _save_state(stage: Stage, optimizer: torch.optim.AdamW, step: int, path: Path) -> None:
    """Weights in full, the optimiser's moments in bf16: a third smaller, and training does not notice."""
    moments: dict[str, Any] = optimizer.state_dict()
    # The inner dictionaries are the optimiser's own and must stay as they are.
    moments["state"] = {
        key: {name: value if name == "step" else value.to(torch.bfloat16) for name, value in values.items()}
        for key, values in moments["state"].items()
    }
    weights = {name: parameter.detach() for name, parameter in stage.trained()}
    part = path.with_suffix(".part")
    torch.save({"step": step, "weights": weights, "optimizer": moments}, part)
    part.replace(path)


def _resume(stage: Stage, optimizer: torch.optim.AdamW, path: Path) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for name, parameter in stage.trained():
            parameter.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


class _Progress:
    """One line on stderr and rows in `curve.csv`; reads losses from the device only when it writes."""

    def __init__(self, recipe: Recipe, settings: Settings, name: str) -> None:
        self._recipe, self._every, self._name = recipe, settings.log_every, name
        self._path = settings.output / "curve.csv"
        self._started, self._steps = time.monotonic(), 0
        self._not_finite = 0

    def note(self, step: int, terms: dict[str, torch.Tensor]) -> None:
        self._steps += 1
        if step % self._every and step != self._recipe.steps:
            return
        values = {name: float(value) for name, value in terms.items()}
        speed = self._steps / (time.monotonic() - self._started)
        self._write(step, values)
        loss = values["core_loss"]
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"Expected a finite loss, received {loss} at step {step}; try a lower learning rate."
            )
        sys.stderr.write(f"{self._name} {step}/{self._recipe.steps} loss {loss:.3f} {speed:.2f} steps/s\n")
        sys.stderr.flush()

    def scores(self, step: int, scores: dict[str, float]) -> None:
        self._write(step, scores)
        listed = " ".join(f"{name} {value:.3f}" for name, value in scores.items())
        sys.stderr.write(f"{self._name} {step}/{self._recipe.steps} {listed}\n")
        sys.stderr.flush()

    def _write(self, step: int, values: dict[str, float]) -> None:
        is_new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["step", "name", "value"])
            writer.writerows([step, name, f"{value:.6g}"] for name, value in values.items())
