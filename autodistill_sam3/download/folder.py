"""The folder that is filled: what it has, whose it is, one run at a time, and the move of finished files into it.

.download/             beside the checkpoint's files
    lock               held while a run writes
    record.json        which files came from which repository, so that only these are ever replaced
    <name>-<format>/   what is being received, gone when it is whole
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autodistill_sam3.download.catalog import COMPANIONS
from autodistill_sam3.download.files import RemoteFile, digest_file, is_same, size_of
from autodistill_sam3.errors import DownloadError

logger = logging.getLogger("autodistill_sam3")

_STAGING = ".download"
_RECORD = "record.json"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Comparison:
    """A folder against what it should hold.

    Attributes:
        present: Files that are there, with the right size and hash.
        wanted: Files that are missing, or of another revision.
    """

    present: tuple[RemoteFile, ...]
    wanted: tuple[RemoteFile, ...]


def compare(folder: Path, files: Iterable[RemoteFile], kept: frozenset[str]) -> Comparison:
    """Compare a folder with the files it should hold.

    Args:
        folder: The folder; may be missing.
        files: What it should hold.
        kept: Names of files that stay whatever they are.

    Raises:
        DownloadError: It holds other files under these names that this package did not put there.
    """
    record = _read_record(folder)
    present, wanted, foreign = [], [], []
    for file in files:
        path = folder / file.name
        if is_same(path, file):
            present.append(file)
        elif not os.path.lexists(path):
            wanted.append(file)
        elif file.name in kept:
            logger.info("%s is not that of %s; it is kept", path, file.source.repository)
        elif _is_ours(path, file, record.get(file.name)):
            wanted.append(file)
        else:
            foreign.append(file)
    if foreign:
        raise DownloadError(_foreign_message(folder, foreign, record))
    return Comparison(tuple(present), tuple(wanted))


@contextlib.contextmanager
def locked(folder: Path, name: str = "lock") -> Iterator[None]:
    """Keep other runs out of a folder's staging area; waits for one that is under way."""
    from huggingface_hub import utils as untyped

    utils: Any = untyped
    (folder / _STAGING).mkdir(parents=True, exist_ok=True)
    path = folder / _STAGING / name
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(utils.WeakFileLock(path, timeout=0.1))
        except TimeoutError:
            logger.info("Waiting for another download into %s (if none is running, delete %s)", folder, path)
            stack.enter_context(utils.WeakFileLock(path))
        yield


@contextlib.contextmanager
def staging(folder: Path, name: str) -> Iterator[Path]:
    """The folder for what is being received; it stays when something goes wrong, and is removed at the end."""
    path = folder / _STAGING / name
    path.mkdir(parents=True, exist_ok=True)
    yield path
    shutil.rmtree(path)


def part_of(stage: Path, file: RemoteFile) -> Path:
    """Where a file is received: named by its content, so that no other revision goes on with it."""
    return stage / f"{file.digest}.part"


def check_space(folder: Path, stage: Path, files: Iterable[RemoteFile]) -> None:
    """Check that what is still to be received fits on the disk.

    Raises:
        DownloadError: It does not.
    """
    needed = sum(max(file.size - size_of(part_of(stage, file)), 0) for file in files)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"Expected {human_size(needed)} free on the disk of {folder}, received {human_size(free)}. "
            "Free some space, or give --output on another disk."
        )


def install(folder: Path, stage: Path, found: Comparison, last: str) -> None:
    """Move received and verified files into place, the one that makes it a checkpoint last.

    A checkpoint that is replaced is no checkpoint meanwhile: better none than weights of one revision with the
    configuration of another. Started again, the same download completes it.
    """
    moves = sorted(found.wanted, key=lambda file: file.name == last)
    if any(os.path.lexists(folder / file.name) for file in moves):
        moves += _withdraw(folder, stage, found, last)
    record = _read_record(folder)
    record.update({file.name: _entry(file) for file in found.present})
    for file in moves:
        part_of(stage, file).replace(folder / file.name)
        record[file.name] = _entry(file)
        _write_record(folder, record)


@contextlib.contextmanager
def explained_disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into the package's error.

    Raises:
        DownloadError: The disk is full, read-only, forbidden, or has a file where a folder should be.
    """
    try:
        yield
    except DownloadError:
        raise
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise DownloadError(
                f"The disk of {folder} is full. What was received is kept: free some space and run the same command "
                "again, or give --output on another disk."
            ) from error
        raise DownloadError(
            f"Expected to write to {folder}, received: {error}. Make it writable, or give another folder as --output."
        ) from error


def human_size(count: int) -> str:
    """Bytes for people.

    Example:
        >>> human_size(3_440_000_000)
        '3.4 GB'
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _withdraw(folder: Path, stage: Path, found: Comparison, last: str) -> list[RemoteFile]:
    """Take away the file that makes the folder a checkpoint; what has to be moved back, if anything."""
    for file in found.present:
        if file.name == last:
            (folder / last).replace(part_of(stage, file))
            return [file]
    if len(found.wanted) > 1:
        (folder / last).unlink(missing_ok=True)
    return []


def _foreign_message(folder: Path, foreign: Sequence[RemoteFile], record: dict[str, Any]) -> str:
    origin = [f"{file.name}{_origin(record.get(file.name))}" for file in foreign]
    return (
        f"Expected {folder} to be empty or to hold files of {foreign[0].source.repository}, received other files under "
        f"the same names: {', '.join(origin)}. Nothing was changed. Move them away, or give another --output."
    )


def _origin(entry: Any) -> str:
    return f" (of {entry['repository']})" if _is_entry(entry) else ""


def _is_ours(path: Path, file: RemoteFile, entry: Any) -> bool:
    """Whether a download put the file there and nobody changed it since."""
    if not _is_entry(entry) or not path.is_file():
        return False
    if entry["repository"] != file.source.repository and file.name not in COMPANIONS:
        return False
    return bool(digest_file(path, entry["algorithm"]) == entry["digest"])


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and {"repository", "algorithm", "digest"} <= entry.keys()


def _entry(file: RemoteFile) -> dict[str, str]:
    return {
        "repository": file.source.repository,
        "commit": file.commit,
        "algorithm": file.algorithm,
        "digest": file.digest,
    }


def _read_record(folder: Path) -> dict[str, Any]:
    # Without a readable record nothing is ours, and so nothing is replaced.
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((folder / _STAGING / _RECORD).read_text(encoding="utf-8"))
        if isinstance(record, dict):
            return record
    return {}


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    path = folder / _STAGING / _RECORD
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
    temporary.replace(path)
