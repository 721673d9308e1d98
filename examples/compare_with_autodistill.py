"""Label folders of awkward images with autodistill's own `label()` and with this project's: a table of what came out.

    python examples/compare_with_autodistill.py

The model is the same in both (SAM 3 with text, shapes checkpoint), and every image shows the same scene. Labels are
compared with what the model itself finds in that scene, so that the figures tell of the writing alone.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from autodistill.detection import CaptionOntology, DetectionBaseModel
from PIL import Image

from autodistill_sam3 import SegmentAnything3
from autodistill_sam3.training.drawing import draw_scene

CLASS_PROMPTS = {"green triangle": "sign", "white ring": "ring"}


def main() -> None:
    model = SegmentAnything3(CaptionOntology(CLASS_PROMPTS), checkpoint="shapes", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        cases = draw_cases(Path(folder, "cases"))
        found = model.predict(next(iter(cases.values())) / "photo.jpg").mask.any(axis=0)
        print(f"{'image':<34} {'autodistill label()':<28} this project")
        for name, path in cases.items():
            results = [
                run_alone(path, Path(folder), label, found) for label in (autodistills_label(model), model.label)
            ]
            print(f"{name:<34} {results[0]:<28} {results[1]}")


def autodistills_label(model: SegmentAnything3) -> Callable[..., object]:
    """The base class's loop, told to take every suffix, around our `predict`."""
    return lambda images, output_folder, **_: DetectionBaseModel.label(model, str(images), "", str(output_folder))


def draw_cases(folder: Path) -> dict[str, Path]:
    """One scene in many files; each lies in a folder of its own beside a plain JPEG."""
    pixels, _ = draw_scene(20_053, 480, 640)
    image = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112] = 6
    cases = {
        "plain JPEG": ("a.jpg", lambda path: image.save(path, quality=95)),
        "JPEG, suffix in capitals": ("a.JPG", lambda path: image.save(path, "JPEG", quality=95)),
        "WebP": ("a.webp", lambda path: image.save(path, lossless=True)),
        "BMP": ("a.bmp", image.save),
        "two dots in the name": ("a..jpg", lambda path: image.save(path, quality=95)),
        "JPEG, turned by EXIF": (
            "a.jpg",
            lambda path: image.transpose(Image.Transpose.ROTATE_90).save(path, exif=turned, quality=95),
        ),
        "PNG, turned by EXIF": (
            "a.png",
            lambda path: image.transpose(Image.Transpose.ROTATE_90).save(path, exif=turned),
        ),
        "PNG, 16 bit": ("a.png", lambda path: cv2.imwrite(str(path), pixels[..., ::-1].astype(np.uint16) * 257)),
        "PNG, palette": ("a.png", lambda path: image.quantize(256).save(path)),
        "JPEG, CMYK": ("a.jpg", lambda path: image.convert("CMYK").save(path, quality=95)),
        "a.png beside a.jpg": ("photo.png", image.save),
        "a damaged file beside it": ("broken.jpg", lambda path: path.write_bytes(b"\xff\xd8\xff")),
    }
    paths = {}
    for index, (name, (file, save)) in enumerate(cases.items()):
        paths[name] = folder / str(index)
        paths[name].mkdir(parents=True)
        image.save(paths[name] / "photo.jpg", quality=95)
        save(paths[name] / file)
    return paths


def run_alone(images: Path, scratch: Path, label: Callable[..., object], found: np.ndarray) -> str:
    """Label a folder and read back how many images it holds and how well the YOLO masks fit what was found."""
    output = scratch / "output"
    shutil.rmtree(output, ignore_errors=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            label(images, output_folder=output)
    # Whatever ends a run is a row of the table.
    except Exception as error:
        return f"nothing ({type(error).__name__})"
    expected = len([path for path in images.iterdir() if path.stat().st_size > 100])
    ious = [iou for split in ("train", "valid") for iou in split_ious(output / split, found)]
    return f"{len(ious)} of {expected} images, IoU {np.mean(ious):.2f}" if ious else "nothing"


def split_ious(split: Path, found: np.ndarray) -> list[float]:
    """IoU of all labelled pixels with those found, per image, with image and labels as a trainer reads them."""
    ious = []
    for path in (split / "images").iterdir():
        labels = split / "labels" / f"{path.stem}.txt"
        if not labels.exists():
            continue
        height, width = cv2.imread(str(path)).shape[:2]
        mask = np.zeros((height, width), np.uint8)
        for line in labels.read_text().splitlines():
            points = np.array(line.split()[1:], float).reshape(-1, 2) * (width, height)
            cv2.fillPoly(mask, [points.astype(np.int32)], 1)
        same_frame = mask.shape == found.shape
        ious.append(float((mask & found).sum() / (mask | found).sum()) if same_frame else 0.0)
    return ious


if __name__ == "__main__":
    main()
