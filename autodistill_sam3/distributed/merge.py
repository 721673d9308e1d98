"""Shards -> the dataset that one run over the whole input would have written, byte for byte."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import supervision as sv
from tqdm import tqdm

from autodistill_sam3.distributed.rounds import Round, Shard, is_merged, read_round, remove_round
from autodistill_sam3.distributed.times import write_merged_times
from autodistill_sam3.errors import AutodistillSAM3Error, LabelingError, OutputFolderError
from autodistill_sam3.labeling import SplitRule, folder
from autodistill_sam3.labeling.finish import open_dataset, write_pages, write_summaries
from autodistill_sam3.labeling.journal import Journal
from autodistill_sam3.labeling.names import SourceImage
from autodistill_sam3.labeling.records import SPLITS, ImageRecord, Split
from autodistill_sam3.labeling.resume import Left, PerImage, what_is_left
from autodistill_sam3.labeling.split import NearDuplicates
from autodistill_sam3.layout import COCO, JOURNAL, QUARANTINE
from autodistill_sam3.whole_files import PART

logger = logging.getLogger("autodistill_sam3")

# Images whose journal lines wait for the disk together.
_CHUNK = 256


def merge_shards(output: str | Path, *, plot: bool = False, progress: bool = True) -> sv.DetectionDataset:
    """Put the shards of a dataset together.

    What comes out is what one run over the whole input would have written, whatever the number of shards; such a run
    finds all of it finished, and goes on with images that are new. Images and label files are hard links to those of
    the shards where the file system has them, so that a merge that is killed can be repeated; the shards are removed
    at the end. Which split near-duplicates go to is decided here, in the order of the whole input.

    Args:
        output: The dataset that was labelled in shards.
        plot: Write review sheets, also if the shards were not asked for them.
        progress: Show a progress bar.

    Returns:
        The dataset; annotations are read from the disk when they are asked for.

    Raises:
        OutputFolderError: It is no dataset of this package, another run is at work in it, or shards are missing, still
            being written, or made with other settings.
        LabelingError: Writing failed.
    """
    place = Path(output)
    run = folder.read_run(place)
    if run is None:
        raise OutputFolderError(f"Expected a dataset that was labelled in shards, received {output}. Label first.")
    with folder.claimed(place, run, overwrite=False) as run, _writing(place):
        found = read_round(place)
        journal = Journal(place.resolve() / JOURNAL)
        classes = tuple(run["settings"]["classes"])
        if found is None or is_merged(place):
            remove_round(place)
            logger.info("Nothing to merge in %s", place)
            return open_dataset(place, journal, classes)
        _check_shards(found, run)
        _Merge(found, run, journal).merge(plot=plot or found.plot, progress=progress)
        remove_round(place)
    return open_dataset(place, journal, classes)


@dataclass(frozen=True)
class _Found:
    """An image that a shard has finished."""

    image: SourceImage
    record: ImageRecord
    shard: Shard

    @property
    def split_folder(self) -> Path:
        """Where its files are."""
        return self.shard.place / self.record["split"]


class _Merge:
    """One merge, or the rest of one."""

    def __init__(self, round_: Round, run: dict[str, Any], journal: Journal) -> None:
        settings = run["settings"]
        self._round, self._output, self._journal = round_, round_.output, journal
        formats, confidence = tuple(run["writes"]["formats"]), run["writes"]["record_confidence"]
        self._per_image = PerImage(formats, confidence, tuple(settings["classes"]))
        self._source = settings["source"]
        self._rule = SplitRule(**settings["split"])
        self._splits: Sequence[Split] = [split for split in SPLITS if split != "test" or self._rule.test_share]
        self._groups: bool = settings["group_near_duplicates"]

    def merge(self, *, plot: bool, progress: bool) -> None:
        """Do it."""
        output, journal, classes = self._output, self._journal, self._per_image.classes
        folder.check_not_edited(output, [f"{split}/{COCO}" for split in self._splits], journal)
        left = what_is_left(self._images(), None, journal, output, self._per_image)
        folder.make_splits(output, self._splits)
        folder.write_data_yaml(output, self._splits, classes)
        (output / QUARANTINE).unlink(missing_ok=True)
        with tqdm(total=sum(self._round.left), desc="Merging", unit="image", disable=not progress) as bar:
            near = self._known(left)
            for shard in self._round.shards:
                for item in folder.read_quarantine(shard.place):
                    folder.append_quarantine(output, item["source"], item["reason"])
                for chunk in _chunks(self._finished(shard)):
                    self._take([item for item in chunk if item.image.name in left.stems], left, near)
                    bar.update(len(chunk))
        for source, entry in left.earlier.items():
            # Its copy was gone, and it could not be labelled again.
            if not (output / entry.split / "images" / journal[source].file).exists():
                journal.forget(source)
        root = self._round.root if self._source is None else Path(self._source)
        if left_out := len(folder.read_quarantine(output)):
            logger.warning("%d images are left out; %s says why", left_out, output / QUARANTINE)
        report = write_summaries(output, journal, self._per_image, self._splits, root)
        if plot:
            write_pages(output, journal, classes, report)
        write_merged_times(output, [shard.place for shard in self._round.shards if shard.left])

    def _images(self) -> list[SourceImage]:
        return [image for shard in self._round.shards for image, _ in shard.images()]

    def _known(self, left: Left) -> NearDuplicates[Split]:
        near: NearDuplicates[Split] = NearDuplicates()
        for source, entry in self._journal.in_order():
            if self._groups and source not in left.earlier:
                near.add(entry.phash, entry.split)
        return near

    def _finished(self, shard: Shard) -> Iterator[_Found]:
        """What a shard has, in the order of the input."""
        if not shard.left:
            return
        journal = Journal(shard.place / JOURNAL)
        for image, is_left in shard.images():
            if is_left and image.name in journal:
                yield _Found(image, journal.read(image.name), shard)

    def _take(self, found: Sequence[_Found], left: Left, near: NearDuplicates[Split]) -> None:
        """Move some images into the dataset, then note them."""
        if not found:
            return
        records = [self._placed(item, left, near) for item in found]
        names = [(record["source"], record["split"], Path(record["file"]).stem) for record in records]
        self._journal.begin(names)
        for item, record in zip(found, records, strict=True):
            self._link(item, record)
        for record in records:
            self._journal.append(record, wait=False)
        self._journal.wait()
        for record in records:
            earlier = left.earlier.get(record["source"])
            if earlier and earlier.file != record["file"]:
                folder.remove_files(self._output / record["split"], [f"images/{earlier.file}"])

    def _placed(self, item: _Found, left: Left, near: NearDuplicates[Split]) -> ImageRecord:
        """The record with its split and name in the dataset."""
        record, name = item.record, item.image.name
        earlier = left.earlier.get(name)
        twin = near.earliest(record["phash"]) if self._groups else None
        split = earlier.split if earlier else twin or self._rule.split_of(item.image)
        if self._groups:
            near.add(record["phash"], split)
        file = left.stems[name] + Path(record["file"]).suffix
        return record | {"split": split, "file": file}

    def _link(self, item: _Found, record: ImageRecord) -> None:
        target = self._output / record["split"]
        _link(item.split_folder / "images" / item.record["file"], target / "images" / record["file"])
        paths = self._per_image.paths(record["file"])
        sources = [item.split_folder / path for path in paths]
        # Label files may say their image's name, and formats may have been added since.
        if record["file"] == item.record["file"] and all(source.exists() for source in sources):
            for source, path in zip(sources, paths, strict=True):
                (target / path).parent.mkdir(exist_ok=True)
                _link(source, target / path)
        else:
            folder.write_files(target, self._per_image.files(record))


def _check_shards(found: Round, run: dict[str, Any]) -> None:
    missing = [shard for shard in found.shards if not shard.is_complete]
    if missing:
        names = ", ".join(_described(shard) for shard in missing[:20]) + (", ..." if len(missing) > 20 else "")
        raise OutputFolderError(
            f"Expected {len(found.left)} finished shards in {found.output}, but {len(missing)} are not: {names}. "
            f"Run `label` with --shard {missing[0].name} and so on; each goes on where it was."
        )
    for shard in found.shards:
        if not shard.left:
            continue
        wanted = found.settings_of(shard, run["settings"])
        if difference := folder.settings_difference(folder.read_run(shard.place) or {}, wanted):
            raise OutputFolderError(
                f"Shard {shard.name} in {shard.place} was made with other settings than the dataset:\n{difference}\n"
                f"Remove it and label it again with --shard {shard.name}."
            )


def _described(shard: Shard) -> str:
    if not shard.part.exists():
        return shard.name
    return f"{shard.name} ({'still being written' if folder.is_busy(shard.part) else 'begun'})"


def _chunks(found: Iterator[_Found]) -> Iterator[list[_Found]]:
    chunk: list[_Found] = []
    for item in found:
        chunk.append(item)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    yield chunk


def _link(source: Path, target: Path) -> None:
    """Put a file that is complete into place; what is there, from a merge that was killed, is replaced."""
    part = target.with_name(PART)
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:
        # A file system without hard links.
        shutil.copyfile(source, part)
    part.replace(target)
    # Where both names were links to one file already, the part stays.
    part.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        yield
    except AutodistillSAM3Error:
        raise
    except OSError as error:
        raise LabelingError(
            f"Cannot merge into {output}: {error}. Nothing is lost; the same command goes on."
        ) from error
