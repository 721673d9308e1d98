"""The one form in which labels of every file format reach the evaluation, one image at a time."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from autodistill_sam3.errors import LabelingError
from autodistill_sam3.evaluation.masks import RLE, ImageHW
from autodistill_sam3.images import load_image

SPLITS = ("train", "valid", "val", "test")

_SPLIT_NAMES = {"val": "valid"}

_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = frozenset({5, 6, 7, 8})


@dataclass(frozen=True, slots=True)
class LabeledObject:
    """One object.

    Attributes:
        class_name: Its class.
        xywh: Its box in pixels: left, top, width, height.
        rle: Its mask, or None where the file has only the box.
        area: Pixels, where the file says so; COCO sorts true objects by it into small, medium and large.
        score: Confidence in 0..1, or None where the file has none.
        crowd: A region with many objects, which is neither to be found nor wrong to be found.
    """

    class_name: str
    xywh: tuple[float, float, float, float]
    rle: RLE | None
    area: float | None
    score: float | None
    crowd: bool = False


class LabeledImage(ABC):
    """An image and its labels, which stay on disk.

    Attributes:
        names: Relative names that it goes by, the most exact first, with forward slashes.
    """

    names: tuple[str, ...]

    @property
    @abstractmethod
    def image_hw(self) -> ImageHW | None:
        """Height and width, upright; None where neither the labels nor an image beside them say it."""

    @abstractmethod
    def objects(self, image_hw: ImageHW) -> list[LabeledObject]:
        """Its objects in the order of the file.

        Raises:
            LabelingError: The labels are damaged.
        """


class LabelSet:
    """The labels of a dataset.

    Attributes:
        path: What was asked for.
        files: What was read, relative to `path`.
        classes: Class names.
        images: The images, in the order of their ids or names.
    """

    def __init__(
        self, path: Path, files: Sequence[str], classes: Sequence[str], images: Sequence[LabeledImage]
    ) -> None:
        self.path = path
        self.files = tuple(files)
        self.classes = tuple(dict.fromkeys(classes))
        self.images = tuple(images)


class ImageOnDisk:
    """The size of an image file, read when it is asked for."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @cached_property
    def image_hw(self) -> ImageHW | None:
        """Height and width as an upright image has them; None without a file, ImageError for what is no image."""
        if self._path is None or not self._path.is_file():
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(self._path) as image:
                    turned = image.getexif().get(_EXIF_ORIENTATION) in _QUARTER_TURNS
                    width, height = image.size
        # Large ones and those that Pillow alone cannot read; what is no image is said there.
        except Exception:
            height, width = load_image(self._path).shape[:2]
            return height, width
        return (width, height) if turned else (height, width)


def image_names(file_name: str, split: str | None = None, source: str | None = None) -> tuple[str, ...]:
    """The relative names that an image goes by.

    Args:
        file_name: As the labels give it; folders called `images` say nothing and are left out.
        split: The split it belongs to.
        source: Its path in the folder that was labelled.

    Example:
        >>> image_names("images/a.jpg", "train", "monday/a.jpg")
        ('train/a.jpg', 'a.jpg', 'monday/a.jpg')
    """
    path = PurePosixPath(file_name.replace("\\", "/"))
    parts = [part for part in path.parts if part not in (path.anchor, ".", "..", "images")]
    name = "/".join(parts)
    names = [f"{_SPLIT_NAMES.get(split, split)}/{name}", name] if split else [name]
    return tuple(dict.fromkeys([*names, *([source] if source else [])]))


def checked_box(values: Any) -> tuple[float, float, float, float]:
    """Four finite numbers, width and height not negative; ValueError otherwise."""
    if not isinstance(values, list) or len(values) != 4:
        raise ValueError(f"expected a box as [x, y, width, height], received {values!r}")
    x, y, width, height = (checked_number(value, "a number in the box") for value in values)
    if width < 0 or height < 0:
        raise ValueError(f"expected a box with a width and height of 0 or more, received {values!r}")
    return x, y, width, height


def checked_number(value: Any, what: str) -> float:
    """A finite number as a float; ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"expected {what}, received {value!r}")
    return float(value)


def checked_score(value: Any) -> float | None:
    """A confidence in 0..1, or None where there is none; ValueError otherwise."""
    if value is None:
        return None
    score = checked_number(value, "a confidence between 0 and 1")
    if not 0 <= score <= 1:
        raise ValueError(f"expected a confidence between 0 and 1, received {value!r}")
    return score


def damaged(path: Path, what: str, error: Exception) -> LabelingError:
    """The error for labels that cannot be read."""
    where = f"{path}: {what}" if what else str(path)
    return LabelingError(f"Expected labels that can be read, received damaged ones in {where}: {error}")


def class_names(names: Any, path: Path) -> list[str]:
    """What `names:` in a data.yaml says: a list, or a mapping from 0, 1, ... to names."""
    if isinstance(names, Mapping):
        if set(names) != set(range(len(names))):
            raise LabelingError(f"Expected names for the classes 0, 1, ... in {path}, received {list(names)}")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise LabelingError(f"Expected a list of class names under `names:` in {path}, received {names!r}")
    return [str(name).strip() for name in names]
