"""A folder -> the images in it, the names they get in the dataset, and the split each belongs to."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autodistill_sam3.errors import InputFolderError
from autodistill_sam3.images import has_image_suffix
from autodistill_sam3.labeling.records import Split

TRAIN_SHARE = 0.8
CONFIDENCE_PREFIX = "confidence-"


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
    suffix = _as_suffix(extension) if extension else None

    def is_wanted(path: Path) -> bool:
        return path.name.lower().endswith(suffix) if suffix else has_image_suffix(path)

    paths = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.name)
    # Names are given before the choice is narrowed, so that a later run with another suffix gives the same.
    images = _with_stems([path for path in paths if has_image_suffix(path) or is_wanted(path)])
    images = [image for image in images if is_wanted(image.path)]
    if not images:
        kind = f"*{suffix}" if suffix else "images"
        raise InputFolderError(f"Expected {kind} in {folder}, received a folder without any. Sub-folders are not read.")
    return images[:limit]


def with_free_stem(image: SourceImage, taken: Collection[str]) -> SourceImage:
    """The image under a stem that is not among `taken`, which are in lower case."""
    stem, number = image.stem, 2
    while stem.lower() in taken:
        stem, number = f"{image.stem}_{number}", number + 1
    return replace(image, stem=stem)


def split_of(name: str, seed: int) -> Split:
    """The split of an image: a hash of its name and the seed alone, so that adding images moves none.

    Example:
        >>> [split_of(name, seed=0) for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")]
        ['train', 'train', 'valid', 'train', 'train']
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()
    return "train" if int.from_bytes(digest[:8], "big") < TRAIN_SHARE * 2**64 else "valid"


def _as_suffix(extension: str) -> str:
    return "." + extension.lower().lstrip("*").lstrip(".")


def _with_stems(paths: Sequence[Path]) -> list[SourceImage]:
    """Labels are named by stem, so that images which share one (`a.jpg`, `a.png`, `A.jpg`) keep their suffix in it.

    So does an image whose label file would have the name of another's confidence file.
    """
    uses = Counter(path.stem.lower() for path in paths)
    uses.update(f"{CONFIDENCE_PREFIX}{stem}" for stem in list(uses))
    taken = {path.stem.lower() for path in paths if uses[path.stem.lower()] == 1}
    images = []
    for path in paths:
        image = SourceImage(path, path.name, path.stem)
        if uses[path.stem.lower()] > 1:
            image = with_free_stem(replace(image, stem=f"{path.stem}_{path.suffix[1:]}"), taken)
            taken.add(image.stem.lower())
        images.append(image)
    return images
