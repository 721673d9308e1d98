"""The labelling loop: read, predict, write, note in the journal; then the files that need all of it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import supervision as sv
from tqdm import tqdm

from autodistill_sam3.conflicts import removed_counts
from autodistill_sam3.errors import AutodistillSAM3Error, ImageError, LabelingError
from autodistill_sam3.images import RGBImage, load_image
from autodistill_sam3.labeling import folder
from autodistill_sam3.labeling.batches import BatchPredictor, Outcome, PredictBatch
from autodistill_sam3.labeling.finish import open_dataset, write_pages, write_summaries
from autodistill_sam3.labeling.inputs import find_images, searched_folder
from autodistill_sam3.labeling.interrupt import interruptible
from autodistill_sam3.labeling.journal import Journal
from autodistill_sam3.labeling.names import SourceImage
from autodistill_sam3.labeling.plan import LabelingPlan
from autodistill_sam3.labeling.records import ImageRecord, Split, annotations_of
from autodistill_sam3.labeling.resume import Left, PerImage, what_is_left
from autodistill_sam3.labeling.split import NearDuplicates, perceptual_hash
from autodistill_sam3.layout import COCO, JOURNAL, QUARANTINE

logger = logging.getLogger("autodistill_sam3")

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_FAULTS_OF_THE_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)


def label_images(plan: LabelingPlan, predict_batch: PredictBatch) -> sv.DetectionDataset:
    """Label images.

    Images that an earlier run with the same settings finished are not labelled again. An image that cannot be read, or
    that the model fails on, goes to `quarantine.jsonl` and the run goes on. Batches are cut from the sorted input
    whatever is finished of it, and padded to one size, so that a run that was stopped computes what it would have.

    Args:
        plan: What to label and how to write it.
        predict_batch: `batch_size` RGB images -> detections of each, with `class_id` and `confidence`. With
            `OutOfMemoryError` it gets smaller batches.

    Returns:
        The dataset in the output folder; annotations are read from disk when they are asked for.

    Raises:
        InputFolderError: There is nothing to label.
        OutputFolderError: The output folder may not be written to.
        LabelingError: Writing failed, or the journal is damaged.
        KeyboardInterrupt: After the images in flight, if Ctrl-C was pressed.
    """
    images = find_images(plan.source, plan.extension, recursive=plan.recursive)
    folder.check_apart(plan.output, searched_folder(plan.source), images)
    with folder.claimed(plan.output, plan.as_run(), overwrite=plan.overwrite) as run:
        journal = Journal(plan.output.resolve() / JOURNAL)
        per_image = PerImage(tuple(run["writes"]["formats"]), run["writes"]["record_confidence"], plan.classes)
        with _writing(plan):
            folder.check_not_edited(plan.output, [f"{split}/{COCO}" for split in plan.splits], journal)
            left = what_is_left(images, plan.limit, journal, plan.output, per_image)
            folder.make_splits(plan.output, plan.splits)
            folder.write_data_yaml(plan.output, plan.splits, plan.classes)
            # Images that failed before are tried again, so that what is in quarantine is what is wrong now.
            (plan.output / QUARANTINE).unlink(missing_ok=True)
        _Labeling(plan, journal, per_image, left).run(images[: plan.limit], predict_batch)
        with _writing(plan):
            for source, entry in left.earlier.items():
                # Its copy was gone, and it could not be labelled again.
                if not (plan.output / entry.split / "images" / journal[source].file).exists():
                    journal.forget(source)
            report = write_summaries(plan.output, journal, per_image, plan.splits, plan.source)
            if plan.plot:
                write_pages(plan.output, journal, plan.classes, report)
    return open_dataset(plan.output, journal, plan.classes)


class _Stamp(TypedDict):
    """What an input file was when it was read."""

    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class _Labelled:
    """An image that the model has seen, about to be written."""

    image: SourceImage
    stamp: _Stamp
    pixels: RGBImage
    detections: sv.Detections
    stem: str
    split: Split
    phash: str

    def record(self, file: str) -> ImageRecord:
        """What the journal says of it."""
        height, width = self.pixels.shape[:2]
        annotations = annotations_of(self.detections, (height, width))
        removed = removed_counts(self.detections)
        if len(annotations) < len(self.detections):
            removed["empty_mask"] = len(self.detections) - len(annotations)
        return {
            "source": self.image.name, "file": file, "split": self.split, "width": width, "height": height,
            "annotations": annotations, "removed": removed, "phash": self.phash, **self.stamp,
        }  # fmt: skip


class _Labeling:
    """One run over the images that are left."""

    def __init__(self, plan: LabelingPlan, journal: Journal, per_image: PerImage, left: Left) -> None:
        self._plan, self._journal, self._per_image, self._left = plan, journal, per_image, left
        self._quarantined = 0
        self._near: NearDuplicates[Split] = NearDuplicates()
        for source, entry in journal.in_order():
            if plan.group_near_duplicates and source not in left.earlier:
                self._near.add(entry.phash, entry.split)

    def run(self, images: Sequence[SourceImage], predict_batch: PredictBatch) -> None:
        """Label what is left of the images, in batches cut from all of them."""
        plan, left = self._plan, self._left.stems
        predictor = BatchPredictor(predict_batch, self._journal.batch_size or plan.batch_size, self._shrink)
        with interruptible() as interruption, tqdm(total=len(images), initial=len(images) - len(left),
                desc="Labeling", unit="image", disable=not plan.progress) as bar:  # fmt: skip
            for start in range(0, len(images), plan.batch_size):
                interruption.check()
                batch = images[start : start + plan.batch_size]
                count = sum(image.name in left for image in batch)
                if count:
                    self._label(batch, predictor)
                    bar.update(count)
            interruption.check()
        if self._quarantined:
            place = plan.output / QUARANTINE
            logger.warning("%d of %d images are left out; %s says why", self._quarantined, len(images), place)

    def _label(self, batch: Sequence[SourceImage], predictor: BatchPredictor) -> None:
        stamps = [_stamp(image) if image.name in self._left.stems else None for image in batch]
        pixels = [self._read(image) for image in batch]
        if not any(image.name in self._left.stems for image, rgb in zip(batch, pixels, strict=True) if rgb is not None):
            return
        outcomes = predictor.predict(pixels)
        if any(isinstance(outcome, Exception) for outcome in outcomes) and not _any_detections(outcomes):
            # Images may be at fault, or the model, which then fails on anything.
            predictor.check_model()
        ready = []
        for image, stamp, rgb, outcome in zip(batch, stamps, pixels, outcomes, strict=True):
            if rgb is None or image.name not in self._left.stems:
                continue
            if isinstance(outcome, Exception):
                self._quarantine(image, f"the model failed on it: {type(outcome).__name__}: {outcome}")
            elif stamp is None:
                self._quarantine(image, "it cannot be read")
            elif outcome is not None:
                ready.append(self._placed(image, stamp, rgb, outcome))
        with _writing(self._plan):
            if ready:
                self._journal.begin([(item.image.name, item.split, item.stem) for item in ready])
            for item in ready:
                self._finish(item)

    def _read(self, image: SourceImage) -> RGBImage | None:
        try:
            return load_image(image.path)
        except ImageError as error:
            if image.name in self._left.stems:
                self._quarantine(image, str(error))
            return None

    def _placed(self, image: SourceImage, stamp: _Stamp, pixels: RGBImage, detections: sv.Detections) -> _Labelled:
        phash = perceptual_hash(pixels)
        earlier = self._left.earlier.get(image.name)
        near = self._near.earliest(phash) if self._plan.group_near_duplicates else None
        split = earlier.split if earlier else near or self._plan.split.split_of(image)
        if self._plan.group_near_duplicates:
            self._near.add(phash, split)
        return _Labelled(image, stamp, pixels, detections, self._left.stems[image.name], split, phash)

    def _finish(self, item: _Labelled) -> None:
        split_folder = self._plan.output / item.split
        written = [f"images/{item.stem}{suffix}" for suffix in (item.image.path.suffix, ".png")]
        try:
            record = item.record(folder.place_image(item.image, item.stem, item.pixels, split_folder))
            if not _is_still(item.image, item.stamp):
                raise ImageError("it changed while it was labelled; the same command labels it again")
            folder.write_files(split_folder, self._per_image.files(record))
        except OSError as error:
            folder.remove_files(split_folder, written)
            is_source = error.filename is not None and str(error.filename) == str(item.image.path)
            if not is_source and error.errno not in _FAULTS_OF_THE_NAME:
                raise
            self._quarantine(
                item.image, f"{'it cannot be read' if is_source else 'its name cannot be written'}: {error}"
            )
            return
        except ImageError as error:
            folder.remove_files(split_folder, written)
            self._quarantine(item.image, str(error))
            return
        self._journal.append(record)
        earlier = self._left.earlier.get(item.image.name)
        if earlier and earlier.file != record["file"]:
            folder.remove_files(split_folder, [f"images/{earlier.file}"])

    def _quarantine(self, image: SourceImage, reason: str) -> None:
        self._quarantined += 1
        with _writing(self._plan):
            folder.append_quarantine(self._plan.output, image.name, reason)

    def _shrink(self, batch_size: int) -> None:
        with _writing(self._plan):
            self._journal.shrink(batch_size)


def _any_detections(outcomes: Sequence[Outcome]) -> bool:
    return any(isinstance(outcome, sv.Detections) for outcome in outcomes)


def _stamp(image: SourceImage) -> _Stamp | None:
    """None if it cannot be read."""
    try:
        status = image.path.stat()
        # A pipe would be waited for, and a device may have no end.
        if not stat.S_ISREG(status.st_mode):
            return None
        with image.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    # A manifest may hold names that no file system takes, which is a ValueError.
    except (OSError, ValueError):
        return None
    return {"sha256": digest, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _is_still(image: SourceImage, stamp: _Stamp) -> bool:
    """Whether the file is what it was when it was read."""
    status = image.path.stat()
    return (status.st_size, status.st_mtime_ns) == (stamp["size"], stamp["mtime_ns"])


@contextlib.contextmanager
def _writing(plan: LabelingPlan) -> Iterator[None]:
    try:
        yield
    except AutodistillSAM3Error:
        raise
    except OSError as error:
        step = "Free some space; then the" if error.errno in _FULL_DISK else "The"
        command = "same command without overwrite (--overwrite)" if plan.overwrite else "same command"
        raise LabelingError(
            f"Cannot write to {plan.output}: {error}. What was finished stays valid. {step} {command} goes on."
        ) from error
