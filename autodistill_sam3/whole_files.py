"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

# The name of every file that is not complete yet.
PART = ".part"


@contextlib.contextmanager
def replacing(
    path: Path, mode: str, before: Callable[[Path], None] | None = None, part: str = PART
) -> Iterator[IO[Any]]:
    """Open a temporary file that takes the path's place when the block ends without an error.

    Args:
        path: The file.
        mode: "w" or "wb".
        before: Called with the temporary file when it is complete.
        part: The temporary file's name, another one for each file of a folder that is being written.
    """
    # Not made from the path's name, which may already be as long as the file system allows.
    temporary = path.with_name(part)
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            before(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
