"""A checkpoint of the hub -> its folder: compared, received, verified, moved."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from autodistill_sam3.download.catalog import TRANSFORMERS, Choice
from autodistill_sam3.download.files import RemoteFile, Source
from autodistill_sam3.download.folder import (
    check_space,
    compare,
    explained_disk_errors,
    human_size,
    install,
    locked,
    part_of,
    staging,
)
from autodistill_sam3.download.hub import Hub, connect_hub, fetch, list_files
from autodistill_sam3.errors import DownloadError

logger = logging.getLogger("autodistill_sam3")


def download_checkpoint(
    choice: Choice, output: Path, revision: str | None, *, token_to_endpoint: bool, progress: bool
) -> Path:
    """Make a folder under `output` hold a checkpoint; see `download`."""
    checkpoint = choice.checkpoint
    folder = output / checkpoint.kind.folder
    hub = connect_hub(token_to_endpoint=token_to_endpoint)
    source = Source(checkpoint.repository, revision, checkpoint.gated, folder)
    files = _files_of(hub, source, choice)
    logger.info(
        "%s at commit %s: %d files, %s, to %s",
        source.repository, files[0].commit, len(files), human_size(sum(file.size for file in files)), folder,
    )  # fmt: skip
    with explained_disk_errors(folder):
        if compare(folder, files, choice.files.kept).wanted:
            _fill(hub, choice, folder, files, progress)
    logger.info("%s is complete; sizes and hashes are those that %s tells", folder, hub.host)
    return folder if choice.file_format == TRANSFORMERS else folder / choice.files.last


def _files_of(hub: Hub, source: Source, choice: Choice) -> list[RemoteFile]:
    """The files to have, the repository's own first.

    Raises:
        DownloadError: The repository lacks what makes a checkpoint.
    """
    listed = list_files(hub, source)
    chosen = [file for file in listed if any(fnmatchcase(file.name, pattern) for pattern in choice.files.patterns)]
    lacking = [
        pattern for pattern in choice.files.required if not any(fnmatchcase(file.name, pattern) for file in chosen)
    ]
    if lacking:
        raise DownloadError(
            f"Expected {', '.join(lacking)} in {source.repository} at {source.revision or 'its main branch'}, received "
            f"{', '.join(sorted(file.name for file in listed)) or 'no files'}. Choose another --revision or --format."
        )
    return chosen + _borrowed(hub, source, choice, {file.name for file in chosen})


def _borrowed(hub: Hub, source: Source, choice: Choice, names: set[str]) -> list[RemoteFile]:
    files = []
    for name, repository in choice.files.borrowed.items():
        if name in names:
            continue
        lender = Source(repository, None, source.gated, source.folder)
        found = [file for file in list_files(hub, lender) if file.name == name]
        if not found:
            raise DownloadError(f"Expected {name} in {repository}, received none. Copy one to {source.folder}/.")
        logger.info("%s has no %s; the one of %s is taken", source.repository, name, repository)
        files += found
    return files


def _fill(hub: Hub, choice: Choice, folder: Path, files: Sequence[RemoteFile], progress: bool) -> None:
    with locked(folder):
        # Another run may have filled it while this one waited.
        found = compare(folder, files, choice.files.kept)
        if not found.wanted:
            return
        with staging(folder, f"{choice.name}-{choice.file_format}") as stage:
            check_space(folder, stage, found.wanted)
            # Small ones first: what is refused is refused before gigabytes came.
            for file in sorted(found.wanted, key=lambda file: file.size):
                fetch(hub, file, part_of(stage, file), progress=progress)
            install(folder, stage, found, choice.files.last)
