"""YOLO datasets, read one image at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from autodistill_sam3.errors import InputFolderError, LabelingError
from autodistill_sam3.evaluation.labels import (
    ImageOnDisk,
    LabeledImage,
    LabeledObject,
    checked_score,
    class_names,
    damaged,
    image_names,
)
from autodistill_sam3.evaluation.masks import ImageHW, box_of, outline_rle
from autodistill_sam3.images import has_image_suffix
from autodistill_sam3.layout import CONFIDENCE_PREFIX

# Writers round, and some let an outline end just outside; ultralytics allows as much.
_TOLERANCE = 0.01


class YoloImage(LabeledImage):
    """An image of a YOLO dataset, or a label file without an image.

    Args:
        labels: Its label file, which need not exist: then there are no objects.
        image: The image, if there is one.
        classes: Class names.
        names: The names it goes by.
    """

    def __init__(self, labels: Path, image: Path | None, classes: Sequence[str], names: tuple[str, ...]) -> None:
        self.names = names
        self._labels = labels
        self._classes = classes
        self._image = ImageOnDisk(image)

    @property
    def image_hw(self) -> ImageHW | None:
        return self._image.image_hw

    def objects(self, image_hw: ImageHW) -> list[LabeledObject]:
        lines = _lines(self._labels)
        scores = _lines(self._labels.with_name(CONFIDENCE_PREFIX + self._labels.name)) if lines else []
        if any(len(line.split()) > 1 for line in scores):
            scores = []  # the labels of another image, whose name begins like that
        if scores and len(scores) != len(lines):
            raise LabelingError(
                f"Expected as many confidences as objects, received {len(scores)} beside {len(lines)} in {self._labels}"
            )
        return [
            self._parse(number, line, scores[number - 1] if scores else None, image_hw)
            for number, line in enumerate(lines, 1)
        ]

    def _parse(self, number: int, line: str, score: str | None, image_hw: ImageHW) -> LabeledObject:
        try:
            return parse_line(line, score, self._classes, image_hw)
        except ValueError as error:
            raise damaged(self._labels, f"object {number}", error) from error


def parse_line(line: str, score: str | None, classes: Sequence[str], image_hw: ImageHW) -> LabeledObject:
    """One line: `class x y w h` or `class x1 y1 x2 y2 x3 y3 ...`, with or without a confidence behind it.

    Args:
        line: The line; coordinates are shares of the image's size.
        score: The line of the confidence file, if there is one.
        classes: Class names.
        image_hw: Height and width of the image.

    Raises:
        ValueError: It is neither.

    Example:
        >>> parse_line("0 0.5 0.5 0.5 0.5 0.9", None, ["ball"], (100, 200))
        LabeledObject(class_name='ball', xywh=(50.0, 25.0, 100.0, 50.0), rle=None, area=None, score=0.9, crowd=False)
    """
    words = line.split()
    values = [float(word) for word in words]
    if len(values) < 5:
        raise ValueError(f"expected a class and a box or outline, received {line!r}")
    class_id = values[0]
    if class_id not in range(len(classes)):
        raise ValueError(f"expected a class among 0 to {len(classes) - 1}, received {words[0]}")
    # A class and pairs of coordinates are an odd number of values.
    confidence = values.pop() if len(values) % 2 == 0 else None
    if confidence is None and score is not None:
        confidence = float(score)
    coordinates = np.asarray(values[1:]).reshape(-1, 2)
    if not ((coordinates >= -_TOLERANCE) & (coordinates <= 1 + _TOLERANCE)).all():
        raise ValueError(f"expected coordinates between 0 and 1, received {line!r}")
    height, width = image_hw
    if len(coordinates) == 2:
        (x, y), (w, h) = (coordinates * (width, height)).tolist()
        rle, xywh = None, (x - w / 2, y - h / 2, w, h)
    else:
        rle = outline_rle(coordinates.clip(0, 1) * (width, height), image_hw)
        xywh = box_of(rle)
    return LabeledObject(classes[int(class_id)], xywh, rle, None, checked_score(confidence))


def read_yaml(path: Path) -> tuple[list[str], list[tuple[str, Path]]]:
    """The classes and the splits of a `data.yaml`, with what each split names: a folder or a list of images.

    Raises:
        LabelingError: It is damaged, or names neither classes nor a split that is there.
    """
    content = load_yaml(path)
    if "kpt_shape" in content:
        raise LabelingError(f"Expected boxes or outlines, received keypoints: {path}")
    classes = class_names(content.get("names"), path)
    splits = [
        (split, place)
        for split in ("train", "val", "valid", "test")
        for entry in _entries(content.get(split))
        if (place := _resolve(path, content.get("path"), entry)) is not None
    ]
    if not splits:
        raise InputFolderError(f"Expected the folders that {path} names, received none of them")
    return classes, splits


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        LabelingError: There is none.
    """
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise damaged(path, "", error) from error
    if not isinstance(content, dict):
        raise LabelingError(f"Expected names, train and val in {path}, received {type(content).__name__}")
    return content


def read_text(path: Path) -> str:
    """A UTF-8 file.

    Raises:
        LabelingError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise damaged(path, "", error) from error


def yolo_images(
    place: Path, split: str | None, classes: Sequence[str], sources: Mapping[str, str]
) -> list[LabeledImage]:
    """The images of a split.

    Args:
        place: Its folder, its `images` folder, or a text file with a path in each line. If the folder has one called
            `images`, the others are not searched: masks are images too.
        split: Its name.
        classes: Class names.
        sources: By file name, the path in the folder that was labelled.
    """
    if place.is_file():
        listed = [line.strip() for line in _lines(place)]
        pairs = [(place.parent / line, line) for line in listed]
    else:
        folder = place / "images" if (place / "images").is_dir() else place
        found = sorted(path for path in folder.rglob("*") if has_image_suffix(path) and path.is_file())
        pairs = [(path, path.relative_to(place).as_posix()) for path in found]
    if not pairs:
        return list(_without_images(place, split, classes))
    return [
        YoloImage(labels_of(image), image, classes, image_names(name, split, sources.get(image.name)))
        for image, name in pairs
    ]


def labels_of(image: Path) -> Path:
    """Where the labels of an image are: the last folder called `images` becomes `labels`.

    Example:
        >>> labels_of(Path("data/train/images/a.jpg")).as_posix()
        'data/train/labels/a.txt'
    """
    parts = list(image.parent.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts) / f"{image.stem}.txt"


def _without_images(place: Path, split: str | None, classes: Sequence[str]) -> Iterator[LabeledImage]:
    folder = _label_folder(place)
    if folder is None:
        return
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.txt")} - {"classes.txt"}
    for name in sorted(names):
        parent, _, file = name.rpartition("/")
        plain = file.removeprefix(CONFIDENCE_PREFIX)
        if plain != file and (f"{parent}/{plain}" if parent else plain) in names:
            continue
        yield YoloImage(folder / name, None, classes, image_names(name.removesuffix(".txt"), split))


def _entries(value: Any) -> list[str]:
    return [str(item) for item in (value if isinstance(value, list) else [value]) if item]


def _resolve(yaml_path: Path, root: Any, entry: str) -> Path | None:
    folder = yaml_path.parent
    # Roboflow writes "../train/images" and means "train/images".
    candidates = [folder / str(root or "") / entry, folder / entry, folder / entry.removeprefix("../")]
    # Labels without images are named by the folder where the images would be.
    return next((place for place in candidates if place.exists() or _label_folder(place) is not None), None)


def _label_folder(place: Path) -> Path | None:
    """Where the label files of a folder of images are, by either of two layouts."""
    folders = labels_of(place / "image.jpg").parent, place / "labels"
    return next((folder for folder in folders if "labels" in folder.parts and folder.is_dir()), None)


def _lines(path: Path) -> list[str]:
    return [line for line in read_text(path).splitlines() if line.strip()] if path.exists() else []
