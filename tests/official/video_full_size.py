"""Full size, video: Meta's predictor, transformers' Sam3VideoModel and this package's engine on one random `sam3.pt`.

    PYTHONPATH=tests python -m official.video_full_size --bpe-path bpe_simple_vocab_16e6.txt.gz --folder /tmp/video \\
        --output docs/video_correctness.md

writes the checkpoint into the folder and measures what is not yet in `rows.jsonl` there: each row is printed and kept
as soon as it is measured, and ends after its time. It needs a GPU with 24 GB.

So that all ways track the same number of objects, the detections of the first frame that become objects are chosen by
rank, none is added later and none removed; see `video_ways.Limits`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autodistill_sam3.benchmark.random_sam3 import fill_with_blobs, write_random_sam3
from autodistill_sam3.convert import convert
from autodistill_sam3.devices import Precision

from . import video_full_size_report as report
from .full_size import free, use_tf32
from .narrow import Array
from .narrow_video import drawn_clip
from .video_measures import (
    PROMPTS,
    Row,
    TimeIsUp,
    answers_of,
    at_most,
    compared,
    first_response,
    first_scores,
    speed,
    threshold_for,
)
from .video_ways import Limits, OfficialEngineWay, OfficialWay, OurWay, TransformersWay, Way

# Text prompts and, in all of them together, objects.
SPEEDS = ((1, 5), (3, 5), (5, 5), (1, 1), (1, 10))
COMPARED_OBJECTS = 3, 8
NO_LIMIT = 10_000
COMPARED_FRAMES = 9
# Without it, random weights say of nearly every frame that an object is not there.
IS_THERE = 10.0


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


class Rows:
    """What is measured, one line of JSON for each row."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        # The last line of a run that was killed may not have its end.
        whole = [line for line in lines if line.endswith("\n")]
        if whole != lines:
            path.write_text("".join(whole), encoding="utf-8")
        self.rows: list[Row] = [json.loads(line) for line in whole]

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
    try:
        way = candidate.make()
    except Exception as error:
        print(f"{candidate.title}: {type(error).__name__}: {error}", flush=True)
        return
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
    adapt: Callable[[dict[str, Any]], None] = lambda config: None,
) -> list[Candidate]:
    """Meta's predictor, this package, and plain transformers; what is timed runs as it does by default."""

    def official(precision: Precision) -> Callable[[], Way]:
        return lambda: OfficialWay(checkpoint, bpe_path, device, precision)

    def ours(precision: Precision, disjoint: bool = False) -> Callable[[], Way]:
        return lambda: OurWay(converted, device, precision, adapt, disjoint=disjoint)

    def parts(precision: Precision) -> Callable[[], Way]:
        return lambda: OfficialEngineWay(checkpoint, bpe_path, device, precision)

    def plain(precision: Precision, with_token: bool = False) -> Callable[[], Way]:
        return lambda: TransformersWay(converted, device, precision, adapt, with_token=with_token)

    plain_title = "transformers' Sam3VideoModel"
    return [
        Candidate("Meta's predictor", official("auto"), True),
        Candidate("autodistill_sam3", ours("auto"), True),
        Candidate("autodistill_sam3, fp32", ours("fp32"), False),
        Candidate("autodistill_sam3 without overlap, fp32", ours("fp32", disjoint=True), False),
        Candidate("autodistill_sam3, backend='sam3'", parts("auto"), False),
        Candidate(f"{plain_title}, fp32", plain("fp32"), False),
        Candidate(f"{plain_title} with the token, fp32", plain("fp32", with_token=True), False),
        Candidate(plain_title, plain("auto"), True),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bpe-path", type=Path, required=True, help="bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("--folder", type=Path, required=True, help="for the checkpoint (7 GB) and rows.jsonl")
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
        candidates(checkpoint, converted, options.bpe_path, options.device),
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
