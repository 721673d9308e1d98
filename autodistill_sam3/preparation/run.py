"""Three passes over a labelled folder: measure, choose, write. Each goes on where an earlier run was."""

from __future__ import annotations

import contextlib
import logging
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from autodistill_sam3.errors import ImageError, InputFolderError, LabelingError, SettingError
from autodistill_sam3.exchange.dataset import DatasetImage, DatasetObject, LabelledFolder
from autodistill_sam3.labeling import folder
from autodistill_sam3.labeling.finish import write_pages, write_summaries
from autodistill_sam3.labeling.interrupt import Interruption, interruptible
from autodistill_sam3.labeling.journal import Journal
from autodistill_sam3.labeling.records import SPLITS, Split
from autodistill_sam3.labeling.resume import PerImage
from autodistill_sam3.labeling.versions import installed_versions
from autodistill_sam3.labeling.writing import writing
from autodistill_sam3.layout import COCO, DROPPED, JOURNAL, MEASURED, QUARANTINE, RUN
from autodistill_sam3.preparation.ahead import in_threads
from autodistill_sam3.preparation.choose import Candidate, Choice, candidates, choose
from autodistill_sam3.preparation.measure import MeasuredImage, Measurements, labels_digest, measure
from autodistill_sam3.preparation.result import PreparationReport, counts_by_split
from autodistill_sam3.preparation.sheets import write_before_after
from autodistill_sam3.preparation.write import Prepared, Work, prepare, remove_outdated, write
from autodistill_sam3.recipe import Recipe
from autodistill_sam3.whole_files import PART, replacing

logger = logging.getLogger("autodistill_sam3")

# Those of which another version may give other pixels, masks or hashes.
_DECIDING_PACKAGES = ("autodistill-grounded-sam3", "imagehash")
_PACKAGES = ("numpy", "pillow", "supervision")
# Items of one image that are held at once.
_ITEMS_AT_ONCE = 32


def prepare_dataset(
    dataset: Path,
    output: Path,
    recipe: Recipe,
    *,
    plot: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> PreparationReport:
    """Make training-ready data of a labelled folder: a labelled folder again, with the same splits.

    The result is a function of the labelled folder and the recipe. Killed at any moment, the same call goes on and ends
    with the same bytes. Where the labelled folder has changed since, what changed is prepared again, and what would no
    longer be there is removed. Images that cannot be read go to `quarantine.jsonl` and the run goes on.

    Args:
        dataset: The labelled folder, with `_annotations.coco.json` in its splits.
        output: The folder to write, apart from it.
        recipe: What to do.
        plot: Write `review/`, with sheets of items before and after.
        overwrite: Start anew even if there is an earlier run's dataset.
        progress: Show a progress bar.

    Returns:
        What was kept, dropped and removed.

    Raises:
        SettingError: The recipe asks for nothing, or for cut-outs of objects without masks.
        InputFolderError: There is no labelled folder, or no image in it.
        OutputFolderError: The output folder may not be written to, or holds what was made with other settings.
        LabelingError: Writing failed, or a file of either folder is damaged.
        KeyboardInterrupt: After the images in flight, if Ctrl-C was pressed.
    """
    recipe.check_has_steps()
    source = LabelledFolder(dataset)
    _check_source(source, recipe)
    folder.check_apart(output, dataset, [])
    preparing = _Preparing(source, output, recipe, overwrite, progress)
    with folder.claimed(output, preparing.as_run(), overwrite=overwrite), writing(preparing):
        journal = preparing.begin()
        with interruptible() as interruption:
            measured = preparing.measure(interruption)
            choice = choose(candidates(measured, source.classes), recipe)
            journal = remove_outdated(output, journal, {one.source: one for one in choice.kept}, preparing.per_image)
            preparing.write(journal, choice.kept, interruption)
        return PreparationReport.of(preparing.finish(journal, measured, choice, plot=plot))


def read_preparation(path: Path) -> tuple[Path, Recipe]:
    """What an earlier call of :func:`prepare_dataset` was asked to do.

    Args:
        path: The `run.json` of a prepared dataset, or its folder.

    Returns:
        The labelled folder and the recipe.

    Raises:
        SettingError: It is no prepared dataset's.
    """
    run = folder.read_run(path if path.is_dir() else path.parent)
    settings = {} if run is None or (path.is_file() and path.name != RUN) else run.get("settings")
    if not isinstance(settings, dict) or not {"prepared_from", "recipe"} <= settings.keys():
        raise SettingError(f"Expected a {RUN} that `preprocess` wrote, received {path}")
    return Path(settings["prepared_from"]), Recipe.from_mapping(settings["recipe"])


@dataclass
class _Preparing:
    """One run."""

    source: LabelledFolder
    output: Path
    recipe: Recipe
    overwrite: bool
    progress: bool

    def __post_init__(self) -> None:
        self.per_image = PerImage(("yolo", "coco"), False, tuple(self.source.classes))
        self._objects: Counter[tuple[int, Split]] = Counter()
        self._quarantined: set[str] = set()

    @property
    def splits(self) -> list[Split]:
        return list(self.source.images)

    def as_run(self) -> dict[str, Any]:
        """What `run.json` says."""
        return {
            "format": "autodistill_sam3",
            "settings": {
                "prepared_from": str(self.source.path.resolve()),
                "recipe": self.recipe.as_json(),
                "classes": self.source.classes,
                "splits": self.splits,
                "versions": installed_versions(_DECIDING_PACKAGES) | {"opencv": cv2.__version__},
            },
            "writes": {"formats": list(self.per_image.formats), "record_confidence": self.per_image.record_confidence},
            "provenance": {"versions": {"python": platform.python_version()} | installed_versions(_PACKAGES)},
        }

    def begin(self) -> Journal:
        """Clear away what a run that was killed left half done."""
        journal = Journal(self.output.resolve() / JOURNAL)
        folder.check_not_edited(self.output, [f"{split}/{COCO}" for split in self.splits], journal)
        for split in self.splits:
            folder.remove_files(self.output / split, [f"{kind}/{PART}" for kind in ("images", "labels")])
        folder.make_splits(self.output, self.splits)
        folder.write_data_yaml(self.output, self.splits, self.source.classes)
        # Images that failed before are tried again, so that what is in quarantine is what is wrong now.
        (self.output / QUARANTINE).unlink(missing_ok=True)
        return journal

    def measure(self, interruption: Interruption) -> list[tuple[Split, MeasuredImage]]:
        """Every image that can be read, ordered by split and name."""
        known = Measurements(self.output / MEASURED)
        found: dict[str, tuple[Split, MeasuredImage]] = {}
        total = sum(len(images) for images in self.source.images.values())
        with (
            self._bar("Measuring", total, "image") as bar,
            contextlib.closing(in_threads(partial(self._measured, known), self._all_images(), _pixels_of)) as outcomes,
        ):
            for image, measured in outcomes:
                if isinstance(measured, ImageError):
                    self._leave_out(image, measured)
                else:
                    if measured not in known:
                        known.add(measured)
                    found[image.path] = image.split, measured
                bar.update()
                interruption.check()
        return sorted(found.values(), key=lambda pair: (SPLITS.index(pair[0]), pair[1].path))

    def write(self, journal: Journal, kept: Sequence[Candidate], interruption: Interruption) -> None:
        """Write what is not in the journal yet."""
        with self._bar("Writing", len(kept), "item") as bar:
            bar.update(len(journal))
            with contextlib.closing(in_threads(self._prepared, self._works(journal, kept), _pixels_of)) as outcomes:
                for work, prepared in outcomes:
                    if isinstance(prepared, ImageError):
                        self._leave_out(work.image, prepared)
                    else:
                        write(self.output, journal, prepared)
                    bar.update(len(work.kept))
                    interruption.check()
        if self._quarantined:
            logger.warning("%d images are left out; %s says why", len(self._quarantined), self.output / QUARANTINE)

    def finish(
        self, journal: Journal, measured: Sequence[tuple[Split, MeasuredImage]], choice: Choice, *, plot: bool
    ) -> dict[str, Any]:
        """The files that need all images.

        Returns:
            The report.
        """
        with replacing(self.output / DROPPED, "w") as file:
            file.writelines(one.as_line() for one in choice.dropped)
        before: Counter[str] = Counter()
        for split, image in measured:
            before[split] += len(image.items)
        more = {
            "items_before": {split: before[split] for split in self.splits},
            "dropped": counts_by_split([(one.reason, one.candidate.split) for one in choice.dropped]),
            "items_by_class": self._by_class(
                Counter((one.item.class_id, one.split) for one in choice.kept if one.item.class_id is not None)
            ),
            "objects_before": self._by_class(self._objects),
        }
        report = write_summaries(self.output, journal, self.per_image, self.splits, None, more)
        if plot:
            write_pages(self.output, journal, self.source.classes, report)
            write_before_after(self.source, self.output, choice, self.recipe)
        return report

    def _by_class(self, counts: Mapping[tuple[int, Split], int]) -> dict[str, dict[Split, int]]:
        return {
            name: {split: count for split in self.splits if (count := counts.get((index, split)))}
            for index, name in enumerate(self.source.classes)
        }

    def _all_images(self) -> Iterator[tuple[DatasetImage, list[DatasetObject]]]:
        for split in self.splits:
            for image, objects in self.source.objects(split):
                self._objects.update((one.class_id, split) for one in objects)
                yield image, objects

    def _measured(
        self, known: Measurements, pair: tuple[DatasetImage, list[DatasetObject]]
    ) -> tuple[DatasetImage, MeasuredImage | ImageError]:
        image, objects = pair
        earlier = known.find(image, self.source.path / image.path, labels_digest(image, objects))
        if earlier is not None:
            return image, earlier
        try:
            return image, measure(self.source.path, image, objects, self.recipe)
        except ImageError as error:
            return image, error

    def _works(self, journal: Journal, kept: Iterable[Candidate]) -> Iterator[tuple[DatasetImage, Work]]:
        """What is left to write, some items of one image at a time."""
        left: dict[str, list[Candidate]] = {}
        for one in kept:
            if one.source not in journal:
                left.setdefault(one.image.path, []).append(one)
        for split in self.splits:
            for image, objects in self.source.objects(split):
                own = left.get(image.path, ())
                for start in range(0, len(own), _ITEMS_AT_ONCE):
                    yield image, Work(image, objects, own[start : start + _ITEMS_AT_ONCE])

    def _prepared(self, pair: tuple[DatasetImage, Work]) -> tuple[Work, list[Prepared] | ImageError]:
        try:
            return pair[1], prepare(self.source.path, pair[1], self.recipe, self.per_image)
        except ImageError as error:
            return pair[1], error

    def _leave_out(self, image: DatasetImage, error: ImageError) -> None:
        if image.path not in self._quarantined:
            self._quarantined.add(image.path)
            folder.append_quarantine(self.output, image.path, str(error))

    def _bar(self, what: str, total: int, unit: str) -> tqdm[Any]:
        return tqdm(total=total, desc=what, unit=unit, disable=not self.progress)


def _check_source(source: LabelledFolder, recipe: Recipe) -> None:
    images = [image.path for own in source.images.values() for image in own]
    if not images:
        raise InputFolderError(f"Expected a labelled folder with images, received none in {source.path}. Label some.")
    if twice := [path for path, count in Counter(images).items() if count > 1]:
        raise LabelingError(f"Expected each image once in {source.path}, received {twice[0]} twice")
    if recipe.items != "cutouts":
        return
    objects = (one for split in source.images for _, own in source.objects(split) for one in own)
    has_masks = [one.segmentation is not None for one in _up_to_a_mask(objects)]
    if has_masks and not has_masks[-1]:
        raise SettingError(
            f"Expected objects with masks for cut-outs, received boxes alone in {source.path}. Ask for crops, or label "
            "with a model that gives masks."
        )


def _up_to_a_mask(objects: Iterable[DatasetObject]) -> Iterator[DatasetObject]:
    for one in objects:
        yield one
        if one.segmentation is not None:
            return


def _pixels_of(pair: tuple[DatasetImage, object]) -> int:
    return pair[0].width * pair[0].height
