"""Drawn pictures that compress like photographs: flat shapes on a soft, textured ground."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from autodistill_sam3.images import RGBImage
from autodistill_sam3.whole_files import replacing

PICTURE_HW = (960, 1280)
_SHAPES = 26
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


def draw_scene(seed: int = 0) -> RGBImage:
    """The scene that all pictures show.

    Example:
        >>> draw_scene().shape
        (960, 1280, 3)
    """
    rng = np.random.default_rng(seed)
    height, width = PICTURE_HW
    waves = rng.normal(size=(8, 10, 3)).astype(np.float32)
    scene = 110 + 14 * cv2.resize(waves, (width, height), interpolation=cv2.INTER_CUBIC)
    canvas = np.ascontiguousarray(scene.clip(0, 255).astype(np.uint8))
    for _ in range(_SHAPES):
        _draw_shape(canvas, rng)
    return canvas


def _draw_shape(canvas: RGBImage, rng: np.random.Generator) -> None:
    height, width = PICTURE_HW
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(0.5, 1), rng.uniform(0.3, 1)]]], dtype=np.float32)
    colour = (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255).tolist()
    centre, size = rng.uniform((60, 60), (width - 60, height - 60)), float(rng.uniform(45, 150))
    angle = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
    if rng.random() < 0.5:
        axes = int(size), int(size * rng.uniform(0.5, 1))
        cv2.ellipse(
            canvas, centre.astype(int).tolist(), axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA
        )
    else:
        corners = centre + size * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        cv2.fillPoly(canvas, [corners.astype(np.int32)], colour, cv2.LINE_AA)


def vary(scene: RGBImage, index: int) -> RGBImage:
    """The scene as another photograph: shifted by up to 6 pixels, a little lighter or darker, with its own grain."""
    rng = np.random.default_rng([1, index])
    shift = rng.integers(-6, 7, 2)
    moved = np.roll(scene, shift.tolist(), axis=(0, 1)).astype(np.float32)
    grain = cv2.GaussianBlur(rng.normal(size=scene.shape).astype(np.float32), (0, 0), 0.7) * 7
    varied: RGBImage = (moved + grain + rng.uniform(-6, 6)).clip(0, 255).astype(np.uint8)
    return varied
