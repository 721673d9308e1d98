"""`predict`, `categories` and `doctor`: see what is found, what can be looked for, and what a run would use."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistill_sam3.cli.flags import (
    CHECKPOINT_KEYWORDS,
    add_category_file,
    add_checkpoint_flags,
    add_model_flags,
    add_verbosity,
    build_model,
    chosen_category,
    chosen_run,
    given,
    say,
)
from autodistill_sam3.errors import SettingError

if TYPE_CHECKING:
    import supervision as sv

_DOCTOR_KEYWORDS = (*CHECKPOINT_KEYWORDS, "output", "self_test")


def add_commands(commands: Any) -> None:
    """Add the sub-commands of this module."""
    _add_predict(commands)
    _add_categories(commands)
    _add_doctor(commands)


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser("predict", help="show what is found in one or a few images")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="paths or URLs")
    add_model_flags(parser)
    parser.add_argument("--output", type=Path, metavar="PNG", help="the overlay; of several images, a sheet")
    parser.set_defaults(run=_predict, after_stop="")


def _add_categories(commands: Any) -> None:
    parser = commands.add_parser("categories", help="list what `--category` can look for")
    add_category_file(parser)
    add_verbosity(parser)
    parser.set_defaults(run=_categories, after_stop="")


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="what a run would use, whether it works, and what to do if not")
    add_checkpoint_flags(parser.add_argument_group("model"))
    parser.add_argument("--output", type=Path, metavar="DIR", help="where a dataset would go, for its free space")
    parser.add_argument("--self-test", action="store_true", help="label a scene, and run the checkpoints on an image")
    add_verbosity(parser)
    parser.set_defaults(run=_doctor, after_stop="")


def _categories(options: argparse.Namespace) -> None:
    from autodistill_sam3.categories import read_categories
    from autodistill_sam3.labeling.review.text import printable

    for category in read_categories(options.category_file).values():
        print(printable(f"{category.name}: {category.description}"))
        for prompt, name in category.prompts.items():
            print(printable(f"    {prompt}" + (f" -> {name}" if name != prompt else "")))
        settings = ", ".join(f"{name} {value}" for name, value in category.settings.items())
        print(printable(f"    images in {category.images}, dataset in {category.output}"))
        if settings:
            print(printable(f"    with {settings}"))
        if category.recipe is not None:
            steps = ", ".join(f"{name} {value}" for name, value in category.recipe.changes().items())
            print(printable(f"    prepared with {steps}"))


def _predict(options: argparse.Namespace) -> None:
    from autodistill_sam3.images import load_image
    from autodistill_sam3.labeling.review import draw_detections, save_png

    if options.output is not None and options.output.is_dir():
        raise SettingError(f"Expected --output to be a PNG file, received a folder: {options.output}")
    model = build_model(options, chosen_category(options), chosen_run(options))
    found = model.predict_batch(options.images)
    for source, detections in zip(options.images, found, strict=True):
        print(f"{source}: {len(detections)} found")
        for line in _describe(detections):
            print(f"  {line}")
    if options.output is None:
        return
    if len(found) == 1:
        save_png(draw_detections(load_image(options.images[0]), found[0]), options.output)
    else:
        _save_sheet(options.images, found, options.output)
    say(options, f"overlay: {options.output}")


def _doctor(options: argparse.Namespace) -> int:
    from autodistill_sam3.doctor import diagnose, format_report

    report = diagnose(**given(options, _DOCTOR_KEYWORDS))
    print(format_report(report))
    return 0 if report.can_label else 1


def _describe(detections: sv.Detections) -> list[str]:
    names, sources = detections.data.get("class_name", ()), detections.data.get("source", ())
    confidence = detections.confidence if detections.confidence is not None else ()
    return [
        f"{name:<20} {value:.3f}  {source:<10}  " + " ".join(f"{edge:.0f}" for edge in xyxy)
        for name, value, source, xyxy in zip(names, confidence, sources, detections.xyxy, strict=True)
    ]


def _save_sheet(sources: Sequence[str], found: Sequence[sv.Detections], path: Path) -> None:
    from autodistill_sam3.images import load_image
    from autodistill_sam3.labeling.review import draw_sheet, save_png

    pairs = zip(sources, found, strict=True)
    save_png(draw_sheet((load_image(source), detections, Path(source).name) for source, detections in pairs), path)
