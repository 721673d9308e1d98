"""What a user points at, files and folders -> the clips in it, and what they contain."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autodistill_sam3.errors import InputFolderError, OutputFolderError
from autodistill_sam3.images import has_image_suffix
from autodistill_sam3.labeling.names import stem_of
from autodistill_sam3.video.sequences import frames_in, natural_order

VIDEO_SUFFIXES = (
    ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp",
    ".ogv",
)  # fmt: skip


@dataclass(frozen=True)
class SourceClip:
    """A clip to track.

    Attributes:
        path: A video file, or a folder of frames.
        stem: What its results are called, unless another clip is called so.
    """

    path: Path
    stem: str

    @property
    def place(self) -> str:
        """What tells it from all other clips."""
        return str(self.path.resolve())


@dataclass(frozen=True)
class Stamp:
    """What a clip contains: its files' number, their size in bytes, when one was last changed, and SHA-256 of all."""

    files: int
    size: int
    mtime_ns: int
    sha256: str


def find_clips(sources: Sequence[str | Path], *, recursive: bool = False) -> list[SourceClip]:
    """The clips of files and folders, each once.

    A file is a clip whatever its suffix. A folder with videos is many clips, in natural order; a folder with images and
    no videos is one. Names that begin with a dot are passed over.

    Args:
        sources: Files and folders.
        recursive: Sub-folders of a folder are looked into, too; links to folders are not followed.

    Raises:
        InputFolderError: One is not there, or a folder has no clip.
    """
    found: dict[str, SourceClip] = {}
    for source in sources:
        for clip in _clips_of(Path(source), recursive):
            found.setdefault(clip.place, clip)
    if not found:
        raise InputFolderError("Expected at least one clip, received none. Name a video file or a folder.")
    return list(found.values())


def check_apart(output: Path, sources: Sequence[str | Path], clips: Sequence[SourceClip]) -> None:
    """Refuse an output folder in which clips lie, or that is searched for them.

    Raises:
        OutputFolderError: It does.
    """
    place = output.resolve()
    searched = {Path(source).resolve() for source in sources if Path(source).is_dir()}
    parents = {parent for clip in clips for parent in clip.path.resolve().parents}
    if place in parents or place in searched or searched & set(place.parents):
        raise OutputFolderError(
            f"Expected an output folder apart from the clips, neither among nor around them, received {output}"
        )


def stamp_of(path: Path) -> Stamp:
    """Read all of a clip's files; those that cannot be read count as empty.

    Raises:
        VideoError: It is a folder without frames.
    """
    digest, size, mtime_ns = hashlib.sha256(), 0, 0
    files = _files_of(path)
    for file in files:
        digest.update(f"{file.name}\0".encode(errors="surrogatepass") if path.is_dir() else b"")
        with contextlib.suppress(OSError), file.open("rb") as content:
            status = file.stat()
            size, mtime_ns = size + status.st_size, max(mtime_ns, status.st_mtime_ns)
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return Stamp(len(files), size, mtime_ns, digest.hexdigest())


def is_unchanged(path: Path, stamp: Stamp) -> bool:
    """Whether a clip is what it was; its content is read only if its files look changed."""
    if path.is_file() and not os.access(path, os.R_OK):
        # What was finished of it is worth more than what can no longer be read.
        return True
    files = _files_of(path)
    found = [file.stat() for file in files if file.exists()]
    size, mtime_ns = sum(one.st_size for one in found), max((one.st_mtime_ns for one in found), default=0)
    if (len(files), size, mtime_ns) == (stamp.files, stamp.size, stamp.mtime_ns):
        return True
    return stamp_of(path).sha256 == stamp.sha256


def _files_of(path: Path) -> list[Path]:
    return frames_in(path) if path.is_dir() else [path]


def _clips_of(source: Path, recursive: bool) -> list[SourceClip]:
    if not source.exists():
        raise InputFolderError(f"Expected a video file or a folder, received nothing there: {source}")
    if not source.is_dir():
        return [SourceClip(source, _stem(source.name))]
    clips = list(_clips_in(source, source, recursive))
    if not clips:
        hint = "" if recursive else " Sub-folders are read with recursive=True (--recursive)."
        raise InputFolderError(f"Expected a folder with videos or frames, received one without: {source}.{hint}")
    return clips


def _clips_in(folder: Path, root: Path, recursive: bool) -> Iterator[SourceClip]:
    names = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=natural_order)
    videos = [path for path in names if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    for path in videos:
        yield SourceClip(path, _stem(path.relative_to(root).as_posix()))
    if not videos and any(has_image_suffix(path) for path in names):
        inner = folder.relative_to(root).as_posix()
        # A folder's name has no suffix to be dropped.
        yield SourceClip(folder, _stem(f"{folder.resolve().name if folder == root else inner}.frames"))
    if recursive:
        for path in names:
            if path.is_dir() and not path.is_symlink():
                yield from _clips_in(path, root, recursive)


def _stem(name: str) -> str:
    # Folders whose names begin with a dot are not searched for images.
    return stem_of(name).lstrip(".") or "clip"
