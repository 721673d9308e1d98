"""Versions of the packages that a training depends on."""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES = ("autodistill-grounded-sam3", "torch", "torchvision", "autodistill", "supervision", "numpy")
_OPTIONAL = ("ultralytics", "rfdetr")


def versions_of_student(name: str) -> dict[str, str]:
    """The versions of what is installed, and of the plugin of that name."""
    versions = {"python": platform.python_version()}
    for package in (*_PACKAGES, *_OPTIONAL, f"autodistill-{name}"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
