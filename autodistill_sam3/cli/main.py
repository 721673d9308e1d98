"""The parser of all sub-commands, and how each of them ends."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from autodistill_sam3 import __version__
from autodistill_sam3.cli import benchmark, checkpoints, datasets, distill, label, look, prepare, video
from autodistill_sam3.errors import AutodistillSAM3Error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Without the program's name; by default those of the process.

    Returns:
        The exit status: 0, 1 after an error, when the doctor finds that labelling cannot run or when whoever reads the
        output went away, 130 after Ctrl-C.
    """
    options = build_parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    ours = logging.getLogger("autodistill_sam3")
    usual = ours.level
    ours.setLevel(logging.DEBUG if options.verbose else logging.ERROR if options.quiet else logging.INFO)
    try:
        status: int | None = options.run(options)
        # Here and not at exit, where a closed pipe could not be caught.
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return 1
    except (AutodistillSAM3Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # With --overwrite the same command would start anew.
        begins_anew = getattr(options, "overwrite", False) and getattr(options, "goes_on", False)
        step = " The same command without --overwrite goes on." if begins_anew else ""
        print(f"Stopped.{step or options.after_stop}", file=sys.stderr)
        return 130
    finally:
        ours.setLevel(usual)
    return status or 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands."""
    parser = argparse.ArgumentParser(prog="autodistill-sam3", description="Images and class names in, masks out.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for part in (label, video, look, datasets, prepare, distill, checkpoints, benchmark):
        part.add_commands(commands)
    return parser


def _drop_output() -> None:
    """Send what is still to be printed nowhere, so that the interpreter's own flush at exit does not fail.

    Source: the note on SIGPIPE in the documentation of Python's `signal` module.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
