"""What `video_full_size` measures of one way to track: how far its answers are from the reference's, and how fast."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from autodistill_sam3.video.stitching import match_ids
from autodistill_sam3.video.tracks import FrameTracks

from . import video_full_size_report as report
from .full_size_report import deviation
from .narrow import Array
from .video_ways import Limits, OfficialWay, Recorded, Way, recorded

PROMPTS = ("red circle", "blue square", "green", "person", "a dog")
WARM_UP_FRAMES = 3

Row = dict[str, Any]


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
