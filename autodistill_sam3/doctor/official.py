"""Meta's own package `sam3`: whether it is here, and what it needs. Nothing of it is imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

from autodistill_sam3.doctor.report import Finding, Level
from autodistill_sam3.doctor.settings import RunSettings
from autodistill_sam3.errors import CheckpointError
from autodistill_sam3.weights import SAM3, find_checkpoint, find_official_code

_finding = partial(Finding, "Official code")

_INSTALL = "pip install 'autodistill-grounded-sam3[sam3]'"
# What `import sam3.model_builder` imports (sam3 0.1.4), declared by it or not, and what its video half does.
_NEEDED = ("einops", "ftfy", "iopath", "psutil", "pycocotools", "regex", "timm", "triton")
_NEEDED_FOR_VIDEO = ("scipy", "skimage")


def check_official(run: RunSettings) -> Iterator[Finding]:
    """Where the official code is, and which modules that it needs are missing."""
    fault: Level = "problem" if run.official else "info"
    clone, installed = find_official_code(_beside(run)), _installed()
    if clone is not None:
        yield _finding("clone", f"{clone}, used before an installed one")
    if installed is not None:
        yield _finding("sam3", installed)
    if clone is None and installed is None:
        yield _finding("sam3", "not installed; needed for --backend sam3 alone", fault, _INSTALL)
        return
    yield from _modules("needed modules", _NEEDED, fault)
    yield from _modules("for its video", _NEEDED_FOR_VIDEO, "info")


def _beside(run: RunSettings) -> Path:
    """The checkpoint that a clone would lie beside."""
    try:
        return find_checkpoint(SAM3, run.checkpoint, official=run.official)
    except CheckpointError:
        return Path("models", SAM3.folder).absolute()


def _installed() -> str | None:
    spec = importlib.util.find_spec("sam3")
    # A folder of that name in the current one, such as models/sam3, is found too, as a namespace without a file.
    if spec is None or spec.origin is None:
        return None
    try:
        version = metadata.version("sam3")
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    return f"{version} in {Path(spec.origin).parent}"


def _modules(title: str, names: tuple[str, ...], fault: Level) -> Iterator[Finding]:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        yield _finding(title, f"{', '.join(missing)} missing", fault, _INSTALL)
    else:
        yield _finding(title, "all there")
