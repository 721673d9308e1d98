"""Paths as users give them, and looking at them without stumbling over what cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

from autodistill_sam3.errors import SettingError


def expanded(path: str | Path, setting: str) -> Path:
    """A path with `~` resolved where that is possible.

    Raises:
        SettingError: It is empty, or no path.
    """
    if not isinstance(path, str | Path) or not str(path).strip() or "\0" in str(path):
        raise SettingError(f"Expected {setting} to be a path, received {path!r}")
    # Path.expanduser raises for a user that is not there, and for a process without a home.
    return Path(os.path.expanduser(path))  # noqa: PTH111


def is_file(path: Path) -> bool:
    """Whether it is a file; what may not be looked at is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; none if it is not there or may not be looked at."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except OSError:
        return []


def is_readable(folder: Path) -> bool:
    """Whether a folder, if it is there, may be looked at."""
    try:
        os.scandir(folder).close()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return True
