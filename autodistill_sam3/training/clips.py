"""Clips of moving shapes: scenes whose objects travel, turn, cross, leave, return and hide, before a moving camera.

A clip is a run of scenes with the same looks. Whatever moves is a smooth function of time, so that a clip can be
drawn at any frames of it, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from autodistill_sam3.training.drawing import draw
from autodistill_sam3.training.scenes import Bools, Floats, Generator, ScenePlan, plan_scenes
from autodistill_sam3.training.world import COLOURS, SHAPES

# Units of the picture's short side a frame, and the share of objects that stay where they are.
SPEED_RANGE = (0.002, 0.045)
STILL = 0.15
# Share of the places an object heads for that lie outside the picture.
OUTSIDE = 0.25
WAYPOINTS = 12
HIDING = 0.4
HIDDEN_RANGE = (3, 15)
# Share of training clips whose first frame is long ago.
LONG_AGO = 0.4
# Share of clips filmed by a camera that moves.
CAMERA = 0.5
# Frames drawn at once by `draw_clip`.
CHUNK = 12

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClipPlan:
    """B clips of T frames of up to K objects.

    Attributes:
        scenes: B * T scenes, clip by clip.
        camera: (B * T, 4), how the camera has moved the background: shift x, y in units of the short side, zoom, and
            angle in radians. The scenes' objects are where it shows them.
        length: T.
    """

    scenes: ScenePlan
    camera: Floats
    length: int

    def __len__(self) -> int:
        return len(self.camera) // self.length

    def frames(self, which: slice) -> ClipPlan:
        """Some of the B * T frames, as clips of one frame."""
        part = {name: values[which] for name, values in self.scenes.arrays().items()}
        return ClipPlan(ScenePlan(**part), self.camera[which], 1)


def plan_clips(
    rng: Generator,
    count: int,
    times: npt.ArrayLike,
    *,
    aspect: float | None = None,
    min_objects: int = 2,
    max_objects: int = 6,
    hiding: float = HIDING,
    hidden: tuple[int, int] = HIDDEN_RANGE,
) -> ClipPlan:
    """Plan clips at random.

    Args:
        rng: Decides everything.
        count: Number of clips B.
        times: (T,) the frames to show, in any order; at 0 all objects are in the picture.
        aspect: Width / height; at random without.
        min_objects: Fewest objects a clip, 2 or more where `hiding` is not 0.
        max_objects: Most.
        hiding: Share of clips in which an object goes behind another and stays there.
        hidden: Fewest and most frames that it stays there. It is out of sight for a frame or two more.
    """
    moments = np.asarray(times, dtype=np.float64)
    base = plan_scenes(rng, count, aspect=aspect, min_objects=min_objects, max_objects=max_objects)
    base = _without_empty_slots(base, max_objects)
    hides = rng.random(count) < hiding
    base, back, front = _make_room(rng, base, hides)
    centre = _paths(rng, base, moments)
    centre = _go_behind(rng, centre, moments, hides, back, front, hidden)
    radius, angle = _turning(rng, base, moments)
    camera = _camera(rng, count, moments)
    extent = np.stack([np.maximum(base.aspect, 1.0), np.maximum(1.0 / base.aspect, 1.0)], axis=-1)
    middle = extent[:, None, None] / 2
    zoom, turn = camera[:, None, :, 2], camera[:, None, :, 3]
    away = centre - middle
    turned = np.stack(
        [
            away[..., 0] * np.cos(turn) - away[..., 1] * np.sin(turn),
            away[..., 0] * np.sin(turn) + away[..., 1] * np.cos(turn),
        ],
        axis=-1,
    )
    shown = middle + turned * zoom[..., None] + camera[:, None, :, :2]
    frames = {name: np.repeat(values, len(moments), axis=0) for name, values in base.arrays().items()}
    frames |= {
        "centre": _by_frame(shown),
        "radius": _by_frame(radius * zoom),
        "angle": _by_frame(angle + turn),
    }
    return ClipPlan(ScenePlan(**frames), camera.reshape(-1, 4).astype(np.float32), len(moments))


def _without_empty_slots(plan: ScenePlan, slots: int) -> ScenePlan:
    arrays = plan.arrays()
    by_object = [name for name, values in arrays.items() if values.shape[1:2] == plan.valid.shape[1:]]
    return ScenePlan(**arrays | {name: arrays[name][:, :slots] for name in by_object})


def _by_frame(values: Doubles) -> Floats:
    """(B, K, T, ...) -> (B * T, K, ...)."""
    moved = np.moveaxis(values, 2, 1)
    return moved.reshape(-1, *moved.shape[2:]).astype(np.float32)


def _make_room(
    rng: Generator, base: ScenePlan, hides: Bools
) -> tuple[ScenePlan, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """In clips with hiding, the topmost object becomes large and whole enough to hide another one."""
    clip = np.arange(len(base))
    front = base.valid.sum(1) - 1
    back = np.where(front > 0, rng.integers(0, np.maximum(front, 1)), 0)
    shape, radius, stretch = base.shape.copy(), base.radius.copy(), base.stretch.copy()
    whole = rng.choice([SHAPES.index("circle"), SHAPES.index("square")], len(base))
    shape[clip, front] = np.where(hides, whole, shape[clip, front])
    stretch[clip, front] = np.where(hides, 1.0, stretch[clip, front])
    large = np.maximum(radius[clip, front], rng.uniform(0.19, 0.25, len(base)))
    radius[clip, front] = np.where(hides, large, radius[clip, front])
    small = np.minimum(radius[clip, back], 0.52 * large)
    radius[clip, back] = np.where(hides, small, radius[clip, back])
    return replace(base, shape=shape, radius=radius, stretch=stretch), back, front


def _paths(rng: Generator, base: ScenePlan, times: Doubles) -> Doubles:
    """Where each object is, (B, K, T, 2): from waypoint to waypoint, some of them outside the picture."""
    size = base.radius.shape
    extent = np.stack([np.maximum(base.aspect, 1.0), np.maximum(1.0 / base.aspect, 1.0)], axis=-1)[:, None, None]
    radius = base.radius[..., None, None].astype(np.float64)
    inside = 0.5 * radius + rng.random((*size, WAYPOINTS, 2)) * (extent - radius)
    # Beyond one of the four edges, by enough to be gone.
    edge = rng.integers(0, 4, (*size, WAYPOINTS, 1))
    beyond = np.where(edge % 2 == 0, -1.6 * radius, extent + 1.6 * radius)
    outside = np.where(np.arange(2) == edge // 2, beyond, inside)
    gone = rng.random((*size, WAYPOINTS, 1)) < OUTSIDE
    # Nothing stays away for two legs.
    gone[:, :, 1:] &= ~gone[:, :, :-1]
    places = np.where(gone, outside, inside)
    places[:, :, 0] = base.centre
    low, high = np.log(SPEED_RANGE)
    speed = np.exp(rng.uniform(low, high, (*size, 1)))
    legs = np.maximum(np.linalg.norm(np.diff(places, axis=2), axis=-1) / speed, 4.0)
    arrival = np.concatenate([np.zeros((*size, 1)), np.cumsum(legs, axis=-1)], axis=-1)
    still = rng.random(size) < STILL
    smooth = rng.random(size) < 0.5
    leg = np.clip((arrival[:, :, None] <= times[:, None]).sum(-1) - 1, 0, WAYPOINTS - 2)
    begin, end = (np.take_along_axis(arrival, leg + i, axis=2) for i in (0, 1))
    share = np.clip((times - begin) / (end - begin), 0.0, 1.0)
    share = np.where(smooth[..., None], share**2 * (3 - 2 * share), share)
    share = np.where(still[..., None], 0.0, share)[..., None]
    leg = np.where(still[..., None], 0, leg)[..., None]
    first, second = (np.take_along_axis(places, leg + i, axis=2) for i in (0, 1))
    path: Doubles = first + (second - first) * share
    return path


def _go_behind(
    rng: Generator,
    centre: Doubles,
    times: Doubles,
    hides: Bools,
    back: npt.NDArray[np.int64],
    front: npt.NDArray[np.int64],
    hidden: tuple[int, int],
) -> Doubles:
    """In clips with hiding, lead one object behind the topmost one, along with it, and back to its own path."""
    clip = np.arange(len(centre))
    ramp = rng.uniform(4, 10, (len(centre), 1))
    stay = rng.integers(hidden[0], hidden[1] + 1, (len(centre), 1))
    # In its first frame a clip's objects are pointed out; whoever follows them sees the others.
    first, last = times[1:].min(initial=np.inf), times[1:].max(initial=-np.inf)
    if first > last:
        return centre
    ramp, stay = np.minimum(ramp, max((last - first) / 3, 2.5)), np.minimum(stay, max((last - first) / 2, 2.0))
    earliest = first + ramp
    latest = np.maximum(earliest, last - 0.5 * ramp - stay)
    start = earliest + rng.random((len(centre), 1)) * (latest - earliest)
    behind = np.minimum((times - start + ramp) / ramp, (start + stay + ramp - times) / ramp)
    share = (np.clip(behind, 0.0, 1.0) * hides[:, None])[..., None]
    result = centre.copy()
    result[clip, back] = (1 - share) * centre[clip, back] + share * centre[clip, front]
    return result


def _turning(rng: Generator, base: ScenePlan, times: Doubles) -> tuple[Doubles, Doubles]:
    """Radius and angle over time, (B, K, T) each: some objects turn, some come nearer and go away."""
    size = (*base.radius.shape, 1)
    spin = rng.uniform(-0.12, 0.12, size) * (rng.random(size) < 0.6)
    swell = rng.uniform(0.0, 0.2, size) * (rng.random(size) < 0.4)
    period, phase = rng.uniform(30, 120, size), rng.uniform(0, 2 * np.pi, size)
    wave = np.sin(2 * np.pi * times / period + phase)
    return base.radius[..., None] * np.exp(swell * wave), base.angle[..., None] + spin * times


def _camera(rng: Generator, count: int, times: Doubles) -> Doubles:
    """(B, T, 4) shift x, y, zoom and angle; they swing, so that what is filmed stays near."""
    reach = np.array([0.15, 0.15, 0.2, 0.25]) * rng.uniform(-1, 1, (count, 4)) * (rng.random((count, 4)) < 0.7)
    reach *= rng.random((count, 1)) < CAMERA
    period, phase = rng.uniform(40, 160, (count, 1, 4)), rng.uniform(0, 2 * np.pi, (count, 1, 4))
    swing = np.sin(2 * np.pi * times[:, None] / period + phase) - np.sin(phase)
    result = reach[:, None] * swing
    result[..., 2] = np.exp(result[..., 2])
    return np.asarray(result)


@dataclass(frozen=True, eq=False)
class DrawnClip:
    """A clip with its truth.

    Attributes:
        frames: (T, H, W, 3) RGB ``uint8``.
        masks: (K, T, H, W) ``bool``, the visible pixels of each object, all false where it is hidden or out of the
            picture.
        colours: K names of `COLOURS`.
        shapes: K names of `SHAPES`.
    """

    frames: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.bool_]
    colours: list[str]
    shapes: list[str]


def training_moments(rng: Generator, length: int) -> tuple[Doubles, list[int]]:
    """When the T frames of a training clip are, and what a tracker takes their numbers to be.

    Some clips run backwards, some fast. In some, much time lies between the first frame and the others, of which no
    memory is left: so it is for whoever follows a long clip, or an object that was hidden.
    """
    stride = rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15])
    gap = int(rng.integers(1, 50)) if rng.random() < LONG_AGO else 0
    steps = np.arange(1, length)
    times = np.concatenate([[0], gap + stride * steps]) + rng.integers(0, 30)
    numbers = [0, *(gap + steps).tolist()]
    return (times.max() - times if rng.random() < 0.5 else times).astype(np.float64), numbers


def draw_clip(
    seed: int,
    width: int = 320,
    height: int = 240,
    *,
    length: int = 60,
    min_objects: int = 3,
    max_objects: int = 6,
    hidden: int = 0,
) -> DrawnClip:
    """Draw one held-out clip on the CPU; the same arguments always give the same pixels.

    Args:
        seed: Decides the clip; training uses other seeds by construction.
        width: Pixels.
        height: Pixels.
        length: Number of frames T.
        min_objects: Fewest objects.
        max_objects: Most.
        hidden: For how many frames at least an object is wholly hidden behind another one; 0 leaves that to chance.

    Example:
        >>> clip = draw_clip(1, 64, 48, length=3)
        >>> clip.frames.shape, clip.masks.shape[1:], len(clip.colours) == len(clip.masks)
        ((3, 48, 64, 3), (3, 48, 64), True)
    """
    rng = np.random.default_rng([seed, 3])
    plan = plan_clips(
        rng,
        1,
        np.arange(length),
        aspect=width / height,
        min_objects=min_objects,
        max_objects=max_objects,
        hiding=1.0 if hidden else HIDING,
        hidden=(hidden, hidden) if hidden else HIDDEN_RANGE,
    )
    images, tops = [], []
    for first in range(0, length, CHUNK):
        part = plan.frames(slice(first, first + CHUNK))
        batch = draw(
            part.scenes,
            height,
            width,
            seed=1000 * seed + first + 1,
            length=len(part),
            camera=part.camera,
            texture_seed=1000 * seed,
        )
        images.append(batch.images.permute(0, 2, 3, 1).numpy())
        tops.append(batch.top.numpy())
    top = np.concatenate(tops)
    slots = np.flatnonzero(plan.scenes.valid[0])
    return DrawnClip(
        np.ascontiguousarray(np.concatenate(images)),
        np.stack([top == slot for slot in slots]),
        [COLOURS[plan.scenes.colour[0, slot]] for slot in slots],
        [SHAPES[plan.scenes.shape[0, slot]] for slot in slots],
    )
