"""Prompt wordings, and which prompts are put to a scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autodistill_sam3.training.scenes import Generator, ScenePlan
from autodistill_sam3.training.world import COLOURS, SHAPES, Concept, is_held_out

NOUNS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "disk"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "donut"),
    "cross": ("cross", "plus"),
}
PLURALS = {"cross": "crosses", "plus": "pluses"}
ANY_SHAPE = ("shape", "object")
TEMPLATES = ("{}", "a {}", "the {}", "{}.")
PLURAL_TEMPLATES = ("{}", "the {}", "all {}")
# Things that are never in a scene.
UNKNOWN = (  # noqa: SIM905  # a list of sixty literals reads worse
    "zebra car dog cat person bottle tree house bird fish boat chair table cup phone book horse apple banana train "
    "truck cloud mountain flower pencil shoe hat keyboard window door bicycle elephant spoon fork guitar pizza milk "
    "hexagon line arrow heart moon letter number text face sheep cow bear plane bus kite ball"
).split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Prompt:
    """A text and what it asks for."""

    text: str
    concept: Concept


def parse_text(text: str) -> Concept:
    """What a wording of this world asks for; anything else is unknown.

    Example:
        >>> parse_text("A Red Circle"), parse_text("pluses").shape, parse_text("zebra").known
        (Concept(colour='red', shape='circle', known=True), 'cross', False)
    """
    words = [word for word in text.lower().rstrip(".").split() if word not in ("a", "an", "the", "all")]
    nouns = {_plural(noun): shape for shape, names in NOUNS.items() for noun in names}
    nouns |= {noun: shape for shape, names in NOUNS.items() for noun in names}
    general = {*ANY_SHAPE, *(_plural(noun) for noun in ANY_SHAPE)}
    colour = words[0] if words and words[0] in COLOURS else None
    rest = words[1:] if colour else words
    if len(rest) == 1 and rest[0] in nouns:
        return Concept(colour, nouns[rest[0]])
    if colour and len(rest) == 1 and rest[0] in general:
        return Concept(colour)
    return Concept(known=False)


def word(rng: Generator, concept: Concept) -> str:
    """A random wording: articles, plurals, capitals, synonyms."""
    if not concept.known:
        return _unknown(rng)
    nouns = NOUNS[concept.shape] if concept.shape else ANY_SHAPE
    noun = nouns[0] if rng.random() < 0.6 else nouns[rng.integers(len(nouns))]
    many = rng.random() < 0.2
    text = f"{concept.colour or ''} {_plural(noun) if many else noun}".strip()
    templates = PLURAL_TEMPLATES if many else TEMPLATES
    template = templates[0] if rng.random() < 0.6 else templates[rng.integers(len(templates))]
    if template == "a {}" and text[0] in "aeio":
        template = "an {}"
    return _capitalise(rng, template.format(text))


def _capitalise(rng: Generator, text: str) -> str:
    choice = rng.random()
    if choice < 0.06:
        return text.capitalize()
    if choice < 0.10:
        return text.title()
    return text.upper() if choice < 0.12 else text


def _plural(noun: str) -> str:
    return PLURALS.get(noun, noun + "s")


def _unknown(rng: Generator) -> str:
    """A thing that no scene holds, now and then a made-up one, some with a colour of this world."""
    if rng.random() < 0.3:
        noun = "".join(LETTERS[i] for i in rng.integers(0, len(LETTERS), rng.integers(3, 9)))
    else:
        noun = UNKNOWN[rng.integers(len(UNKNOWN))]
    colour = f"{COLOURS[rng.integers(len(COLOURS))]} " if rng.random() < 0.4 else ""
    article = "a " if rng.random() < 0.2 else ""
    return article + colour + noun


def choose_concept(rng: Generator, colours: list[str], shapes: list[str], present: float) -> Concept:
    """A concept for a scene whose objects have these colours and shapes.

    Args:
        rng: Decides.
        colours: Of the objects in the scene.
        shapes: Of the same objects, in the same order.
        present: Probability of something that is drawn. What is absent mostly shares a colour or shape with an object.
    """
    index = int(rng.integers(len(colours)))
    colour, shape = colours[index], shapes[index]
    if rng.random() < present:
        kind = rng.random()
        if kind < 0.5:
            return Concept(colour, shape)
        return Concept(shape=shape) if kind < 0.75 else Concept(colour)
    for _ in range(8):
        concept = _absent(rng, colour, shape)
        held_out = is_held_out(concept.colour, concept.shape)
        if not held_out and not any(concept.matches(c, s) for c, s in zip(colours, shapes, strict=True)):
            return concept
    return Concept(known=False)


def _absent(rng: Generator, colour: str, shape: str) -> Concept:
    other_colour, other_shape = COLOURS[rng.integers(len(COLOURS))], SHAPES[rng.integers(len(SHAPES))]
    kind = rng.random()
    if kind < 0.35:
        return Concept(other_colour, shape)
    if kind < 0.65:
        return Concept(colour, other_shape)
    if kind < 0.72:
        return Concept(other_colour, other_shape)
    if kind < 0.82:
        return Concept(shape=other_shape)
    return Concept(other_colour) if kind < 0.92 else Concept(known=False)


@dataclass(frozen=True, eq=False)
class PromptPlan:
    """P prompts for each of B scenes.

    Attributes:
        prompts: B lists of P.
        matches: (B, P, K) ``bool``, which objects of the plan each asks for, visible or not.
    """

    prompts: list[list[Prompt]]
    matches: npt.NDArray[np.bool_]

    @property
    def texts(self) -> list[str]:
        """All B * P texts, scene by scene."""
        return [prompt.text for row in self.prompts for prompt in row]


def plan_prompts(rng: Generator, scenes: ScenePlan, per_scene: int, *, present: float = 0.6) -> PromptPlan:
    """Choose prompts for planned scenes.

    Args:
        rng: Decides.
        scenes: B scenes.
        per_scene: P.
        present: Probability that a prompt asks for something that is drawn.
    """
    rows: list[list[Prompt]] = []
    matches = np.zeros((len(scenes), per_scene, scenes.valid.shape[1]), dtype=bool)
    for index, valid in enumerate(scenes.valid):
        colours = [COLOURS[i] for i in scenes.colour[index, valid]]
        shapes = [SHAPES[i] for i in scenes.shape[index, valid]]
        concepts = [choose_concept(rng, colours, shapes, present) for _ in range(per_scene)]
        rows.append([Prompt(word(rng, c), c) for c in concepts])
        for row, concept in enumerate(concepts):
            matches[index, row, valid] = [concept.matches(c, s) for c, s in zip(colours, shapes, strict=True)]
    return PromptPlan(rows, matches)
