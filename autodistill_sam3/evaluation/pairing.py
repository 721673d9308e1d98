"""Which images and classes of two datasets are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from autodistill_sam3.errors import LabelingError
from autodistill_sam3.evaluation.labels import SPLITS, LabeledImage, LabelSet
from autodistill_sam3.evaluation.masks import ImageHW

_SHOWN = 5
# How names are compared, the most exact first; an image that is paired is not looked at again.
_FORMS: tuple[Callable[[str], str], ...] = (
    str,
    lambda name: str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else name,
    lambda name: PurePosixPath(name).name,
    lambda name: PurePosixPath(name).stem,
)


def shared_classes(found: LabelSet, truth: LabelSet) -> list[str]:
    """The class names of both, in the ground truth's order.

    Raises:
        LabelingError: There are none.
    """
    shared = [name for name in truth.classes if name in found.classes]
    if not shared:
        raise LabelingError(
            "Expected at least one class name in both, received none. Names must be equal to the letter: "
            f"the dataset has {list(found.classes)}, the ground truth has {list(truth.classes)}."
            f"{''.join(f' {hint[0].upper()}{hint[1:]}' for hint in case_hints(found.classes, truth.classes))}"
        )
    return shared


def case_hints(found: Sequence[str], truth: Sequence[str]) -> list[str]:
    """A question for each pair of class names that differ in case only.

    Example:
        >>> case_hints(["ball", "cap"], ["Ball"])
        ["did you mean 'Ball' of the ground truth by 'ball' of the dataset?"]
    """
    return [
        f"did you mean {true!r} of the ground truth by {own!r} of the dataset?"
        for own in found
        for true in truth
        if own != true and own.casefold() == true.casefold()
    ]


def pair_images(truth: Sequence[LabeledImage], found: Sequence[LabeledImage]) -> list[int | None]:
    """For each image of the ground truth the index of the same image in the dataset, or None.

    Relative names are compared first whole, then without suffix, then without folders, then without either.

    Raises:
        LabelingError: A name fits several images, or no image is in both.
    """
    partner: list[int | None] = [None] * len(truth)
    taken: set[int] = set()
    for form in _FORMS:
        owners = _owners(truth, form), _owners(found, form)
        shared = [key for key in owners[0] if key in owners[1]]
        for key in shared:
            here, there = owners[0][key], owners[1][key]
            if len(here) == len(there) == 1 and partner[here[0]] is None and there[0] not in taken:
                partner[here[0]] = there[0]
                taken.add(there[0])
        for key in shared:
            left = [index for index in owners[0][key] if partner[index] is None]
            right = [index for index in owners[1][key] if index not in taken]
            if left and right:
                raise _ambiguous(key, [truth[index] for index in left], [found[index] for index in right])
    if not taken:
        raise LabelingError(
            f"Expected images of one name in both, received none: {_examples(found)} in the dataset, "
            f"{_examples(truth)} in the ground truth"
        )
    return partner


def folders_contradict(truth: LabeledImage, found: LabeledImage) -> bool:
    """Whether both sides say in which folder an image lies, and say different ones; splits say nothing."""
    own, other = _folders(truth), _folders(found)
    # Some begin the path further up than others: data/x and x can be one folder.
    return bool(own and other) and not any(
        f"/{a}".endswith(f"/{b}") or f"/{b}".endswith(f"/{a}") for a in own for b in other
    )


def agreed_hw(truth: LabeledImage, found: LabeledImage | None) -> ImageHW:
    """The size of an image, of which each side may know it.

    Raises:
        LabelingError: They differ, or neither knows it.
    """
    own, other = truth.image_hw, found.image_hw if found is not None else None
    if own is not None and other is not None and own != other:
        hint = " One of them may have been labelled without turning the image upright." if own == other[::-1] else ""
        raise LabelingError(
            f"Expected one size of image {truth.names[0]!r} on both sides, received {other[1]}x{other[0]} pixels in "
            f"the dataset and {own[1]}x{own[0]} in the ground truth.{hint}"
        )
    size = own if own is not None else other
    if size is None:
        raise LabelingError(
            f"Expected the size of image {truth.names[0]!r}, which neither side gives. Put the images beside the "
            "labels."
        )
    return size


def _folders(image: LabeledImage) -> set[str]:
    return {str(PurePosixPath(name).parent) for name in image.names} - {".", *SPLITS}


def _owners(images: Sequence[LabeledImage], form: Callable[[str], str]) -> dict[str, list[int]]:
    owners: dict[str, list[int]] = {}
    for index, image in enumerate(images):
        for key in dict.fromkeys(form(name) for name in image.names):
            owners.setdefault(key, []).append(index)
    return owners


def _ambiguous(key: str, truth: Sequence[LabeledImage], found: Sequence[LabeledImage]) -> LabelingError:
    return LabelingError(
        f"Expected one image named {key!r} on either side, received {_examples(found)} in the dataset and "
        f"{_examples(truth)} in the ground truth. Give them the same relative names, or compare one split at a time."
    )


def _examples(images: Sequence[LabeledImage]) -> str:
    names = ", ".join(repr(image.names[0]) for image in images[:_SHOWN])
    return f"{names} and {len(images) - _SHOWN} more" if len(images) > _SHOWN else names or "none"
