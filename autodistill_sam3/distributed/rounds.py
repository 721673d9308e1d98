"""The shards of a dataset on disk: who cuts the input, where each shard lies, and what is finished.

OUTPUT/shards/round.json                 how the input was cut, and into how many shards
OUTPUT/shards/00003-of-00016.jsonl       the images of a shard, one line each
OUTPUT/shards/00003-of-00016.part/       a labelled folder that a worker is at, or was when it ended
OUTPUT/shards/00003-of-00016/            the same folder, complete

The input is listed once, by whoever comes first, so that all shards are cut from one list even if images are added
while they are labelled. `merge` removes the folder; images that came later belong to the next round.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autodistill_sam3.errors import OutputFolderError, SettingError
from autodistill_sam3.labeling import LabelingPlan, find_images, folder
from autodistill_sam3.labeling.inputs import searched_folder
from autodistill_sam3.labeling.journal import Journal
from autodistill_sam3.labeling.names import SourceImage
from autodistill_sam3.labeling.resume import PerImage, what_is_left
from autodistill_sam3.labeling.writing import writing
from autodistill_sam3.layout import COCO, JOURNAL, RUN, SHARDS
from autodistill_sam3.whole_files import PART, replacing

logger = logging.getLogger("autodistill_sam3")

_ROUND = "round.json"
# How long a job waits where another run holds the output and has not begun to cut shards.
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Shard:
    """A stretch of the input.

    Attributes:
        index: From 1 to the number of shards.
        count: How many shards there are.
        left: How many images of it are to be labelled.
        place: Where it lies once it is complete.
    """

    index: int
    count: int
    left: int
    place: Path

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.index}/{self.count}"

    @property
    def part(self) -> Path:
        """Where it is written."""
        return self.place.with_name(f"{self.place.name}.part")

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to do."""
        return not self.left or self.place.is_dir()

    def images(self) -> Iterator[tuple[SourceImage, bool]]:
        """Its images, sorted by name, each with whether it is to be labelled."""
        with self.place.with_name(f"{self.place.name}.jsonl").open(encoding="utf-8") as file:
            for line in file:
                path, name, stem, group, is_left = json.loads(line)
                yield SourceImage(Path(path), name, stem, group), is_left


@dataclass(frozen=True)
class Round:
    """How an input was cut.

    Attributes:
        output: The dataset that the shards become.
        left: Per shard, how many images are to be labelled.
        images_sha256: Of the names of all images.
        root: What relative names are relative to.
        plot: Whether review sheets are wanted.
    """

    output: Path
    left: tuple[int, ...]
    images_sha256: str
    root: Path
    plot: bool

    @property
    def shards(self) -> list[Shard]:
        """All of them."""
        return [self.shard(index) for index in range(1, len(self.left) + 1)]

    def shard(self, index: int) -> Shard:
        """One of them, counted from 1."""
        count = len(self.left)
        return Shard(index, count, self.left[index - 1], self.output / SHARDS / f"{index:05d}-of-{count:05d}")

    def settings_of(self, shard: Shard, settings: dict[str, Any]) -> dict[str, Any]:
        """What `run.json` of a shard has to say, given the settings of the dataset."""
        return settings | {"shard": shard.name, "images_sha256": self.images_sha256}


def open_round(plan: LabelingPlan, count: int | None = None, *, workers: int = 1) -> Round | None:
    """The round that is at work in the plan's output, or a new one.

    Args:
        plan: What to label and how.
        count: The number of shards; None takes that of the round that is there, or without one what suits the workers.
        workers: How many there are.

    Returns:
        None if there is nothing left to label.

    Raises:
        InputFolderError: There is nothing to label.
        OutputFolderError: The output is somebody else's, was made with other settings, or another run is at work in it.
        SettingError: The input was cut into another number of shards.
    """
    settings = json.loads(json.dumps(plan.as_run()["settings"]))
    deadline = time.monotonic() + _PATIENCE_S
    while (found := None if plan.overwrite else read_round(plan.output)) is None:
        try:
            return _new_round(plan, count, workers)
        except folder.BusyError:
            # The planner of another job, or an ordinary run.
            if time.monotonic() > deadline and not (plan.output / SHARDS).exists():
                raise
            time.sleep(0.2)
    run = folder.read_run(plan.output)
    if run is not None:
        folder.check_settings(plan.output, run, settings)
    if count is not None and count != len(found.left):
        raise SettingError(
            f"Expected one of the {len(found.left)} shards that {plan.output} was cut into, received a shard of "
            f"{count}. Finish and merge those, or pass overwrite=True (--overwrite) to a run without shards."
        )
    return found


def read_round(output: Path) -> Round | None:
    """The round in a dataset; None if there is none, or if it is not cut yet."""
    content = _content(output)
    if content is None or content["state"] != "ready":
        return None
    left = tuple(content["left"])
    return Round(output, left, content["images_sha256"], Path(content["root"]), content["plot"])


def is_outdated(found: Round, plan: LabelingPlan) -> bool:
    """Whether the input has other images by now."""
    images = find_images(plan.source, plan.extension, recursive=plan.recursive)[: plan.limit]
    return _sha256_of(images) != found.images_sha256


def suitable_count(batches: int, workers: int) -> int:
    """How many shards keep workers of unequal speed at work until the end, and still cost little each.

    Example:
        >>> suitable_count(batches=10, workers=2), suitable_count(batches=125_000, workers=8)
        (8, 489)
    """
    return max(1, min(batches, max(4 * workers, -(-batches // 256))))


def remove_round(output: Path) -> None:
    """Remove all shards; if that is interrupted, the next run or merge completes it."""
    place = output / SHARDS
    if (content := _content(output)) is None:
        return
    _write(place, content | {"state": "merged"})
    for path in place.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _ROUND:
            path.unlink()
    shutil.rmtree(place)


def is_merged(output: Path) -> bool:
    """Whether the shards that are still there are in the dataset already."""
    content = _content(output)
    return content is not None and content["state"] == "merged"


def _new_round(plan: LabelingPlan, count: int | None, workers: int) -> Round | None:
    folder.check_apart(plan.output, searched_folder(plan.source), ())
    is_new = folder.read_run(plan.output) is None
    # Claimed first, so that of many jobs that start together one alone lists the input.
    with folder.claimed(plan.output, plan.as_run(), overwrite=plan.overwrite) as run:
        # Another job may have been first.
        if (found := read_round(plan.output)) is not None:
            return found
        _begin(plan.output)
        try:
            with writing(plan):
                return _cut_input(plan, run, count, workers)
        except BaseException:
            # A folder that nothing came of must not look like one that shards are at work in.
            remove_round(plan.output)
            if is_new:
                (plan.output / RUN).unlink()
            raise


def _cut_input(plan: LabelingPlan, run: dict[str, Any], count: int | None, workers: int) -> Round | None:
    images = find_images(plan.source, plan.extension, recursive=plan.recursive)
    folder.check_apart(plan.output, searched_folder(plan.source), images)
    per_image = PerImage(tuple(run["writes"]["formats"]), run["writes"]["record_confidence"], plan.classes)
    journal = Journal(plan.output.resolve() / JOURNAL)
    folder.check_not_edited(plan.output, [f"{split}/{COCO}" for split in plan.splits], journal)
    left = what_is_left(images, plan.limit, journal, plan.output, per_image)
    if not left.stems:
        remove_round(plan.output)
        return None
    wanted = images[: plan.limit]
    batches = -(-len(wanted) // plan.batch_size)
    return _cut(plan, wanted, left.stems.keys(), count or suitable_count(batches, workers))


def _begin(output: Path) -> None:
    """Make the folder ours, with a file that says so."""
    place = output / SHARDS
    if place.exists() and _content(output) is None and any(path.name != PART for path in place.iterdir()):
        raise OutputFolderError(f"Expected no folder of others at {place}, received one. Move it elsewhere.")
    remove_round(output)
    place.mkdir(exist_ok=True)
    _write(place, {"state": "planning"})


def _cut(plan: LabelingPlan, images: Sequence[SourceImage], left: Any, count: int) -> Round:
    place, digest, lefts = plan.output / SHARDS, _sha256_of(images), []
    batches = -(-len(images) // plan.batch_size)
    for index in range(1, count + 1):
        start, stop = (batches * edge // count * plan.batch_size for edge in (index - 1, index))
        with replacing(place / f"{index:05d}-of-{count:05d}.jsonl", "w") as file:
            for image in images[start:stop]:
                path = os.path.abspath(image.path)  # noqa: PTH100  # resolving would follow links
                file.write(json.dumps([path, image.name, image.stem, image.group, image.name in left]) + "\n")
        lefts.append(sum(image.name in left for image in images[start:stop]))
    content = {"left": lefts, "images_sha256": digest, "root": str(Path.cwd()), "plot": plan.plot}
    _write(place, content | {"state": "ready"})
    logger.info("%d images to label, in %d shards", sum(lefts), count)
    return Round(plan.output, tuple(lefts), digest, Path.cwd(), plan.plot)


def _sha256_of(images: Sequence[SourceImage]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.name}\0".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _content(output: Path) -> dict[str, Any] | None:
    path = output / SHARDS / _ROUND
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "state" in content else None


def _write(place: Path, content: dict[str, Any]) -> None:
    with replacing(place / _ROUND, "w") as file:
        json.dump(content, file)
