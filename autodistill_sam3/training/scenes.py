"""Scenes of coloured shapes: planned in numpy, one random number generator per batch, and drawn in torch on any device.

A plan holds positions in units of the image's short side, so one plan can be drawn at any size. Training draws into the
square that the models see, with the stretch that resizing an image of another aspect ratio would give.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from autodistill_sam3.training.world import COLOURS, PALETTE, SHAPES, pair_indices

MAX_OBJECTS = 8
RADIUS_RANGE = (0.06, 0.24)
ASPECT_RANGE = (0.5, 2.0)
# An object counts as being there when at least this much of it is visible.
MIN_VISIBLE = 0.35

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Generator = np.random.Generator


@dataclass(frozen=True, eq=False)
class ScenePlan:
    """Everything that decides B scenes of up to K objects, but for pixel noise.

    Lengths are in units of the image's short side; colours are RGB in 0..1.

    Attributes:
        aspect: (B,) width / height.
        valid: (B, K) ``bool``, which slots hold an object; a later slot lies on top of an earlier one.
        colour: (B, K) index into `COLOURS`.
        shape: (B, K) index into `SHAPES`.
        centre: (B, K, 2), x and y.
        radius: (B, K).
        angle: (B, K) radians.
        stretch: (B, K) factor of the object's own x axis.
        detail: (B, K) in 0..1, the "font" of a shape: depth of a star, width of a ring or of a cross's bars.
        points: (B, K) points of a star.
        rgb: (B, K, 3).
        outline_rgb: (B, K, 3).
        outline: (B, K) width relative to the radius, 0 for none.
        shading: (B, K, 3): direction x, y times strength, and strength of a highlight in the middle.
        background: (B, 2, 3), the two ends of a gradient.
        gradient: (B, 3): direction x, y times strength, 0 for plain.
        texture: (B, 5): amplitude, wave x, wave y, kind (0 noise, 1 stripes, 2 checks), phase.
        texture_rgb: (B, 3), what the texture adds at its highest and takes away at its lowest.
        edge: (B,) width of the objects' edges in pixels, 0 for jagged ones.
        blur: (B,) share of a blurred copy, 0..1.
        noise: (B,) standard deviation of pixel noise.
        jpeg: (B,) JPEG quality of 1..100, 0 for none.
    """

    aspect: Floats
    valid: Bools
    colour: Ints
    shape: Ints
    centre: Floats
    radius: Floats
    angle: Floats
    stretch: Floats
    detail: Floats
    points: Floats
    rgb: Floats
    outline_rgb: Floats
    outline: Floats
    shading: Floats
    background: Floats
    gradient: Floats
    texture: Floats
    texture_rgb: Floats
    edge: Floats
    blur: Floats
    noise: Floats
    jpeg: Floats

    def __len__(self) -> int:
        return len(self.aspect)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def plan_scenes(
    rng: Generator,
    count: int,
    *,
    aspect: float | None = None,
    pairs: list[tuple[int, int]] | None = None,
    min_objects: int = 1,
    max_objects: int = MAX_OBJECTS,
    hiding: float = 0.0,
) -> ScenePlan:
    """Plan scenes at random.

    Args:
        rng: Decides everything.
        count: Number of scenes B.
        aspect: Width / height; at random within `ASPECT_RANGE` without.
        pairs: (colour, shape) indices to draw from; without, all but the held-out ones.
        min_objects: Fewest objects a scene, 1 or more.
        max_objects: Most, up to `MAX_OBJECTS`.
        hiding: Share of objects that are laid where they touch or hide an earlier one of another colour. Without,
            objects hide each other only by chance, which is rare.
    """
    size = (count, MAX_OBJECTS)
    low, high = np.log(ASPECT_RANGE)
    aspects = np.exp(rng.uniform(low, high, count)) if aspect is None else np.full(count, aspect)
    valid = np.arange(MAX_OBJECTS) < rng.integers(min_objects, max_objects + 1, (count, 1))
    table = np.asarray(pair_indices() if pairs is None else pairs)
    colour, shape = np.moveaxis(table[_draw_kinds(rng, size, len(table))], -1, 0)
    smallest, largest = np.log(RADIUS_RANGE)
    radius = np.exp(rng.uniform(smallest, largest, size))
    # Many large objects do not fit beside each other.
    radius = np.maximum(radius * np.minimum(1.0, 2.2 / np.sqrt(1 + valid.sum(1, keepdims=True))), RADIUS_RANGE[0])
    rgb = _object_colours(rng, colour)
    background = _backgrounds(rng, rgb, valid)
    style = _styles(rng, rgb, shape)
    return ScenePlan(
        aspect=_f32(aspects),
        valid=valid,
        colour=colour,
        shape=shape,
        centre=_f32(_layout(rng, aspects, radius, colour, valid, hiding)),
        radius=_f32(radius),
        background=_f32(background),
        rgb=_f32(rgb),
        **style,
        **_texture(rng, rgb, background),
        **_photography(rng, count),
    )


def _f32(values: npt.ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float32)


def _draw_kinds(rng: Generator, size: tuple[int, int], kinds: int) -> Ints:
    """Half of the scenes repeat few kinds, so that prompts with several instances are common."""
    free = rng.integers(0, kinds, size)
    repeated = np.take_along_axis(free, rng.integers(0, 3, size), axis=1)
    return np.where(rng.random((size[0], 1)) < 0.5, free, repeated)


def _layout(
    rng: Generator, aspects: Floats, radius: Floats, colour: Ints, valid: Bools, hiding: float
) -> npt.NDArray[np.float64]:
    """Centres, each the candidate that overlaps earlier objects least, or, for some objects, whichever comes first."""
    count, slots = radius.shape
    extent = np.stack([np.maximum(aspects, 1.0), np.maximum(1.0 / aspects, 1.0)], axis=-1)
    centre = np.zeros((count, slots, 2))
    for slot in range(slots):
        # Objects may reach a little over the image's edge.
        margin = 0.8 * radius[:, slot, None, None]
        candidates = margin + rng.random((count, 10, 2)) * (extent[:, None] - 2 * margin)
        apart = np.linalg.norm(candidates[:, :, None] - centre[:, None, :slot], axis=-1)
        overlap = np.maximum(0.0, radius[:, None, slot, None] + radius[:, None, :slot] - apart) * valid[:, None, :slot]
        # Objects of one colour on top of each other would have no edge between them.
        overlap *= np.where(colour[:, None, :slot] == colour[:, slot, None, None], 4.0, 1.0)
        tolerance = rng.choice([0.0, 0.6, 3.0], p=[0.5, 0.25, 0.25], size=(count, 1)) * radius[:, slot, None]
        cost = np.maximum(overlap.sum(-1) - tolerance, 0.0)
        centre[:, slot] = candidates[np.arange(count), cost.argmin(1)]
        if hiding and slot:
            centre[:, slot] = _hide(rng, centre, radius, colour, slot, hiding)
    return centre


def _hide(
    rng: Generator, centre: npt.NDArray[np.float64], radius: Floats, colour: Ints, slot: int, share: float
) -> npt.NDArray[np.float64]:
    """(B, 2) centres of a slot's objects, a share of them moved onto the edge of an earlier object."""
    scene = np.arange(len(centre))
    other = rng.integers(0, slot, len(centre))
    direction = rng.uniform(0, 2 * np.pi, len(centre))
    reach = rng.uniform(0.4, 1.1, len(centre)) * (radius[scene, other] + radius[:, slot])
    moved = centre[scene, other] + reach[:, None] * np.stack([np.cos(direction), np.sin(direction)], axis=-1)
    hides = (rng.random(len(centre)) < share) & (colour[scene, other] != colour[:, slot])
    return np.where(hides[:, None], moved, centre[:, slot])


def _object_colours(rng: Generator, colour: Ints) -> npt.NDArray[np.float64]:
    """A colour of the palette's range for each object."""
    ranges = np.array([PALETTE[name] for name in COLOURS])[colour]
    hsv = ranges[..., 0] + rng.random((*colour.shape, 3)) * (ranges[..., 1] - ranges[..., 0])
    return _hsv_to_rgb(hsv[..., 0], hsv[..., 1], hsv[..., 2])


def _hsv_to_rgb(
    hue: npt.NDArray[np.float64], saturation: npt.NDArray[np.float64], value: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Hue in degrees; result (..., 3). Same as `colorsys.hsv_to_rgb`, for arrays."""
    step = np.stack([np.full_like(hue, 5.0), np.full_like(hue, 3.0), np.full_like(hue, 1.0)], axis=-1)
    k = (step + hue[..., None] / 60.0) % 6.0
    result: npt.NDArray[np.float64] = value[..., None] * (
        1.0 - saturation[..., None] * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0)
    )
    return result


def _backgrounds(rng: Generator, rgb: npt.NDArray[np.float64], valid: Bools) -> npt.NDArray[np.float64]:
    """Two colours a scene that differ from all its objects: grays, any colour, and colours of the palette."""
    count, tries = len(rgb), 16
    gray = np.repeat(rng.random((count, tries, 1)), 3, axis=-1)
    palette = _object_colours(rng, rng.integers(0, len(COLOURS), (count, tries)))
    kind = rng.choice(3, (count, tries, 1), p=[0.4, 0.35, 0.25])
    candidates = np.select([kind == 0, kind == 1], [gray, rng.random((count, tries, 3))], palette)
    distance = np.linalg.norm(candidates[:, :, None] - rgb[:, None], axis=-1)
    distance = np.where(valid[:, None], distance, 2.0).min(-1)
    # Good enough candidates are equals, so that the first of them wins.
    order = np.argsort(-np.minimum(distance, 0.35), axis=1, kind="stable")
    first, second = candidates[np.arange(count), order[:, 0]], candidates[np.arange(count), order[:, 1]]
    good = np.take_along_axis(distance, order[:, 1:2], axis=1) >= 0.3
    return np.stack([first, np.where(good, second, first)], axis=1)


def _styles(rng: Generator, rgb: npt.NDArray[np.float64], shape: Ints) -> dict[str, Floats]:
    """How each object is drawn, apart from its colour and shape."""
    size = rgb.shape[:2]
    tone = rng.choice(3, size, p=[0.6, 0.25, 0.15])[..., None]
    outline_rgb = np.select([tone == 0, tone == 1], [rgb * rng.uniform(0.3, 0.8, (*size, 1)), np.zeros(3)], np.ones(3))
    direction = rng.uniform(0, 2 * np.pi, size)
    strength = rng.uniform(0, 0.3, size) * (rng.random(size) < 0.5)
    shine = rng.uniform(-0.15, 0.25, size) * (rng.random(size) < 0.3)
    # A long square is no square any more, a long triangle is still a triangle.
    widest = np.where(shape == SHAPES.index("triangle"), np.log(1.4), np.log(1.18))
    return {
        "angle": _f32(np.where(rng.random(size) < 0.3, 0.0, rng.uniform(0, 2 * np.pi, size))),
        "stretch": _f32(np.exp(rng.uniform(-widest, widest) * (rng.random(size) < 0.5))),
        "detail": _f32(rng.random(size)),
        "points": _f32(rng.choice([5, 6, 4], size, p=[0.8, 0.12, 0.08])),
        "outline_rgb": _f32(outline_rgb),
        "outline": _f32(rng.uniform(0.04, 0.14, size) * (rng.random(size) < 0.3)),
        "shading": _f32(np.stack([strength * np.cos(direction), strength * np.sin(direction), shine], axis=-1)),
    }


def _texture(rng: Generator, rgb: npt.NDArray[np.float64], background: npt.NDArray[np.float64]) -> dict[str, Floats]:
    """Noise, stripes or checks; gray, or towards the colour of an object of the scene but not all the way to it."""
    count = len(rgb)
    kind = rng.choice(3, count, p=[0.5, 0.3, 0.2])
    direction = rng.uniform(0, 2 * np.pi, count)
    wave = rng.uniform(4, 40, count)[:, None] * np.stack([np.cos(direction), np.sin(direction)], axis=-1)
    tinted = rng.random(count) < 0.4
    amplitude = np.where(tinted, rng.uniform(0.1, 0.5, count), rng.uniform(0.02, 0.16, count))
    amplitude *= rng.random(count) < 0.6
    phase = rng.uniform(0, 2 * np.pi, count)
    return {
        "texture": _f32(np.stack([amplitude, wave[:, 0], wave[:, 1], kind, phase], axis=-1)),
        "texture_rgb": _f32(np.where(tinted[:, None], rgb[:, 0] - background[:, 0], 1.0)),
    }


def _photography(rng: Generator, count: int) -> dict[str, Floats]:
    """Gradient, edges, blur, noise and JPEG quality of whole scenes."""
    direction = rng.uniform(0, 2 * np.pi, count)
    strength = rng.uniform(0.5, 1.5, count) * (rng.random(count) < 0.5)
    return {
        "gradient": _f32(np.stack([strength * np.cos(direction), strength * np.sin(direction), strength], axis=-1)),
        "edge": _f32(rng.choice([0.0, 1.0, 2.0], count, p=[0.2, 0.6, 0.2])),
        "blur": _f32(rng.random(count) * (rng.random(count) < 0.4)),
        "noise": _f32(rng.uniform(0, 0.05, count) * (rng.random(count) < 0.5)),
        "jpeg": _f32(rng.uniform(35, 95, count) * (rng.random(count) < 0.5)),
    }


def training_rng(seed: int, step: int) -> Generator:
    """The generator of one training step, apart from those of `draw_scene` and of evaluation."""
    return np.random.default_rng([seed, step, 2])
