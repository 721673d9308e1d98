"""`distill`: a labelled folder -> a small trained model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistill_sam3.cli.flags import add_verbosity, given, say
from autodistill_sam3.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable

    import supervision as sv

_SETTINGS = ("student", "epochs", "image_size", "batch_size", "seed", "weights", "device", "export")


def add_commands(commands: Any) -> None:
    """Add the sub-command of this module."""
    parser = commands.add_parser("distill", help="train a small model on a labelled folder, and judge it")
    parser.add_argument("dataset", metavar="DATASET", type=Path, nargs="?", help="the labelled folder")
    parser.add_argument("--from-run", type=Path, metavar="RUN", help="as the run.json of an earlier distillation says")
    parser.add_argument("--output", type=Path, metavar="DIR", help="a new folder (default: DATASET_STUDENT)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier distillation")
    parser.add_argument("--ground-truth", type=Path, metavar="GT", help="what is true on the held-out images, if known")
    parser.add_argument("--no-teacher", action="store_true", help="do not time what labelled the folder")
    _add_training_flags(parser.add_argument_group("student"))
    add_verbosity(parser)
    parser.set_defaults(run=_distill, after_stop=" A training does not go on; with --overwrite it begins anew.")


def _add_training_flags(student: argparse._ArgumentGroup) -> None:
    student.add_argument(
        "--student", metavar="NAME",
        help="mask-rcnn, a segmentation model of ultralytics (yolo11n-seg), RF-DETR Seg (rf-detr-seg-nano), or an "
        "installed target model of autodistill",
    )  # fmt: skip
    student.add_argument("--epochs", type=int, metavar="N")
    student.add_argument("--image-size", type=int, metavar="PX", help="side of what it sees (default: its own)")
    student.add_argument("--batch-size", type=int, metavar="N", help="images per step (default: its own)")
    student.add_argument("--weights", type=Path, metavar="FILE", help="what it begins with (default: random)")
    student.add_argument("--device", help='such as "cuda:1" or "cpu" (default: the best there is)')
    student.add_argument("--seed", type=int)
    student.add_argument("--export", choices=["onnx"], help="also write the network in this format")


def _distill(options: argparse.Namespace) -> None:
    from autodistill_sam3.labeling import beside
    from autodistill_sam3.students import STUDENTS, DistillSettings, distill, format_results, read_distillation

    asked: dict[str, Any] = {}
    if options.from_run is not None:
        dataset, ground_truth, asked = read_distillation(options.from_run)
        options.dataset, options.ground_truth = options.dataset or dataset, options.ground_truth or ground_truth
        if options.output is None:
            raise SettingError("Expected --output DIR with --from-run, received none. Choose a new folder.")
    if options.dataset is None:
        raise SettingError("Expected DATASET, a labelled folder, or --from-run RUN; received neither")
    asked |= given(options, _SETTINGS)
    if "student" not in asked:
        raise SettingError(f"Expected --student NAME, such as {', '.join(STUDENTS)}; received none")
    settings = DistillSettings(**asked)
    output = options.output or beside(options.dataset, f"_{settings.student}")
    distilled = distill(
        options.dataset,
        output,
        settings,
        teacher=None if options.no_teacher else _teacher(options.dataset, settings.device),
        ground_truth=options.ground_truth,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    print(format_results(distilled.results))
    for path in distilled.files:
        say(options, f"{path}")


def _teacher(dataset: Path, device: str | None) -> Callable[[], Callable[[Path], sv.Detections]]:
    """Loads what labelled the folder, when it is wanted."""

    def load() -> Callable[[Path], sv.Detections]:
        from autodistill_sam3.base_models.repeat import read_repeat

        return read_repeat(dataset).build(device=device).predict

    return load
