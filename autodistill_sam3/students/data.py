"""The labelled folder that a student learns from, checked before anything is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from autodistill_sam3.errors import InputFolderError, LabelingError
from autodistill_sam3.exchange.dataset import DatasetImage, DatasetObject, LabelledFolder
from autodistill_sam3.labeling.records import Split
from autodistill_sam3.layout import COCO, DATA_YAML, SHARDS

_CURE = "Label more images, or lower the thresholds."


class TrainingData:
    """A labelled folder with images and objects to learn from and others to be judged by.

    Args:
        folder: The labelled folder, with `data.yaml` and COCO files.
        needs_masks: Whether boxes alone are not enough.

    Attributes:
        folder: The folder.
        classes: Class names; a class id is an index into them.
        held_out: The split that students are judged by: `test` if it has images, since `valid` chooses among weights.
        counts: Split -> (images, objects).

    Raises:
        InputFolderError: There is no labelled folder, or no image or object in it to learn from.
        LabelingError: It is damaged or not merged, or has boxes where masks are needed.
    """

    def __init__(self, folder: Path, *, needs_masks: bool) -> None:
        self.folder = folder
        if (folder / SHARDS).exists():
            raise LabelingError(f"Expected a whole dataset, received {folder} with shards. Merge them first: `merge`.")
        self._labels = LabelledFolder(folder)
        if not (folder / DATA_YAML).is_file():
            raise InputFolderError(f"Expected {DATA_YAML} in the labelled folder, received none in {folder}")
        self.classes = tuple(self._labels.classes)
        self.counts: dict[Split, tuple[int, int]] = {}
        boxes = self._count()
        self.held_out: Split = "test" if self.counts.get("test", (0, 0))[0] else "valid"
        self._check()
        if boxes and needs_masks:
            raise LabelingError(
                f"Expected masks, which this student learns, received {boxes} boxes without one in {folder}. Label "
                "with SegmentAnything3 or GroundedSAM3, or choose a student that learns boxes."
            )

    @property
    def yaml(self) -> Path:
        """What target models of autodistill are given."""
        return (self.folder / DATA_YAML).resolve()

    @property
    def sha256(self) -> str:
        """Of its labels."""
        digest = hashlib.sha256()
        for split in self.counts:
            with (self.folder / split / COCO).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def objects(self, split: Split) -> Iterator[tuple[DatasetImage, list[DatasetObject]]]:
        """Each image of a split with its objects."""
        return self._labels.objects(split)

    def images(self, split: Split) -> list[DatasetImage]:
        """The images of a split."""
        return self._labels.images.get(split, [])

    def path(self, image: DatasetImage) -> Path:
        """Where an image is."""
        return self.folder / image.path

    def _count(self) -> int:
        """Fill `counts`; how many objects have no mask."""
        boxes = 0
        for split, images in self._labels.images.items():
            count = 0
            for _, objects in self.objects(split):
                count += len(objects)
                boxes += sum(item.segmentation is None for item in objects)
            self.counts[split] = len(images), count
        return boxes

    def _check(self) -> None:
        uses: dict[Split, str] = {"train": "learn from", "valid": "choose weights by", self.held_out: "be judged by"}
        for split, use in uses.items():
            images, objects = self.counts.get(split, (0, 0))
            if not images:
                raise InputFolderError(f"Expected images to {use} in {self.folder}/{split}, received none. {_CURE}")
            if not objects:
                raise InputFolderError(
                    f"Expected objects to {use} in {self.folder}/{split}, received {images} images without any. {_CURE}"
                )
        paths = (self.path(image) for split in self.counts for image in self.images(split))
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise InputFolderError(f"Expected the images of the COCO files, {len(missing)} are missing: {missing[0]}")
