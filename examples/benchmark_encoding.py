"""Time the writing of masks: `python examples/benchmark_encoding.py`, which needs pycocotools.

The masks are drawn in images of 1920 x 1080 as the engine makes them: on a grid of 288 x 288 values that are scaled up.
Their longer sides have a median of 250 pixels and reach 1000; some have parts or holes. Prints CPU time on one core.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt
import supervision as sv
from pycocotools import mask as coco_mask
from supervision.dataset.formats.coco import detections_to_coco_annotations
from supervision.dataset.formats.yolo import detections_to_yolo_annotations

from autodistill_sam3.instances import trim_crop
from autodistill_sam3.labeling.polygons import crop_to_yolo, polygon_iou
from autodistill_sam3.rle import crop_to_rle

IMAGE_HW = (1080, 1920)
GRID = 288
MASKS = 100
ROUNDS = 5

Mask = npt.NDArray[np.bool_]


def main() -> None:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    masks = [draw_mask(rng) for _ in range(MASKS)]
    crops = [trim_crop(mask, 0, 0) for mask in masks]
    sides = [max(crop.shape) for crop, _, _ in crops]
    parts = [cv2.connectedComponents(crop.astype(np.uint8))[0] - 1 for crop, _, _ in crops]
    print(
        f"{MASKS} masks of {IMAGE_HW[1]} x {IMAGE_HW[0]}, longer side {np.median(sides):.0f} (median) to {max(sides)}"
    )
    print(f"{sum(count > 1 for count in parts)} of several parts; {platform.processor() or platform.machine()}")
    own = [
        report("RLE", lambda item: crop_to_rle(*item, IMAGE_HW), crops),
        report("polygon", lambda item: crop_to_yolo(*item, IMAGE_HW), crops),
        report("the polygon's IoU", lambda item: polygon_iou(item[0]), crops),
    ]
    print(f"{'all three':36} {sum(own):7.3f} ms per mask")
    for name, write in (
        ("pycocotools, RLE of the full mask", encode_full),
        ("supervision, YOLO polygons", write_yolo),
        ("supervision, COCO", write_coco),
    ):
        other = report(name, write, masks)
        print(f"{'':36} {other / sum(own):7.1f} times as long as all three")


def draw_mask(rng: np.random.Generator) -> Mask:
    """A smooth blob, one in four with specks beside it or holes in it."""
    longer = float(np.clip(rng.lognormal(np.log(250), 0.6), 30, 1000))
    sides = longer * rng.permutation([1.0, rng.uniform(0.4, 1.0)])
    centre = rng.uniform(sides / 2, np.array(IMAGE_HW[::-1]) - sides / 2 + 1)
    angle = np.linspace(0, 2 * np.pi, 200)
    waves = sum(rng.uniform(0, 0.15) * np.cos(k * angle + rng.uniform(0, 6)) for k in range(2, 6))
    outline = centre + np.stack([np.cos(angle), np.sin(angle)], axis=1) * sides / 2 * (1 + waves)[:, None]
    grid = np.zeros((GRID, GRID), dtype=np.float32)
    scale = np.array([GRID / IMAGE_HW[1], GRID / IMAGE_HW[0]])
    cv2.fillPoly(grid, [np.round(outline * scale * 16).astype(np.int32)], 1.0, cv2.LINE_AA, 4)
    if rng.random() < 0.25:
        for spot in rng.uniform(centre - 0.6 * sides, centre + 0.6 * sides, (3, 2)) * scale:
            cv2.circle(grid, np.round(spot).astype(int).tolist(), 1 + int(longer / 200), float(rng.integers(2)), -1)
    grid += rng.normal(0, 0.1, grid.shape).astype(np.float32) * (cv2.blur(grid, (5, 5)) > 0)
    return cv2.resize(cv2.GaussianBlur(grid, (0, 0), 0.7), IMAGE_HW[::-1], interpolation=cv2.INTER_LINEAR) > 0.5


def report(name: str, write: Callable[..., object], items: Sequence[object]) -> float:
    """Milliseconds of CPU time, the mean over the items of the best of some rounds."""
    times = np.empty((ROUNDS, len(items)))
    for index in np.ndindex(times.shape):
        start = time.process_time()
        write(items[index[1]])
        times[index] = (time.process_time() - start) * 1000
    mean = float(times.min(axis=0).mean())
    print(f"{name:36} {mean:7.3f} ms per mask")
    return mean


def encode_full(mask: Mask) -> object:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def write_yolo(mask: Mask) -> object:
    return detections_to_yolo_annotations(_detections(mask), (*IMAGE_HW, 3))


def write_coco(mask: Mask) -> object:
    return detections_to_coco_annotations(_detections(mask), 1, 1)


def _detections(mask: Mask) -> sv.Detections:
    return sv.Detections(xyxy=sv.mask_to_xyxy(mask[None]), mask=mask[None], class_id=np.zeros(1, dtype=np.int64))


if __name__ == "__main__":
    main()
