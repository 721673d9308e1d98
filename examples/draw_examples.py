"""Draw the example images and the truth beside them: `python examples/draw_examples.py`.

The scenes are of the shapes world (autodistill_sam3/training), with seeds that its training never uses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import supervision as sv
from PIL import Image

from autodistill_sam3.categories import read_categories
from autodistill_sam3.instances import compact_masks, tight_xyxy
from autodistill_sam3.labeling.formats import write_coco
from autodistill_sam3.labeling.records import ImageRecord, annotations_of
from autodistill_sam3.training.drawing import SceneObject, draw_scene
from autodistill_sam3.training.prompts import parse_text
from autodistill_sam3.training.scenes import MIN_VISIBLE

FOLDER = Path(__file__).parent
PROMPTS = read_categories()["shapes"].prompts
SIZES_WH = ((640, 480), (480, 640), (512, 512), (800, 450))
# Scenes of four objects or more in which every class is shown several times.
SEEDS = (20008, 20053, 20100, 20154, 20184, 20251, 20272, 20279, 20294, 20312, 20398, 20410)


def main() -> None:
    classes = list(PROMPTS.values())
    (FOLDER / "images").mkdir(exist_ok=True)
    records = []
    for index, seed in enumerate(SEEDS):
        width, height = SIZES_WH[index % len(SIZES_WH)]
        pixels, objects = draw_scene(seed, width, height)
        name = f"scene_{index:02d}.{'png' if index % 4 == 3 else 'jpg'}"
        Image.fromarray(pixels).save(FOLDER / "images" / name, quality=92)
        records.append(_record(name, objects, (height, width)))
    with (FOLDER / "ground_truth.coco.json").open("w", encoding="utf-8") as file:
        write_coco(file, records, classes)


def _record(name: str, objects: list[SceneObject], image_hw: tuple[int, int]) -> ImageRecord:
    concepts = [parse_text(prompt) for prompt in PROMPTS]
    asked = [
        (item, class_id)
        for item in objects
        for class_id, concept in enumerate(concepts)
        if concept.matches(item.colour, item.shape) and item.visible >= MIN_VISIBLE
    ]
    masks = compact_masks(((item.mask, 0, 0) for item, _ in asked), image_hw)
    truth = sv.Detections(
        xyxy=tight_xyxy(masks),
        mask=masks,
        confidence=np.ones(len(asked), dtype=np.float32),
        class_id=np.array([class_id for _, class_id in asked], dtype=np.int64),
    )
    annotations = annotations_of(truth, image_hw)
    height, width = image_hw
    return ImageRecord(source=name, file=name, split="train", width=width, height=height, annotations=annotations)


if __name__ == "__main__":
    main()
