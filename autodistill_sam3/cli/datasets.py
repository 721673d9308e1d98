"""`merge`, `evaluate` and `export`: what is done with a labelled folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from autodistill_sam3.cli.flags import add_verbosity, given, say
from autodistill_sam3.errors import SettingError

_TOOLS = ("label-studio",)
_TO_KEYWORDS = ("shape", "image_root", "url_prefix")
_FROM_KEYWORDS = ("keep_not_reviewed", "link_images")
_FROM_FLAGS = ("file", *_FROM_KEYWORDS)


def add_commands(commands: Any) -> None:
    """Add the sub-commands of this module."""
    _add_merge(commands)
    _add_evaluate(commands)
    _add_export(commands)


def _add_merge(commands: Any) -> None:
    parser = commands.add_parser("merge", help="put together what jobs with `label --shard` have labelled")
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="the output of these jobs")
    parser.add_argument("--plot", action="store_true", help="write review/: a page and sheets to judge the labels by")
    add_verbosity(parser)
    parser.set_defaults(run=_merge, after_stop=" The same command goes on.")


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="measure how good the labels of a dataset are")
    what = "a labelled folder or a split of it, a COCO file, or a YOLO dataset"
    parser.add_argument("dataset", metavar="DATASET", type=Path, help=what)
    parser.add_argument("--ground-truth", metavar="GT", type=Path, required=True, help=f"what is true: {what}")
    parser.add_argument("--output", metavar="DIR", type=Path, help="the evaluation (default: DATASET_evaluation)")
    add_verbosity(parser)
    parser.set_defaults(run=_evaluate, after_stop=" Nothing was written.")


def _add_export(commands: Any) -> None:
    parser = commands.add_parser("export", help="hand a dataset to a tool that people correct it in, and take it back")
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="the labelled folder")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--to", choices=_TOOLS, help="write tasks with the labels as predictions")
    way.add_argument("--from", dest="back_from", choices=_TOOLS, help="make a dataset of what people corrected")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="a new folder")
    to = parser.add_argument_group("--to")
    to.add_argument("--shape", choices=["brush", "polygon"], help="brush keeps masks exactly (default)")
    to.add_argument("--image-root", metavar="DIR", type=Path, help="what the tool serves (default: the dataset)")
    to.add_argument("--url-prefix", metavar="URL", help="in front of each image's path (default: local files)")
    back = parser.add_argument_group("--from")
    back.add_argument("--file", metavar="JSON", type=Path, help="the tool's JSON export")
    back.add_argument("--keep-not-reviewed", action="store_true", help="keep the labels of images nobody looked at")
    back.add_argument("--link-images", action="store_true", help="link images instead of copying them")
    add_verbosity(parser)
    parser.set_defaults(run=_export, after_stop=" Nothing was written.")


def _merge(options: argparse.Namespace) -> None:
    from autodistill_sam3.distributed import merge_shards

    dataset = merge_shards(options.dataset, plot=options.plot, progress=not options.quiet)
    say(options, f"{len(dataset)} images in {options.dataset}")


def _evaluate(options: argparse.Namespace) -> None:
    from autodistill_sam3.evaluation import default_evaluation_folder, evaluate_dataset, format_report

    output = options.output or default_evaluation_folder(options.dataset)
    evaluation = evaluate_dataset(options.dataset, options.ground_truth, output=output, progress=not options.quiet)
    print(format_report(evaluation))
    say(options, f"\nwritten to {output}")


def _export(options: argparse.Namespace) -> None:
    from autodistill_sam3.exchange import format_exchange, from_label_studio, to_label_studio

    _check_direction(options)
    if options.to:
        report: Any = to_label_studio(options.dataset, options.output, **given(options, _TO_KEYWORDS))
    elif options.file is None:
        raise SettingError("Expected --file with --from label-studio, received none: the tool's JSON export.")
    else:
        keywords = given(options, _FROM_KEYWORDS)
        report = from_label_studio(options.file, options.output, dataset=options.dataset, **keywords)
    say(options, format_exchange(report))
    say(options, f"written to {options.output}")


def _check_direction(options: argparse.Namespace) -> None:
    """Raise a `SettingError` for flags that say nothing about the direction asked for."""
    here, there, others = ("--to", "--from", _FROM_FLAGS) if options.to else ("--from", "--to", _TO_KEYWORDS)
    # Flags that switch something on are False where they are not given.
    if used := [f"--{name.replace('_', '-')}" for name in others if getattr(options, name) not in (None, False)]:
        raise SettingError(
            f"Expected flags of {here} with {here}, received {', '.join(used)}: only for {there}. Leave them out."
        )
