"""The labelling loop: read, predict, write, note in the journal; then the files that need all of it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import supervision as sv
from tqdm import tqdm

from autodistill_sam3.errors import ImageError, LabelingError
from autodistill_sam3.images import RGBImage, load_image
from autodistill_sam3.labeling import folder
from autodistill_sam3.labeling.journal import Journal, JournalAnnotations
from autodistill_sam3.labeling.records import SPLITS, ImageRecord, annotations_of
from autodistill_sam3.labeling.review import ReviewSheet
from autodistill_sam3.labeling.source import SourceImage, find_images, split_of, with_free_stem

logger = logging.getLogger("autodistill_sam3")

_FAULTS_OF_THE_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)

PredictBatch: TypeAlias = Callable[[Sequence[RGBImage]], list[sv.Detections]]


@dataclass(frozen=True)
class LabelingPlan:
    """What to label and how to write it.

    Attributes:
        source: The folder of images.
        output: The folder to write.
        classes: Class names; a class id is an index into them.
        settings: Everything that decides what labels come out, as JSON values; a rerun with equal settings goes on.
        versions: Of the packages that were used, for `run.json`.
        extension: Take only files with this suffix.
        limit: Take only so many images.
        batch_size: Images per call of the model.
        seed: Of the split.
        record_confidence: Write `confidence-<name>.txt` beside each label file.
        plot: Write review sheets.
        overwrite: Start anew even if there is an earlier run's dataset.
        progress: Show a progress bar.
    """

    source: Path
    output: Path
    classes: tuple[str, ...]
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    extension: str | None = None
    limit: int | None = None
    batch_size: int = 8
    seed: int = 0
    record_confidence: bool = False
    plot: bool = False
    overwrite: bool = False
    progress: bool = True


def label_images(plan: LabelingPlan, predict_batch: PredictBatch) -> sv.DetectionDataset:
    """Label a folder.

    Images that an earlier run with the same settings finished are not labelled again. An image that cannot be read
    goes to `quarantine.jsonl` and the run goes on.

    Args:
        plan: What to label and how to write it.
        predict_batch: RGB images -> detections of each, with `class_id` and `confidence`.

    Returns:
        The dataset in the output folder; annotations are read from disk when they are asked for.

    Raises:
        InputFolderError: There is nothing to label.
        OutputFolderError: The output folder may not be written to.
        LabelingError: Writing failed, or the journal is damaged.
    """
    images = find_images(plan.source, plan.extension, plan.limit)
    decides = {"source": str(plan.source.resolve()), "classes": list(plan.classes), "seed": plan.seed}
    run = {"format": "autodistill_sam3", "settings": plan.settings | decides, "versions": plan.versions}
    folder.claim_folder(plan.output, plan.source, run, overwrite=plan.overwrite)
    journal = Journal(plan.output.resolve() / folder.JOURNAL)
    _restore_files(plan, journal)
    _label_remaining(plan, images, journal, predict_batch)
    _write_summary_files(plan, journal)
    if plan.plot:
        _write_review(plan, journal)
    return _open_dataset(plan, journal)


def _restore_files(plan: LabelingPlan, journal: Journal) -> None:
    """Write label files that are missing from the journal; an image that is missing counts as not finished."""
    for source, entry in journal.entries():
        split_folder = plan.output / entry.split
        if not (split_folder / "images" / entry.file).exists():
            journal.forget(source)
        elif not all(path.exists() for path in folder.label_paths(entry.file, split_folder, plan.record_confidence)):
            folder.write_labels(journal.read(source), split_folder, record_confidence=plan.record_confidence)


def _label_remaining(
    plan: LabelingPlan, images: Sequence[SourceImage], journal: Journal, predict_batch: PredictBatch
) -> None:
    remaining = _with_names_left([image for image in images if image.name not in journal], journal)
    # Images that failed before are tried again, so that what is in quarantine is what is wrong now.
    (plan.output / folder.QUARANTINE).unlink(missing_ok=True)
    with tqdm(total=len(images), initial=len(images) - len(remaining), desc="Labeling", unit="image",
              disable=not plan.progress) as bar:  # fmt: skip
        for start in range(0, len(remaining), plan.batch_size):
            batch = remaining[start : start + plan.batch_size]
            readable = list(_read(plan, batch))
            detections = predict_batch([pixels for _, pixels in readable]) if readable else []
            for (image, pixels), found in zip(readable, detections, strict=True):
                _finish(plan, journal, image, pixels, found)
            bar.update(len(batch))
    lost = sum(image.name not in journal for image in remaining)
    if lost:
        logger.warning("%d of %d images are left out; %s says why", lost, len(images), plan.output / folder.QUARANTINE)


def _with_names_left(images: Sequence[SourceImage], journal: Journal) -> list[SourceImage]:
    """The images under stems that neither finished images nor each other have."""
    taken = {Path(entry.file).stem.lower() for _, entry in journal.entries()}
    named = []
    for image in images:
        named.append(with_free_stem(image, taken))
        taken.add(named[-1].stem.lower())
    return named


def _finish(
    plan: LabelingPlan, journal: Journal, image: SourceImage, pixels: RGBImage, detections: sv.Detections
) -> None:
    try:
        journal.append(_write_image(plan, image, pixels, detections))
    except OSError as error:
        if error.errno not in _FAULTS_OF_THE_NAME:
            raise LabelingError(
                f"Cannot write to {plan.output}: {error}. What was finished stays; the same command goes on."
            ) from error
        folder.remove_image(image, plan.output / split_of(image.name, plan.seed))
        folder.append_quarantine(plan.output, image.name, f"its name cannot be written: {error}")


def _read(plan: LabelingPlan, batch: Sequence[SourceImage]) -> Iterator[tuple[SourceImage, RGBImage]]:
    for image in batch:
        try:
            yield image, load_image(image.path)
        except ImageError as error:
            folder.append_quarantine(plan.output, image.name, str(error))


def _write_image(plan: LabelingPlan, image: SourceImage, pixels: RGBImage, detections: sv.Detections) -> ImageRecord:
    split = split_of(image.name, plan.seed)
    split_folder = plan.output / split
    height, width = pixels.shape[:2]
    record: ImageRecord = {
        "source": image.name,
        "file": folder.place_image(image, pixels, split_folder),
        "split": split,
        "width": width,
        "height": height,
        "annotations": annotations_of(detections, (height, width)),
    }
    folder.write_labels(record, split_folder, record_confidence=plan.record_confidence)
    return record


def _write_summary_files(plan: LabelingPlan, journal: Journal) -> None:
    folder.write_data_yaml(plan.output, plan.classes)
    filled = {entry.split for _, entry in journal.entries()}
    for split in SPLITS:
        if filled and split not in filled:
            logger.warning("No image fell into the %s split; most trainers need both. Add images.", split)
        folder.write_coco(plan.output / split / "_annotations.coco.json", partial(journal.records, split), plan.classes)


def _write_review(plan: LabelingPlan, journal: Journal) -> None:
    dataset = _open_dataset(plan, journal)
    sheet = ReviewSheet(plan.output / folder.REVIEW)
    for path, image, detections in dataset:
        sheet.add(image[..., ::-1], detections, Path(path).name)
    sheet.close()


def _open_dataset(plan: LabelingPlan, journal: Journal) -> sv.DetectionDataset:
    output = plan.output.resolve()
    source_of_image = {str(output / entry.split / "images" / entry.file): name for name, entry in journal.entries()}
    dataset = sv.DetectionDataset(classes=list(plan.classes), images=[], annotations={})
    # The constructor would read every annotation into memory, to copy and to check it.
    dataset.image_paths = list(source_of_image)
    annotations: Any = JournalAnnotations(journal, source_of_image, list(plan.classes))
    dataset.annotations = annotations
    return dataset
