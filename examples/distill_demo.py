"""From drawn pictures to a trained small model, without a network or a GPU: `python examples/distill_demo.py`.

Draws unlabelled scenes, has the shapes checkpoints label them, trains a student on the labels, and compares it with
what was really drawn, which neither of the two has seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import supervision as sv
from PIL import Image

from autodistill_sam3 import GroundedSAM3
from autodistill_sam3.instances import compact_masks, tight_xyxy
from autodistill_sam3.labeling.formats import write_coco
from autodistill_sam3.labeling.records import ImageRecord, annotations_of
from autodistill_sam3.ontology import PromptPairs
from autodistill_sam3.students import DistillSettings, TrainingData, distill, format_results
from autodistill_sam3.training.drawing import SceneObject, draw_scene
from autodistill_sam3.training.scenes import MIN_VISIBLE
from autodistill_sam3.training.world import SHAPES

# The training of the checkpoints has used none of these.
FIRST_SEED = 900_000
SIZE_WH = (256, 192)
# From random weights, many small steps lead further than few large ones.
BATCH_SIZE = 8


def main() -> None:
    options = parse_arguments()
    images, dataset = options.output / "images", options.output / "dataset"
    draw(images, options.images)
    teacher = GroundedSAM3(PromptPairs(tuple((shape, shape) for shape in SHAPES)), checkpoint="shapes", device="cpu")
    teacher.label(images, output_folder=dataset, valid_share=0.15, test_share=0.2, plot=True)
    truth = options.output / "truth.coco.json"
    write_truth(truth, TrainingData(dataset, needs_masks=True))
    settings = DistillSettings(
        options.student, epochs=options.epochs, image_size=options.image_size, batch_size=BATCH_SIZE, device="cpu"
    )
    student = options.output / options.student
    distilled = distill(dataset, student, settings, teacher=lambda: teacher.predict, ground_truth=truth, overwrite=True)
    print(f"\n{format_results(distilled.results)}\nresults   {student}\nreview    {dataset / 'review' / 'index.html'}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/distill_demo"))
    parser.add_argument("--student", default="yolo11n-seg")
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--image-size", type=int, default=192)
    return parser.parse_args()


def draw(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = folder / f"scene_{index:04d}.jpg"
        if not path.exists():
            Image.fromarray(draw_scene(FIRST_SEED + index, *SIZE_WH)[0]).save(path, quality=92)


def write_truth(path: Path, data: TrainingData) -> None:
    """What was drawn in the pictures that the student is judged by."""
    records = []
    for image in data.images(data.held_out):
        index = int(Path(image.file).stem.rpartition("_")[2])
        records.append(record(image.file, draw_scene(FIRST_SEED + index, *SIZE_WH)[1]))
    with path.open("w", encoding="utf-8") as file:
        write_coco(file, records, SHAPES)


def record(name: str, objects: list[SceneObject]) -> ImageRecord:
    width, height = SIZE_WH
    seen = [item for item in objects if item.visible >= MIN_VISIBLE]
    masks = compact_masks(((item.mask, 0, 0) for item in seen), (height, width))
    truth = sv.Detections(
        xyxy=tight_xyxy(masks),
        mask=masks,
        confidence=np.ones(len(seen), dtype=np.float32),
        class_id=np.array([SHAPES.index(item.shape) for item in seen], dtype=np.int64),
    )
    annotations = annotations_of(truth, (height, width))
    return ImageRecord(source=name, file=name, split="test", width=width, height=height, annotations=annotations)


if __name__ == "__main__":
    main()
