"""What tells one checkpoint, vocabulary or code from another, wherever it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

# Of a folder in transformers layout; what else lies there decides nothing.
_READ_FROM_FOLDERS = ("*.json", "model*.safetensors", "merges.txt", "vocab.txt")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, or of what a checkpoint folder's loading reads: names and contents.

    Raises:
        OSError: A file cannot be read.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    names = sorted({found.name for pattern in _READ_FROM_FOLDERS for found in path.glob(pattern)})
    return _of_files(path, names)


def sha256_of_code(folder: Path) -> str:
    """The SHA-256 of the Python files of a package, names and contents."""
    return _of_files(folder, sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py")))


def _of_files(folder: Path, names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0{sha256_of(folder / name)}\n".encode())
    return digest.hexdigest()
