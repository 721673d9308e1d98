"""`benchmark`: this package beside the other ways to label."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from autodistill_sam3.cli.flags import add_verbosity, given, say

_SETTINGS = (
    "device", "images", "reference_images", "seconds", "warmup_images", "classes", "prompting",
)  # fmt: skip


def add_commands(commands: Any) -> None:
    """Add the sub-command of this module."""
    parser = commands.add_parser("benchmark", help="time this package beside Meta's, transformers' and autodistill's")
    _add_model_flags(parser.add_argument_group("model"))
    _add_work_flags(parser.add_argument_group("work"))
    add_verbosity(parser)
    parser.set_defaults(run=_benchmark, goes_on=True, after_stop=" The same command goes on where this one was.")


def _add_model_flags(model: argparse._ArgumentGroup) -> None:
    which = model.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--full-size-random", action="store_true", help="random weights of the real sizes (needs the package sam3)"
    )
    which.add_argument("--checkpoint", metavar="PLACE", help='"shapes", a SAM 3 folder or file, or a models root')
    model.add_argument("--florence2-checkpoint", metavar="DIR", help="a Florence-2 folder, if it lies elsewhere")
    model.add_argument("--bpe-path", metavar="FILE", help="the vocabulary; the sam3 package has none")
    model.add_argument("--weights", type=Path, metavar="DIR", help="where random weights go, and are found again")
    model.add_argument("--device", help='such as "cuda:1" or "cpu" (default: the best there is)')


def _add_work_flags(work: argparse._ArgumentGroup) -> None:
    from autodistill_sam3.benchmark import ENGINES

    work.add_argument("--images", type=int, metavar="N", help="that this package labels in each row, at most")
    work.add_argument("--reference-images", type=int, metavar="N", help="that the others are given, at most")
    work.add_argument("--seconds", type=float, help="after which a row ends")
    work.add_argument("--warmup-images", type=int, metavar="N", help="of the first, untimed run")
    work.add_argument("--classes", type=int, nargs="+", metavar="N", help="how many prompts (default: 1 5 20)")
    work.add_argument("--prompting", nargs="+", choices=["text", "both"], help="(default: both of them)")
    work.add_argument("--skip", nargs="+", choices=ENGINES, default=[], metavar="ENGINE", help=", ".join(ENGINES))
    work.add_argument(
        "--rows", nargs="+", metavar="NAME", default=["*"],
        help='such as "ours/text/5", "*/both/*", "vision" or "start"; "prepare" makes the weights and nothing else',
    )  # fmt: skip
    work.add_argument("--overwrite", action="store_true", help="measure rows again that an earlier run has measured")
    work.add_argument("--output", type=Path, metavar="DIR", default=Path("benchmark"), help="(default: benchmark)")


def _benchmark(options: argparse.Namespace) -> None:
    from autodistill_sam3.benchmark import Settings, run_benchmark
    from autodistill_sam3.benchmark.checkpoints import given_checkpoints, random_checkpoints

    if options.full_size_random:
        weights = options.weights or options.output / "weights"
        places = random_checkpoints(weights, options.bpe_path, echo=lambda text: say(options, text))
    else:
        places = given_checkpoints(options.checkpoint, options.florence2_checkpoint, options.bpe_path)
    settings = Settings(output=options.output, **places, **_tuples(given(options, _SETTINGS)))
    run_benchmark(
        settings,
        rows=options.rows,
        skip=options.skip,
        overwrite=options.overwrite,
        echo=lambda text: say(options, text),
    )
    say(options, f"{options.output / 'benchmark.md'}")


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
