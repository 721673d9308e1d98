"""A folder -> the images in it, the names they get in the dataset, and the split each belongs to."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autodistill_sam3.errors import InputFolderError
from autodistill_sam3.images import has_image_suffix
from autodistill_sam3.labeling.records import Split

TRAIN_SHARE = 0.8


@dataclass(frozen=True)
class SourceImage:
    """An image to label.

    Attributes:
        path: Where it is.
        name: Its path relative to the input folder, with forward slashes; its identity.
        stem: Its name in the dataset, without suffix; unique even if other suffixes or cases are dropped.
    """

    path: Path
    name: str
    stem: str


def find_images(folder: Path, extension: str | None = None, limit: int | None = None) -> list[SourceImage]:
    """The images directly in a folder, sorted by name.

    Args:
        folder: The input folder.
        extension: Take only files with this suffix, in any case; None takes every suffix that can be read.
        limit: Take only so many, from the front.

    Raises:
        InputFolderError: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing there"
        raise InputFolderError(f"Expected a folder of images, received {what}: {folder}")
    paths = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.name)
    if extension is None:
        paths = [path for path in paths if has_image_suffix(path)]
    else:
        paths = [path for path in paths if path.name.lower().endswith(_as_suffix(extension))]
    if not paths:
        kind = f"*{_as_suffix(extension)}" if extension else "images"
        raise InputFolderError(f"Expected {kind} in {folder}, received a folder without any. Sub-folders are not read.")
    return _with_stems(paths)[:limit]


def split_of(name: str, seed: int) -> Split:
    """The split of an image: a hash of its name and the seed alone, so that adding images moves none.

    Example:
        >>> [split_of(name, seed=0) for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")]
        ['train', 'train', 'train', 'valid', 'train']
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return "train" if int.from_bytes(digest[:8], "big") < TRAIN_SHARE * 2**64 else "valid"


def _as_suffix(extension: str) -> str:
    return "." + extension.lower().lstrip("*").lstrip(".")


def _with_stems(paths: Sequence[Path]) -> list[SourceImage]:
    """Labels are named by stem, so that images which share one (`a.jpg`, `a.png`, `A.jpg`) keep their suffix in it."""
    uses = Counter(path.stem.lower() for path in paths)
    taken = {path.stem.lower() for path in paths if uses[path.stem.lower()] == 1}
    images = []
    for path in paths:
        stem = path.stem
        if uses[stem.lower()] > 1:
            stem = _free_stem(f"{stem}_{path.suffix[1:]}", taken)
        images.append(SourceImage(path, path.name, stem))
    return images


def _free_stem(stem: str, taken: set[str]) -> str:
    candidate, number = stem, 2
    while candidate.lower() in taken:
        candidate, number = f"{stem}_{number}", number + 1
    taken.add(candidate.lower())
    return candidate
