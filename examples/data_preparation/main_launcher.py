"""From the images of a category to training data: `python main_launcher.py --category shapes --plot --preprocess`.

Without flags, boxes and masks alone. What follows the flags below is given to `autodistill-sam3 label` as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from autodistill_runner import add_category_flags, label, of_category
from custom_helpers import patch_grounded_sam2

from autodistill_sam3.categories import find_category, read_categories
from autodistill_sam3.cli.main import main as autodistill_sam3
from autodistill_sam3.errors import AutodistillSAM3Error


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    add_category_flags(parser)
    parser.add_argument(
        "--preprocess", action="store_true", help="make training data of the labels, as the category says"
    )
    options, further = parser.parse_known_args(arguments)
    try:
        category = find_category(options.category, read_categories(options.category_file))
    except AutodistillSAM3Error as error:
        parser.exit(1, f"error: {error}\n")
    has_checkpoint = any(flag.partition("=")[0] == "--checkpoint" for flag in further)
    if not has_checkpoint and "checkpoint" not in category.settings:
        # For code of the older pipeline, which finds its weights in the usual places.
        patch_grounded_sam2()
    options.output = options.output or category.output
    return label(options, further) or (preprocess(options, further) if options.preprocess else 0)


def preprocess(options: argparse.Namespace, further: Sequence[str]) -> int:
    plot = ["--plot"] if options.plot else []
    # What else `label` is given is about labels.
    shared = [flag for flag in further if flag in ("--quiet", "--verbose", "--overwrite")]
    return autodistill_sam3(["preprocess", str(options.output), *of_category(options), *plot, *shared])


if __name__ == "__main__":
    sys.exit(main())
