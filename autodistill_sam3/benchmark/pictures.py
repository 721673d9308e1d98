"""Drawn pictures that compress like photographs: flat shapes on a soft, textured ground."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from autodistill_sam3.images import RGBImage
from autodistill_sam3.whole_files import replacing

PICTURE_HW = (960, 1280)
_BACKGROUND = (20, 40, 110)
_ROWS, _COLUMNS, _PITCH = 4, 5, 102
_QUALITY = 92


def draw_pictures(folder: Path, count: int) -> list[Path]:
    """Write JPEG files of 1280 x 960 pixels; those that are there already are kept.

    All of them show one scene with other noise, brightness and a small shift, so that a model finds about the same
    number of objects in each.

    Args:
        folder: Where to write; it is made if need be.
        count: How many.

    Returns:
        The paths, sorted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"picture_{index:04d}.jpg" for index in range(count)]
    missing = [(index, path) for index, path in enumerate(paths) if not path.exists()]
    if missing:
        scene = draw_scene()
        with ThreadPoolExecutor() as pool:
            # Exceptions come out where the results are asked for.
            list(pool.map(lambda item: _write(vary(scene, item[0]), item[1]), missing))
    return paths


def _write(picture: RGBImage, path: Path) -> None:
    _, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    with replacing(path, "wb", part=f".{path.name}") as file:
        file.write(encoded.tobytes())


def draw_scene(seed: int = 5) -> RGBImage:
    """The scene that all pictures show: ellipses in rows and columns, in the middle of one colour.

    Strong colours, since to a model that normalises its input the grain of a gray area is all there is. In the middle,
    so that masks of random weights, which follow several of them, have the small bounding boxes that real ones have.

    Example:
        >>> draw_scene().shape
        (960, 1280, 3)
    """
    rng = np.random.default_rng(seed)
    canvas = np.full((*PICTURE_HW, 3), _BACKGROUND, dtype=np.uint8)
    for row, column in itertools.product(range(_ROWS), range(_COLUMNS)):
        hsv = np.array([[[rng.uniform(0, 360), rng.uniform(0.75, 1), rng.uniform(0.8, 1)]]], dtype=np.float32)
        colour = (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255).tolist()
        centre = np.array([column + 0.5 - _COLUMNS / 2, row + 0.5 - _ROWS / 2]) * _PITCH + rng.uniform(-10, 10, 2)
        place = (centre + np.array(PICTURE_HW[::-1]) / 2).astype(int).tolist()
        axes = int(rng.uniform(34, 48)), int(rng.uniform(30, 46))
        cv2.ellipse(canvas, place, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    return np.ascontiguousarray(cv2.GaussianBlur(canvas, (0, 0), 1.5))


def vary(scene: RGBImage, index: int) -> RGBImage:
    """The scene as another photograph: shifted by up to 6 pixels, a little lighter or darker, with its own grain."""
    rng = np.random.default_rng([1, index])
    shift = rng.integers(-6, 7, 2)
    moved = np.roll(scene, shift.tolist(), axis=(0, 1)).astype(np.float32)
    grain = cv2.GaussianBlur(rng.normal(size=scene.shape).astype(np.float32), (0, 0), 0.7) * 7
    varied: RGBImage = (moved + grain + rng.uniform(-6, 6)).clip(0, 255).astype(np.uint8)
    return varied
