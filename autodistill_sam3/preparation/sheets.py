"""Sheets of items before and after: where each was in its image, and what became of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from autodistill_sam3.errors import ImageError
from autodistill_sam3.exchange.dataset import DatasetImage, DatasetObject, LabelledFolder
from autodistill_sam3.images import RGBImage
from autodistill_sam3.labeling.records import ImageRecord
from autodistill_sam3.labeling.review.drawing import CELL, MARGIN, draw_cell, resize, save_png, tile
from autodistill_sam3.labeling.review.shapes import fit, small_detections
from autodistill_sam3.layout import REVIEW
from autodistill_sam3.preparation.choose import Candidate, Choice, Dropped
from autodistill_sam3.preparation.frames import Frame, Pixels
from autodistill_sam3.preparation.items import Item, ItemObjects, items_of, objects_in, render
from autodistill_sam3.preparation.measure import read_pixels
from autodistill_sam3.recipe import Recipe

_KEPT, _DROPPED = 18, 6
_CELLS_PER_SHEET = 16
_SQUARES = 12
_LIGHT, _DARK = 236, 204
_WINDOW_COLOURS = ((5, (20, 20, 20)), (2, (255, 230, 0)))
_CROSS_COLOUR = (200, 30, 30)


def write_before_after(source: LabelledFolder, output: Path, choice: Choice, recipe: Recipe) -> list[Path]:
    """Write `review/before_after_1.png` and more: up to 18 items that are kept and 6 that are dropped, by lot.

    On the left the image with the item's window and objects, on the right the item, crossed out if it is dropped.
    Images that can no longer be read are passed over.

    Returns:
        The sheets; those of an earlier run are replaced.
    """
    chosen: list[Candidate | Dropped] = [*_drawn(choice.kept, _KEPT, recipe), *_drawn_by_reason(choice, recipe)]
    cells: dict[str, tuple[RGBImage, RGBImage]] = {}
    for image, objects, own in _with_objects(source, chosen):
        try:
            pixels = read_pixels(source.path / image.path, image)
        except ImageError:
            continue
        items = {item.number: item for item in items_of(image, objects, recipe)}
        for one in own:
            candidate = _candidate_of(one)
            scene = _Scene(image, pixels, objects, items[candidate.item.number], recipe, source.classes)
            cells[candidate.source] = scene.before(candidate), scene.after(one)
    pairs = [cells[_candidate_of(one).source] for one in chosen if _candidate_of(one).source in cells]
    return _write_sheets(output / REVIEW, [cell for pair in pairs for cell in pair])


class _Scene:
    """An item with what is needed to draw it."""

    def __init__(
        self,
        image: DatasetImage,
        pixels: RGBImage,
        objects: Sequence[DatasetObject],
        item: Item,
        recipe: Recipe,
        classes: Sequence[str],
    ) -> None:
        self._image, self._pixels, self._objects, self._classes = image, pixels, objects, classes
        self._item, self._recipe = item, recipe
        self._shown = objects_in(item, objects, recipe)

    def before(self, candidate: Candidate) -> RGBImage:
        """The image, with the window and the objects that the item shows."""
        whole = (0, 0, self._image.width, self._image.height)
        frame = Frame(whole, whole[2:], (0, 0), whole[2:])
        item = Item(self._item.number, frame, frame)
        every = objects_in(item, self._objects, Recipe(items=self._recipe.items))
        indices = {*self._shown.found, self._item.own}
        wanted = ItemObjects({index: found for index, found in every.found.items() if index in indices})
        small = _small(self._pixels)
        if self._item.frame.window != whole:
            _draw_window(small, self._item.frame.window, small.shape[1] / self._image.width)
        return self._cell(small, wanted, whole[2:], candidate.source)

    def after(self, one: Candidate | Dropped) -> RGBImage:
        """The item, with its objects."""
        own = None if self._item.own is None else self._shown.found.get(self._item.own)
        pixels = render(self._pixels, self._item.frame, self._recipe, None if own is None else own.mask)
        small = _on_squares(_small(pixels))
        if isinstance(one, Candidate):
            return self._cell(small, self._shown, self._item.frame.item_wh, one.file)
        height, width = small.shape[:2]
        cv2.line(small, (0, 0), (width, height), _CROSS_COLOUR, 2, cv2.LINE_AA)
        cv2.line(small, (width, 0), (0, height), _CROSS_COLOUR, 2, cv2.LINE_AA)
        return self._cell(small, ItemObjects(), self._item.frame.item_wh, f"dropped: {_words_of(one)}")

    def _cell(self, small: RGBImage, shown: ItemObjects, size_wh: tuple[int, int], caption: str) -> RGBImage:
        record: ImageRecord = {
            "source": "", "file": "", "split": self._image.split, "width": size_wh[0], "height": size_wh[1],
            "annotations": shown.annotations(self._objects, size_wh),
        }  # fmt: skip
        # Masks are shrunk and not enlarged, which `draw_cell` does.
        least = fit(size_wh, max(small.shape[:2]))
        detections = small_detections(record, least, self._classes)
        detections.xyxy = detections.xyxy * np.float32(small.shape[1] / least[0])
        return draw_cell(small, detections, caption, f"{size_wh[0]} \N{MULTIPLICATION SIGN} {size_wh[1]}")


def _drawn(kept: Sequence[Candidate], count: int, recipe: Recipe) -> list[Candidate]:
    by_lot = sorted(kept, key=lambda one: _lot(one, recipe))[:count]
    return sorted(by_lot, key=lambda one: one.source)


def _drawn_by_reason(choice: Choice, recipe: Recipe) -> list[Dropped]:
    """In turns one of each reason."""
    by_reason: dict[str, list[Dropped]] = {}
    for one in sorted(choice.dropped, key=lambda one: _lot(one.candidate, recipe)):
        by_reason.setdefault(one.reason, []).append(one)
    turns = [(place, reason, one) for reason, own in by_reason.items() for place, one in enumerate(own[:_DROPPED])]
    first = sorted(turns, key=lambda turn: turn[:2])[:_DROPPED]
    return [one for _, _, one in sorted(first, key=lambda turn: (turn[1], turn[0]))]


def _lot(one: Candidate, recipe: Recipe) -> bytes:
    return hashlib.sha256(f"sheet {recipe.seed}:{one.source}".encode(errors="surrogatepass")).digest()


def _candidate_of(one: Candidate | Dropped) -> Candidate:
    return one if isinstance(one, Candidate) else one.candidate


def _with_objects(
    source: LabelledFolder, chosen: Sequence[Candidate | Dropped]
) -> Iterator[tuple[DatasetImage, list[DatasetObject], list[Candidate | Dropped]]]:
    by_path: dict[str, list[Candidate | Dropped]] = {}
    for one in chosen:
        by_path.setdefault(_candidate_of(one).image.path, []).append(one)
    for split in {_candidate_of(one).split: None for one in chosen}:
        for image, objects in source.objects(split):
            if image.path in by_path:
                yield image, objects, by_path[image.path]


def _small(pixels: Pixels) -> Pixels:
    """As large as it is in a cell."""
    height, width = pixels.shape[:2]
    scale = (CELL - 2 * MARGIN) / max(height, width)
    # A copy, to draw into.
    return resize(pixels, (max(1, round(width * scale)), max(1, round(height * scale)))).copy()


def _on_squares(pixels: Pixels) -> RGBImage:
    """Transparency as squares of two grays."""
    if pixels.shape[2] == 3:
        return pixels
    rows, columns = np.indices(pixels.shape[:2]) // _SQUARES
    squares = np.where((rows + columns) % 2, _DARK, _LIGHT)[..., None]
    alpha = pixels[..., 3:] / 255
    return np.rint(pixels[..., :3] * alpha + squares * (1 - alpha)).astype(np.uint8)


def _draw_window(small: Pixels, window: tuple[int, int, int, int], scale: float) -> None:
    x1, y1, x2, y2 = (round(value * scale) for value in window)
    for thickness, colour in _WINDOW_COLOURS:
        cv2.rectangle(small, (x1, y1), (x2 - 1, y2 - 1), colour, thickness)


def _words_of(one: Dropped) -> str:
    words = one.reason.replace("_", " ")
    if one.value is None:
        return words
    return f"{words}, {one.value:.4g}" if isinstance(one.value, (int, float)) else f"{words} of {one.value}"


def _write_sheets(folder: Path, cells: Sequence[RGBImage]) -> list[Path]:
    paths: list[Path] = []
    remaining = iter(cells)
    while some := list(islice(remaining, _CELLS_PER_SHEET)):
        paths.append(folder / f"before_after_{len(paths) + 1}.png")
        save_png(tile(some), paths[-1])
    for path in folder.glob("before_after_*.png"):
        if path not in paths:
            path.unlink()
    return paths
