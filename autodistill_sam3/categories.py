"""Categories: what to look for, under a name, with the settings that suit it.

The package brings some in `default_prompts.json`; users add files of their own in the same form, JSON or YAML.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml

from autodistill_sam3.bundled import bundled_path
from autodistill_sam3.errors import AutodistillSAM3Error, SettingError
from autodistill_sam3.ontology import Prompting, PromptPairs, PromptTable
from autodistill_sam3.recipe import Recipe, check_setting
from autodistill_sam3.thresholds import Thresholds

_DEFAULTS = Path(__file__).with_name("default_prompts.json")
# Names are folders, too.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_FLAG = re.compile("true|false")
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,18}")
_LARGEST_FILE = 2**20


@dataclass(frozen=True)
class Category:
    """What to look for, and how.

    Attributes:
        name: Of letters, digits, "-" and "_".
        description: For people.
        prompts: Prompt -> class, in the order of the dataset's class ids.
        images: Where the images are, unless somebody says otherwise.
        output: Where its dataset goes, unless somebody says otherwise.
        settings: Arguments for `GroundedSAM3` that differ from its defaults: `checkpoint`, `prompting`, `confidence`,
            `box_confidence`, `background`, and `thresholds` by class.
        recipe: How its dataset is prepared for training; None if it does not say.
    """

    name: str
    description: str
    prompts: Mapping[str, str]
    images: Path
    output: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None

    @property
    def ontology(self) -> PromptPairs:
        """Prompts and classes."""
        return PromptPairs(tuple(self.prompts.items()))


def read_categories(path: Path | None = None) -> dict[str, Category]:
    """The categories of the package and, in front of those of the same name, of a file.

    Args:
        path: JSON or YAML of up to 1 MiB: name -> `description`, `prompts` and, if wanted, `images` and `output`
            (folders relative to the file; by default `data/NAME/images` and `output/NAME` where the process is),
            `checkpoint` (relative to the file if it is there), `prompting`, `confidence`, `box_confidence`,
            `background` and `thresholds`, and in `preprocess` what a `Recipe` is made of.

    Raises:
        SettingError: The file is missing, damaged or holds something else; the message has the line.

    Example:
        >>> read_categories()["vehicles"].prompts["van"]
        'truck'
    """
    categories = _read(_DEFAULTS, bundled_path)
    if path is not None:
        categories |= _read(path, lambda place: path.parent / Path(place).expanduser())
    return categories


def find_category(name: str, categories: Mapping[str, Category]) -> Category:
    """The category of a name.

    Raises:
        SettingError: There is none; the message names those that there are.

    Example:
        >>> find_category("person", read_categories()).output.as_posix()
        'output/person'
    """
    if name in categories:
        return categories[name]
    raise SettingError(
        f"Expected a category among {', '.join(sorted(categories))}, received {name!r}.{_guess(name, categories)} "
        "`--category-file FILE` adds categories of your own."
    )


def _guess(name: str, known: Iterable[str]) -> str:
    by_lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""


class _PlacedError(Exception):
    """Something is wrong at a place of a file."""

    def __init__(self, node: yaml.Node, message: str) -> None:
        super().__init__(message)
        self.line = node.start_mark.line + 1


def _read(path: Path, place_of: Callable[[str], Path]) -> dict[str, Category]:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise SettingError(f"Expected at most {_LARGEST_FILE} bytes of categories, received more: {path}")
        text = content.decode("utf-8-sig")
        # JSON is YAML, but for tabs between its parts; within its texts there are none.
        is_json = text.lstrip().startswith("{")
        root = yaml.compose(text.replace("\t", "  ") if is_json else text, Loader=yaml.SafeLoader)
        if root is None:
            raise SettingError(f"Expected categories in {path}, received an empty file")
        return {name: _category(name, key, node, place_of) for name, key, node in _entries(root, "categories")}
    except OSError as error:
        raise SettingError(f"Expected a file of categories, received {path}: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise SettingError(f"Expected categories as JSON or YAML in {path}{line}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        raise SettingError(f"Expected categories as JSON or YAML, received {path}: {error}") from error
    except _PlacedError as error:
        raise SettingError(f"{path}, line {error.line}: {error}") from error


def _category(name: str, key: yaml.Node, node: yaml.Node, place_of: Callable[[str], Path]) -> Category:
    if not _NAME.fullmatch(name):
        raise _PlacedError(key, f"Expected a category's name of letters, digits, '-' and '_', received {name!r}")
    values: dict[str, Any] = {}
    places: dict[str, yaml.Node] = {}
    for entry, entry_key, value in _entries(node, f"the settings of {name!r}"):
        if entry not in _READERS:
            known = ", ".join(_READERS)
            message = f"Expected one of {known} in {name!r}, received {entry!r}.{_guess(entry, _READERS)}"
            raise _PlacedError(entry_key, message)
        values[entry], places[entry] = _READERS[entry](value, entry), value
    for needed in ("description", "prompts"):
        if needed not in values:
            raise _PlacedError(key, f"Expected {needed!r} in {name!r}, received none")
    images, output = (place_of(values.pop(entry)) if entry in values else None for entry in ("images", "output"))
    if "checkpoint" in values and place_of(values["checkpoint"]).exists():
        values["checkpoint"] = str(place_of(values["checkpoint"]))
    category = Category(
        name=name,
        description=values.pop("description"),
        prompts=values.pop("prompts"),
        recipe=values.pop("preprocess", None),
        images=images or Path("data") / name / "images",
        output=output or Path("output") / name,
        settings=values,
    )
    _check(category, places)
    return category


def _check(category: Category, places: Mapping[str, yaml.Node]) -> None:
    """Raise what the models would raise."""
    settings = category.settings
    with _placed(places["prompts"]):
        table = PromptTable.from_ontology(category.ontology)
    if "background" in settings:
        with _placed(places["background"]):
            PromptTable.from_ontology(category.ontology, settings["background"])
    if "thresholds" in settings:
        with _placed(places["thresholds"]):
            Thresholds(per_class=settings["thresholds"]).check_classes(table.classes)


@contextlib.contextmanager
def _placed(node: yaml.Node) -> Iterator[None]:
    try:
        yield
    except AutodistillSAM3Error as error:
        raise _PlacedError(node, str(error)) from error


def _entries(node: yaml.Node, what: str) -> list[tuple[str, yaml.Node, yaml.Node]]:
    """Key, its place and its value, of a mapping."""
    if not isinstance(node, yaml.MappingNode):
        raise _PlacedError(node, f"Expected {what} by name, received {_kind(node)}")
    entries = [(_text(key, "a name"), key, value) for key, value in node.value]
    seen: set[str] = set()
    for name, key, _ in entries:
        if name in seen:
            raise _PlacedError(key, f"Expected {name!r} once in {what}, received it twice")
        seen.add(name)
    return entries


def _text(node: yaml.Node, what: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
        raise _PlacedError(node, f"Expected {what} to be a text, received {_kind(node)}; quote it if it is one")
    # JSON writes characters beyond 16 bits as two halves, which YAML leaves apart.
    text = str(node.value).encode("utf-16", "surrogatepass").decode("utf-16").strip()
    if not text:
        raise _PlacedError(node, f"Expected {what} with at least one character, received {node.value!r}")
    return text


def _number(node: yaml.Node, what: str) -> float:
    """YAML's own numbers differ from JSON's: `1e-05` is a text, `0:30` is 30."""
    return float(_plain(node, what, _NUMBER, "a number"))


def _share(node: yaml.Node, what: str) -> float:
    value = _number(node, what)
    if not 0 <= value <= 1:
        raise _PlacedError(node, f"Expected {what} between 0 and 1, received {value:.20g}")
    return value


def _whole_number(node: yaml.Node, what: str) -> int:
    return int(_plain(node, what, _WHOLE_NUMBER, "a whole number"))


def _flag(node: yaml.Node, what: str) -> bool:
    return _plain(node, what, _FLAG, "true or false") == "true"


def _plain(node: yaml.Node, what: str, pattern: re.Pattern[str], kind: str) -> str:
    """A value without quotes, of this pattern."""
    if not isinstance(node, yaml.ScalarNode) or node.style is not None or not pattern.fullmatch(node.value):
        raise _PlacedError(node, f"Expected {what} to be {kind}, received {_kind(node)}")
    return str(node.value)


def _prompting(node: yaml.Node, what: str) -> str:
    text = _text(node, what)
    if text not in get_args(Prompting):
        raise _PlacedError(node, f"Expected {what} to be one of {', '.join(get_args(Prompting))}, received {text!r}")
    return text


def _prompts(node: yaml.Node, what: str) -> dict[str, str]:
    return {prompt: _text(value, f"the class of {prompt!r}") for prompt, _, value in _entries(node, what)}


def _thresholds(node: yaml.Node, what: str) -> dict[str, float]:
    return {name: _share(value, f"the threshold of {name!r}") for name, _, value in _entries(node, what)}


def _recipe(node: yaml.Node, what: str) -> Recipe:
    values: dict[str, Any] = {}
    for name, key, value in _entries(node, what):
        with _placed(key):
            check_setting(name)
        values[name] = _RECIPE_READERS[name](value, f"{name!r} of {what!r}")
        # One by one, so that what is wrong has its line.
        with _placed(value):
            Recipe.from_mapping({name: values[name]})
    with _placed(node):
        recipe = Recipe.from_mapping(values)
        recipe.check_has_steps()
    return recipe


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"{node.value!r}"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


_READERS: dict[str, Callable[[yaml.Node, str], Any]] = {
    "description": _text,
    "prompts": _prompts,
    "images": _text,
    "output": _text,
    "checkpoint": _text,
    "prompting": _prompting,
    "confidence": _share,
    "box_confidence": _share,
    "background": _text,
    "thresholds": _thresholds,
    "preprocess": _recipe,
}
_RECIPE_READERS: dict[str, Callable[[yaml.Node, str], Any]] = {
    "items": _text,
    "margin": _number,
    "ground": _text,
    "size": _whole_number,
    "fit": _text,
    "min_side": _whole_number,
    "min_sharpness": _number,
    "drop_duplicates": _flag,
    "max_per_class": _whole_number,
    "seed": _whole_number,
}
