"""What earlier runs have finished, and what is left to do."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from autodistill_sam3.errors import ImageError
from autodistill_sam3.images import load_image
from autodistill_sam3.labeling import folder
from autodistill_sam3.labeling.formats import Format, image_files, image_paths
from autodistill_sam3.labeling.journal import Entry, Journal
from autodistill_sam3.labeling.names import SourceImage, Taken
from autodistill_sam3.labeling.records import ImageRecord
from autodistill_sam3.layout import CONFIDENCE_PREFIX

logger = logging.getLogger("autodistill_sam3")


@dataclass(frozen=True)
class PerImage:
    """What is written of each image: label files in these formats, and confidences beside YOLO's."""

    formats: tuple[Format, ...]
    record_confidence: bool
    classes: tuple[str, ...]

    def files(self, record: ImageRecord) -> dict[str, bytes]:
        """Path relative to the split's folder -> content."""
        return image_files(record, self.classes, self.formats, record_confidence=self.record_confidence)

    def paths(self, file: str) -> list[str]:
        """The paths alone."""
        return image_paths(file, self.formats, record_confidence=self.record_confidence)


@dataclass(frozen=True)
class Left:
    """What is left to do.

    Attributes:
        stems: Source name -> stem, of the images to label.
        earlier: Source name -> entry, of those among them that are labelled again; they keep stem and split.
    """

    stems: dict[str, str]
    earlier: dict[str, Entry]

    def of(self, names: AbstractSet[str]) -> Left:
        """What is left of these images."""
        return Left({name: stem for name, stem in self.stems.items() if name in names}, self.earlier)


def what_is_left(
    images: Sequence[SourceImage], limit: int | None, journal: Journal, output: Path, per_image: PerImage
) -> Left:
    """Compare the input and the dataset with the journal; files that are missing are written again from it.

    Labelled again are images that changed, and those whose files a run was about to write when it ended. Label files
    that somebody edited are not touched: such an image counts as finished.

    Args:
        images: The whole input, sorted.
        limit: How many of them, from the front, are to be labelled.
        journal: Of earlier runs.
        output: The dataset.
        per_image: What is written of each image.
    """
    wanted = images[:limit]
    remove_leftovers(journal, output, per_image)
    outdated = [image for image in wanted if image.name in journal and _is_outdated(image, journal, output, per_image)]
    earlier = {image.name: journal[image.name] for image in outdated}
    for source, entry in journal.entries():
        if source in earlier:
            continue
        if _is_placed(entry, output):
            restore(journal, source, output, per_image)
        else:
            journal.forget(source)
    return Left(_stems(wanted, earlier, journal, output), earlier)


def _stems(wanted: Sequence[SourceImage], earlier: dict[str, Entry], journal: Journal, output: Path) -> dict[str, str]:
    """A stem for each image to label; what somebody put into the dataset keeps its own."""
    taken = Taken(Path(entry.file).stem for _, entry in journal.entries())
    for path in output.glob("*/images/*"):
        taken.add(path.stem)
    stems = {name: Path(entry.file).stem for name, entry in earlier.items()}
    for image in wanted:
        if image.name not in journal:
            stems[image.name] = taken.free(image.stem)
    return stems


def remove_leftovers(journal: Journal, output: Path, per_image: PerImage) -> None:
    """Take away what a run that was killed had written of images that it did not finish."""
    known = {(entry.split, Path(entry.file).stem) for _, entry in journal.entries()}
    files = {(entry.split, entry.file) for _, entry in journal.entries()}
    for split, stem in journal.pending.values():
        if (split, stem) not in known:
            images = [f"images/{path.name}" for path in (output / split / "images").glob(f"{glob.escape(stem)}.*")]
            folder.remove_files(output / split, [*images, *per_image.paths(f"{stem}.any")])
    for split, file in journal.superseded:
        if (split, file) not in files:
            folder.remove_files(output / split, [f"images/{file}"])


def _is_outdated(image: SourceImage, journal: Journal, output: Path, per_image: PerImage) -> bool:
    entry = journal[image.name]
    if image.name in journal.pending:
        return True
    if _is_unchanged(image, entry, journal) and _is_placed(entry, output):
        return False
    if (edited := edited_file(journal.read(image.name), output, per_image)) is None:
        return True
    if not _is_placed(entry, output):
        _put_back(image, entry, output)
    logger.warning("%s or its copy has changed, but %s was edited since: all is left as it is", image.name, edited)
    return False


def _put_back(image: SourceImage, entry: Entry, output: Path) -> None:
    """Copy an image into the dataset again."""
    with contextlib.suppress(ImageError):
        pixels, copied = load_image(image.path), folder.is_copied(image)
        name = folder.image_name(image, Path(entry.file).stem, copied=copied)
        folder.place_image(image, name, None if copied else pixels, output / entry.split)


def edited_file(record: ImageRecord, output: Path, per_image: PerImage) -> Path | None:
    """A file of an image that holds something other than a run has written."""
    for name, content in per_image.files(record).items():
        path = output / record["split"] / name
        if path.exists() and path.read_bytes() != content:
            return path
    return None


def _is_unchanged(image: SourceImage, entry: Entry, journal: Journal) -> bool:
    try:
        status = image.path.stat()
        if status.st_size != entry.size:
            return False
        if status.st_mtime_ns == entry.mtime_ns:
            return True
        with image.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == journal.read(image.name)["sha256"]
    except OSError:
        # What was finished of it is worth more than what can no longer be read.
        return True


def _is_placed(entry: Entry, output: Path) -> bool:
    return (output / entry.split / "images" / entry.file).exists()


def restore(journal: Journal, source: str, output: Path, per_image: PerImage) -> None:
    """Write label files of a finished image that are missing."""
    entry = journal[source]
    split_folder = output / entry.split
    missing = [name for name in per_image.paths(entry.file) if not (split_folder / name).exists()]
    if missing:
        record = journal.read(source)
        contents = per_image.files(record)
        # Confidences beside labels that somebody edited would not belong to their lines.
        is_edited = edited_file(record, output, per_image) is not None
        kept = [name for name in missing if not (is_edited and Path(name).name.startswith(CONFIDENCE_PREFIX))]
        folder.write_files(split_folder, {name: contents[name] for name in kept})
