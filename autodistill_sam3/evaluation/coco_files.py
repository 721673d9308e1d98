"""COCO files, read one image at a time."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from autodistill_sam3.errors import LabelingError
from autodistill_sam3.evaluation.labels import (
    ImageOnDisk,
    LabeledImage,
    LabeledObject,
    checked_box,
    checked_number,
    checked_score,
    damaged,
    image_names,
)
from autodistill_sam3.evaluation.masks import ImageHW, box_of, segmentation_rle
from autodistill_sam3.json_stream import Item, list_items, read_item

_Id: TypeAlias = "int | str"


class CocoImage(LabeledImage):
    """An image of a COCO file."""

    def __init__(self, file: CocoFile, item: Mapping[str, Any], position: int, names: tuple[str, ...]) -> None:
        self.names = names
        self._file = file
        self._position = position
        self._stated = item.get("height"), item.get("width")
        self._file_name = str(item["file_name"])

    @property
    def image_hw(self) -> ImageHW | None:
        height, width = self._stated
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            return height, width
        return ImageOnDisk(self._file.path.parent / self._file_name).image_hw

    def objects(self, image_hw: ImageHW) -> list[LabeledObject]:
        return [self._file.parse(annotation, image_hw) for annotation in self._file.annotations(self._position)]


@dataclass
class _Index:
    """What is kept of a COCO file: the images, and where the annotations of each are."""

    images: dict[_Id, Mapping[str, Any]] = field(default_factory=dict)
    classes: dict[_Id, str] = field(default_factory=dict)
    positions: dict[_Id, int] = field(default_factory=dict)
    used_classes: set[_Id] = field(default_factory=set)
    owner: array[int] = field(default_factory=lambda: array("q"))
    offset: array[int] = field(default_factory=lambda: array("q"))
    length: array[int] = field(default_factory=lambda: array("q"))

    def add(self, item: Item) -> None:
        value = item.value
        if not isinstance(value, dict):
            raise ValueError(f"expected an object in {item.key!r}, received {type(value).__name__}")
        if item.key == "annotations":
            image_id, category_id = _id(value, "image_id"), _id(value, "category_id")
            self.used_classes.add(category_id)
            self.owner.append(self.positions.setdefault(image_id, len(self.positions)))
            self.offset.append(item.offset)
            self.length.append(item.length)
            return
        own = _id(value, "id")
        known: Mapping[_Id, Any] = self.images if item.key == "images" else self.classes
        if own in known:
            raise ValueError(f"expected each id once in {item.key!r}, received {own!r} again")
        if item.key == "images":
            kept = {key: value.get(key) for key in ("file_name", "width", "height")}
            if not isinstance(kept["file_name"], str):
                raise ValueError(f"expected a file_name for image {own!r}, received {kept['file_name']!r}")
            self.images[own] = kept
        else:
            self.classes[own] = str(value.get("name")).strip()

    def check(self) -> None:
        """Raise a ValueError if annotations point to what is not there."""
        for what, used, known in (
            ("image", self.positions, self.images),
            ("category", self.used_classes, self.classes),
        ):
            if unknown := [key for key in used if key not in known]:
                raise ValueError(f"expected every annotation's {what} in the file, received the unknown {unknown[0]!r}")


class CocoFile:
    """A COCO file whose annotations stay on disk.

    Args:
        path: The JSON file.
        split: The split it belongs to, if it is one of several.
        sources: By file name, the path in the folder that was labelled.

    Attributes:
        path: The JSON file.
        classes: Class names, by category id.
        images: The images, by id.

    Raises:
        LabelingError: The file is no COCO file, or a damaged one.
    """

    def __init__(self, path: Path, split: str | None = None, sources: Mapping[str, str] | None = None) -> None:
        self.path = path
        index = _read_index(path)
        self._classes = index.classes
        self._order, self._starts = _by_image(index)
        self._offset, self._length = np.asarray(index.offset), np.asarray(index.length)
        self.classes = [index.classes[key] for key in sorted(index.classes, key=_id_order)]
        self.images: list[LabeledImage] = []
        for key in sorted(index.images, key=_id_order):
            item = index.images[key]
            source = (sources or {}).get(Path(item["file_name"]).name)
            names = image_names(item["file_name"], split, source)
            self.images.append(CocoImage(self, item, index.positions.get(key, -1), names))

    def annotations(self, position: int) -> Iterator[Mapping[str, Any]]:
        """The annotations of an image, in the order of the file."""
        if position < 0:
            return
        with self.path.open("rb") as file:
            for index in self._order[self._starts[position] : self._starts[position + 1]]:
                yield read_item(file, int(self._offset[index]), int(self._length[index]))

    def parse(self, annotation: Mapping[str, Any], image_hw: ImageHW) -> LabeledObject:
        """One annotation.

        Raises:
            LabelingError: It is damaged.
        """
        try:
            rle = segmentation_rle(annotation.get("segmentation"), image_hw)
            box = annotation.get("bbox")
            if box is None and rle is None:
                raise ValueError("expected a box or a mask, received neither")
            area = annotation.get("area")
            return LabeledObject(
                class_name=self._classes[annotation["category_id"]],
                xywh=box_of(rle) if box is None and rle is not None else checked_box(box),
                rle=rle,
                area=None if area is None else checked_number(area, "a number as the area"),
                score=checked_score(annotation.get("score")),
                crowd=bool(annotation.get("iscrowd")),
            )
        # pycocotools raises plain exceptions.
        except Exception as error:
            raise damaged(self.path, f"annotation {annotation.get('id')!r}", error) from error


def _read_index(path: Path) -> _Index:
    index = _Index()
    found: set[str] = set()
    try:
        for item in list_items(path, ("images", "annotations", "categories"), found):
            index.add(item)
        index.check()
    except (OSError, ValueError) as error:
        raise damaged(path, "", error) from error
    # A split without images is as good as any other.
    if "images" not in found or (index.images and not index.classes):
        raise LabelingError(
            f"Expected a COCO file with images, annotations and categories, received one with {sorted(found)}: {path}. "
            "Results without images cannot be read alone: add the images and categories of the ground truth to them."
        )
    return index


def _by_image(index: _Index) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    owner = np.asarray(index.owner, dtype=np.int64)
    order = np.argsort(owner, kind="stable")
    return order, np.searchsorted(owner[order], np.arange(len(index.positions) + 1))


def _id(item: Mapping[str, Any], key: str) -> _Id:
    value = item.get(key)
    # Tools that keep tables write 1.0 and mean 1.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"expected a number as {key!r}, received {value!r}")
    return value


def _id_order(key: _Id) -> tuple[bool, int, str]:
    return (True, 0, key) if isinstance(key, str) else (False, key, "")
