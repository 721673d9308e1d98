"""The versions of packages, for `run.json`."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

PACKAGES = ("autodistill-grounded-sam3", "torch", "torchvision", "transformers", "supervision", "numpy")
# Those of which another version may give other labels.
DECIDING_PACKAGES = ("autodistill-grounded-sam3", "torch", "transformers")


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The version of each distribution.

    Example:
        >>> installed_versions(["no such package"])
        {'no such package': 'not installed'}
    """
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def versions_of_run() -> dict[str, str]:
    """What a run is computed with, to be read by people."""
    return {"python": platform.python_version()} | installed_versions(PACKAGES)
