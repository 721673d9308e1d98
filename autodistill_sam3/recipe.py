"""What to make of a labelled dataset before a model is trained on it."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, Literal, Self, get_args

from autodistill_sam3.errors import SettingError
from autodistill_sam3.images import MAX_SIDE

Items = Literal["images", "crops", "cutouts"]
Fit = Literal["letterbox", "stretch", "within"]

ALPHA = "alpha"

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_LARGEST_MARGIN = 10.0
_STEPS = ("items", "size", "min_side", "min_sharpness", "drop_duplicates", "max_per_class")


@dataclass(frozen=True)
class Recipe:
    """What to make of a labelled dataset. With the defaults nothing is done; see `check_has_steps`.

    Attributes:
        items: What becomes an image of its own: each image; a window around each object, with all objects that reach
            into it; or each object alone, cut out by its mask.
        margin: Around an object's box, as a share of its width on the left and on the right and of its height above
            and below; clipped to the image. For crops and cut-outs.
        ground: What is around an object that is cut out: "alpha" for transparent, or a colour such as "#808080".
        size: In pixels; None leaves items as large as they are.
        fit: How items get this size. "letterbox": that many pixels a side, their shape kept, centred on gray (on
            transparency, for cut-outs with alpha). "stretch": that many pixels a side. "within": the longer side has
            at most that many pixels; nothing is enlarged.
        min_side: In pixels. Crops and cut-outs of objects whose box has a shorter side are dropped, and so are whole
            images with one, each as they are in the dataset. From whole images objects are removed whose box, in the
            size that the image gets, has a shorter side.
        min_sharpness: Items whose variance of the Laplacian is lower are dropped.
        drop_duplicates: Drop items that nearly equal an earlier one.
        max_per_class: How many objects of a class the train split keeps.
        seed: Another seed keeps others.

    Raises:
        SettingError: A value is of another kind or out of its range.

    Example:
        >>> Recipe(items="crops", size=224).as_json()["margin"]
        0.1
    """

    items: Items = "images"
    margin: float = 0.1
    ground: str = ALPHA
    size: int | None = None
    fit: Fit = "letterbox"
    min_side: int | None = None
    min_sharpness: float | None = None
    drop_duplicates: bool = False
    max_per_class: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("items", self.items, get_args(Items))
        _check_choice("fit", self.fit, get_args(Fit))
        _check_number("margin", self.margin, _LARGEST_MARGIN)
        if not isinstance(self.ground, str) or not (self.ground == ALPHA or _COLOUR.fullmatch(self.ground)):
            raise SettingError(f"Expected ground to be 'alpha' or a colour such as '#808080', received {self.ground!r}")
        for name in ("size", "min_side", "max_per_class"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name), math.inf if name == "max_per_class" else MAX_SIDE)
        if self.min_sharpness is not None:
            _check_number("min_sharpness", self.min_sharpness, math.inf)
        if not isinstance(self.drop_duplicates, bool):
            raise SettingError(f"Expected drop_duplicates to be true or false, received {self.drop_duplicates!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise SettingError(f"Expected seed to be a whole number, received {self.seed!r}")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """A recipe of settings by name.

        Raises:
            SettingError: There is no such setting, or a value is wrong.

        Example:
            >>> Recipe.from_mapping({"items": "cutouts", "ground": "#808080"}).ground
            '#808080'
        """
        for name in mapping:
            check_setting(name)
        return cls(**mapping)

    @property
    def colour(self) -> tuple[int, int, int] | None:
        """Red, green and blue of the ground; None for transparent."""
        if self.ground == ALPHA:
            return None
        red, green, blue = bytes.fromhex(self.ground[1:])
        return red, green, blue

    def as_json(self) -> dict[str, Any]:
        """All settings; equal recipes give equal values."""
        return asdict(self) | {"ground": self.ground.lower(), "margin": float(self.margin)}

    def changes(self) -> dict[str, Any]:
        """The settings that differ from their defaults.

        Example:
            >>> Recipe(size=640, fit="letterbox").changes()
            {'size': 640}
        """
        return {item.name: value for item in fields(self) if (value := getattr(self, item.name)) != item.default}

    def check_has_steps(self) -> None:
        """Raise a `SettingError` if nothing is asked for.

        Example:
            >>> Recipe(max_per_class=100).check_has_steps()
        """
        if not self.changes().keys() & set(_STEPS):
            raise SettingError(
                "Expected at least one step of preparing, received none. Ask for items ('crops' or 'cutouts'), "
                f"{', '.join(_STEPS[1:-1])} or {_STEPS[-1]}."
            )


def check_setting(name: str) -> None:
    """Raise a `SettingError` if a recipe has no setting of this name.

    Example:
        >>> check_setting("sise")
        Traceback (most recent call last):
        autodistill_sam3.errors.SettingError: Expected one of items, margin, ground, size, fit, min_side, min_sharpness,
        drop_duplicates, max_per_class, seed, received 'sise'. Did you mean 'size'?
    """
    names = [item.name for item in fields(Recipe)]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise SettingError(f"Expected one of {', '.join(names)}, received {name!r}.{guess}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingError(f"Expected {name} to be one of {', '.join(choices)}, received {value!r}")


def _check_number(name: str, value: object, highest: float) -> None:
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not 0 <= float(value) <= highest:  # type: ignore[arg-type]  # only of numbers
        limit = "" if math.isinf(highest) else f" and at most {highest:g}"
        raise SettingError(f"Expected {name} to be a number, at least 0{limit}, received {value!r}")


def _check_count(name: str, value: object, highest: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= highest:
        limit = "" if math.isinf(highest) else f" and at most {highest}"
        raise SettingError(f"Expected {name} to be a whole number, at least 1{limit}, received {value!r}")
