"""The versions of packages, for `run.json`."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata


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
