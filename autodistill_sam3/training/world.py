"""The small world that the `shapes` checkpoints know: its colours, shapes, and the pairs that training never sees."""

from __future__ import annotations

from dataclasses import dataclass

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")

# Never drawn, prompted or used as a negative in training: what a model says of them shows whether it composes. As
# negatives they would teach that their names are always absent.
HELD_OUT_PAIRS = (("purple", "triangle"), ("orange", "ring"), ("green", "star"))

# Hue in degrees (from, to), then saturation and value ranges in 0..1.
PALETTE: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-13.0, 8.0), (0.70, 1.0), (0.60, 1.0)),
    "green": ((92.0, 152.0), (0.50, 1.0), (0.35, 1.0)),
    "blue": ((205.0, 245.0), (0.60, 1.0), (0.50, 1.0)),
    "yellow": ((49.0, 62.0), (0.65, 1.0), (0.85, 1.0)),
    "purple": ((268.0, 305.0), (0.45, 1.0), (0.42, 0.85)),
    "orange": ((18.0, 40.0), (0.80, 1.0), (0.85, 1.0)),
    "white": ((0.0, 360.0), (0.0, 0.05), (0.92, 1.0)),
    "black": ((0.0, 360.0), (0.0, 0.30), (0.0, 0.14)),
}


@dataclass(frozen=True)
class Concept:
    """What a prompt asks for: a colour, a shape, both, or (`known=False`) something that is not of this world."""

    colour: str | None = None
    shape: str | None = None
    known: bool = True

    def matches(self, colour: str, shape: str) -> bool:
        """Whether an object of this colour and shape is an instance.

        Example:
            >>> Concept(colour="red").matches("red", "star"), Concept("red", "star").matches("red", "ring")
            (True, False)
        """
        return self.known and self.colour in (None, colour) and self.shape in (None, shape)


def is_held_out(colour: str | None, shape: str | None) -> bool:
    """Whether the pair is kept out of training."""
    return (colour, shape) in HELD_OUT_PAIRS


def pair_indices(*, held_out: bool = False) -> list[tuple[int, int]]:
    """(colour index, shape index) of all pairs that training may draw, or of the held-out ones."""
    return [
        (i, j)
        for i, colour in enumerate(COLOURS)
        for j, shape in enumerate(SHAPES)
        if is_held_out(colour, shape) == held_out
    ]
