"""Images -> tiles in batches of one shape -> detections of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import supervision as sv

from autodistill_sam3.conflicts import add_removed, removed_counts
from autodistill_sam3.errors import SettingError
from autodistill_sam3.images import RGBImage
from autodistill_sam3.instances import tight_xyxy
from autodistill_sam3.queueing import one_ahead
from autodistill_sam3.tiling.runs import (
    Box,
    Runs,
    compact_masks_of,
    extent,
    moved,
    runs_of_box,
    runs_of_crop,
    scale,
)
from autodistill_sam3.tiling.stitching import Piece, View, is_cut, stitch

DEFAULT_TILE = 1008
# The whole image is shown no larger than this: models scale it down further, and masks of its size would be large.
WHOLE_SIDE = 4096

Answers: TypeAlias = "list[sv.Detections] | Callable[[], list[sv.Detections]]"
Detect: TypeAlias = Callable[[Sequence[RGBImage]], Answers]

_FILLER = np.full((32, 32, 3), 127, dtype=np.uint8)


def default_overlap(tile: int) -> int:
    """A fifth of the tile, in pixels. Objects up to this size are whole in some tile."""
    return tile // 5


def tiles_of(image_hw: tuple[int, int], tile: int, overlap: int) -> list[Box]:
    """Cut an image into overlapping tiles.

    The tiles are evenly spread, the first and the last flush with the image's borders, so that all have full size and
    neighbours overlap by `overlap` or more. A side of the image that is not longer than a tile is not cut.

    Args:
        image_hw: Height and width of the image in pixels.
        tile: Side of a tile in pixels.
        overlap: Of neighbours, in pixels.

    Returns:
        Tiles as (x1, y1, x2, y2) in pixels, right and bottom exclusive, row by row.

    Raises:
        SettingError: The tile has no pixel, or the overlap is not smaller than the tile.

    Example:
        >>> tiles_of((100, 250), 100, 20)
        [(0, 0, 100, 100), (75, 0, 175, 100), (150, 0, 250, 100)]
    """
    _check(tile, overlap)
    rows, columns = (_spans(length, tile, overlap) for length in image_hw)
    return [(x1, y1, x2, y2) for y1, y2 in rows for x1, x2 in columns]


def detect_in_tiles(
    images: Sequence[RGBImage], detect: Detect, *, tile: int, overlap: int | None = None, batch_size: int
) -> list[sv.Detections]:
    """Detect in images larger than a tile by overlapping tiles, and at once for large objects in the whole image.

    An image that is no larger than a tile is detected in as it is. The views of all images are packed together into
    batches of one size; small gray images fill the last one.

    Args:
        images: RGB ``uint8`` (H, W, 3), of any sizes.
        detect: Exactly `batch_size` images -> detections of each, with `class_id`, `confidence` and, unless the model
            gives boxes only, `mask`, a `CompactMask`; or a function that waits for them, which is called when the next
            batch is begun.
        tile: Side of a tile in pixels of the image.
        overlap: Of neighbours, in pixels; a fifth of the tile without.
        batch_size: Images per call.

    Returns:
        Detections of each image, in its frame, sorted by falling confidence: tight `xyxy`, `mask` (a `CompactMask`, or
        None for boxes), and of the most confident piece of each object `confidence`, `class_id` and `data`. Without
        masks, boxes are rounded to whole pixels. Of the pieces, those that became one with others are counted under
        "stitched", those that a tile should confirm and does not under "unconfirmed", and what `detect` counted stays
        counted (see `autodistill_sam3.fusion.removed_counts`).

    Raises:
        SettingError: A value is out of its range.
    """
    overlap = default_overlap(tile) if overlap is None else overlap
    if batch_size < 1:
        raise SettingError(f"Expected batch_size to be at least 1, received {batch_size}")
    views = [_views((image.shape[0], image.shape[1]), tile, overlap) for image in images]
    queue = [(index, view) for index, looks in enumerate(views) for view in looks]
    found: list[list[sv.Detections]] = [[] for _ in images]

    def begun() -> Iterator[tuple[Sequence[int], Answers]]:
        for start in range(0, len(queue), batch_size):
            batch = queue[start : start + batch_size]
            shown = [_show(images[index], view) for index, view in batch]
            yield [index for index, _ in batch], detect([*shown, *[_FILLER] * (batch_size - len(shown))])

    for owners, answers in one_ahead(begun()):
        detections = answers() if callable(answers) else answers
        for index, answer in zip(owners, detections[: len(owners)], strict=True):
            found[index].append(answer)
    return [
        _join(looks, parts, (image.shape[0], image.shape[1]))
        for image, looks, parts in zip(images, views, found, strict=True)
    ]


def _check(tile: int, overlap: int) -> None:
    if tile < 1:
        raise SettingError(f"Expected tile to be at least 1 pixel, received {tile}")
    if not 0 <= overlap < tile:
        raise SettingError(f"Expected an overlap of 0 or more and smaller than the tile of {tile}, received {overlap}")


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    if length <= tile:
        return [(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [index * (length - tile) // (count - 1) for index in range(count)]
    return [(start, start + tile) for start in starts]


def _views(image_hw: tuple[int, int], tile: int, overlap: int) -> list[View]:
    """The whole image and its tiles; an image that is one tile is looked at as it is."""
    tiles = [View(box, whole=False) for box in tiles_of(image_hw, tile, overlap)]
    return tiles if len(tiles) == 1 else [View((0, 0, image_hw[1], image_hw[0]), whole=True), *tiles]


def _show(image: RGBImage, view: View) -> RGBImage:
    """What the model sees of an image: a tile without a copy, the whole image in bounded size."""
    x1, y1, x2, y2 = view.box
    if not view.whole:
        return image[y1:y2, x1:x2]
    height, width = _shown_hw(image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _shown_hw(image_hw: tuple[int, ...]) -> tuple[int, int]:
    height, width = image_hw[:2]
    share = min(1.0, WHOLE_SIDE / max(height, width))
    return max(1, round(height * share)), max(1, round(width * share))


def _join(views: Sequence[View], found: Sequence[sv.Detections], image_hw: tuple[int, int]) -> sv.Detections:
    """The detections of one image from those of its views."""
    if len(views) == 1:
        return found[0]
    pieces, rows = _pieces(views, found, image_hw)
    objects, gone = stitch(views, pieces, image_hw)
    masks = compact_masks_of([item.runs for item in objects], image_hw)
    best = np.array([rows[item.pieces[0]] for item in objects], dtype=np.int64)
    joined = sv.Detections(
        xyxy=tight_xyxy(masks),
        mask=None if found[0].mask is None else masks,
        confidence=_column([detections.confidence for detections in found])[best],
        class_id=_column([detections.class_id for detections in found])[best],
        data={key: _column([detections.data[key] for detections in found])[best] for key in found[0].data},
    )
    empty = {"empty_mask": sum(map(len, found)) - len(pieces)}
    for counts in (*map(removed_counts, found), gone, empty):
        for reason, count in counts.items():
            add_removed(joined, reason, count)
    return joined


def _column(parts: Sequence[Any]) -> npt.NDArray[Any]:
    return np.concatenate([np.asarray(part) for part in parts])


def _pieces(
    views: Sequence[View], found: Sequence[sv.Detections], image_hw: tuple[int, int]
) -> tuple[list[Piece], list[int]]:
    """All detections in the frame of the image, and the row of each among those of all views."""
    pieces, rows, row = [], [], -1
    for position, (view, detections) in enumerate(zip(views, found, strict=True)):
        if detections.class_id is None or detections.confidence is None:
            raise ValueError("detections of tiles need class_id and confidence")
        for index in range(len(detections)):
            row += 1
            runs = _runs(detections, index, view, image_hw)
            if len(runs):
                box = extent(runs)
                label = int(detections.class_id[index]), float(detections.confidence[index])
                pieces.append(Piece(position, *label, runs, box, is_cut(box, view, image_hw)))
                rows.append(row)
    return pieces, rows


def _runs(detections: sv.Detections, index: int, view: View, image_hw: tuple[int, int]) -> Runs:
    """A detection's mask, or its box, in the frame of the image."""
    shown_hw = _shown_hw(image_hw) if view.whole else (view.box[3] - view.box[1], view.box[2] - view.box[0])
    if detections.mask is None:
        box = np.clip(np.round(detections.xyxy[index]), 0, [*shown_hw[::-1], *shown_hw[::-1]]).astype(np.int64)
        runs = runs_of_box(tuple(box.tolist()))
    else:
        masks = detections.mask
        assert isinstance(masks, sv.CompactMask), "tiles give compact masks"
        x, y = masks.offsets[index].tolist()
        runs = runs_of_crop(masks.crop(index), x, y)
    if view.whole:
        return runs if shown_hw == image_hw else scale(runs, shown_hw, image_hw)
    return moved(runs, view.box[0], view.box[1])
