"""One shard: labelled like any folder, in a place of its own, and moved to its name when it is complete."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import supervision as sv

from autodistill_sam3.distributed.rounds import Round, Shard, open_round
from autodistill_sam3.errors import SettingError
from autodistill_sam3.labeling import LabelingPlan, label_images
from autodistill_sam3.labeling.attempts import Attempts
from autodistill_sam3.labeling.batches import PredictBatch
from autodistill_sam3.labeling.encoding import Processes
from autodistill_sam3.labeling.finish import open_dataset
from autodistill_sam3.labeling.folder import read_run
from autodistill_sam3.labeling.formats import Format
from autodistill_sam3.labeling.journal import Journal
from autodistill_sam3.labeling.portion import Portion
from autodistill_sam3.layout import JOURNAL


@dataclass(frozen=True)
class Labeler:
    """A model at work.

    Attributes:
        predict_batch: As `label_images` takes it.
        to_detections: As `label_images` takes it.
        settings: What decides which labels come out, to be compared with those of the plan; None where they must be
            equal.
        processes: To encode in, from one shard to the next.
    """

    predict_batch: PredictBatch
    to_detections: Callable[[Any], sv.Detections] | None = None
    settings: dict[str, Any] | None = None
    processes: Processes = field(default_factory=Processes)


def parse_shard(text: str) -> tuple[int, int]:
    """Which shard of how many.

    Raises:
        SettingError: It is something else.

    Example:
        >>> parse_shard("3/16")
        (3, 16)
    """
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= index <= count:
        raise SettingError(f"Expected a shard such as '1/16' up to '16/16', received {text!r}")
    return index, count


def label_shard(plan: LabelingPlan, shard: tuple[int, int], labeler: Labeler) -> sv.DetectionDataset:
    """Label one shard of an input, as a job of its own; :func:`merge_shards` puts all of them together.

    Args:
        plan: What to label and how to write it; the same for all shards.
        shard: Which one, counted from 1, of how many.
        labeler: The model.

    Returns:
        The images of this shard; none if an earlier run has finished them.

    Raises:
        SettingError: `plan.overwrite`, which would remove what other jobs do, or another number of shards than before.
        LabelingError, KeyboardInterrupt: As `label_images` raises them.
    """
    if plan.overwrite:
        raise SettingError("Expected no overwrite (--overwrite) with a shard: every job would remove the others' work")
    index, count = shard
    found = open_round(plan, count)
    if found is None or not found.shard(index).left:
        return sv.DetectionDataset(classes=list(plan.classes), images=[], annotations={})
    ours = found.shard(index)
    with labeler.processes:
        work_on(plan, found, ours, labeler)
    return open_dataset(ours.place, Journal(ours.place.resolve() / JOURNAL), plan.classes)


def work_on(
    plan: LabelingPlan,
    round_: Round,
    shard: Shard,
    labeler: Labeler,
    *,
    is_supervised: bool = False,
    on_progress: Callable[[int], None] | None = None,
    workers: int = 1,
) -> None:
    """Label what is left of a shard, and move it into place.

    Args:
        plan: Of the whole dataset.
        round_: The shards.
        shard: The one to label.
        labeler: The model.
        is_supervised: Whether somebody counts deaths, so that images that kill their worker are found out.
        on_progress: Called with the number of its images that are finished.
        workers: How many share this machine.
    """
    if shard.is_complete:
        return
    images = list(shard.images())
    portion = Portion(
        images=[image for image, _ in images],
        left={image.name for image, is_left in images if is_left},
        attempts=partial(Attempts, shard.part) if is_supervised else None,
        on_progress=on_progress,
        processes=labeler.processes,
        workers=workers,
    )
    label_images(_plan_of(plan, round_, shard), labeler.predict_batch, labeler.to_detections, portion=portion)
    # Somebody else may have been at it, too, and faster.
    with contextlib.suppress(OSError):
        shard.part.rename(shard.place)
    if not shard.is_complete:
        shard.part.rename(shard.place)


def _plan_of(plan: LabelingPlan, round_: Round, shard: Shard) -> LabelingPlan:
    """The plan for a shard: no file of the whole dataset, which the merge writes."""
    writes = (read_run(plan.output) or {}).get("writes", {"formats": plan.formats, "record_confidence": False})
    formats: tuple[Format, ...] = tuple(name for name in writes["formats"] if name != "coco") or ("coco",)
    return replace(
        plan,
        output=shard.part,
        settings=round_.settings_of(shard, plan.settings),
        limit=None,
        formats=formats,
        record_confidence=writes["record_confidence"],
        plot=False,
        overwrite=False,
    )
