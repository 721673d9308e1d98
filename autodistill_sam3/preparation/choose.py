"""Which items are kept: a function of what was measured and the recipe alone."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from autodistill_sam3.labeling.names import Taken, stem_of
from autodistill_sam3.labeling.records import Split
from autodistill_sam3.labeling.split import NearDuplicates
from autodistill_sam3.preparation.measure import MeasuredImage, MeasuredItem
from autodistill_sam3.recipe import Recipe

TINY = "tiny"
BLURRED = "blurred"
DUPLICATE = "duplicate"
OVER_THE_CAP = "over_the_cap"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An item that may be kept.

    Attributes:
        source: Path of its image in the labelled folder, and "#" and the number of its object if it has one.
        split: Of its image.
        file: Its name, if it is kept.
        image: Its image.
        item: What was measured.
    """

    source: str
    split: Split
    file: str
    image: MeasuredImage
    item: MeasuredItem


@dataclass(frozen=True, slots=True)
class Dropped:
    """An item that is left out.

    Attributes:
        candidate: The item.
        reason: Why.
        value: What was measured: the shorter side in pixels, the sharpness, the name of the item that it nearly
            equals, or how many objects the rarest of its classes had without it; None for what has no value.
    """

    candidate: Candidate
    reason: str
    value: float | str | None

    def as_line(self) -> str:
        """A line of `dropped.jsonl`."""
        return json.dumps({"source": self.candidate.source, "reason": self.reason, "value": self.value}) + "\n"


@dataclass
class Choice:
    """What becomes of all items.

    Attributes:
        kept: In the order of splits and names.
        dropped: In the order in which they were.
    """

    kept: list[Candidate] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)


def candidates(images: Iterable[tuple[Split, MeasuredImage]], classes: Sequence[str]) -> list[Candidate]:
    """The items of images in this order, each with a name of its own."""
    taken = Taken()
    found = []
    for split, image in images:
        stem = PurePosixPath(image.path).stem
        for item in image.items:
            name, source = stem, image.path
            if item.number is not None and item.class_id is not None:
                number = f"{item.number:03d}"
                name, source = f"{stem}_{number}_{classes[item.class_id]}", f"{image.path}#{number}"
            suffix = PurePosixPath(image.path).suffix if image.is_copied else ".png"
            file = taken.free(stem_of(f"{name}.png")) + suffix
            found.append(Candidate(source, split, file, image, item))
    return found


def choose(items: Iterable[Candidate], recipe: Recipe) -> Choice:
    """Drop what a recipe does not want.

    One step after the other, each on what the steps before it left: what nothing can be made of, what is tiny, what is
    blurred, duplicates, and last, in the train split, what is over the cap.

    Args:
        items: Ordered by split (train, valid, test) and name; of near-duplicates the first one stays.
        recipe: What is wanted.
    """
    choice = Choice()
    for one in items:
        reason, value = _reason_against(one.item, recipe)
        if reason:
            choice.dropped.append(Dropped(one, reason, value))
        else:
            choice.kept.append(one)
    if recipe.drop_duplicates:
        _drop_duplicates(choice)
    if recipe.max_per_class is not None:
        _drop_over_the_cap(choice, recipe.max_per_class, recipe)
    return choice


def _reason_against(item: MeasuredItem, recipe: Recipe) -> tuple[str, float | None]:
    if item.fault:
        return item.fault, None
    if recipe.min_side is not None and item.side < recipe.min_side:
        return TINY, item.side
    if recipe.min_sharpness is not None and item.sharpness < recipe.min_sharpness:
        return BLURRED, item.sharpness
    return "", None


def _drop_duplicates(choice: Choice) -> None:
    # An object of another class is another object, however alike they are.
    near: dict[int | None, NearDuplicates[str]] = {}
    kept = []
    for one in choice.kept:
        known = near.setdefault(one.item.class_id, NearDuplicates())
        earliest = known.earliest(one.item.phash)
        if earliest is None:
            known.add(one.item.phash, one.source)
            kept.append(one)
        else:
            choice.dropped.append(Dropped(one, DUPLICATE, earliest))
    choice.kept = kept


def _drop_over_the_cap(choice: Choice, cap: int, recipe: Recipe) -> None:
    counts: Counter[int | None] = Counter()
    over: dict[str, Dropped] = {}
    for one in sorted((one for one in choice.kept if one.split == "train"), key=lambda one: _draw(one, recipe.seed)):
        own = one.item.class_id
        classes: Sequence[int | None] = one.item.classes if own is None else [own]
        fewest = min((counts[index] for index in classes), default=0)
        if fewest < cap:
            counts.update(classes)
        else:
            over[one.source] = Dropped(one, OVER_THE_CAP, fewest)
    choice.dropped += [over[one.source] for one in choice.kept if one.source in over]
    choice.kept = [one for one in choice.kept if one.source not in over]


def _draw(one: Candidate, seed: int) -> tuple[bytes, str]:
    """A place by lot, the same in every run."""
    return hashlib.sha256(f"{seed}:{one.source}".encode(errors="surrogatepass")).digest(), one.source
