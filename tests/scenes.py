"""Held-out scenes of the shapes world with their truth, for tests of quality."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from autodistill_sam3.training.prompts import choose_concept, plain_text
from autodistill_sam3.training.scenes import MIN_VISIBLE, SceneObject, draw_scene

FIRST_SEED = 70_000
SIZES_WH = ((320, 240), (240, 320), (300, 300), (400, 220))


@dataclass(frozen=True, eq=False)
class Scene:
    """An image, four prompts, half of them absent, and the objects that each asks for."""

    image: np.ndarray
    prompts: tuple[str, ...]
    objects: tuple[tuple[SceneObject, ...], ...]

    def masks(self, prompt):
        found = [item.mask for item in self.objects[prompt]]
        return np.array(found, dtype=bool).reshape(-1, *self.image.shape[:2])


@lru_cache(maxsize=1)
def held_out_scenes(count=40):
    scenes = []
    seed = FIRST_SEED
    while len(scenes) < count:
        seed += 1
        width, height = SIZES_WH[seed % len(SIZES_WH)]
        image, objects = draw_scene(seed, width, height)
        clear = [item for item in objects if item.visible >= MIN_VISIBLE]
        # A hardly visible object may be found or not; such scenes would not tell right from wrong.
        if not clear or len(clear) < len(objects):
            continue
        rng = np.random.default_rng(seed)
        colours, shapes = [item.colour for item in clear], [item.shape for item in clear]
        concepts = [choose_concept(rng, colours, shapes, present) for present in (1, 1, 0, 0)]
        texts = tuple(plain_text(concept) if concept.known else "zebra" for concept in concepts)
        if len(set(texts)) < len(texts):
            continue
        wanted = tuple(
            tuple(item for item in clear if concept.matches(item.colour, item.shape)) for concept in concepts
        )
        scenes.append(Scene(image, texts, wanted))
    return scenes
