"""This package beside the other ways to label, measured in one run on one machine."""

from autodistill_sam3.benchmark.run import run_benchmark
from autodistill_sam3.benchmark.settings import ENGINES, Settings

__all__ = ["ENGINES", "Settings", "run_benchmark"]
