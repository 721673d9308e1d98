"""Python, the libraries that labelling imports, and whether they can be imported."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import autodistill_sam3
from autodistill_sam3.doctor.installation import DISTRIBUTION
from autodistill_sam3.doctor.report import Finding
from autodistill_sam3.doctor.settings import RunSettings, first_line

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_finding = partial(Finding, "Software")

_LIBRARIES = ("torch", "torchvision", "transformers")
_CURES = dict.fromkeys(
    ("torch", "torchvision"),
    "Install torch and torchvision for this machine, in versions that belong together, as "
    "https://pytorch.org/get-started/locally/ says",
)
# The classes that checkpoints are loaded as, and what else is imported only when a model is built.
_CLASSES = ("Sam3VideoModel", "Sam3ImageProcessor", "Florence2ForConditionalGeneration", "CLIPTokenizer")
_PARTS = (
    "autodistill_sam3.base_models",
    "autodistill_sam3.segmentation.transformers_segmenter",
    "autodistill_sam3.grounding.florence2",
)
# Distributions that carry the same module as the one that is required.
_STAND_INS = {"opencv-python": ("opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")}


def check_software(run: RunSettings) -> Iterator[Finding]:
    """Python, this package, its requirements, and whether what labelling imports can be imported."""
    yield _finding("Python", f"{platform.python_version()} ({sys.executable}) on {platform.platform()}")
    yield _finding(DISTRIBUTION, f"{autodistill_sam3.__version__} in {Path(autodistill_sam3.__file__).parent}")
    libraries = [_library(name) for name in _LIBRARIES]
    yield from libraries
    yield from _requirements()
    if all(finding.level == "ok" for finding in libraries):
        code = _labelling_code()
        yield code
        if code.level == "ok":
            yield _settings(run)


def _library(name: str) -> Finding:
    try:
        library: Any = importlib.import_module(name)
        if name == "transformers":
            for attribute in _CLASSES:
                getattr(library, attribute)
    # Shared libraries that are missing or do not fit raise OSError, half-removed packages AttributeError.
    except Exception as error:
        return _not_importable(name, error)
    return _finding(name, str(library.__version__))


def _labelling_code() -> Finding:
    """What labelling imports of this package, and with it of autodistill, supervision and the rest."""
    try:
        for name in _PARTS:
            importlib.import_module(name)
    # The same of what they import.
    except Exception as error:
        return _not_importable("labelling code", error)
    return _finding("labelling code", "can be imported")


def _not_importable(title: str, error: Exception) -> Finding:
    missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else None
    if missing is not None:
        cure = f"pip install {missing.split('.')[0]}, or all that is needed: pip install {DISTRIBUTION}"
    else:
        cure = f"pip install --force-reinstall {title if title in _LIBRARIES else DISTRIBUTION}"
    value = f"cannot be imported: {type(error).__name__}: {first_line(error)}"
    return _finding(title, value, "problem", f"{_CURES.get(title, cure)}.")


def _requirements() -> Iterator[Finding]:
    """The versions of what this package requires, and what of it is missing or too old."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield _finding("requirements", f"not checked: {DISTRIBUTION} is not installed, only its files are here", "info")
        return
    from packaging.requirements import Requirement

    required = [Requirement(line) for line in lines]
    required = [each for each in required if each.marker is None or each.marker.evaluate({"extra": ""})]
    versions = {each.name: _version(each.name) for each in required}
    yield _finding("requirements", ", ".join(f"{name} {found}" for name, found in versions.items() if found) or "none")
    for each in required:
        yield from _unmet(each, versions[each.name])


def _unmet(required: Requirement, version: str | None) -> Iterator[Finding]:
    cure = f"pip install '{required.name}{required.specifier}'"
    if version is None:
        yield _finding(required.name, "is required and not installed", "problem", cure)
    elif not required.specifier.contains(version, prereleases=True):
        yield _finding(required.name, f"{version}; required is {required.specifier}", "warning", cure)


def _version(name: str) -> str | None:
    for distribution in (name, *_STAND_INS.get(name, ())):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def _settings(run: RunSettings) -> Finding:
    from autodistill_sam3.devices import Precision
    from autodistill_sam3.ontology import Prompting
    from autodistill_sam3.segmentation import Backend

    value = (
        f"backend {run.backend}, prompting {run.prompting}, device {run.device or 'the best there is'}, "
        f"precision {run.precision}"
    )
    for name, received, choices in (
        ("backend", run.backend, get_args(Backend)),
        ("prompting", run.prompting, get_args(Prompting)),
        ("precision", run.precision, get_args(Precision)),
    ):
        if received not in choices:
            return _finding("settings", value, "problem", f"Choose {name} from {', '.join(choices)}.")
    return _finding("settings", value)
