"""Time what labelling does outside the models: `python examples/benchmark_overhead.py`, no weights and no GPU.

1920 x 1080 JPEGs with 10 objects in 5 classes, found by text and by boxes: reading, fusion, encoding, YOLO and COCO
files, the journal. A model's place is taken by answers that were drawn before. Prints CPU time on one core, and the
ratio to a fixed numpy workload timed in between, by which slow and busy machines can be compared.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from benchmark_encoding import IMAGE_HW, draw_mask
from PIL import Image

from autodistill_sam3.fusion import Found, fuse_found
from autodistill_sam3.instances import Instances, compact_masks
from autodistill_sam3.interpretation import Interpretation
from autodistill_sam3.labeling import LabelingPlan, label_images
from autodistill_sam3.labeling.encoding import Encode, Job
from autodistill_sam3.labeling.names import SourceImage
from autodistill_sam3.labeling.reading import read_image
from autodistill_sam3.labeling.resume import PerImage
from autodistill_sam3.ontology import PromptPairs, PromptTable
from autodistill_sam3.thresholds import Thresholds

TARGET_MS = 40
OBJECTS = 10
CLASSES = ("bottle", "cap", "can", "box", "bag")
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40, metavar="N", help="to label in each round")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="the best of them counts")
    options = parser.parse_args()
    print(report(options.images, options.rounds))


def report(images: int, rounds: int) -> str:
    """The table, as Markdown."""
    on_one_core()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        answers = draw_input(place / "in", images)
        rows, unit = measure(place, answers, rounds)
    lines = [
        f"{images} images of {IMAGE_HW[1]} x {IMAGE_HW[0]} with {OBJECTS} objects, best of {rounds} rounds, CPU time "
        f"on one core ({platform.processor() or platform.machine()}). The numpy workload took {unit:.1f} ms.",
        "",
        "| per image | ms | times the numpy workload |",
        "|---|---|---|",
        *(f"| {row} | {value:.1f} | {value / unit:.3f} |" for row, value in rows.items()),
        "",
        f"Target: {TARGET_MS} ms in all.",
    ]
    return "\n".join(lines)


def on_one_core() -> None:
    cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def draw_input(source: Path, images: int) -> list[Found]:
    """Files that look like photographs to a JPEG decoder, and what a model would see in each."""
    source.mkdir()
    rng = np.random.default_rng(0)
    for index in range(images):
        coarse = cv2.resize(rng.integers(0, 256, (9, 16, 3), dtype=np.uint8), IMAGE_HW[::-1])
        fine = rng.normal(0, 8, (*IMAGE_HW, 3))
        pixels = np.clip(coarse + cv2.GaussianBlur(fine, (0, 0), 1), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(source / f"{index:04d}.jpg", quality=90)
    return [draw_answer(rng) for _ in range(images)]


def draw_answer(rng: np.random.Generator) -> Found:
    """What text and boxes found: the same objects, with masks that differ a little."""
    masks = [draw_mask(rng) for _ in range(OBJECTS)]
    smaller = [cv2.erode(mask.astype(np.uint8), np.ones((3, 3))).astype(bool) for mask in masks]
    scores = rng.uniform(0.5, 1, OBJECTS).astype(np.float32)
    prompts = np.arange(OBJECTS, dtype=np.int64) % len(CLASSES)
    found = [
        Instances(compact_masks([(mask, 0, 0) for mask in part], IMAGE_HW), scores, prompts, source)
        for part, source in ((masks, "text"), (smaller, "boxes"))
    ]
    return Found(found[0], found[1], np.ones(len(CLASSES), np.float32))


def measure(place: Path, answers: list[Found], rounds: int) -> tuple[dict[str, float], float]:
    """Milliseconds per image by step and in all, and those of the workload."""
    table = PromptTable.from_ontology(PromptPairs(tuple((name, name) for name in CLASSES)))
    interpret = Interpretation(partial(fuse_found, table=table, thresholds=Thresholds()))
    encode = Encode(PerImage(("yolo", "coco"), False, CLASSES))
    files = [SourceImage(path, path.name, path.stem) for path in sorted((place / "in").iterdir())]
    reads = [read_image(file, file.stem) for file in files]
    found = [interpret(answer) for answer in answers]
    jobs = [Job.of(read, detections) for read, detections in zip(reads, found, strict=True)]
    steps: dict[str, Callable[[], Any]] = {
        "sha256, decoding, perceptual hash": lambda: [read_image(file, file.stem) for file in files],
        "fusion": lambda: [interpret(answer) for answer in answers],
        "RLE, polygons, label file": lambda: [encode(job) for job in jobs],
        "all of a run, with files and journal": lambda: label(place, answers, interpret),
    }
    best = dict.fromkeys([*steps, ""], float("inf"))
    for _ in range(rounds):
        for name, step in steps.items():
            best[name] = min(best[name], cpu_ms(step) / len(files))
        best[""] = min(best[""], cpu_ms(workload))
    unit = best.pop("")
    return best, unit


def label(place: Path, answers: list[Found], interpret: Interpretation) -> None:
    """A run in which the model costs nothing."""
    following: Iterator[Found | None] = iter([*answers, *[None] * BATCH])
    blank = answers[0]
    plan = LabelingPlan(place / "in", place / "out", CLASSES, {}, batch_size=BATCH, overwrite=True, progress=False)
    dataset = label_images(plan, lambda images: [next(following) or blank for _ in images], interpret)
    assert len(dataset) == len(answers)


def workload() -> None:
    """The same on every machine: arithmetic, sorting and copying in cache and in memory."""
    values = np.random.default_rng(0).random(1_000_000, dtype=np.float32)
    for _ in range(3):
        values = np.sqrt(np.sort(values)[::-1] * 0.5 + 0.25)
        np.cumsum(values > 0.6)


def cpu_ms(step: Callable[[], Any]) -> float:
    """CPU time of all threads of this process."""
    start = time.process_time()
    step()
    return (time.process_time() - start) * 1000


if __name__ == "__main__":
    main()
