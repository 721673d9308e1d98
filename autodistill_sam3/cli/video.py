"""`video`: clips -> tracks, overlays and a dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistill_sam3.cli.flags import (
    CHECKPOINT_KEYWORDS,
    DECISION_KEYWORDS,
    add_checkpoint_flags,
    add_decision_flags,
    add_label_flags,
    add_share_flags,
    add_verbosity,
    add_wanted_flags,
    chosen_category,
    chosen_ontology,
    given,
    given_thresholds,
    say,
)
from autodistill_sam3.errors import SettingError

if TYPE_CHECKING:
    from autodistill_sam3.video import SAM3Video

_VIDEO_KEYWORDS = (*CHECKPOINT_KEYWORDS, *DECISION_KEYWORDS, "key_frames", "on_empty", "gpus_to_use")
_PLAN_KEYWORDS = (
    "clips", "recursive", "start_frame", "max_frames", "direction", "render", "every", "min_sharpness", "formats",
    "record_confidence", "plot", "seed", "valid_share", "test_share", "overwrite", "progress",
)  # fmt: skip


def add_commands(commands: Any) -> None:
    """Add the sub-command of this module."""
    parser = commands.add_parser("video", help="track objects through clips, and make a dataset of their frames")
    parser.add_argument(
        "clips", metavar="CLIP", nargs="+", help="a video file, a folder of videos, or a folder of frames"
    )
    model = parser.add_argument_group("model")
    add_wanted_flags(model)
    add_checkpoint_flags(model)
    add_decision_flags(model)
    _add_tracking_flags(parser.add_argument_group("tracking"))
    _add_dataset_flags(parser)
    add_verbosity(parser)
    parser.set_defaults(run=_video, goes_on=True, after_stop=" The same command goes on where this one was.")


def _add_tracking_flags(tracking: argparse._ArgumentGroup) -> None:
    tracking.add_argument("--recursive", action="store_true", help="read sub-folders, too")
    tracking.add_argument("--start-frame", type=int, metavar="N", help="of each clip (default: the first)")
    tracking.add_argument("--max-frames", type=int, metavar="N", help="at most so many of each clip, in each direction")
    tracking.add_argument("--direction", choices=["forward", "backward", "both"])
    tracking.add_argument("--key-frames", type=int, metavar="N", help="ask Florence-2 in every n-th frame")
    tracking.add_argument(
        "--on-empty",
        choices=["zeros", "skip", "retry"],
        help="frames without objects: keep, leave out, or look once more",
    )
    tracking.add_argument("--gpus-to-use", nargs="+", type=int, metavar="N", help="of the sam3 backend")


def _add_dataset_flags(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("what is written")
    output.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: CLIP_tracked)")
    output.add_argument("--render", action="store_true", help="write overlays/: videos with what was tracked drawn in")
    output.add_argument("--every", type=int, metavar="N", help="every n-th frame may become a training image")
    output.add_argument(
        "--min-sharpness", type=float, metavar="SHARE", help="of the clip's median, for training images; 0 takes all"
    )
    add_label_flags(output)
    add_share_flags(parser.add_argument_group("split"), "clips")


def _video(options: argparse.Namespace) -> int:
    from autodistill_sam3.labeling import beside
    from autodistill_sam3.layout import DATASET
    from autodistill_sam3.video import TrackingPlan, track_clips

    if options.quiet:
        options.progress = False
    if options.output is None and len(options.clips) > 1:
        raise SettingError("Expected --output DIR with several clips, received none. Say where to write.")
    first = Path(options.clips[0])
    output = options.output or beside(first if first.is_dir() else first.with_suffix(""), "_tracked")
    # First: what is wrong with it is known before the weights are read.
    plan = TrackingPlan(output=output, **given(options, _PLAN_KEYWORDS))
    with _build(options) as video:
        result = track_clips(video, plan)
    images = 0 if result.dataset is None else len(result.dataset)
    tracks = sum(sum(clip.tracks.values()) for clip in result.clips)
    say(options, f"{len(result.clips)} clips with {tracks} tracks in {output}, {images} images in {output / DATASET}")
    return 1 if result.quarantined else 0


def _build(options: argparse.Namespace) -> SAM3Video:
    from autodistill_sam3.video import SAM3Video

    category = chosen_category(options)
    settings: dict[str, Any] = dict(category.settings if category else {})
    # What no object covers is no object.
    settings.pop("background", None)
    thresholds = given_thresholds(options, settings.pop("thresholds", None))
    changes = settings | given(options, _VIDEO_KEYWORDS)
    return SAM3Video(chosen_ontology(options, category), thresholds=thresholds, **changes)
