"""Scenes of another hand: the words of the shapes world, drawn with plain OpenCV calls.

Nothing here comes from `autodistill_sam3.training`: colours, proportions, outlines, backgrounds and prompts are chosen
anew, so that a model which learned only how the training renderer draws does badly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import count as count_up

import cv2
import numpy as np

SEED = 4_711
SIZES_WH = ((640, 480), (480, 640), (512, 512), (800, 450))
RADIUS_OF_SHORT_SIDE = (0.08, 0.22)
MIN_VISIBLE = 0.35
# CIE76 difference of an object from every colour of the background, and from an object that it touches.
MIN_CONTRAST = 35.0
# CIE lightness; of two colours that touch, not both are darker.
DARK = 38.0

COLOURS = {
    "red": ((255, 0, 0), (220, 20, 60), (178, 34, 34), (206, 32, 41)),  # red, crimson, firebrick, fire engine
    "green": ((0, 128, 0), (34, 139, 34), (50, 205, 50), (60, 179, 113)),  # green, forest, lime, medium sea green
    "blue": ((0, 0, 255), (65, 105, 225), (0, 0, 205), (30, 144, 255)),  # blue, royal, medium, dodger
    "yellow": ((255, 255, 0), (255, 215, 0), (255, 239, 0)),  # yellow, gold, canary
    "purple": ((128, 0, 128), (75, 0, 130), (148, 0, 211), (102, 51, 153)),  # purple, indigo, dark violet, rebecca
    "orange": ((255, 140, 0), (255, 165, 0), (255, 117, 24)),  # dark orange, orange, pumpkin
    "white": ((255, 255, 255), (245, 245, 245), (255, 250, 250)),  # white, white smoke, snow
    "black": ((0, 0, 0), (20, 20, 20), (27, 27, 30)),  # black and two near-blacks
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
LIGHT_PAPERS = (
    (230, 230, 250),  # lavender
    (255, 228, 225),  # misty rose
    (240, 255, 240),  # honeydew
    (245, 245, 220),  # beige
    (220, 220, 220),  # gainsboro
    (176, 224, 230),  # powder blue
    (245, 222, 179),  # wheat
)
DARK_PAPERS = (
    (128, 128, 128),  # grey
    (112, 128, 144),  # slate grey
    (95, 158, 160),  # cadet blue
    (47, 79, 79),  # dark slate grey
    (139, 115, 85),  # burlywood 4
    (70, 70, 80),  # blackboard
)
DARK_INK, WHITE_INK = (35, 30, 30), (255, 255, 255)


@dataclass(frozen=True, eq=False)
class Drawing:
    """What is to be drawn, in pixels: `proportion` is a star's depth or a ring's or bar's width over the radius."""

    colour: str
    shape: str
    rgb: tuple[int, int, int]
    centre: tuple[int, int]
    radius: int
    degrees: float
    proportion: float
    corners: tuple[float, ...]
    lines_only: bool
    ink: tuple[int, int, int] | None
    ink_width: int
    smooth: bool


@dataclass(frozen=True, eq=False)
class Drawn:
    """An object of a scene; `visible` is the share of it that nothing hides."""

    colour: str
    shape: str
    rgb: tuple[int, int, int]
    mask: np.ndarray
    visible: float


@dataclass(frozen=True, eq=False)
class Scene:
    """An image, everything drawn on it, and four prompts, the last two absent, with the objects each asks for."""

    image: np.ndarray
    drawn: tuple[Drawn, ...]
    prompts: tuple[str, ...]
    objects: tuple[tuple[Drawn, ...], ...]

    def masks(self, prompt):
        found = [item.mask for item in self.objects[prompt]]
        return np.array(found, dtype=bool).reshape(-1, *self.image.shape[:2])


@lru_cache(maxsize=2)
def other_hand_scenes(count=36):
    return tuple(_scene(index) for index in range(count))


def _scene(index):
    """The scene of this index, drawn again until every object can be seen well."""
    width, height = SIZES_WH[index % len(SIZES_WH)]
    for attempt in count_up():
        rng = np.random.default_rng([SEED, index, attempt])
        canvas, papers = _paper(rng, width, height)
        drawings = _arrange(rng, width, height, papers)
        if drawings is None:
            continue
        drawn = _truth(drawings, width, height)
        if min(item.visible for item in drawn) < MIN_VISIBLE:
            continue
        for item in drawings:
            _draw(canvas, item, item.rgb, item.ink, cv2.LINE_AA if item.smooth else cv2.LINE_8)
        prompts = _present(rng, drawn) + _absent(rng, drawn)
        return Scene(_copy(rng, canvas), drawn, prompts, tuple(_asked_for(prompt, drawn) for prompt in prompts))


# Paper.


def _paper(rng, width, height):
    """A background, and the colours that objects have to stand out from."""
    table = LIGHT_PAPERS if rng.random() < 0.45 else DARK_PAPERS
    first = second = np.array(table[rng.integers(len(table))], float)
    if rng.random() < 0.35:
        second = first * rng.uniform(0.75, 0.9)
    direction = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    mix = (x * np.cos(direction) + y * np.sin(direction)) / (abs(np.cos(direction)) + abs(np.sin(direction))) / 2 + 0.5
    canvas = np.ascontiguousarray((first + (second - first) * mix[..., None]).round().astype(np.uint8))
    line = tuple(int(value) for value in (first * 0.88 if table is LIGHT_PAPERS else first * 0.8 + 35))
    kind = rng.choice(["plain", "grid", "lines"], p=[0.6, 0.2, 0.2])
    if kind == "grid":
        _rule(canvas, line, int(rng.integers(24, 60)))
    elif kind == "lines":
        _scribble(rng, canvas, line)
    return canvas, [first, second] if kind == "plain" else [first, second, np.array(line, float)]


def _rule(canvas, colour, step):
    height, width = canvas.shape[:2]
    for x in range(step, width, step):
        cv2.line(canvas, (x, 0), (x, height), colour, 1)
    for y in range(step, height, step):
        cv2.line(canvas, (0, y), (width, y), colour, 1)


def _scribble(rng, canvas, colour):
    """A few thin lines from the left edge to the right one."""
    height, width = canvas.shape[:2]
    for _ in range(rng.integers(2, 6)):
        left, right = (int(y) for y in rng.integers(0, height, 2))
        cv2.line(canvas, (0, left), (width, right), colour, int(rng.integers(1, 3)), cv2.LINE_AA)


def _copy(rng, canvas):
    """The drawing as it arrives: some with noise, some as a JPEG."""
    if rng.random() < 0.3:
        canvas = (canvas + rng.normal(0, rng.uniform(2, 7), canvas.shape)).round().clip(0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        quality = int(rng.integers(60, 96))
        _, data = cv2.imencode(".jpg", canvas[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        canvas = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
    return np.ascontiguousarray(canvas)


# What to draw, and where.


def to_lab(*colours):
    """CIE L*a*b* of RGB colours in 0..255."""
    return cv2.cvtColor(np.array([colours], np.float32) / 255, cv2.COLOR_RGB2LAB)[0]


def contrast(first, second):
    """CIE76 difference of two RGB colours."""
    return float(np.linalg.norm(np.subtract(*to_lab(first, second))))


def _stands_out(rgb, others):
    return all(contrast(rgb, other) >= MIN_CONTRAST and max(to_lab(rgb, other)[:, 0]) >= DARK for other in others)


def _arrange(rng, width, height, papers):
    """2 to 6 drawings that stand out from the paper, mostly apart; None where they do not fit."""
    palette = {
        name: [rgb for rgb in table if _stands_out(rgb, papers)]
        for name, table in COLOURS.items()
        if any(_stands_out(rgb, papers) for rgb in table)
    }
    amount = int(rng.integers(2, 7))
    overlapping = int(rng.integers(1, amount)) if rng.random() < 0.4 else None
    # White is for few papers, so that it comes often on those.
    kinds = _kinds(rng, [*palette, *["white"] * (2 * ("white" in palette))], amount)
    drawings = []
    for index, (colour, shape) in enumerate(kinds):
        rgb = palette[colour][rng.integers(len(palette[colour]))]
        smallest, largest = np.array(RADIUS_OF_SHORT_SIDE) * min(width, height)
        radius = int(np.exp(rng.uniform(np.log(smallest), np.log(largest))))
        centre = _place(rng, width, height, radius, rgb, drawings, index == overlapping)
        if centre is None:
            return None
        drawings.append(_drawing(rng, colour, shape, rgb, centre, radius, papers))
    return drawings


def _kinds(rng, colours, amount):
    """Pairs of a colour and a shape; some come again."""
    kinds = []
    for _ in range(amount):
        if kinds and rng.random() < 0.25:
            kinds.append(kinds[rng.integers(len(kinds))])
        else:
            kinds.append((colours[rng.integers(len(colours))], SHAPES[rng.integers(len(SHAPES))]))
    return kinds


def _place(rng, width, height, radius, rgb, others, overlaps):
    """A centre apart from all others or, where wanted, on the edge of one of them, of another colour."""
    margin = radius + 4
    for _ in range(80):
        x, y = int(rng.integers(margin, width - margin)), int(rng.integers(margin, height - margin))
        reach = [np.hypot(x - o.centre[0], y - o.centre[1]) / (radius + o.radius + 4) for o in others]
        close = [other for other, value in zip(others, reach, strict=True) if value < 1]
        if not overlaps and not close:
            return x, y
        if overlaps and len(close) == 1 and 0.45 < min(reach) < 0.8 and _stands_out(rgb, [close[0].rgb]):
            return x, y
    return None


def _drawing(rng, colour, shape, rgb, centre, radius, papers):
    widths = {"star": (0.3, 0.5), "ring": (0.28, 0.5), "cross": (0.36, 0.62)}
    # Three corners of a circle, none of them nearly opposite another.
    corners = (0.0, rng.uniform(95, 145), rng.uniform(215, 265)) if rng.random() < 0.5 else (0.0, 120.0, 240.0)
    inks = [ink for ink in (DARK_INK, WHITE_INK) if _stands_out(ink, [rgb, *papers])]
    outlined = inks and rng.random() < 0.4
    return Drawing(
        colour=colour,
        shape=shape,
        rgb=rgb,
        centre=centre,
        radius=radius,
        degrees=0.0 if rng.random() < 0.45 else float(rng.uniform(0, 360)),
        proportion=float(rng.uniform(*widths.get(shape, (0, 0)))),
        corners=corners,
        lines_only=bool(rng.random() < 0.5),
        ink=inks[rng.integers(len(inks))] if outlined else None,
        ink_width=min(int(rng.integers(2, 5)), max(2, radius // 20)),
        smooth=bool(rng.random() < 0.6),
    )


# Drawing, the same for pixels and for labels.


def _draw(canvas, item, fill, ink, line):
    if item.shape == "circle":
        cv2.circle(canvas, item.centre, item.radius, fill, cv2.FILLED, line)
        if ink is not None:
            cv2.circle(canvas, item.centre, item.radius, ink, item.ink_width, line)
    elif item.shape == "ring":
        _draw_ring(canvas, item, fill, ink, line)
    elif item.shape == "cross" and item.lines_only:
        _draw_strokes(canvas, item, fill, ink, line)
    elif item.shape == "square" and item.degrees == 0:
        half = round(item.radius * 0.8)
        (x, y), first, second = item.centre, item.centre[0] - half, item.centre[1] - half
        cv2.rectangle(canvas, (first, second), (x + half, y + half), fill, cv2.FILLED, line)
        if ink is not None:
            cv2.rectangle(canvas, (first, second), (x + half, y + half), ink, item.ink_width, line)
    else:
        points = _polygon(item)
        cv2.fillPoly(canvas, [points], fill, line)
        if ink is not None:
            cv2.polylines(canvas, [points], True, ink, item.ink_width, line)


def _draw_ring(canvas, item, fill, ink, line):
    width = round(item.radius * item.proportion)
    middle = item.radius - width // 2
    if ink is not None:
        cv2.circle(canvas, item.centre, middle, ink, width + 2 * item.ink_width, line)
    cv2.circle(canvas, item.centre, middle, fill, width, line)


def _draw_strokes(canvas, item, fill, ink, line):
    """A cross of two thick lines, whose ends are round."""
    width = round(item.radius * item.proportion)
    ends = _around(item, np.arange(4) * 90.0, item.radius - width / 2).tolist()
    strokes = ([(ink, width + 2 * item.ink_width)] if ink is not None else []) + [(fill, width)]
    for colour, thickness in strokes:
        cv2.line(canvas, ends[0], ends[2], colour, thickness, line)
        cv2.line(canvas, ends[1], ends[3], colour, thickness, line)


def _polygon(item):
    if item.shape == "triangle":
        return _around(item, item.corners, item.radius)
    if item.shape == "square":
        return _around(item, np.arange(4) * 90.0 + 45, item.radius * 0.8 * np.sqrt(2))
    if item.shape == "star":
        return _around(item, np.arange(10) * 36.0, np.where(np.arange(10) % 2, item.proportion, 1.0) * item.radius)
    # A cross: at the end of each arm two corners, and one between the arms.
    half = item.proportion / 2
    turn = np.degrees(np.arctan(half))
    angles = (np.arange(4)[:, None] * 90.0 + [-turn, turn, 45.0]).ravel()
    return _around(item, angles, np.tile([np.hypot(1, half)] * 2 + [half * np.sqrt(2)], 4) * item.radius)


def _around(item, degrees, distance):
    """Whole-pixel points around the centre; 0 degrees is up before the item is turned."""
    angle = np.radians(np.asarray(degrees) + item.degrees)
    points = np.stack([np.sin(angle), -np.cos(angle)], axis=-1) * np.reshape(distance, (-1, 1))
    return (points + item.centre).round().astype(np.int32)


def _truth(drawings, width, height):
    labels = np.zeros((height, width), np.uint8)
    sizes = []
    for value, item in enumerate(drawings, start=1):
        alone = np.zeros_like(labels)
        for canvas in (labels, alone):
            _draw(canvas, item, value, None if item.ink is None else value, cv2.LINE_8)
        sizes.append(np.count_nonzero(alone))
    masks = [labels == value for value in range(1, len(drawings) + 1)]
    return tuple(
        Drawn(item.colour, item.shape, item.rgb, mask, float(mask.sum() / size))
        for item, mask, size in zip(drawings, masks, sizes, strict=True)
    )


# Prompts.


def _asked_for(prompt, drawn):
    return tuple(item for item in drawn if set(prompt.split()) <= {item.colour, item.shape, "shape"})


def _present(rng, drawn):
    """Two different texts, each for something drawn."""
    texts = []
    while len(texts) < 2:
        item = drawn[rng.integers(len(drawn))]
        styles = (f"{item.colour} {item.shape}", item.shape, f"{item.colour} shape")
        text = str(rng.choice(styles, p=[0.5, 0.25, 0.25]))
        if text not in texts:
            texts.append(text)
    return tuple(texts)


def _absent(rng, drawn):
    """Two different texts for nothing drawn, each with the colour or the shape of something drawn."""
    texts = []
    while len(texts) < 2:
        item = drawn[rng.integers(len(drawn))]
        if rng.random() < 0.5:
            text = f"{item.colour} {rng.choice(SHAPES)}"
        else:
            text = f"{rng.choice(list(COLOURS))} {item.shape}"
        if text not in texts and not _asked_for(text, drawn):
            texts.append(text)
    return tuple(texts)
