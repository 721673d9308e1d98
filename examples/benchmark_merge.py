"""What a merge of many shards costs: images a second, and memory by the number of images. Prints Markdown.

    python examples/benchmark_merge.py --images 5000 20000

The images are small and the objects drawn, so that reading and the model take next to nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import supervision as sv
from PIL import Image

from autodistill_sam3.distributed import Labeler, label_shard, merge_shards
from autodistill_sam3.labeling import LabelingPlan

OBJECTS = 10


def main() -> None:
    options = parse_options()
    if options.work is not None:
        print(json.dumps(STEPS[options.step](options.work, options.images[0], options.shards)))
        return
    print("| images | shards | planned and labelled | merged | merge, images/s | peak memory of the merge |")
    print("|---|---|---|---|---|---|")
    for images in options.images:
        with tempfile.TemporaryDirectory(dir=options.place) as folder:
            write_images(Path(folder) / "in", images)
            # Each in a process of its own, whose peak is then its own.
            labelled, merged = (in_process(step, folder, images, options.shards) for step in STEPS)
        seconds = merged["seconds"]
        cells = [f"{images:,}", options.shards, f"{labelled['seconds']:.0f} s", f"{seconds:.1f} s",
                 f"{images / seconds:.0f}", f"{merged['peak_mb']:.0f} MB"]  # fmt: skip
        print("|", *[f"{cell} |" for cell in cells])


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[5000, 20_000])
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--place", help="a folder on the disk to measure (default: the system's for temporary files)")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=["label", "merge"], help=argparse.SUPPRESS)
    return parser.parse_args()


def in_process(step: str, folder: str, images: int, shards: int) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--work",
        folder,
        "--step",
        step,
        "--images",
        str(images),
        "--shards",
        str(shards),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    result: dict[str, float] = json.loads(done.stdout)
    return result


def write_images(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((64, 48)).save(folder / f"{index:08}.jpg")


def boxes_of(image: np.ndarray) -> sv.Detections:
    height, width = image.shape[:2]
    masks = np.zeros((OBJECTS, height, width), dtype=bool)
    for index in range(OBJECTS):
        masks[index, 4 * index : 4 * index + 4, 5 : 5 + 2 * (index + 2)] = True
    return sv.Detections(
        xyxy=sv.mask_to_xyxy(masks).astype(np.float32),
        mask=masks,
        confidence=np.full(OBJECTS, 0.9, dtype=np.float32),
        class_id=np.zeros(OBJECTS, dtype=np.int64),
        data={"prompt": np.array(["a"] * OBJECTS), "source": np.array(["text"] * OBJECTS)},
    )


def label(work: Path, images: int, shards: int) -> dict[str, float]:
    plan = LabelingPlan(work / "in", work / "out", ("box",), {"model": "drawn"}, batch_size=32, progress=False)
    start = time.perf_counter()
    for index in range(1, shards + 1):
        label_shard(plan, (index, shards), Labeler(lambda batch: [boxes_of(image) for image in batch]))
    return measured(start)


def merge(work: Path, images: int, shards: int) -> dict[str, float]:
    start = time.perf_counter()
    assert len(merge_shards(work / "out", progress=False)) == images
    return measured(start)


def measured(start: float) -> dict[str, float]:
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_kb / 1024}


STEPS = {"label": label, "merge": merge}

if __name__ == "__main__":
    main()
