"""What a user points at, a folder, list, glob or manifest -> the images in it."""

from __future__ import annotations

import glob
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from autodistill_sam3.errors import InputFolderError, SettingError
from autodistill_sam3.images import has_image_suffix
from autodistill_sam3.labeling.names import SourceImage, with_stems

ImagesInput: TypeAlias = "str | Path | Sequence[str | Path]"

MANIFEST_SUFFIXES = (".txt", ".jsonl")


def find_images(source: ImagesInput, extension: str | None = None, *, recursive: bool = False) -> list[SourceImage]:
    """The images of an input, sorted by name, each once.

    Args:
        source: A folder; a glob such as `"clips/*/frame_*.jpg"` (`**` for any depth); an image; a manifest, `.txt`
            with a path in each line, or `.jsonl` with a path or an object `{"image": path, "group": text}` in each;
            or a list of paths. Paths in a manifest are relative to it. A folder or glob gives each image the name of
            its path below the folder; lists and manifests, the path as it stands there. Names that begin with a dot
            are passed over.
        extension: Take only files with this suffix, in any case; None takes every suffix that can be read. Images that
            are named one by one are taken whatever their suffix.
        recursive: Look into sub-folders of a folder, too; links to folders are not followed.

    Raises:
        InputFolderError: It is not there, or holds no image.
    """
    suffix = _as_suffix(extension) if extension else None

    def is_wanted(name: str) -> bool:
        return name.lower().endswith(suffix) if suffix else has_image_suffix(Path(name))

    # Names are given before the choice is narrowed, so that a later run with another suffix gives the same.
    def is_image(name: str) -> bool:
        return has_image_suffix(Path(name)) or is_wanted(name)

    listed = {image.name: image for image in _listed(source, recursive, is_image)}
    images = with_stems([listed[name] for name in sorted(listed)])
    images = [image for image in images if is_wanted(image.name) or (suffix is None and not _is_scanned(source))]
    if not images:
        kind = f"*{suffix}" if suffix else "images"
        hint = "" if recursive else " Sub-folders are read with recursive=True (--recursive)."
        raise InputFolderError(f"Expected {kind} in {_shown(source)}, received none.{hint}")
    return images


def has_at_least(count: int, source: ImagesInput, extension: str | None = None, *, recursive: bool = False) -> bool:
    """Whether an input has so many images; no more than that are looked for."""
    suffix = _as_suffix(extension) if extension else None

    def is_wanted(name: str) -> bool:
        return name.lower().endswith(suffix) if suffix else has_image_suffix(Path(name))

    return sum(1 for _ in itertools.islice(_listed(source, recursive, is_wanted), count)) == count


def input_root(source: ImagesInput) -> Path | None:
    """The folder that an input's names are relative to; None for a list."""
    if not isinstance(source, (str, Path)):
        return None
    path = Path(source)
    if _is_pattern(source):
        return _fixed_part(str(source))
    return path.parent if path.is_file() else path


def searched_folder(source: ImagesInput) -> Path | None:
    """The folder that a folder's or glob's images are searched for in; None where they are named one by one."""
    return input_root(source) if _is_scanned(source) else None


def default_output(source: ImagesInput) -> Path:
    """Where the dataset of a folder, glob, image or manifest goes if nothing is said: beside it.

    Raises:
        SettingError: The input is a list, which has no place.

    Example:
        >>> default_output("photos/").as_posix()
        'photos_labeled'
    """
    if not isinstance(source, (str, Path)):
        raise SettingError("Expected output_folder with a list of images, received none. Say where to write.")
    place = _fixed_part(str(source)) if _is_pattern(source) else Path(source)
    return beside(place.with_suffix("") if place.is_file() else place, "_labeled")


def beside(folder: Path, suffix: str) -> Path:
    """The place beside a folder that has its name and a suffix.

    Example:
        >>> beside(Path("datasets/photos"), "_prepared").as_posix()
        'datasets/photos_prepared'
    """
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(named.name + suffix)


def _listed(source: ImagesInput, recursive: bool, is_image: Callable[[str], bool]) -> Iterable[SourceImage]:
    if not isinstance(source, (str, Path)):
        return [SourceImage(Path(path), Path(os.path.normpath(path)).as_posix()) for path in source]
    path = Path(source)
    if _is_pattern(source):
        return _of_glob(str(source), is_image)
    if path.is_dir():
        return _of_folder(path, recursive, is_image)
    if not path.is_file():
        raise InputFolderError(f"Expected a folder of images, received nothing there: {source}")
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return _of_manifest(path)
    if not is_image(path.name):
        raise InputFolderError(
            f"Expected a folder of images, an image, or a manifest ({' or '.join(MANIFEST_SUFFIXES)}), "
            f"received another file: {source}"
        )
    return [SourceImage(path, path.name)]


def _of_folder(folder: Path, recursive: bool, is_image: Callable[[str], bool]) -> Iterator[SourceImage]:
    walk = os.walk(folder)
    for place, folders, names in walk if recursive else itertools.islice(walk, 1):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith(".") or not is_image(name):
                continue
            path = Path(place, name)
            yield SourceImage(path, path.relative_to(folder).as_posix())


def _of_glob(pattern: str, is_image: Callable[[str], bool]) -> Iterator[SourceImage]:
    root = _fixed_part(pattern)
    # pathlib's own takes no absolute patterns.
    for found in glob.iglob(pattern, recursive=True):  # noqa: PTH207
        path = Path(found)
        inner = itertools.takewhile(lambda parent: parent != root, path.parents)
        if is_image(path.name) and not path.is_dir() and not any(parent.is_symlink() for parent in inner):
            yield SourceImage(path, path.relative_to(root).as_posix())


def _of_manifest(manifest: Path) -> Iterator[SourceImage]:
    try:
        text = manifest.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise InputFolderError(f"Expected a list of images, but it cannot be read: {error}") from error
    has_json = manifest.suffix.lower() == ".jsonl"
    for number, line in enumerate(text.split("\n"), 1):
        entry = line.rstrip("\r")
        if not entry.strip():
            continue
        image, group = _json_entry(entry, manifest, number) if has_json else (entry, None)
        yield SourceImage(manifest.parent / image, Path(os.path.normpath(image)).as_posix(), group=group)


def _json_entry(line: str, manifest: Path, number: int) -> tuple[str, str | None]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if isinstance(entry, str):
        return entry, None
    image = entry.get("image") if isinstance(entry, dict) else None
    group = entry.get("group") if isinstance(entry, dict) else None
    if not isinstance(image, str) or not isinstance(group, str | None):
        raise InputFolderError(
            f'Expected a path or {{"image": path, "group": text}} in line {number} of {manifest}, received {line[:80]}'
        )
    return image, group


def _is_pattern(source: str | Path) -> bool:
    return glob.has_magic(str(source)) and not Path(source).exists()


def _is_scanned(source: ImagesInput) -> bool:
    """Whether a folder is searched, rather than its images named one by one."""
    return isinstance(source, (str, Path)) and (_is_pattern(source) or Path(source).is_dir())


def _fixed_part(pattern: str) -> Path:
    """The folder in front of a glob's first wildcard."""
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts[:-1])
    return Path(*fixed)


def _shown(source: ImagesInput) -> str:
    return str(source) if isinstance(source, (str, Path)) else f"a list of {len(source)} paths"


def _as_suffix(extension: str) -> str:
    return "." + extension.lower().lstrip("*").lstrip(".")
