"""What is known of each clip that was tracked, a file each: what makes a rerun pass it over, and what people read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autodistill_sam3.errors import LabelingError
from autodistill_sam3.layout import CLIPS
from autodistill_sam3.video.clip import SkippedFrame
from autodistill_sam3.video.find_clips import Stamp
from autodistill_sam3.whole_files import replacing


@dataclass(frozen=True)
class ClipReport:
    """A clip that was tracked.

    Attributes:
        name: What its results are called.
        source: The file or folder.
        stamp: What that contained.
        width: Of the frames, in pixels.
        height: Of the frames, in pixels.
        num_frames: Of the clip.
        frame_rate: Mean frames per second, if known.
        first_frame: Of those that were tracked.
        stop_frame: Behind the last of them.
        skipped: Those of them that could not be read.
        frames_with_objects: How many have any.
        tracks: Class -> number of tracks; one that changed its class counts as what it began as.
        chosen: Frames that became training images; None until they are there.
        left_out: How many were not chosen, by reason.
    """

    name: str
    source: str
    stamp: Stamp
    width: int
    height: int
    num_frames: int
    frame_rate: float | None
    first_frame: int
    stop_frame: int
    skipped: list[SkippedFrame]
    frames_with_objects: int
    tracks: dict[str, int]
    chosen: list[int] | None = None
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the frames."""
        return self.height, self.width


class ClipReports:
    """The reports in an output folder.

    Args:
        output: The folder; those of earlier runs are read.

    Raises:
        LabelingError: One is damaged.
    """

    def __init__(self, output: Path) -> None:
        self._folder = output / CLIPS
        self._folder.mkdir(exist_ok=True)
        found = (_read(path) for path in sorted(self._folder.glob("*.json")))
        self._of_source = {report.source: report for report in found}

    def __iter__(self) -> Iterator[ClipReport]:
        """In the order of their names."""
        return iter(sorted(self._of_source.values(), key=lambda report: report.name))

    def find(self, source: str) -> ClipReport | None:
        """What is known of a clip."""
        return self._of_source.get(source)

    def write(self, report: ClipReport) -> None:
        """Keep a report in place of the one before."""
        with replacing(self._path(report.name), "w") as file:
            json.dump(asdict(report), file, indent=2)
            file.write("\n")
        self._of_source[report.source] = report

    def remove(self, report: ClipReport) -> None:
        """Forget a clip."""
        self._path(report.name).unlink(missing_ok=True)
        self._of_source.pop(report.source, None)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _read(path: Path) -> ClipReport:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        values["stamp"] = Stamp(**values["stamp"])
        values["skipped"] = [SkippedFrame(**skipped) for skipped in values["skipped"]]
        return ClipReport(**values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabelingError(
            f"Expected what is known of a clip, received a damaged file: {path}. Remove it; the clip is tracked again."
        ) from error
