"""What a run over clips is asked to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from autodistill_sam3.errors import SettingError
from autodistill_sam3.labeling import LabelingPlan, SplitRule, check_formats
from autodistill_sam3.video.clip_session import Direction

# A frame's name in the input of the dataset begins with its clip's: all frames of a clip fall into one split.
BY_CLIP = "^[^/]+"


@dataclass(frozen=True)
class TrackingPlan:
    """Which clips to track, and what to write.

    Attributes:
        clips: Video files, and folders of videos or of frames; see `find_clips`.
        output: The folder to write.
        recursive: Look into sub-folders.
        start_frame: Of each clip; by default the first, backward the last.
        max_frames: At most so many of each clip in each direction.
        direction: See `ClipSession.track`.
        render: Write overlay videos.
        every: Each frame whose number this divides may become a training image.
        min_sharpness: Of those, the ones below this share of their clip's median sharpness are left out; 0 keeps all.
        formats: Of the dataset's labels.
        record_confidence: Write `confidence-<name>.txt` beside each YOLO file.
        plot: Write review sheets of the dataset.
        seed: Of the dataset's split.
        valid_share: Share of the clips whose frames go to `valid`.
        test_share: Share of the clips whose frames go to `test`.
        overwrite: Start anew even if there are an earlier run's files.
        progress: Show progress bars.

    Raises:
        SettingError: A value is out of its range.
    """

    clips: Sequence[str | Path]
    output: Path
    recursive: bool = False
    start_frame: int | None = None
    max_frames: int | None = None
    direction: Direction = "forward"
    render: bool = False
    every: int = 5
    min_sharpness: float = 0.5
    formats: Sequence[str] = LabelingPlan.formats
    record_confidence: bool = LabelingPlan.record_confidence
    plot: bool = LabelingPlan.plot
    seed: int = SplitRule.seed
    valid_share: float = SplitRule.valid_share
    test_share: float = SplitRule.test_share
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        check_formats(self.formats)
        # It checks its own values.
        _ = self.split
        for name, value, least in (
            ("start_frame", self.start_frame, 0),
            ("max_frames", self.max_frames, 1),
            ("every", self.every, 1),
        ):
            if value is not None and value < least:
                raise SettingError(f"Expected {name} to be at least {least}, received {value}")
        if not 0 <= self.min_sharpness <= 1:
            raise SettingError(f"Expected min_sharpness from 0 to 1, received {self.min_sharpness}")
        if self.direction not in get_args(Direction):
            raise SettingError(f"Expected direction to be one of {get_args(Direction)}, received {self.direction!r}")

    @property
    def split(self) -> SplitRule:
        """Which split a clip's frames go to."""
        return SplitRule(self.seed, self.valid_share, self.test_share, BY_CLIP)

    def settings(self) -> dict[str, Any]:
        """What decides what comes out, beside the model, as JSON values."""
        names = ("start_frame", "max_frames", "direction", "every", "min_sharpness")
        return {name: getattr(self, name) for name in names} | {"split": asdict(self.split)}

    def frames_of(self, num_frames: int) -> range:
        """The frames that are tracked of a clip with so many, in rising order.

        Example:
            >>> TrackingPlan((), Path(), start_frame=3, max_frames=2, direction="both").frames_of(10)
            range(2, 5)
        """
        last = num_frames - 1
        start = (last if self.direction == "backward" else 0) if self.start_frame is None else self.start_frame
        reach = num_frames if self.max_frames is None else self.max_frames
        first = start if self.direction == "forward" else max(0, start - reach + 1)
        stop = start + 1 if self.direction == "backward" else min(num_frames, start + reach)
        return range(first, max(first, stop))
