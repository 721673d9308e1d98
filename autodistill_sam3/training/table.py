"""The table in models/shapes/README.md, measured through the package's public API on held-out scenes.

`asking`, `pictures` and this module are the only ones of `training` that need the rest of the package.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from autodistill_sam3.base_models import GroundedSAM3
from autodistill_sam3.errors import SettingError
from autodistill_sam3.evaluation import ClassScore
from autodistill_sam3.ontology import Prompting, PromptPairs
from autodistill_sam3.thresholds import Thresholds
from autodistill_sam3.training.asking import Answer, BoxAnswer, ask, ask_florence2, matches_of, prompt_with_boxes
from autodistill_sam3.training.drawing import draw_scene
from autodistill_sam3.training.held_out import HeldOutScene, held_out_scenes
from autodistill_sam3.training.matching import Match, alarm_rate, calibrate, share_found_only_by
from autodistill_sam3.weights import FLORENCE2, SAM3, find_checkpoint

CURVE = tuple(round(0.1 * step, 1) for step in range(1, 10))
PROMPTINGS: tuple[Prompting, ...] = ("text", "boxes", "both")
UNSEEN_SHARE = 5

_CURVE_ROWS = ("f1", "precision", "recall")
_TIMED_PROMPTS = PromptPairs((("red circle", "ball"), ("star", "star"), ("blue shape", "blue")))
_TIMED_SIZE = 512
_TIMED_IMAGES = 12
_TIMED_THREADS = 2
_TIMED_FIRST_SEED = 530_000_000


@dataclass(frozen=True)
class Numbers:
    """The table.

    Attributes:
        scenes: How many held-out scenes, four prompts each.
        unseen_scenes: How many with never-seen pairs.
        text: Text at the default confidence, masks at IoU 0.5.
        text_present: The same, of the prompts alone that ask for something drawn; to compare `unseen` with.
        text_curve: `text` by confidence.
        absent_answered: Share of absent prompts with any detection by text.
        unseen: Text on the never-seen pairs that are present.
        unseen_all: Text on all prompts of those scenes.
        box_iou: Mean mask IoU of jittered box prompts.
        box_iou_error: Mean |predicted IoU - IoU| of them.
        florence2: Florence-2's boxes at box IoU 0.5, without a threshold.
        florence2_absent_answered: Share of absent prompts that Florence-2 gives any box for.
        boxes: `prompting="boxes"`.
        both: `prompting="both"`.
        gained: Share of all objects asked for that "both" found and text alone did not.
        only_boxes: Share of all objects asked for that "both" found by a box without any text.
        only_text: Share of all objects asked for that "both" found by text without any box.
        calibration_error: Expected calibration error of the detections of "both".
        megabytes: Size of the weights by model, in 10^6 bytes.
        milliseconds: Median per 512 x 512 image and 3 prompts on two CPU threads, by prompting.
    """

    scenes: int
    unseen_scenes: int
    text: ClassScore
    text_present: ClassScore
    text_curve: dict[float, ClassScore]
    absent_answered: float
    unseen: ClassScore
    unseen_all: ClassScore
    box_iou: float
    box_iou_error: float
    florence2: ClassScore
    florence2_absent_answered: float
    boxes: ClassScore
    both: ClassScore
    gained: float
    only_boxes: float
    only_text: float
    calibration_error: float
    megabytes: dict[str, float]
    milliseconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Measurement:
    """The table and what it was computed from.

    Attributes:
        numbers: The table.
        answers: By "text" (from the curve's lowest confidence on), "boxes", "both", "florence2" and "unseen" (text, on
            scenes of never-seen pairs): one answer per scene.
        box_answers: One per scene.
    """

    numbers: Numbers
    answers: dict[str, list[Answer]]
    box_answers: list[BoxAnswer]


def measure(
    folder: str | Path,
    scenes: int = 500,
    device: str | None = "cpu",
    *,
    hiding: float = 0.0,
    progress: bool = True,
) -> Measurement:
    """Measure a pair of checkpoints on held-out scenes.

    Args:
        folder: A models root that holds `sam3/` and `florence2/`, or "shapes".
        scenes: Held-out scenes; a fifth as many are drawn of never-seen pairs.
        device: Of the models; times are taken on the CPU all the same.
        hiding: As in `plan_scenes`.
        progress: Show progress bars.

    Raises:
        CheckpointNotFoundError, CheckpointError, DeviceError
        SettingError: `scenes` is not positive, or `hiding` not a share.
    """
    if scenes < 1:
        raise SettingError(f"Expected scenes to be at least 1, received {scenes}")
    if not 0 <= hiding <= 1:
        raise SettingError(f"Expected hiding between 0 and 1, received {hiding}")
    unseen = max(scenes // UNSEEN_SHARE, 1)
    # The prompts of a scene may ask for the same objects, such as "red circle" and "circle", and both are right.
    load = partial(GroundedSAM3, _TIMED_PROMPTS, checkpoint=folder, overlapping_classes="keep", device=device)
    # Matches at a threshold are a prefix of those at a lower one, so one pass serves the whole curve.
    text, boxes, both = load(prompting="text", confidence=CURVE[0]), load(prompting="boxes"), load(prompting="both")
    answers: dict[str, list[Answer]] = {name: [] for name in (*PROMPTINGS, "florence2", "unseen")}
    box_answers = []
    for scene in _with_bar(held_out_scenes(scenes, hiding=hiding), scenes, "Held-out scenes", progress):
        for name, model in zip(PROMPTINGS, (text, boxes, both), strict=True):
            answers[name].append(ask(model, scene))
        answers["florence2"].append(ask_florence2(boxes, scene))
        box_answers.append(prompt_with_boxes(text, scene))
    never_seen = held_out_scenes(unseen, unseen_pairs=True, hiding=hiding)
    for scene in _with_bar(never_seen, unseen, "Never-seen pairs", progress):
        answers["unseen"].append(ask(text, scene))
    numbers = summarise(answers, box_answers, weights_megabytes(folder), median_milliseconds(folder))
    return Measurement(numbers, answers, box_answers)


def _with_bar(scenes: Iterator[HeldOutScene], total: int, description: str, progress: bool) -> Iterable[HeldOutScene]:
    return tqdm(scenes, total=total, desc=description, unit="scene", disable=not progress)


def score(name: str, matches: Iterable[Match]) -> ClassScore:
    """Objects, detections that count, and how many of the two belong together."""
    listed = list(matches)
    overlaps = [value for match in listed for value in match.iou[match.right].tolist()]
    return ClassScore(
        class_name=name,
        objects=sum(match.objects for match in listed),
        detections=sum(match.counted for match in listed),
        matched=len(overlaps),
        mean_iou=float(np.mean(overlaps)) if overlaps else float("nan"),
    )


def box_scores(answers: Iterable[BoxAnswer]) -> tuple[float, float]:
    """Mean IoU of box prompts, and mean |predicted IoU - IoU| of those that gave a mask."""
    listed = list(answers)
    iou = np.concatenate([answer.iou for answer in listed])
    predicted = np.concatenate([answer.predicted_iou for answer in listed])
    return float(iou.mean()), float(np.nanmean(np.abs(predicted - iou)))


def share_found_by(answers: Iterable[Answer], source: str) -> float:
    """Share of all objects asked for that detections of one `source` ("text", "boxes" or "both") found."""
    objects = found = 0
    for answer in answers:
        of_source = np.asarray(answer.detections.data["source"]) == source
        objects += sum(match.objects for match in answer.matches)
        found += sum(int(of_source[match.detection[match.right]].sum()) for match in answer.matches)
    return found / objects if objects else math.nan


def summarise(
    answers: dict[str, list[Answer]],
    box_answers: list[BoxAnswer],
    megabytes: dict[str, float],
    milliseconds: dict[str, float],
) -> Numbers:
    """Answers -> the table."""
    text = matches_of(answers["text"], Thresholds.confidence)
    unseen = matches_of(answers["unseen"], Thresholds.confidence)
    boxes, both, florence2 = (matches_of(answers[name]) for name in ("boxes", "both", "florence2"))
    box_iou, box_iou_error = box_scores(box_answers)
    return Numbers(
        scenes=len(answers["text"]),
        unseen_scenes=len(answers["unseen"]),
        text=score("text", text),
        text_present=score("text, present prompts", [match for match in text if match.objects]),
        text_curve={at: score("text", matches_of(answers["text"], at)) for at in CURVE},
        absent_answered=alarm_rate(text),
        unseen=score("never-seen pairs", [match for match in unseen if match.objects]),
        unseen_all=score("never-seen pairs and absent prompts", unseen),
        box_iou=box_iou,
        box_iou_error=box_iou_error,
        florence2=score("Florence-2", florence2),
        florence2_absent_answered=alarm_rate(florence2),
        boxes=score("boxes", boxes),
        both=score("both", both),
        gained=share_found_only_by(both, text),
        only_boxes=share_found_by(answers["both"], "boxes"),
        only_text=share_found_by(answers["both"], "text"),
        calibration_error=calibrate(both).error,
        megabytes=megabytes,
        milliseconds=milliseconds,
    )


def weights_megabytes(folder: str | Path) -> dict[str, float]:
    """Size of each checkpoint's weights in 10^6 bytes."""
    sizes = {}
    for kind in (SAM3, FLORENCE2):
        files = find_checkpoint(kind, folder).glob("*.safetensors")
        sizes[kind.folder] = sum(path.stat().st_size for path in files) / 1e6
    return sizes


def median_milliseconds(folder: str | Path) -> dict[str, float]:
    """Median time per 512 x 512 image with 3 prompts on two CPU threads, by prompting."""
    images = [
        draw_scene(_TIMED_FIRST_SEED + index, _TIMED_SIZE, _TIMED_SIZE)[0][..., ::-1] for index in range(_TIMED_IMAGES)
    ]
    times: dict[str, float] = {}
    with _threads(_TIMED_THREADS):
        for prompting in PROMPTINGS:
            model = GroundedSAM3(_TIMED_PROMPTS, checkpoint=folder, prompting=prompting, device="cpu")
            model.predict_batch(images[:1])
            times[prompting] = 1e3 * float(np.median([_seconds(partial(model.predict, image)) for image in images]))
    return times


@contextmanager
def _threads(count: int) -> Iterator[None]:
    earlier = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(earlier)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def to_markdown(numbers: Numbers) -> str:
    """The table as models/shapes/README.md has it, with the curve of confidences below.

    Args:
        numbers: What was measured.
    """
    rows = [("", "value"), ("---", "---"), *_rows(numbers)]
    lines = [f"| {name} | {value} |" for name, value in rows]
    items = numbers.text_curve.values()
    curve = [
        ("confidence", *(f"{at:.1f}" for at in numbers.text_curve)),
        ("---",) * (len(numbers.text_curve) + 1),
        *((f"text, {name}", *(_number(getattr(item, name)) for item in items)) for name in _CURVE_ROWS),
    ]
    return "\n".join([*lines, "", *("| " + " | ".join(row) + " |" for row in curve)]) + "\n"


def _rows(numbers: Numbers) -> list[tuple[str, str]]:
    each = ", ".join(f"{name} {value:.1f} MB" for name, value in numbers.megabytes.items())
    sizes = f"{sum(numbers.megabytes.values()):.1f} MB ({each})"
    times = ", ".join(f"{name} {value:.0f} ms" for name, value in numbers.milliseconds.items())
    gain = f"{numbers.both.f1 - numbers.text.f1:+.3f} against text alone"
    return [
        (f"text, F1 at mask IoU 0.5, confidence {Thresholds.confidence} for all", _scored(numbers.text)),
        ("absent prompts with any detection (text)", f"{numbers.absent_answered:.1%}"),
        ("present prompts alone, F1 (text), to compare with the next row", _scored(numbers.text_present)),
        (f"never-seen pairs, {numbers.unseen_scenes} scenes, present prompts, F1 (text)", _scored(numbers.unseen)),
        ("never-seen pairs, with the absent prompts, F1 (text)", _scored(numbers.unseen_all)),
        ("box prompts jittered 5 %, mean IoU", f"{numbers.box_iou:.3f}"),
        ("box prompts, mean abs(predicted IoU - IoU)", f"{numbers.box_iou_error:.3f}"),
        ("Florence-2, recall at box IoU 0.5", _number(numbers.florence2.recall)),
        ("Florence-2, precision", _number(numbers.florence2.precision)),
        ("Florence-2, absent phrases answered", f"{numbers.florence2_absent_answered:.1%}"),
        ('`prompting="boxes"`, F1', _scored(numbers.boxes)),
        ('`prompting="both"`, F1', f"{_scored(numbers.both)}, {gain}"),
        ("objects that `both` finds and text alone does not", f"{numbers.gained:.1%}"),
        ("objects that only boxes found / only text, of `both`", f"{numbers.only_boxes:.1%} / {numbers.only_text:.1%}"),
        ('expected calibration error, `prompting="both"`', _number(numbers.calibration_error)),
        ("weights", sizes),
        (f"median per {_TIMED_SIZE} x {_TIMED_SIZE} image, 3 prompts, {_TIMED_THREADS} threads", times),
    ]


def _scored(item: ClassScore) -> str:
    precision, recall, mean_iou = _number(item.precision), _number(item.recall), _number(item.mean_iou)
    return f"{_number(item.f1)} (precision {precision}, recall {recall}, mean matched IoU {mean_iou})"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
