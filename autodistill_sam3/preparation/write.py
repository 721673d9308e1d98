"""Kept items -> files and journal lines, and away with those that are kept no longer."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from autodistill_sam3.errors import ImageError, OutputFolderError
from autodistill_sam3.exchange.dataset import DatasetImage, DatasetObject
from autodistill_sam3.labeling import folder
from autodistill_sam3.labeling.journal import Journal
from autodistill_sam3.labeling.records import Annotation, ImageRecord
from autodistill_sam3.labeling.resume import PerImage, edited_file, remove_leftovers, restore
from autodistill_sam3.preparation.choose import Candidate
from autodistill_sam3.preparation.frames import Pixels
from autodistill_sam3.preparation.items import items_of, objects_in, render
from autodistill_sam3.preparation.measure import read_pixels
from autodistill_sam3.recipe import Recipe
from autodistill_sam3.whole_files import replacing


class PreparedRecord(ImageRecord):
    """One finished item; `labels_sha256` is of the objects of its image, which it was made from."""

    labels_sha256: str


@dataclass(frozen=True, eq=False)
class Work:
    """Items of one image that are to be written."""

    image: DatasetImage
    objects: Sequence[DatasetObject]
    kept: Sequence[Candidate]


@dataclass(frozen=True, eq=False)
class Prepared:
    """An item as it is written: its record, and its files by their path in the split's folder."""

    record: PreparedRecord
    files: dict[str, bytes]


def prepare(dataset: Path, work: Work, recipe: Recipe, per_image: PerImage) -> list[Prepared]:
    """Make the files of items.

    Raises:
        ImageError: The image cannot be read, or is not the one that was measured.
    """
    place = dataset / work.image.path
    try:
        content = place.read_bytes()
    except OSError as error:
        raise ImageError(f"Expected an image, but the file cannot be read: {error}") from error
    measured = work.kept[0].image
    if hashlib.sha256(content).hexdigest() != measured.sha256:
        raise ImageError("it changed while it was prepared; the same command prepares it again")
    pixels = None if measured.is_copied else read_pixels(place, work.image)
    items = {item.number: item for item in items_of(work.image, work.objects, recipe)}
    prepared = []
    for one in work.kept:
        item = items[one.item.number]
        shown = objects_in(item, work.objects, recipe)
        own = None if item.own is None else shown.found[item.own].mask
        image_file = content if pixels is None else png_of(render(pixels, item.frame, recipe, own))
        record = _record_of(one, item.frame.item_wh, shown.annotations(work.objects, item.frame.item_wh))
        prepared.append(Prepared(record, {f"images/{one.file}": image_file, **per_image.files(record)}))
    return prepared


def png_of(pixels: Pixels) -> bytes:
    """RGB or RGBA pixels as a lossless PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write(output: Path, journal: Journal, prepared: Sequence[Prepared]) -> None:
    """Write items, each whole; then their lines in the journal, which are waited for."""
    records = [one.record for one in prepared]
    journal.begin([(record["source"], record["split"], Path(record["file"]).stem) for record in records])
    for one in prepared:
        folder.write_files(output / one.record["split"], one.files)
    for record in records:
        journal.append(record, wait=False)
    journal.wait()


def remove_outdated(output: Path, journal: Journal, kept: Mapping[str, Candidate], per_image: PerImage) -> Journal:
    """Remove what an earlier run wrote and this one would not, and write again what somebody took away.

    Returns:
        The journal of what is left.

    Raises:
        OutputFolderError: Labels that would be removed were edited.
    """
    remove_leftovers(journal, output, per_image)
    outdated = []
    for record in journal.records():
        is_placed = (output / record["split"] / "images" / record["file"]).exists()
        if is_placed and _is_as_kept(record, kept.get(record["source"])):
            restore(journal, record["source"], output, per_image)
        else:
            _check_not_edited(record, output, per_image)
            outdated.append(record["source"])
            names = [f"images/{record['file']}", *per_image.paths(record["file"])]
            folder.remove_files(output / record["split"], names)
    return _without(journal, frozenset(outdated)) if outdated else journal


def _record_of(one: Candidate, item_wh: tuple[int, int], annotations: list[Annotation]) -> PreparedRecord:
    return {
        "source": one.source,
        "file": one.file,
        "split": one.split,
        "width": item_wh[0],
        "height": item_wh[1],
        "annotations": annotations,
        "removed": dict(one.item.removed),
        "phash": one.item.phash,
        "sha256": one.image.sha256,
        "size": one.image.size,
        "mtime_ns": one.image.mtime_ns,
        "labels_sha256": one.image.labels_sha256,
    }


def _is_as_kept(record: ImageRecord, one: Candidate | None) -> bool:
    return one is not None and (record["split"], record["file"], record.get("sha256"), record.get("labels_sha256")) == (
        one.split,
        one.file,
        one.image.sha256,
        one.image.labels_sha256,
    )


def _check_not_edited(record: ImageRecord, output: Path, per_image: PerImage) -> None:
    if (edited := edited_file(record, output, per_image)) is not None:
        raise OutputFolderError(
            f"{edited} was changed since it was written, and what it was made of changed, too. Move it elsewhere to go "
            "on, or pass overwrite=True (--overwrite) to start anew."
        )


def _without(journal: Journal, sources: Collection[str]) -> Journal:
    """A journal without the lines of these items."""
    with journal.path.open("rb") as lines, replacing(journal.path, "wb") as file:
        file.writelines(line for line in lines if json.loads(line).get("source") not in sources)
    return Journal(journal.path)
