"""Full size, video: Meta's predictor, transformers' Sam3VideoModel and this package's engine on one random `sam3.pt`.

    PYTHONPATH=tests python -m official.video_full_size --bpe-path bpe_simple_vocab_16e6.txt.gz --folder /tmp/video \\
        --engine autodistill_sam3.video.engine:TransformersVideoEngine --output docs/video_correctness.md

writes the checkpoint into the folder and measures what is not yet in `rows.jsonl` there: each row is printed and kept
as soon as it is measured, and ends after its time. It needs a GPU with 24 GB.

So that all ways track the same number of objects, the detections of the first frame that become objects are chosen by
rank, none is added later and none removed; see `video_ways.Limits`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autodistill_sam3.benchmark.random_sam3 import fill_with_blobs, write_random_sam3
from autodistill_sam3.convert import convert
from autodistill_sam3.devices import Precision
from autodistill_sam3.video.stitching import match_ids
from autodistill_sam3.video.tracks import FrameTracks

from . import video_full_size_report as report
from .full_size import free, use_tf32
from .full_size_report import deviation
from .narrow import Array
from .narrow_video import drawn_clip
from .video_ways import Limits, OfficialWay, Recorded, TransformersWay, Way, load_engine, recorded

PROMPTS = ("red circle", "blue square", "green", "person", "a dog")
# Text prompts and, in all of them together, objects.
SPEEDS = ((1, 5), (3, 5), (5, 5), (1, 1), (1, 10))
COMPARED_OBJECTS = 3, 8
NO_LIMIT = 10_000
COMPARED_FRAMES = 9
# Without it, random weights say of nearly every frame that an object is not there.
IS_THERE = 10.0
WARM_UP_FRAMES = 3

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is measured, and how large.

    Attributes:
        frames: Of the clip that is timed.
        hw: Its height and width.
        size: Of the model's input; the compared clip is of this size, so that nobody resizes it.
        row_seconds: After which a row ends with what it has.
    """

    frames: int = 48
    hw: tuple[int, int] = (720, 1280)
    size: int = 1008
    row_seconds: float = 60.0


class TimeIsUp(Exception):
    """A row has had its time."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Rows:
    """What is measured, one line of JSON for each row."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in lines]

    def has(self, key: str) -> bool:
        return any(row["key"] == key for row in self.rows)

    def measure(self, key: str, measured: Callable[[], Row]) -> None:
        """Add a row unless it is there; one that fails is printed and left for the next time."""
        if self.has(key):
            return
        try:
            row = {"key": key, **measured()}
        except TimeIsUp:
            print(f"{key}: no time", flush=True)
            return
        except Exception as error:
            # One way that does not run must not keep the others from being measured.
            print(f"{key}: {type(error).__name__}: {error}", flush=True)
            return
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def write_checkpoint(path: Path, bpe_path: Path) -> None:
    """A random `sam3.pt` whose masks look like masks and whose tracker sees its objects."""

    def fill(model: Any) -> None:
        fill_with_blobs(model)
        with torch.no_grad():
            model.tracker.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.add_(IS_THERE)

    if not path.exists():
        write_random_sam3(path, bpe_path, fill)


# Which detections become objects.


def first_scores(way: OfficialWay, images: Sequence[Array], prompts: Sequence[str]) -> dict[str, Array]:
    """Of each prompt, the scores of its queries in the first frame, the best first."""
    found = {}
    for prompt in prompts:
        Limits(1.0, 1).apply(way.model)
        with recorded(way.model) as seen, way.session(images[:1]) as ask:
            ask("add_prompt", frame_index=0, text=prompt)
        found[prompt] = np.sort(seen.scores[0])[::-1]
    return found


def threshold_for(scores: Sequence[Array], fewest: int, most: int) -> float:
    """Lets between so many and so many of each prompt's detections through, in the widest gap between their scores."""
    limits = []
    for ranked in scores:
        gaps = ranked[fewest - 1 : most] - ranked[fewest : most + 1]
        rank = fewest - 1 + int(np.argmax(gaps))
        limits.append(float(ranked[rank] + ranked[rank + 1]) / 2)
    return min(limits)


# How far the answers are apart.


@dataclass(frozen=True, eq=False)
class Answers:
    """What one way says of the compared clip: every frame, and what could be recorded."""

    frames: list[FrameTracks]
    seen: Recorded


def answers_of(way: Way, images: Sequence[Array], limits: Limits) -> Answers:
    limits.apply(way.model)
    with recorded(way.model) as seen:
        frames = [way.tracks(answer) for answer in way.track(images, PROMPTS[:1])]
    return Answers(sorted(frames, key=lambda tracks: tracks.frame_index), seen)


def first_response(way: OfficialWay, images: Sequence[Array], limits: Limits) -> FrameTracks:
    """What Meta's `add_prompt` answers; its propagation says the first frame again, from the memory of it."""
    limits.apply(way.model)
    with way.session(images) as request:
        return way.tracks(request("add_prompt", frame_index=0, text=PROMPTS[0]))


def compared(answers: Answers, truth: Answers, first: FrameTracks) -> Row:
    """How far one way's answers are from the reference's; what could not be seen is left out."""
    row: Row = {"objects": len(answers.frames[0]), "expected": len(first)}
    if answers.seen.scores:
        row["scores"] = float(np.abs(answers.seen.scores[0] - truth.seen.scores[0]).max())
        row["detected"] = deviation(answers.seen.mask_logits, truth.seen.mask_logits)
    for name, frames in report.SPANS.items():
        shared = [index for index in frames if index in answers.seen.tracked and index in truth.seen.tracked]
        pairs = [(answers.seen.tracked[index][-1], truth.seen.tracked[index][-1]) for index in shared if index]
        same = [(a, b) for a, b in pairs if a.shape == b.shape and a.size]
        if same:
            row[f"tracked {name}"] = deviation([a for a, _ in same], [b for _, b in same])
    names = match_ids([first], [answers.frames[0]])
    row["matched"] = len(names)
    expected = {tracks.frame_index: tracks for tracks in truth.frames} | {0: first}
    for name, span in report.SPANS.items():
        found = [
            value for tracks in answers.frames if tracks.frame_index in span
            for value in masks_iou(tracks, expected[tracks.frame_index], names)
        ]  # fmt: skip
        if found:
            row[f"IoU {name}"], row[f"least IoU {name}"] = float(np.mean(found)), float(np.min(found))
    return row


def masks_iou(tracks: FrameTracks, expected: FrameTracks, names: dict[int, int]) -> list[float]:
    """Of each matched object that either shows in this frame, the IoU of its masks."""
    ours = {names.get(int(number)): index for index, number in enumerate(tracks.object_ids)}
    theirs = {int(number): index for index, number in enumerate(expected.object_ids)}
    found = []
    for number in set(names.values()):
        if number in ours and number in theirs:
            one, other = np.asarray(tracks.masks[ours[number]]), np.asarray(expected.masks[theirs[number]])
            found.append(float((one & other).sum() / (one | other).sum()))
        elif number in ours or number in theirs:
            found.append(0.0)
    return found


# How fast.


def speed(way: Way, images: Sequence[Array], classes: int, limits: Limits, seconds: float) -> Row:
    """Frames a second of the clip, with all classes; of a run that ends before, of what it did."""
    limits.apply(way.model)
    prompts = PROMPTS[:classes]
    passes = classes if way.once_per_class else 1
    with recorded(way.model) as seen:
        list(way.track(images[:WARM_UP_FRAMES], prompts))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    done, begin = 0, time.perf_counter()
    with contextlib.suppress(TimeIsUp), at_most(seconds):
        for _ in way.track(images, prompts):
            done += 1
    elapsed = time.perf_counter() - begin
    if not done:
        raise TimeIsUp
    return {
        "fps": done / passes / elapsed,
        "seconds": elapsed,
        "frames": done / passes,
        "objects": sum(len(masks) for masks in seen.tracked.get(WARM_UP_FRAMES - 1, ())),
        "GB": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0,
    }


# All of it.


@dataclass(frozen=True, eq=False)
class Candidate:
    """A way that is made when there is something to measure of it.

    Attributes:
        title: In keys and tables.
        make: Builds it.
        timed: Whether it is timed as well as compared.
    """

    title: str
    make: Callable[[], Way]
    timed: bool


def run(candidates: Sequence[Candidate], reference: Callable[[], OfficialWay], plan: Plan, rows: Rows) -> None:
    """Measure what is not there yet; each way is made once, and gone before the next."""
    small, large = drawn_clip(COMPARED_FRAMES, (plan.size, plan.size)), drawn_clip(plan.frames, plan.hw)
    waiting = [candidate for candidate in candidates if not all(rows.has(key) for key in keys(candidate))]
    if not waiting:
        return
    way = reference()
    way.exact_pixels = True
    scores = first_scores(way, large, PROMPTS)
    limits = Limits(threshold_for(list(first_scores(way, small, PROMPTS[:1]).values()), *COMPARED_OBJECTS), NO_LIMIT)
    first, truth = first_response(way, small, limits), answers_of(way, small, limits)
    print(f"reference: {len(first)} objects show in the first frame", flush=True)
    way.close()
    del way
    free()
    for candidate in waiting:
        measure(
            candidate, plan, rows, lambda one: compared(answers_of(one, small, limits), truth, first), large, scores
        )
        free()


def keys(candidate: Candidate) -> list[str]:
    speeds = SPEEDS if candidate.timed else ()
    return [f"compare|{candidate.title}", *(f"speed {c} {n}|{candidate.title}" for c, n in speeds)]


def measure(
    candidate: Candidate,
    plan: Plan,
    rows: Rows,
    compare: Callable[[Way], Row],
    clip: Sequence[Array],
    scores: dict[str, Array],
) -> None:
    way = candidate.make()
    # Meta's package sets it when it is imported; its own numbers are measured with it.
    use_tf32(way.once_per_class and candidate.timed)
    try:
        first, *others = keys(candidate)
        rows.measure(first, partial(limited, plan.row_seconds, partial(compare, way)))
        for key, (classes, objects) in zip(others, SPEEDS, strict=False):
            share = -(-objects // classes)
            # More than are wanted, so that there are enough whatever the implementation.
            threshold = threshold_for([scores[prompt] for prompt in PROMPTS[:classes]], 2 * share, 4 * share)
            limits = Limits(threshold, share if way.limits_per_class else objects)
            rows.measure(key, partial(speed, way, clip, classes, limits, plan.row_seconds))
    finally:
        use_tf32(False)
        way.close()


def limited(seconds: float, measured: Callable[[], Row]) -> Row:
    with at_most(seconds):
        return measured()


def candidates(
    checkpoint: Path,
    converted: Path,
    bpe_path: Path,
    device: str,
    engines: Sequence[str],
    adapt: Callable[[dict[str, Any]], None] = lambda config: None,
) -> list[Candidate]:
    """Meta's predictor, engines by `module:class`, and plain transformers; what is timed runs as it does by default."""

    def official(precision: Precision) -> Callable[[], Way]:
        return lambda: OfficialWay(checkpoint, bpe_path, device, precision)

    def engine(name: str, precision: Precision) -> Callable[[], Way]:
        return lambda: load_engine(name, checkpoint, bpe_path, device, precision)

    def plain(precision: Precision) -> Callable[[], Way]:
        return lambda: TransformersWay(converted, device, precision, adapt)

    made = [Candidate("Meta's predictor", official("auto"), True)]
    for name in engines:
        short = name.partition(":")[2]
        made += [
            Candidate(short, engine(name, "auto"), True),
            Candidate(f"{short}, fp32", engine(name, "fp32"), False),
        ]
    plain_title = "transformers' Sam3VideoModel"
    return [
        *made,
        Candidate(f"{plain_title}, fp32", plain("fp32"), False),
        Candidate(plain_title, plain("auto"), True),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bpe-path", type=Path, required=True, help="bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("--folder", type=Path, required=True, help="for the checkpoint (7 GB) and rows.jsonl")
    parser.add_argument("--engine", action="append", default=[], help="module:class, with a method load")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--frames", type=int, default=Plan.frames)
    parser.add_argument("--row-seconds", type=float, default=Plan.row_seconds)
    parser.add_argument("--output", type=Path, help="a Markdown file")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    checkpoint, converted = options.folder / "sam3.pt", options.folder / "converted"
    write_checkpoint(checkpoint, options.bpe_path)
    if not converted.exists():
        convert(checkpoint, "transformers", converted, bpe_path=options.bpe_path)
    print("checkpoint written and converted", flush=True)
    rows = Rows(options.folder / "rows.jsonl")
    run(
        candidates(checkpoint, converted, options.bpe_path, options.device, options.engine),
        lambda: OfficialWay(checkpoint, options.bpe_path, options.device, "fp32"),
        Plan(frames=options.frames, row_seconds=options.row_seconds),
        rows,
    )
    page = report.markdown(rows.rows, torch.cuda.get_device_name() if options.device != "cpu" else "CPU")
    print(page)
    if options.output is not None:
        options.output.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
