"""Chosen frames of tracked clips -> a labelled folder, by the writers of all others."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import supervision as sv
from PIL import Image

from autodistill_sam3.labeling import LabelingPlan, check_formats, label_known_images
from autodistill_sam3.layout import DATASET, FRAMES, TRACKS
from autodistill_sam3.video.clip import Frame
from autodistill_sam3.video.plan import TrackingPlan
from autodistill_sam3.video.reports import ClipReport
from autodistill_sam3.video.track_files import TrackFile
from autodistill_sam3.whole_files import replacing

# Images come in the order of their clips.
_OPEN_AT_ONCE = 2


def write_frames(folder: Path, frames: Iterable[Frame], mtime_ns: int) -> None:
    """Write frames as PNG, `000012.png` for the one with number 12.

    Args:
        folder: Where to.
        frames: One of them in memory at a time.
        mtime_ns: When they are said to have been changed: their clip's time, so that it is the same in every run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for frame in frames:
        path = folder / f"{frame.index:06d}.png"
        with replacing(path, "wb") as file:
            Image.fromarray(frame.image).save(file, format="PNG")
        os.utime(path, ns=(mtime_ns, mtime_ns))


def label_frames(
    plan: TrackingPlan,
    reports: Sequence[ClipReport],
    classes: Sequence[str],
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> sv.DetectionDataset:
    """Make a dataset of the chosen frames of all clips; see `label_known_images` for what it raises.

    Args:
        plan: What to write, and where.
        reports: Of the clips.
        classes: Class names.
        settings: What decided the tracks, as JSON values.
        provenance: Where they come from, as JSON values.
    """
    source = plan.output / FRAMES
    _remove_others(source, {report.name for report in reports if report.chosen})
    labeling = LabelingPlan(
        source=source,
        output=plan.output / DATASET,
        classes=tuple(classes),
        settings=dict(settings),
        provenance=dict(provenance),
        extension=".png",
        recursive=True,
        split=plan.split,
        formats=check_formats(plan.formats),
        record_confidence=plan.record_confidence,
        plot=plan.plot,
        progress=plan.progress,
    )
    return label_known_images(labeling, _Tracks(plan.output / TRACKS, classes))


class _Tracks:
    """The name of a frame's file -> its detections."""

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self._open = functools.lru_cache(_OPEN_AT_ONCE)(lambda name: TrackFile(folder / f"{name}.jsonl", classes))

    def __call__(self, name: str) -> sv.Detections:
        path = PurePosixPath(name)
        return self._open(path.parent.name).detections(int(path.stem))


def _remove_others(frames: Path, finished: set[str]) -> None:
    """Frames of clips that a run which was killed did not finish."""
    for folder in frames.iterdir():
        if folder.is_dir() and folder.name not in finished:
            shutil.rmtree(folder)
