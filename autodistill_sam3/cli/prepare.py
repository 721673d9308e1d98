"""`preprocess`: a labelled folder -> training-ready data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from autodistill_sam3.cli.flags import add_category_file, add_verbosity, chosen_category, given, say
from autodistill_sam3.errors import SettingError
from autodistill_sam3.recipe import Fit, Items, Recipe

_RECIPE_KEYWORDS = (
    "items", "margin", "ground", "size", "fit", "min_side", "min_sharpness", "drop_duplicates", "max_per_class", "seed",
)  # fmt: skip


def add_commands(commands: Any) -> None:
    """Add the sub-commands of this module."""
    parser = commands.add_parser("preprocess", help="make training-ready data of a labelled folder")
    parser.add_argument(
        "dataset", metavar="DATASET", type=Path, nargs="?", help="the labelled folder (default: the category's output)"
    )
    parser.add_argument("--output", metavar="DIR", type=Path, help="the new dataset (default: DATASET_prepared)")
    whence = parser.add_mutually_exclusive_group()
    whence.add_argument("--category", metavar="NAME", help="take its recipe; flags replace single settings")
    whence.add_argument("--from-run", type=Path, metavar="RUN", help="as the run.json of a prepared dataset says")
    add_category_file(parser)
    _add_item_flags(parser.add_argument_group("items"))
    _add_choice_flags(parser.add_argument_group("what is left out"))
    parser.add_argument("--plot", action="store_true", help="write review/: a page and sheets before and after")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run's dataset")
    add_verbosity(parser)
    parser.set_defaults(run=_preprocess, goes_on=True, after_stop=" The same command goes on where this one was.")


def _add_item_flags(items: argparse._ArgumentGroup) -> None:
    items.add_argument("--items", choices=get_args(Items), help="whole images (default), or one for each object")
    items.add_argument("--margin", type=float, metavar="SHARE", help="around an object, of its width and height")
    items.add_argument("--ground", metavar="alpha|#rrggbb", help="of cut-outs: transparent (default) or a colour")
    items.add_argument("--size", type=int, metavar="PX", help="of each item")
    items.add_argument("--fit", choices=get_args(Fit), help="how items get the size (default: letterbox)")


def _add_choice_flags(choice: argparse._ArgumentGroup) -> None:
    choice.add_argument("--min-side", type=int, metavar="PX", help="drop what is smaller")
    choice.add_argument("--min-sharpness", type=float, metavar="V", help="drop what is blurred: variance of Laplacian")
    choice.add_argument("--drop-duplicates", action=argparse.BooleanOptionalAction, help="drop what is there already")
    choice.add_argument("--max-per-class", type=int, metavar="N", help="objects of a class in the train split")
    choice.add_argument("--seed", type=int, help="another seed keeps others")


def _preprocess(options: argparse.Namespace) -> None:
    from autodistill_sam3.preparation import format_preparation, prepare_dataset

    dataset, base, output = _asked(options)
    recipe = Recipe.from_mapping(base | given(options, _RECIPE_KEYWORDS))
    report = prepare_dataset(
        dataset, output, recipe, plot=options.plot, overwrite=options.overwrite, progress=not options.quiet
    )
    say(options, format_preparation(report))
    say(options, f"\nwritten to {output}")


def _asked(options: argparse.Namespace) -> tuple[Path, dict[str, Any], Path]:
    """The dataset, the settings that flags replace, and the output."""
    from autodistill_sam3.labeling import beside
    from autodistill_sam3.preparation import read_preparation

    category = chosen_category(options)
    dataset: Path | None = options.dataset
    base: dict[str, Any] = {}
    if options.from_run is not None:
        prepared, recipe = read_preparation(options.from_run)
        dataset, base = dataset or prepared, recipe.as_json()
        if options.output is None:
            raise SettingError("Expected --output DIR with --from-run, received none. Choose a new folder.")
    if category is not None:
        dataset = dataset or category.output
        base = {} if category.recipe is None else category.recipe.as_json()
    if dataset is None:
        raise SettingError("Expected DATASET, or --category NAME, whose dataset is taken; received neither")
    return dataset, base, options.output or beside(dataset, "_prepared")
