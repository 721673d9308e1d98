"""Any ontology -> unique prompts for the models, unique classes for the dataset, and which belongs to which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from autodistill_sam3.errors import OntologyError

# Which model is given the prompts: SAM 3, Florence-2, or each of them.
Prompting: TypeAlias = Literal["text", "boxes", "both"]


class Ontology(Protocol):
    """What is needed of autodistill's ontologies; `prompts()[i]` describes objects of `classes()[i]`."""

    def prompts(self) -> list[str]: ...

    def classes(self) -> list[str]: ...


@dataclass(frozen=True)
class PromptPairs:
    """An ontology of (prompt, class) pairs, for those who have no other."""

    pairs: tuple[tuple[str, str], ...]

    def prompts(self) -> list[str]:
        """The prompts, in order."""
        return [prompt for prompt, _ in self.pairs]

    def classes(self) -> list[str]:
        """The class of each prompt."""
        return [name for _, name in self.pairs]


@dataclass(frozen=True)
class PromptTable:
    """Prompts and the classes they stand for.

    Attributes:
        prompts: Unique prompts, in the ontology's order. What models are given.
        classes: Unique class names, in order of first use. What datasets are given; a class id is an index into it.
        class_of_prompt: Class id of each prompt.
        background: The last of the classes if it is what no object covers, which no prompt asks for; None without.
    """

    prompts: tuple[str, ...]
    classes: tuple[str, ...]
    class_of_prompt: tuple[int, ...]
    background: str | None = None

    @classmethod
    def from_ontology(cls, ontology: Ontology, background: str | None = None) -> PromptTable:
        """Read an ontology.

        Args:
            ontology: Anything with `prompts()` and `classes()` of equal length, such as autodistill's
                `CaptionOntology`. Two prompts may name one class.
            background: A further class, for what no object covers.

        Raises:
            OntologyError: It is empty, holds something other than text, or gives one prompt two classes; or the
                background is a class that prompts have.

        Example:
            >>> from autodistill.detection import CaptionOntology
            >>> table = PromptTable.from_ontology(CaptionOntology({"milk bottle": "bottle", "flask": "bottle"}))
            >>> table.prompts, table.classes, table.class_of_prompt
            (('milk bottle', 'flask'), ('bottle',), (0, 0))
        """
        if not (hasattr(ontology, "prompts") and hasattr(ontology, "classes")):
            raise OntologyError(
                f"Expected an ontology such as CaptionOntology({{'milk bottle': 'bottle'}}), "
                f"received {type(ontology).__name__}"
            )
        pairs = list(zip(ontology.prompts(), ontology.classes(), strict=True))
        if not pairs:
            raise OntologyError("Expected at least one prompt, received an empty ontology")
        class_by_prompt: dict[str, str] = {}
        for prompt, class_name in pairs:
            _check_pair(prompt, class_name)
            if class_by_prompt.setdefault(prompt, class_name) != class_name:
                raise OntologyError(
                    f"Expected one class per prompt, received {class_by_prompt[prompt]!r} and {class_name!r} "
                    f"for the prompt {prompt!r}"
                )
        classes = tuple(dict.fromkeys(class_by_prompt.values()))
        if background is not None:
            _check_background(background, classes)
        return cls(
            prompts=tuple(class_by_prompt),
            classes=classes if background is None else (*classes, background),
            class_of_prompt=tuple(classes.index(name) for name in class_by_prompt.values()),
            background=background,
        )

    def class_ids(self, prompt_index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Class ids, ``int64`` of shape (N,), for indices into `prompts` of the same shape."""
        return np.asarray(self.class_of_prompt, dtype=np.int64)[prompt_index]


def _check_background(name: object, classes: tuple[str, ...]) -> None:
    _check_pair("background", name)
    if name in classes:
        raise OntologyError(
            f"Expected the background to be a class that no prompt has, received {name!r}. To ask the models for it, "
            "leave `background` out."
        )


def _check_pair(prompt: object, class_name: object) -> None:
    for what, value in (("prompt", prompt), ("class name", class_name)):
        if not isinstance(value, str):
            raise OntologyError(f"Expected a text {what}, received {type(value).__name__}: {value!r}")
        if not value.strip():
            raise OntologyError(f"Expected a {what} with at least one character, received {value!r}")
