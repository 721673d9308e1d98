"""A labelled folder, read through the COCO files of its splits, one image's objects in memory at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autodistill_sam3.errors import InputFolderError, LabelingError
from autodistill_sam3.evaluation.labels import checked_box
from autodistill_sam3.evaluation.masks import box_of, segmentation_rle
from autodistill_sam3.json_stream import list_items
from autodistill_sam3.labeling.records import SPLITS, Split
from autodistill_sam3.layout import COCO
from autodistill_sam3.rle import RLE, rle_to_crop

_IMAGES = "images/"


@dataclass(frozen=True, slots=True)
class DatasetImage:
    """An image of a labelled folder. `file` is its name in `<split>/images/`, `image_id` that of its COCO file."""

    split: Split
    file: str
    width: int
    height: int
    image_id: int

    @property
    def path(self) -> str:
        """Its path in the labelled folder, with forward slashes; its identity."""
        return f"{self.split}/{_IMAGES}{self.file}"

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


@dataclass(frozen=True)
class DatasetObject:
    """An object of a labelled folder.

    Attributes:
        class_id: Index of its class.
        bbox: x, y, width, height in pixels; the mask's tight box where there is a mask.
        segmentation: Its mask, with at least one pixel; None for boxes.
        confidence: In 0..1.
        prompt: What found it.
        source: Who says so.
    """

    class_id: int
    bbox: tuple[float, float, float, float]
    segmentation: RLE | None
    confidence: float
    prompt: str
    source: str

    def crop(self) -> tuple[npt.NDArray[np.bool_], int, int]:
        """The mask in its box, with the pixel of its first column and row."""
        assert self.segmentation is not None
        x, y, width, height = (int(value) for value in self.bbox)
        return rle_to_crop(self.segmentation, (x, y, width, height)), x, y


class LabelledFolder:
    """The classes and images of a labelled folder; objects are read from disk when they are asked for.

    Args:
        path: The folder, with `_annotations.coco.json` in one split or more.

    Attributes:
        classes: Class names.
        images: Split -> its images in the order of its COCO file.

    Raises:
        InputFolderError: There is no such file.
        LabelingError: One is damaged, or two name other classes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.classes: list[str] = []
        self.images: dict[Split, list[DatasetImage]] = {}
        self._class_of_category: dict[int, int] = {}
        for split in SPLITS:
            if (path / split / COCO).is_file():
                self._read_split(split)
        if not self.images:
            raise InputFolderError(
                f"Expected a labelled folder with {COCO} in {', '.join(SPLITS)}, received {path}. "
                "Label with 'coco' among the formats."
            )

    def objects(self, split: Split) -> Iterator[tuple[DatasetImage, list[DatasetObject]]]:
        """Each image of a split with its objects, in the order of its COCO file.

        Raises:
            LabelingError: The file is damaged, or its annotations are not in the order of its images.
        """
        waiting = iter(self.images[split])
        annotations = (item.value for item in list_items(self._coco(split), ("annotations",)))
        grouped = itertools.groupby(annotations, key=lambda annotation: annotation["image_id"])
        try:
            for image_id, group in grouped:
                for image in waiting:
                    if image.image_id == image_id:
                        yield image, [self._object(annotation, image) for annotation in group]
                        break
                    yield image, []
                else:
                    raise LabelingError(
                        f"Expected annotations in the order of the images in {self._coco(split)}, as this package "
                        f"writes them, received image_id {image_id} out of turn"
                    )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise LabelingError(f"Expected annotations in {self._coco(split)}, received others: {error!r}") from error
        for image in waiting:
            yield image, []

    def _coco(self, split: Split) -> Path:
        return self.path / split / COCO

    def _read_split(self, split: Split) -> None:
        categories: list[dict[str, Any]] = []
        images: list[DatasetImage] = []
        try:
            for item in list_items(self._coco(split), ("categories", "images")):
                if item.key == "categories":
                    categories.append(item.value)
                else:
                    images.append(_image(split, item.value))
            categories.sort(key=lambda category: int(category["id"]))
            names = [str(category["name"]) for category in categories]
            ids = {int(category["id"]): index for index, category in enumerate(categories)}
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise LabelingError(f"Expected a COCO file at {self._coco(split)}, received another: {error!r}") from error
        if self.images and (names, ids) != (self.classes, self._class_of_category):
            raise LabelingError(f"Expected the same classes in all splits of {self.path}, received others in {split}")
        self.classes, self._class_of_category = names, ids
        self.images[split] = images

    def _object(self, annotation: dict[str, Any], image: DatasetImage) -> DatasetObject:
        segmentation = _mask(annotation, image)
        return DatasetObject(
            class_id=self._class_of_category[int(annotation["category_id"])],
            # What the file says of a mask's box may be another.
            bbox=checked_box(annotation["bbox"]) if segmentation is None else box_of({**segmentation}),
            segmentation=segmentation,
            confidence=float(annotation.get("score", 1.0)),
            prompt=str(annotation.get("prompt", "")),
            source=str(annotation.get("source", "")),
        )


def _mask(annotation: dict[str, Any], image: DatasetImage) -> RLE | None:
    try:
        rle = segmentation_rle(annotation.get("segmentation"), image.image_hw)
    # pycocotools raises plain exceptions.
    except Exception as error:
        raise ValueError(f"a damaged mask in {image.path}: {error}") from error
    if rle is None:
        return None
    if not any(box_of(rle)):
        raise ValueError(f"a mask without a pixel in {image.path}")
    counts = rle["counts"]
    return {"size": [*image.image_hw], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def _image(split: Split, item: dict[str, Any]) -> DatasetImage:
    name = str(item["file_name"])
    file = name.removeprefix(_IMAGES)
    # A name from elsewhere must not lead out of the folder.
    if not name.startswith(_IMAGES) or Path(file).name != file or "\0" in file or file == "..":
        raise LabelingError(f"Expected file_name as {_IMAGES}x.jpg in the {split} split, received {name!r}")
    width, height = int(item["width"]), int(item["height"])
    if width < 1 or height < 1:
        raise LabelingError(f"Expected {name!r} to have at least one pixel, received {width} x {height}")
    return DatasetImage(split, file, width, height, int(item["id"]))
