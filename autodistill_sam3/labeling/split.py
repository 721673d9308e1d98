"""Which split an image belongs to: a hash of its group and a seed alone, so that adding images moves none."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import cv2
import numpy as np
from PIL import Image

from autodistill_sam3.errors import SettingError
from autodistill_sam3.images import RGBImage
from autodistill_sam3.labeling.names import SourceImage
from autodistill_sam3.labeling.records import Split

T = TypeVar("T")

# Of 64 bits. Smaller and re-encoded copies differ by up to 4, crops by 2 % of the side mostly by up to 6, other
# photographs by 16 or more.
NEAR_DUPLICATE_BITS = 6

_BAND_BITS = 16
_BAND_STARTS = range(0, 64, _BAND_BITS)
# Of two hashes that are near, one band of four differs by one bit at most. With bands so long, few others do.
_BAND_CHANGES = [0, *(1 << bit for bit in range(_BAND_BITS))]


@dataclass(frozen=True)
class SplitRule:
    """How images are split.

    Attributes:
        seed: Another seed gives another split.
        valid_share: Share of the groups that go to `valid`.
        test_share: Share of the groups that go to `test`; without any there is no such split.
        group_by: A regular expression searched for in an image's name; images with the same match, or the same first
            group of it if it has one, stay together. None, or no match, leaves each image on its own.

    Example:
        >>> from pathlib import Path
        >>> rule, path = SplitRule(group_by="cam[0-9]+"), Path("any")
        >>> {rule.split_of(SourceImage(path, f"cam1_{number}.jpg")) for number in range(9)}
        {'train'}
    """

    seed: int = 0
    valid_share: float = 0.2
    test_share: float = 0.0
    group_by: str | None = None

    def __post_init__(self) -> None:
        shares = {"valid_share": self.valid_share, "test_share": self.test_share}
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise SettingError(f"Expected {name} from 0 to below 1, received {share}")
        if sum(shares.values()) >= 1:
            raise SettingError(f"Expected valid_share and test_share to leave some for train, received {shares}")
        try:
            re.compile(self.group_by or "")
        except re.error as error:
            raise SettingError(
                f"Expected group_by to be a regular expression, received {self.group_by!r}: {error}"
            ) from error

    def split_of(self, image: SourceImage) -> Split:
        """The split of an image."""
        digest = hashlib.sha256(f"{self.seed}:{self._group_of(image)}".encode(errors="surrogatepass")).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        if place < 1 - self.valid_share - self.test_share:
            return "train"
        return "valid" if place < 1 - self.test_share else "test"

    def _group_of(self, image: SourceImage) -> str:
        if image.group is not None:
            return image.group
        match = re.search(self.group_by, image.name) if self.group_by else None
        if match is None:
            return image.name
        return match.group(1 if match.re.groups else 0) or image.name


def perceptual_hash(image: RGBImage) -> str:
    """16 hex digits that hardly change when an image is scaled or encoded again (pHash, Zauner 2010).

    Args:
        image: RGB (H, W, 3) ``uint8``.
    """
    import imagehash

    return str(imagehash.phash(Image.fromarray(_reduced(image))))


class NearDuplicates(Generic[T]):
    """Finds earlier images whose perceptual hash is near, and what is known of them."""

    def __init__(self) -> None:
        self._values: list[T] = []
        self._hashes: list[int] = []
        self._bands: list[dict[int, list[int]]] = [{} for _ in _BAND_STARTS]

    def add(self, phash: str, value: T) -> None:
        """Make an image known."""
        bits = int(phash, 16)
        for part, band in self._parts(bits):
            band.setdefault(part, []).append(len(self._values))
        self._values.append(value)
        self._hashes.append(bits)

    def earliest(self, phash: str) -> T | None:
        """What is known of the image that was added first among those that are near; None if none is."""
        bits = int(phash, 16)
        firsts = []
        for part, band in self._parts(bits):
            for change in _BAND_CHANGES:
                for place in band.get(part ^ change, ()):
                    if (self._hashes[place] ^ bits).bit_count() <= NEAR_DUPLICATE_BITS:
                        firsts.append(place)
                        break
        return self._values[min(firsts)] if firsts else None

    def _parts(self, bits: int) -> Iterator[tuple[int, dict[int, list[int]]]]:
        for start, band in zip(_BAND_STARTS, self._bands, strict=True):
            yield bits >> start & (1 << _BAND_BITS) - 1, band


def _reduced(image: RGBImage) -> RGBImage:
    """Shrunk as far as costs little and leaves more than what is hashed (32 x 32): means of squares of pixels.

    Pillow would first copy all pixels, which takes longer than the rest. The last rows and columns, which fill no
    square, are left out.
    """
    side = max(1, min(image.shape[:2]) // 128)
    height, width = (length // side for length in image.shape[:2])
    whole = image[: height * side, : width * side]
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
