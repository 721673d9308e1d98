"""`download` and `convert`: checkpoints into `models/`, and into other layouts."""

from __future__ import annotations

import argparse
from typing import Any

from autodistill_sam3.cli.flags import add_verbosity, say


def add_commands(commands: Any) -> None:
    """Add the sub-commands of this module."""
    _add_download(commands)
    _add_convert(commands)


def _add_download(commands: Any) -> None:
    from autodistill_sam3.download import FORMATS, NAMES

    parser = commands.add_parser("download", help="fetch checkpoints, or Meta's code, into models/")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument(
        "--format", dest="file_format", choices=FORMATS, help="of sam3: transformers, or Meta's sam3.pt"
    )
    parser.add_argument("--output", metavar="DIR", default="models", help="the models root (default: models)")
    parser.add_argument("--revision", metavar="R", help="a branch, tag or commit (default: main; of the code, pinned)")
    parser.add_argument(
        "--token-to-endpoint", action="store_true", help="send the token also to another host named by HF_ENDPOINT"
    )
    add_verbosity(parser)
    parser.set_defaults(run=_download, after_stop=" The same command goes on where this one was.")


def _add_convert(commands: Any) -> None:
    from autodistill_sam3.convert import FORMATS

    parser = commands.add_parser("convert", help="write a SAM 3 checkpoint in another layout")
    parser.add_argument(
        "--input", required=True, metavar="F", help="a checkpoint; for tensorrt a folder of ONNX graphs"
    )
    parser.add_argument("--format", dest="file_format", required=True, choices=FORMATS)
    parser.add_argument("--output", metavar="DIR", help="a new folder; tensorrt needs none")
    parser.add_argument("--bpe-path", metavar="FILE", help="the vocabulary, if it is not with the checkpoint")
    add_verbosity(parser)
    parser.set_defaults(run=_convert, after_stop=" Nothing was written.")


def _download(options: argparse.Namespace) -> None:
    from autodistill_sam3.download import download

    place = download(
        options.name,
        output=options.output,
        revision=options.revision,
        file_format=options.file_format,
        token_to_endpoint=options.token_to_endpoint,
        progress=not options.quiet,
    )
    say(options, str(place))


def _convert(options: argparse.Namespace) -> None:
    from autodistill_sam3.convert import convert

    for line in convert(options.input, options.file_format, options.output, bpe_path=options.bpe_path):
        say(options, line)
