"""The names that images get in a dataset: unique, portable, and the same in every run."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from autodistill_sam3.layout import CONFIDENCE_PREFIX

# File systems allow 255 bytes, of which prefixes, suffixes and numbers take some.
_MAX_STEM_BYTES = 200
# What no file name may hold, or what breaks lists of files: separators, control characters, undecodable bytes.
_NOT_PORTABLE = re.compile(r"[/\\\x00-\x1f\x7f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class SourceImage:
    """An image to label.

    Attributes:
        path: Where it is.
        name: Its path relative to the input, with forward slashes; its identity.
        stem: Its name in the dataset, without suffix; unique even if other suffixes or cases are dropped.
        group: What it is split by, if the input says so.
    """

    path: Path
    name: str
    stem: str = ""
    group: str | None = None


def stem_of(name: str) -> str:
    """The stem for an image's name: sub-folders joined by "_", shortened with a hash where a file system could not.

    Example:
        >>> stem_of("cam 1/left/a.jpg")
        'cam 1_left_a'
        >>> stem_of("/far/away/b.x.png")
        'b.x'
        >>> stem_of(300 * "long" + ".jpg")[-13:]
        'glon_1448ad54'
    """
    path = PurePosixPath(name)
    parts = [path.name] if path.is_absolute() else [part for part in path.parts if part != ".."]
    parts = parts or ["unnamed"]
    joined = "_".join([*parts[:-1], PurePosixPath(parts[-1]).stem])
    clean = _NOT_PORTABLE.sub("_", joined)
    if clean == joined and len(clean.encode()) <= _MAX_STEM_BYTES:
        return clean
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    short = clean.encode()[: _MAX_STEM_BYTES - 9].decode(errors="ignore")
    return f"{short}_{digest}"


def with_stems(images: Sequence[SourceImage]) -> list[SourceImage]:
    """Give each image its stem.

    Labels are named by stem, so that images which share one (`a.jpg`, `a.png`, `A.jpg`) keep their suffix in it. So
    does an image whose label file would have the name of another's confidence file.
    """
    stems = [stem_of(image.name) for image in images]
    uses = Counter(key_of(stem) for stem in stems)
    uses.update(key_of(CONFIDENCE_PREFIX + stem) for stem in list(uses))
    taken = Taken(key for key, count in uses.items() if count == 1)
    named = []
    for image, stem in zip(images, stems, strict=True):
        chosen = stem
        if uses[key_of(stem)] > 1:
            chosen = taken.free(f"{stem}_{_NOT_PORTABLE.sub('_', image.path.suffix[1:])}")
        named.append(replace(image, stem=chosen))
    return named


class Taken:
    """The stems that are in use.

    Args:
        stems: Those that are, or their keys.
    """

    def __init__(self, stems: Iterable[str] = ()) -> None:
        self._keys = {key_of(stem) for stem in stems}

    def __contains__(self, stem: str) -> bool:
        return key_of(stem) in self._keys

    def add(self, stem: str) -> None:
        """Take a stem."""
        self._keys.add(key_of(stem))

    def free(self, stem: str) -> str:
        """Take the stem, or one with a number behind it, whose label and confidence files are nobody else's."""
        free, number = stem, 2
        while not self._is_free(key_of(free)):
            free, number = f"{stem}_{number}", number + 1
        self.add(free)
        return free

    def _is_free(self, key: str) -> bool:
        prefix = key_of(CONFIDENCE_PREFIX)
        stripped = key.removeprefix(prefix)
        return not {key, prefix + key} & self._keys and (stripped == key or stripped not in self._keys)


def key_of(stem: str) -> str:
    """What must differ between two stems: file systems may ignore case, and how accents are composed.

    Example:
        >>> key_of("A.B") == key_of("a.b")
        True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())
