"""Scene plans -> pixels and exact visible masks, a batch at a time, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from autodistill_sam3.training.jpeg import jpeg_artefacts
from autodistill_sam3.training.scenes import Floats, ScenePlan, plan_scenes
from autodistill_sam3.training.world import COLOURS, SHAPES


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """B drawn scenes of up to K objects.

    Attributes:
        images: (B, 3, H, W) ``uint8`` RGB.
        top: (B, H, W) ``int64``, the slot of the object seen at each pixel, -1 for background.
        visible: (B, K) ``float32``, visible share of each object's pixels inside the image; 0 for empty slots.
        visible_area: (B, K) ``int64``, visible pixels.
        boxes_xyxy: (B, K, 4) ``float32`` in 0..1, of the visible pixels; zeros where nothing is visible.
    """

    images: torch.Tensor
    top: torch.Tensor
    visible: torch.Tensor
    visible_area: torch.Tensor
    boxes_xyxy: torch.Tensor


@torch.no_grad()
def draw(
    plan: ScenePlan,
    height: int,
    width: int,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    compiled: bool = False,
    length: int = 1,
    camera: Floats | None = None,
    texture_seed: int | None = None,
) -> SceneBatch:
    """Draw planned scenes.

    Args:
        plan: B scenes. Where `plan.aspect` is not width / height, the scene comes out stretched.
        height: Pixels.
        width: Pixels.
        seed: Of texture and pixel noise.
        device: Where to draw.
        compiled: Fuse the arithmetic with `torch.compile`; pays for many batches of one shape.
        length: So many scenes in a row are frames of one clip and have one texture.
        camera: (B, 4), where a camera has moved the background, see `ClipPlan`.
        texture_seed: Of texture alone, where it is to be another.
    """
    p = {name: torch.from_numpy(values).to(device) for name, values in plan.arrays().items()}
    if camera is not None:
        p["camera"] = torch.from_numpy(camera).to(device)
    generator = torch.Generator(device).manual_seed(seed)
    of_texture = generator if texture_seed is None else torch.Generator(device).manual_seed(texture_seed)
    count = len(plan) // length
    patches = [torch.randn(count, 3, cells, cells, device=device, generator=of_texture) for cells in (6, 24, 56)]
    patches = [cells.repeat_interleave(length, dim=0) for cells in patches]
    noise = torch.randn(len(plan), 3, height, width, device=device, generator=generator)
    # Each tensor that the eager form writes to memory holds a value per object and pixel.
    render = _compiled_render() if compiled else _render
    return SceneBatch(*render(p, patches, noise))


@cache
def _compiled_render() -> Callable[..., tuple[torch.Tensor, ...]]:
    return torch.compile(_render, dynamic=False)


def _render(p: dict[str, torch.Tensor], patches: list[torch.Tensor], noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
    height, width = noise.shape[-2:]
    x, y = _grid(p["aspect"], height, width)
    pixels_per_unit = torch.minimum(width / x[:, -1, -1], height / y[:, -1, -1])
    u, v = _object_frame(p, x, y)
    distance = _distance(p, u, v)
    inside = (distance < 0) & p["valid"][..., None, None]
    slots = torch.arange(1, inside.shape[1] + 1, device=inside.device)[None, :, None, None]
    top = (inside * slots).amax(1) - 1
    canvas = _background(p, *_behind(p, x, y), patches)
    sharpness = (p["radius"] * pixels_per_unit[:, None] / p["edge"][:, None].clamp(min=1e-3))[..., None, None]
    cover = (0.5 - distance * sharpness).clamp(0, 1) * p["valid"][..., None, None]
    canvas = _paint(canvas, p, cover, distance, u, v)
    canvas = _photograph(canvas, p, noise)
    visible, area, boxes = _visible(inside, top)
    return (canvas * 255).round().clamp(0, 255).to(torch.uint8), top, visible, area, boxes


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One drawn object.

    Attributes:
        colour: Of `COLOURS`.
        shape: Of `SHAPES`.
        mask: (H, W) ``bool``, its visible pixels.
        visible: Share of the object's pixels inside the image that no other object hides, 0..1.
    """

    colour: str
    shape: str
    mask: npt.NDArray[np.bool_]
    visible: float

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """Box of the visible pixels in pixels, right and bottom exclusive; zeros when nothing is visible."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        if not len(rows):
            return (0, 0, 0, 0)
        return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def draw_scene(
    seed: int,
    width: int = 640,
    height: int = 480,
    *,
    pairs: list[tuple[int, int]] | None = None,
    hiding: float = 0.0,
) -> tuple[npt.NDArray[np.uint8], list[SceneObject]]:
    """Draw one scene on the CPU; the same arguments always give the same pixels.

    Args:
        seed: Decides the scene; training uses other seeds by construction (`training_rng`).
        width: Pixels.
        height: Pixels.
        pairs: As in `plan_scenes`.
        hiding: As in `plan_scenes`.

    Returns:
        RGB ``uint8`` (H, W, 3), and the objects from back to front.

    Example:
        >>> image, objects = draw_scene(7, 160, 120)
        >>> image.shape, image.dtype, objects[0].mask.shape
        ((120, 160, 3), dtype('uint8'), (120, 160))
    """
    plan = plan_scenes(np.random.default_rng([seed, 1]), 1, aspect=width / height, pairs=pairs, hiding=hiding)
    batch = draw(plan, height, width, seed=seed)
    top = batch.top[0].numpy()
    objects = [
        SceneObject(
            COLOURS[plan.colour[0, slot]], SHAPES[plan.shape[0, slot]], top == slot, float(batch.visible[0, slot])
        )
        for slot in np.flatnonzero(plan.valid[0])
    ]
    return batch.images[0].permute(1, 2, 0).numpy(), objects


def _grid(aspect: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel centres in units of the short side, (B, H, W) each."""
    across = (torch.arange(width, device=aspect.device) + 0.5) / width
    down = (torch.arange(height, device=aspect.device) + 0.5) / height
    x = across[None, None, :] * aspect.clamp(min=1.0)[:, None, None]
    y = down[None, :, None] * (1.0 / aspect).clamp(min=1.0)[:, None, None]
    return x.expand(-1, height, -1), y.expand(-1, -1, width)


def _behind(p: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where on the background each pixel looks: the pixels themselves, unless a camera moves over it."""
    if "camera" not in p:
        return x, y
    shift_x, shift_y, zoom, angle = (p["camera"][:, i, None, None] for i in range(4))
    middle_x = p["aspect"].clamp(min=1.0)[:, None, None] / 2
    middle_y = (1.0 / p["aspect"]).clamp(min=1.0)[:, None, None] / 2
    dx, dy = (x - shift_x - middle_x) / zoom, (y - shift_y - middle_y) / zoom
    cos, sin = angle.cos(), angle.sin()
    return middle_x + dx * cos + dy * sin, middle_y + dy * cos - dx * sin


def _object_frame(p: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel centres in each object's own frame, where its radius is 1: (B, K, H, W) each."""
    dx = x[:, None] - p["centre"][..., 0, None, None]
    dy = y[:, None] - p["centre"][..., 1, None, None]
    cos = (p["angle"].cos() / p["radius"])[..., None, None]
    sin = (p["angle"].sin() / p["radius"])[..., None, None]
    return (dx * cos + dy * sin) / p["stretch"][..., None, None], dy * cos - dx * sin


def _distance(p: dict[str, torch.Tensor], u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """About the distance to each object's outline, negative inside, in units of its radius: (B, K, H, W)."""
    detail = p["detail"][..., None, None]
    shape = p["shape"][..., None, None]
    r = torch.hypot(u, v)
    au, av = u.abs(), v.abs()
    circle = r - 1.0
    square = torch.maximum(au, av) - 0.85
    triangle = torch.maximum(-v - 0.5, av.new_tensor(math.sqrt(0.75)) * au + 0.5 * v - 0.5)
    ring = torch.maximum(circle, (0.42 + 0.3 * detail) - r)
    bar = 0.2 + 0.2 * detail
    cross = torch.minimum(torch.maximum(au - 1.0, av - bar), torch.maximum(au - bar, av - 1.0))
    star = _star(p["points"][..., None, None], 0.36 + 0.18 * detail, u, v, r)
    result = circle
    for index, candidate in enumerate((square, triangle, star, ring, cross), start=1):
        result = torch.where(shape == index, candidate, result)
    return result


def _star(points: torch.Tensor, depth: torch.Tensor, u: torch.Tensor, v: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """A star's outline: all its edges are one edge after folding the plane into half a point's sector."""
    half = math.pi / points
    folded = torch.atan2(u, -v).remainder(2 * half)
    folded = torch.minimum(folded, 2 * half - folded)
    x, y = r * folded.cos(), r * folded.sin()
    # The edge runs from the tip (1, 0) to the notch (depth cos half, depth sin half).
    edge_x, edge_y = depth * half.cos() - 1.0, depth * half.sin()
    return (edge_y * (x - 1.0) - edge_x * y) / torch.hypot(edge_x, edge_y)


def _background(
    p: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, patches: list[torch.Tensor]
) -> torch.Tensor:
    """(B, 3, H, W) in about 0..1."""
    gx, gy, strength = (p["gradient"][:, i, None, None] for i in range(3))
    mix = ((x - 0.5) * gx + (y - 0.5) * gy + 0.5).clamp(0, 1) * (strength > 0)
    first, second = p["background"][:, 0, :, None, None], p["background"][:, 1, :, None, None]
    canvas = first + (second - first) * mix[:, None]
    amplitude, wave_x, wave_y, kind, phase = (p["texture"][:, i, None, None] for i in range(5))
    waves = torch.sin(x * wave_x + y * wave_y + phase)
    checks = torch.sign(waves) * torch.sign(torch.sin(y * wave_x - x * wave_y + phase))
    cloudy = _clouds(p, x, y, patches)
    regular = torch.where(kind == 1, waves, checks)[:, None]
    texture = torch.where(kind[:, None] == 0, cloudy / 2, regular)
    return canvas + amplitude[:, None] * texture * p["texture_rgb"][..., None, None]


def _clouds(
    p: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, patches: list[torch.Tensor]
) -> torch.Tensor | int:
    """Coarse and fine noise (B, 3, H, W); beyond the picture's edges, where a camera may look, it is mirrored."""
    if "camera" not in p:
        return sum(F.interpolate(cells, x.shape[-2:], mode="bilinear") for cells in patches)
    across = x / p["aspect"].clamp(min=1.0)[:, None, None]
    down = y / (1.0 / p["aspect"]).clamp(min=1.0)[:, None, None]
    places = torch.stack([across, down], dim=-1) * 2 - 1
    return sum(F.grid_sample(cells, places, padding_mode="reflection", align_corners=False) for cells in patches)


def _paint(
    canvas: torch.Tensor,
    p: dict[str, torch.Tensor],
    cover: torch.Tensor,
    distance: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
) -> torch.Tensor:
    """Lay the objects on the canvas, back to front."""
    for slot in range(cover.shape[1]):
        outline = p["outline"][:, slot, None, None, None]
        at_edge = (distance[:, slot, None] > -outline) & (outline > 0)
        fill, edge = p["rgb"][:, slot, :, None, None], p["outline_rgb"][:, slot, :, None, None]
        sx, sy, shine = (p["shading"][:, slot, i, None, None] for i in range(3))
        tone = 1.0 + sx * u[:, slot] + sy * v[:, slot] + shine * (1.0 - u[:, slot] ** 2 - v[:, slot] ** 2)
        colour = torch.where(at_edge, edge, fill * tone.clamp(0.5, 1.3)[:, None])
        canvas = torch.lerp(canvas, colour.clamp(0, 1), cover[:, slot, None])
    return canvas


def _photograph(canvas: torch.Tensor, p: dict[str, torch.Tensor], noise: torch.Tensor) -> torch.Tensor:
    """Blur, noise and compression."""
    blurred = F.avg_pool2d(canvas, 3, stride=1, padding=1, count_include_pad=False)
    canvas = torch.lerp(canvas, blurred, p["blur"][:, None, None, None])
    canvas = (canvas + noise * p["noise"][:, None, None, None]).clamp(0, 1)
    quality = p["jpeg"][:, None, None, None]
    return torch.where(quality > 0, jpeg_artefacts(canvas, p["jpeg"].clamp(min=1)), canvas)


def _visible(inside: torch.Tensor, top: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Visible shares and pixels (B, K), and boxes (B, K, 4) of what is visible."""
    slots = torch.arange(inside.shape[1], device=top.device)[None, :, None, None]
    seen = top[:, None] == slots
    area = seen.sum((2, 3))
    share = area / inside.sum((2, 3)).clamp(min=1)
    columns, rows = seen.any(2), seen.any(3)
    edges = [_extent(columns), _extent(rows)]
    boxes = torch.stack([edges[0][0], edges[1][0], edges[0][1], edges[1][1]], dim=-1)
    return share, area, boxes * (share > 0)[..., None]


def _extent(occupied: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and one past the last True of (B, K, L), in 0..1 of L."""
    length = occupied.shape[-1]
    index = torch.arange(length, device=occupied.device)
    first = torch.where(occupied, index, length).amin(-1)
    last = torch.where(occupied, index, -1).amax(-1) + 1
    return first / length, last / length
