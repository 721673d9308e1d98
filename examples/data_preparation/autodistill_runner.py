"""Label the images of a category with Florence-2 and SAM 3: `python autodistill_runner.py --category shapes`.

What follows the flags below is given to `autodistill-sam3 label` as it is, such as `--confidence 0.4` or `--gpus 0 1`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from autodistill_sam3.cli.main import main as autodistill_sam3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    add_category_flags(parser)
    options, further = parser.parse_known_args(arguments)
    return label(options, further)


def add_category_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--category", required=True, help="one that `autodistill-sam3 categories` lists")
    parser.add_argument("--category-file", type=Path, help="categories of your own, JSON or YAML")
    parser.add_argument("--input", type=Path, help="images (default: the category's, else data/CATEGORY/images)")
    parser.add_argument(
        "--output", "--output-folder", type=Path, help="the dataset (default: the category's, else output/CATEGORY)"
    )
    parser.add_argument("--plot", action="store_true", help="write review/: a page and sheets to judge the labels by")


def label(options: argparse.Namespace, further: Sequence[str] = ()) -> int:
    images = [] if options.input is None else [str(options.input)]
    output = [] if options.output is None else ["--output", str(options.output)]
    plot = ["--plot"] if options.plot else []
    return autodistill_sam3(["label", *images, *of_category(options), *output, *plot, *further])


def of_category(options: argparse.Namespace) -> list[str]:
    file = [] if options.category_file is None else ["--category-file", str(options.category_file)]
    return ["--category", options.category, *file]


if __name__ == "__main__":
    sys.exit(main())
