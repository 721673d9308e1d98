"""Held-out scenes for the table in models/shapes/README.md: images as a user would have them, four prompts, the truth.

numpy only, apart from drawing; `asking` puts them to the models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autodistill_sam3.training.drawing import SceneObject, draw_scene
from autodistill_sam3.training.prompts import Prompt, choose_concept, word
from autodistill_sam3.training.scenes import ASPECT_RANGE, MIN_VISIBLE, Generator
from autodistill_sam3.training.world import Concept, is_held_out, pair_indices

LONG_SIDE = 512
SHORT_SIDE = 240
PRESENT_PROMPTS = 2
ABSENT_PROMPTS = 2
# `draw_scene` takes them; training never does, and tests and examples take others.
FIRST_SEED = 510_000_000
FIRST_SEED_UNSEEN = 520_000_000

# Drawn this often among the other pairs, every other object is of a pair that training leaves out.
_UNSEEN_WEIGHT = 15
_TRIES = 60


@dataclass(frozen=True)
class SceneKey:
    """What decides a held-out scene; `held_out_scene` draws it.

    Attributes:
        seed: Any number.
        unseen_pairs: Whether the present prompts ask for pairs that training leaves out.
        hiding: As in `plan_scenes`.
    """

    seed: int
    unseen_pairs: bool = False
    hiding: float = 0.0


@dataclass(frozen=True, eq=False)
class HeldOutScene:
    """A drawn image and what is asked of it.

    Attributes:
        key: Draws the same scene again.
        image: (H, W, 3) ``uint8`` RGB.
        prompts: First those that ask for something drawn, then the absent ones.
        objects: All that is drawn, back to front, hardly visible ones too.
    """

    key: SceneKey
    image: npt.NDArray[np.uint8]
    prompts: tuple[Prompt, ...]
    objects: tuple[SceneObject, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts' wordings."""
        return tuple(prompt.text for prompt in self.prompts)

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """(K, H, W) ``bool``, the visible pixels of all objects."""
        return np.array([item.mask for item in self.objects])

    @property
    def boxes_xyxy(self) -> npt.NDArray[np.float32]:
        """(K, 4) ``float32`` pixels, the boxes of the visible parts, right and bottom exclusive."""
        return np.array([item.box_xyxy for item in self.objects], dtype=np.float32)

    @property
    def clear(self) -> npt.NDArray[np.int64]:
        """Positions of the objects that count: at least `MIN_VISIBLE` of each is visible."""
        return np.flatnonzero([item.visible >= MIN_VISIBLE for item in self.objects])

    def wanted(self, prompt: int) -> npt.NDArray[np.int64]:
        """Positions of the objects that a prompt asks for and that count."""
        return np.array([index for index in self.clear if self._matches(prompt, index)], dtype=np.int64)

    def ignored(self, prompt: int) -> npt.NDArray[np.int64]:
        """Positions of the objects that a prompt asks for but that hardly show; to find them is no mistake."""
        hidden = sorted({*range(len(self.objects))} - {*self.clear.tolist()})
        return np.array([index for index in hidden if self._matches(prompt, index)], dtype=np.int64)

    def _matches(self, prompt: int, index: int) -> bool:
        item = self.objects[index]
        return self.prompts[prompt].concept.matches(item.colour, item.shape)


def held_out_scenes(
    count: int, *, unseen_pairs: bool = False, hiding: float = 0.0, first_seed: int | None = None
) -> Iterator[HeldOutScene]:
    """Scenes that training never draws, always the same ones.

    Args:
        count: How many.
        unseen_pairs: Draw colour-shape pairs that training leaves out among the others, and ask for two of them.
        hiding: As in `plan_scenes`.
        first_seed: Where the seeds start; the table's own without.

    Example:
        >>> [scene] = held_out_scenes(1)
        >>> [len(scene.wanted(prompt)) > 0 for prompt in range(4)]
        [True, True, False, False]
    """
    seed = first_seed or (FIRST_SEED_UNSEEN if unseen_pairs else FIRST_SEED)
    found = 0
    while found < count:
        scene = held_out_scene(SceneKey(seed, unseen_pairs, hiding))
        seed += 1
        if scene is not None:
            found += 1
            yield scene


def held_out_scene(key: SceneKey) -> HeldOutScene | None:
    """The scene of one key; None where too little is visible to ask for."""
    rng = np.random.default_rng([key.seed, 3])
    width, height = _size_wh(rng)
    pairs = pair_indices() + _UNSEEN_WEIGHT * pair_indices(held_out=True) if key.unseen_pairs else None
    image, objects = draw_scene(key.seed, width, height, pairs=pairs, hiding=key.hiding)
    clear = [item for item in objects if item.visible >= MIN_VISIBLE]
    if not clear:
        return None
    present = _present(rng, clear, key.unseen_pairs)
    absent = _absent(rng, clear, objects)
    if len(present) < PRESENT_PROMPTS or len(absent) < ABSENT_PROMPTS:
        return None
    prompts = tuple(Prompt(word(rng, concept), concept) for concept in [*present, *absent])
    return HeldOutScene(key, image, prompts, tuple(objects))


def _size_wh(rng: Generator) -> tuple[int, int]:
    low, high = np.log(ASPECT_RANGE)
    aspect = float(np.exp(rng.uniform(low, high)))
    elongation = max(aspect, 1 / aspect)
    short = int(rng.uniform(SHORT_SIDE, LONG_SIDE / elongation))
    long = min(round(short * elongation), LONG_SIDE, short * 2)
    return (long, short) if aspect >= 1 else (short, long)


def _present(rng: Generator, clear: list[SceneObject], unseen_pairs: bool) -> list[Concept]:
    colours, shapes = [item.colour for item in clear], [item.shape for item in clear]
    if not unseen_pairs:
        return _distinct(lambda: choose_concept(rng, colours, shapes, 1.0), lambda _: True, PRESENT_PROMPTS)
    pairs = [pair for pair in zip(colours, shapes, strict=True) if is_held_out(*pair)]
    if not pairs:
        return []
    return _distinct(lambda: Concept(*pairs[rng.integers(len(pairs))]), lambda _: True, PRESENT_PROMPTS)


def _absent(rng: Generator, clear: list[SceneObject], objects: list[SceneObject]) -> list[Concept]:
    """Not drawn, not even hidden, but sharing a colour or a shape with something that shows."""
    colours, shapes = {item.colour for item in clear}, {item.shape for item in clear}
    drawn = [item.colour for item in objects], [item.shape for item in objects]
    return _distinct(
        lambda: choose_concept(rng, *drawn, 0.0),
        lambda concept: concept.known and (concept.colour in colours or concept.shape in shapes),
        ABSENT_PROMPTS,
    )


def _distinct(choose: Callable[[], Concept], fits: Callable[[Concept], bool], count: int) -> list[Concept]:
    found: list[Concept] = []
    for _ in range(_TRIES):
        concept = choose()
        if fits(concept) and concept not in found:
            found.append(concept)
        if len(found) == count:
            break
    return found
