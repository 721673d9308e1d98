"""Held-out scenes of the shapes world with their truth, for tests of quality."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np

from autodistill_sam3.training import held_out
from autodistill_sam3.training.drawing import SceneObject

# Others than the table's.
FIRST_SEED = 70_000


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
def held_out_scenes(count=24):
    # A hardly visible object may be found or not; such scenes would not tell right from wrong.
    clear = (
        scene
        for scene in held_out.held_out_scenes(10 * count, first_seed=FIRST_SEED)
        if len(scene.clear) == len(scene.objects)
    )
    return [
        Scene(
            scene.image,
            scene.texts,
            tuple(tuple(scene.objects[index] for index in scene.wanted(prompt)) for prompt in range(len(scene.texts))),
        )
        for scene in islice(clear, count)
    ]
