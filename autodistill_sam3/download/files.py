"""What the hub tells of a file, and whether a file on disk is that one."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

SHA256 = "sha256"
GIT_BLOB = "git-blob-sha1"


@dataclass(frozen=True)
class Source:
    """A repository to download from, and where its files go.

    Attributes:
        repository: Its id on the hub.
        revision: A branch, tag or commit; None for the main branch.
        gated: Whether access has to be granted.
        folder: The folder to fill, for messages.
    """

    repository: str
    revision: str | None
    gated: bool
    folder: Path

    @property
    def page(self) -> str:
        """Its page for people."""
        return f"https://huggingface.co/{self.repository}"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at one commit.

    Attributes:
        source: The repository.
        commit: The full commit id.
        name: Its name at the top level.
        size: Bytes.
        algorithm: `SHA256` for large files, `GIT_BLOB` for others.
        digest: Hexadecimal, by that algorithm.
    """

    source: Source
    commit: str
    name: str
    size: int
    algorithm: str
    digest: str


def digest_file(path: Path, algorithm: str) -> str:
    """The hexadecimal hash of a file."""
    with path.open("rb") as stream:
        if algorithm == SHA256:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        size = os.fstat(stream.fileno()).st_size
        blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        return hashlib.file_digest(stream, lambda: blob).hexdigest()


def is_same(path: Path, file: RemoteFile) -> bool:
    """Whether a file on disk has the size and hash of the hub's."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return digest_file(path, file.algorithm) == file.digest


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0
