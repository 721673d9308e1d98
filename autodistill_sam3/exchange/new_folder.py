"""A folder that is either written whole or not there."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from autodistill_sam3.errors import OutputFolderError


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to write to, which takes the output's name when the block ends without an error.

    Raises:
        OutputFolderError: There is something with that name already, or it cannot be written.
    """
    if output.exists() or output.is_symlink():
        raise OutputFolderError(f"Expected a folder that does not exist yet, received {output}. Choose another.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=".part-", dir=output.parent))
    except OSError as error:
        raise OutputFolderError(f"Expected a folder that can be written, received {output}: {error}") from error
    try:
        # One further down: mkdtemp lets nobody else into what it makes.
        folder = place / "folder"
        folder.mkdir()
        yield folder
        if output.exists():
            raise OutputFolderError(f"Expected a folder that does not exist yet, {output} came to be meanwhile")
        folder.rename(output)
    finally:
        shutil.rmtree(place, ignore_errors=True)
