"""The command `autodistill-sam3`: flags -> the objects of the package. No logic of its own."""

from autodistill_sam3.cli.main import build_parser, main

__all__ = ["build_parser", "main"]
