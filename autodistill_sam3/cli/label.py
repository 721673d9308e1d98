"""`label` and `demo`: images -> a dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from autodistill_sam3.cli.flags import (
    add_label_flags,
    add_model_flags,
    add_share_flags,
    add_verbosity,
    build_model,
    chosen_category,
    chosen_run,
    given,
    say,
)
from autodistill_sam3.errors import SettingError

_LABEL_KEYWORDS = (
    "extension", "output_folder", "human_in_the_loop", "roboflow_project", "roboflow_tags", "sahi",
    "record_confidence", "nms_settings", "recursive", "tile", "thresholds", "formats", "limit", "plot", "overwrite",
    "batch_size", "seed", "valid_share", "test_share", "group_by", "group_near_duplicates", "progress", "gpus", "shard",
    "engine", "workers",
)  # fmt: skip
_REPEATED = "_repeated"


def add_commands(commands: Any) -> None:
    """Add the sub-commands of this module."""
    _add_label(commands)
    _add_demo(commands)


def _add_label(commands: Any) -> None:
    parser = commands.add_parser("label", help="label a folder of images")
    parser.add_argument(
        "input_folder",
        metavar="IMAGES",
        nargs="?",
        help="a folder of images, a quoted glob, a manifest (.txt, .jsonl), or an image (default: the category's)",
    )
    add_model_flags(parser)
    _add_input_flags(parser.add_argument_group("images"))
    _add_output_flags(parser.add_argument_group("dataset"))
    _add_split_flags(parser.add_argument_group("split"))
    _add_worker_flags(parser.add_argument_group("many GPUs, many machines"))
    upload = parser.add_argument_group("Roboflow")
    upload.add_argument("--human-in-the-loop", action="store_true", help="upload the dataset afterwards")
    upload.add_argument("--roboflow-project", metavar="NAME")
    upload.add_argument("--roboflow-tags", nargs="+", metavar="TAG")
    parser.set_defaults(run=_label, goes_on=True, after_stop=" The same command goes on where this one was.")


def _add_input_flags(images: argparse._ArgumentGroup) -> None:
    images.add_argument("--recursive", action="store_true", help="read sub-folders, too")
    images.add_argument("--extension", help="take only files with this suffix, in any case (default: all common ones)")
    images.add_argument("--limit", type=int, metavar="N", help="label only the first N images")
    images.add_argument("--batch-size", type=int, metavar="N", help="images per call of the model")
    images.add_argument("--sahi", action="store_true", help="cut large images into overlapping tiles")
    images.add_argument("--tile", type=int, metavar="PIXELS", help="side of the tiles; implies --sahi")
    images.add_argument("--nms-settings", choices=["no_nms", "class_specific", "class_agnostic"])
    images.add_argument("--thresholds", metavar="FILE", help="thresholds.json of `evaluate`: one value per class")


def _add_output_flags(output: argparse._ArgumentGroup) -> None:
    output.add_argument(
        "--output-folder", "--output", metavar="DIR", help="the dataset (default: IMAGES_labeled, or output/CATEGORY)"
    )
    add_label_flags(output)


def _add_split_flags(split: argparse._ArgumentGroup) -> None:
    add_share_flags(split, "images")
    split.add_argument("--group-by", metavar="REGEX", help="keep images together whose names have the same match")
    split.add_argument("--group-near-duplicates", action="store_true", help="keep near-duplicates together")


def _add_worker_flags(workers: argparse._ArgumentGroup) -> None:
    workers.add_argument("--gpus", nargs="+", metavar="N", help="GPUs of this machine by number, a process on each")
    workers.add_argument("--shard", metavar="I/N", help="label part I of N as a job of its own; `merge` comes after it")
    workers.add_argument("--engine", choices=["local", "ray"], help="ray: on a Ray cluster")
    workers.add_argument("--workers", type=int, metavar="N", help="how many on the cluster (default: all its GPUs)")


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser("demo", help="label the bundled example images; needs no weights and no GPU")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: demo_output)")
    add_verbosity(parser)
    parser.set_defaults(run=_demo, after_stop="")


def _label(options: argparse.Namespace) -> None:
    from autodistill_sam3.labeling import beside, default_output

    if options.quiet:
        options.progress = False
    category, repeat = chosen_category(options), chosen_run(options)
    keywords: dict[str, Any] = {}
    if category is not None:
        options.input_folder = options.input_folder or str(category.images)
        options.output_folder = options.output_folder or str(category.output)
    if repeat is not None:
        options.input_folder = options.input_folder or repeat.source
        # The folder itself would go on where it is.
        options.output_folder = options.output_folder or str(beside(_folder_of(options.from_run), _REPEATED))
        keywords = dict(repeat.label)
    if options.input_folder is None:
        raise SettingError("Expected IMAGES, --category NAME or --from-run RUN, which say what to label; received none")
    # Workers load the weights, each on its own device.
    model = build_model(options, category, repeat, has_weights=options.gpus is None and options.engine != "ray")
    # A flag that only switches something on is False where it is not used.
    flags = given(options, _LABEL_KEYWORDS)
    used = {name: value for name, value in flags.items() if value is not False or name not in keywords}
    dataset = model.label(options.input_folder, **keywords | used)
    folder = options.output_folder or default_output(Path(options.input_folder))
    say(options, f"{len(dataset)} images in {folder}")


def _folder_of(run: Path) -> Path:
    return run if run.is_dir() else run.absolute().parent


def _demo(options: argparse.Namespace) -> None:
    from autodistill_sam3.demo import DEMO_OUTPUT, run_demo
    from autodistill_sam3.evaluation import format_table

    result = run_demo(options.output or Path(DEMO_OUTPUT), progress=not options.quiet)
    print(f"\n{result.images} images in {result.seconds:.1f} s, compared with what was drawn:\n")
    print(format_table(result.scores))
    print(f"\ndataset       {result.dataset}")
    print(f"review        {result.page}")
    for sheet in result.sheets:
        print(f"review sheet  {sheet}")
    print(f"ground truth  {result.truth}")
