"""What becomes an image of its own, with its objects and its pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from autodistill_sam3.background import BACKGROUND
from autodistill_sam3.exchange.dataset import DatasetImage, DatasetObject
from autodistill_sam3.exchange.shapes import Crop
from autodistill_sam3.exchange.writer import FoundObject, found_annotations
from autodistill_sam3.images import RGBImage
from autodistill_sam3.instances import trim_crop
from autodistill_sam3.labeling.records import Annotation
from autodistill_sam3.preparation.frames import PADDING, Frame, Mask, Pixels, frame_of, window_around
from autodistill_sam3.recipe import Recipe
from autodistill_sam3.rle import rle_to_crop

# As readers without transparency see it, `load_image` among them.
WHITE = (255, 255, 255)
WITHOUT_A_PIXEL = "without_a_pixel"
BELOW_MIN_SIDE = "below_min_side"

# A pixel, but for rounding.
_SMALLEST_BOX = 1 - 1e-6


@dataclass(frozen=True)
class Item:
    """What may become an image of its own.

    Attributes:
        number: Place of its object among its image's, from 1; None for a whole image.
        frame: Of its pixels.
        natural: The same, as large as it is in the image.
    """

    number: int | None
    frame: Frame
    natural: Frame

    @property
    def own(self) -> int | None:
        """Index of its object."""
        return None if self.number is None else self.number - 1


@dataclass
class ItemObjects:
    """The objects that an item shows.

    Attributes:
        found: Index in the image -> the object in the frame of the item.
        removed: How many it would have shown, by reason.
    """

    found: dict[int, FoundObject] = field(default_factory=dict)
    removed: Counter[str] = field(default_factory=Counter)

    def annotations(self, objects: Sequence[DatasetObject], item_wh: tuple[int, int]) -> list[Annotation]:
        """As they are written; `objects` are those of the image."""
        return [
            annotation
            for index, found in self.found.items()
            for annotation in found_annotations(found, objects[index].class_id, item_wh[::-1])
        ]


def items_of(image: DatasetImage, objects: Sequence[DatasetObject], recipe: Recipe) -> list[Item]:
    """The items of an image: itself, or one for each of its objects but the background."""
    if recipe.items == "images":
        return [_item(None, (0, 0, image.width, image.height), recipe)]
    return [
        _item(number, window_around(found.bbox, recipe.margin, image.image_hw), recipe)
        for number, found in enumerate(objects, 1)
        if found.source != BACKGROUND
    ]


def objects_in(item: Item, objects: Sequence[DatasetObject], recipe: Recipe) -> ItemObjects:
    """The objects of an image that reach into an item, clipped; of a cut-out, its own object alone."""
    result = ItemObjects()
    for index, one in enumerate(objects):
        if recipe.items == "cutouts" and index != item.own:
            continue
        found = _moved(one, item.frame)
        if found is None:
            result.removed[WITHOUT_A_PIXEL] += _reaches_into(one, item)
        elif recipe.items == "images" and one.source != BACKGROUND and _side_of(found) < (recipe.min_side or 0):
            result.removed[BELOW_MIN_SIDE] += 1
        else:
            result.found[index] = found
    return result


def render(image: RGBImage, frame: Frame, recipe: Recipe, mask: Crop | None) -> Pixels:
    """The pixels of an item.

    The object of a cut-out is cut out after resizing: no pixel of it is mixed with what is around it. Under
    transparency there is the gray that letterboxes have.

    Args:
        image: (H, W, 3) ``uint8`` RGB, the whole image.
        frame: Of the item.
        recipe: For the ground of cut-outs.
        mask: Of a cut-out's object, in the frame of the item.

    Returns:
        (h, w, 3) ``uint8`` RGB, or (h, w, 4) RGBA of cut-outs with a transparent ground.
    """
    (x, y), (width, height) = frame.offset_xy, frame.content_wh
    pixels = np.full((*frame.item_wh[::-1], 3), PADDING, dtype=np.uint8)
    pixels[y : y + height, x : x + width] = frame.content_of(image)
    if recipe.items != "cutouts" or mask is None:
        return pixels
    is_own = whole_mask(mask, frame.item_wh)
    pixels[~is_own] = PADDING if recipe.colour is None else recipe.colour
    return pixels if recipe.colour is not None else np.dstack([pixels, is_own.view(np.uint8) * np.uint8(255)])


def whole_mask(crop: Crop, item_wh: tuple[int, int]) -> Mask:
    """A mask given as a crop -> (h, w) ``bool`` of the whole item."""
    part, x, y = crop
    whole = np.zeros(item_wh[::-1], dtype=bool)
    whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    return whole


def seen_without_transparency(recipe: Recipe) -> Recipe:
    """The recipe for the pixels that are measured: cut-outs with alpha stand on white."""
    return recipe if recipe.colour is not None else replace(recipe, ground="#ffffff")


def _item(number: int | None, window: tuple[int, int, int, int], recipe: Recipe) -> Item:
    return Item(number, frame_of(window, recipe), frame_of(window, replace(recipe, size=None)))


def _moved(one: DatasetObject, frame: Frame) -> FoundObject | None:
    """An object in the frame of an item; None if nothing is left of it."""
    found = partial(FoundObject, str(one.class_id), confidence=one.confidence, prompt=one.prompt, source=one.source)
    if one.segmentation is None:
        xyxy = frame.box_of(_xyxy_of(one))
        return found(None, xyxy) if min(xyxy[2:] - xyxy[:2]) >= _SMALLEST_BOX else None
    mask = _mask_in(one, frame)
    return None if mask is None else found(trim_crop(*mask), None)


def _mask_in(one: DatasetObject, frame: Frame) -> Crop | None:
    """A mask in the frame of an item, None without a pixel."""
    assert one.segmentation is not None
    x1, y1, x2, y2 = frame.window
    if not _box_reaches_into(one, frame):
        return None
    if frame.is_resized:
        mask = frame.mask_of(rle_to_crop(one.segmentation, (x1, y1, x2 - x1, y2 - y1)))
        return (mask, *frame.offset_xy) if mask.any() else None
    # Most objects are small, and no more than their part of the window is decoded.
    left, top, right, bottom = (int(value) for value in _xyxy_of(one))
    left, top, right, bottom = max(left, x1), max(top, y1), min(right, x2), min(bottom, y2)
    mask = rle_to_crop(one.segmentation, (left, top, right - left, bottom - top))
    return (mask, left - x1, top - y1) if mask.any() else None


def _reaches_into(one: DatasetObject, item: Item) -> bool:
    """Whether a part of an object lies in the window of an item."""
    if one.segmentation is None:
        return _box_reaches_into(one, item.natural)
    return _mask_in(one, item.natural) is not None


def _box_reaches_into(one: DatasetObject, frame: Frame) -> bool:
    x1, y1, x2, y2 = _xyxy_of(one)
    return bool(x1 < frame.window[2] and x2 > frame.window[0] and y1 < frame.window[3] and y2 > frame.window[1])


def _xyxy_of(one: DatasetObject) -> npt.NDArray[np.float64]:
    x, y, width, height = one.bbox
    return np.array([x, y, x + width, y + height])


def _side_of(found: FoundObject) -> float:
    """The shorter side of an object's box."""
    if found.mask is not None:
        return float(min(found.mask[0].shape))
    assert found.xyxy is not None
    return float(min(found.xyxy[2:] - found.xyxy[:2]))
