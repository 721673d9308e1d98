"""Where a person points, in whatever coordinates -> pixels, and the points that the model is given."""

from __future__ import annotations

import logging
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from autodistill_sam3.errors import SettingError
from autodistill_sam3.video.tracks import ObjectPrompt

Coordinates = Literal["auto", "relative", "absolute"]

# Labels of points: on the object, beside it, and the two corners of a box.
LABELS = (0, 1)
TOP_LEFT, BOTTOM_RIGHT = 2, 3

logger = logging.getLogger("autodistill_sam3")


def read_prompt(
    frame_index: int,
    image_hw: tuple[int, int],
    *,
    points: npt.ArrayLike | None = None,
    labels: npt.ArrayLike | None = None,
    box: npt.ArrayLike | None = None,
    coordinates: Coordinates = "auto",
) -> ObjectPrompt:
    """Check what a person gives, and bring it to pixels.

    Args:
        frame_index: Which frame.
        image_hw: Its height and width in pixels.
        points: (P, 2), x and y.
        labels: (P,): 1 for a point on the object, 0 for one beside it; all are on it without.
        box: x1, y1, x2, y2.
        coordinates: "relative": 0 to 1 of the frame. "absolute": pixels. "auto": relative if every value is below 1.

    Raises:
        SettingError: Nothing is given; shapes or labels are wrong, values are not finite or outside the frame.

    Example:
        >>> prompt = read_prompt(0, (100, 200), points=[[0.5, 0.5]], box=[0.25, 0.1, 0.75, 0.9])
        >>> prompt.points_xy.tolist(), prompt.box_xyxy.tolist()
        ([[100.0, 50.0]], [50.0, 10.0, 150.0, 90.0])
    """
    if points is None and box is None:
        raise SettingError("Expected points or a box for an object, received neither")
    places = _table("points", points, ("x", "y"))
    corners = _table("box", [box], ("x1", "y1", "x2", "y2")) if box is not None else None
    scale = _scale(np.concatenate([places.ravel(), [] if corners is None else corners.ravel()]), image_hw, coordinates)
    places = places * scale
    if corners is not None:
        corners = corners * np.tile(scale, 2)
    _check_inside(places, image_hw)
    return ObjectPrompt(
        frame_index=frame_index,
        points_xy=places.astype(np.float32),
        labels=np.ones(len(places), np.int64) if labels is None else _labels(labels, len(places), LABELS),
        box_xyxy=None if corners is None else _checked_box(corners[0], image_hw),
    )


def read_official_prompt(
    frame_index: int,
    image_hw: tuple[int, int],
    *,
    points: npt.ArrayLike | None = None,
    point_labels: npt.ArrayLike | None = None,
    bounding_boxes: npt.ArrayLike | None = None,
    bounding_box_labels: npt.ArrayLike | None = None,
) -> ObjectPrompt:
    """The same for what Meta's predictor is told of an object, in 0..1 of the frame.

    Args:
        frame_index: Which frame.
        image_hw: Its height and width in pixels.
        points: (P, 2), x and y.
        point_labels: (P,): 1 for a point on the object, 0 for one beside it, 2 and 3 for the top left and bottom right
            corners of a box around it.
        bounding_boxes: (1, 4), left, top, width and height of a box around it.
        bounding_box_labels: (1,), which must be 1.

    Raises:
        SettingError: As :func:`read_prompt`, or points lack labels, or there is more than one box.

    Example:
        >>> read_official_prompt(0, (100, 200), points=[[0.25, 0.5], [0.75, 1]], point_labels=[2, 3]).box_xyxy.tolist()
        [50.0, 50.0, 150.0, 100.0]
    """
    places = _table("points", points, ("x", "y"))
    labels = _labels([] if point_labels is None else point_labels, len(places), (*LABELS, TOP_LEFT, BOTTOM_RIGHT))
    xywh = _table("bounding_boxes", bounding_boxes, ("x", "y", "width", "height"))
    if bounding_box_labels is not None:
        _labels(bounding_box_labels, len(xywh), (1,))
    first, last = places[labels == TOP_LEFT], places[labels == BOTTOM_RIGHT]
    if len(first) != len(last) or len(first) + len(xywh) > 1:
        raise SettingError(
            f"Expected one box for an object, received {len(xywh)} in bounding_boxes and corners with the labels "
            f"{labels[labels >= TOP_LEFT].tolist()}. A box is two points with the labels {TOP_LEFT} and {BOTTOM_RIGHT}."
        )
    boxes = np.concatenate([np.concatenate([first, last], 1), _corners(xywh)])
    clicks = labels < TOP_LEFT
    return read_prompt(
        frame_index,
        image_hw,
        points=places[clicks] if clicks.any() else None,
        labels=labels[clicks],
        box=boxes[0] if len(boxes) else None,
        coordinates="relative",
    )


def _corners(xywh: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(B, 4) left, top, width, height in 0..1 -> x1, y1, x2, y2, which rounding may not bring over the edge."""
    if (xywh < 0).any() or (xywh > 1).any():
        raise SettingError(f"Expected bounding_boxes as x, y, width, height between 0 and 1, received {xywh.tolist()}")
    return np.concatenate([xywh[:, :2], np.minimum(xywh[:, :2] + xywh[:, 2:], 1)], axis=1)


def _table(name: str, values: object, columns: tuple[str, ...]) -> npt.NDArray[np.float64]:
    try:
        table = np.asarray(np.zeros((0, len(columns))) if values is None else values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SettingError(f"Expected {name} as numbers, received {values!r}") from error
    if table.ndim != 2 or table.shape[1] != len(columns):
        raise SettingError(f"Expected {', '.join(columns)} in {name}, received {values!r}")
    if not np.isfinite(table).all():
        raise SettingError(f"Expected finite numbers in {name}, received {table.tolist()}")
    return table


def _labels(labels: npt.ArrayLike, count: int, known: tuple[int, ...]) -> npt.NDArray[np.int64]:
    try:
        given = np.asarray(labels)
    except ValueError as error:
        raise SettingError(f"Expected labels as numbers, received {labels!r}") from error
    if given.shape != (count,) or not np.isin(given, known).all():
        raise SettingError(f"Expected a label out of {known} for each of {count}, received {labels!r}")
    return given.astype(np.int64)


def _scale(
    values: npt.NDArray[np.float64], image_hw: tuple[int, int], coordinates: Coordinates
) -> npt.NDArray[np.float64]:
    """What x and y are multiplied by to be pixels."""
    if coordinates not in get_args(Coordinates):
        raise SettingError(f"Expected coordinates to be one of {get_args(Coordinates)}, received {coordinates!r}")
    pixels = np.array([image_hw[1], image_hw[0]], dtype=np.float64)
    if coordinates == "absolute":
        return np.ones(2)
    if coordinates == "relative":
        if (values < 0).any() or (values > 1).any():
            raise SettingError(f"Expected relative coordinates between 0 and 1, received {values.tolist()}")
        return pixels
    small, fractions = values < 1, (values > 0) & (values < 1)
    if small.all():
        return pixels
    if (values <= 1).all() or fractions.any():
        logger.warning(
            "Coordinates of %s are taken for pixels, since not all are below 1; say coordinates='relative' or "
            "'absolute' to be sure.",
            values.tolist(),
        )
    return np.ones(2)


def _check_inside(places: npt.NDArray[np.float64], image_hw: tuple[int, int]) -> None:
    height, width = image_hw
    if ((places < 0) | (places > np.array([width, height]))).any():
        raise SettingError(f"Expected points within the {width} x {height} frame, received {places.tolist()}")


def _checked_box(corners: npt.NDArray[np.float64], image_hw: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Clipped to the frame, of which it must cover something."""
    height, width = image_hw
    clipped = np.clip(corners, 0, [width, height, width, height])
    if not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
        raise SettingError(
            f"Expected a box x1, y1, x2, y2 with x1 < x2 and y1 < y2 within the {width} x {height} frame, "
            f"received {corners.tolist()}"
        )
    return clipped.astype(np.float32)


def as_points(prompt: ObjectPrompt, image_hw: tuple[int, int]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """A prompt as the model takes it: a box is two points with labels of their own, which come first.

    Returns:
        (P, 2) in 0..1 of the frame, and (P,) labels.
    """
    points, labels = prompt.points_xy, prompt.labels
    if prompt.box_xyxy is not None:
        points = np.concatenate([prompt.box_xyxy.reshape(2, 2), points])
        labels = np.concatenate([np.array([TOP_LEFT, BOTTOM_RIGHT]), labels])
    return (points / np.array([image_hw[1], image_hw[0]])).astype(np.float32), labels.astype(np.int64)


def one_box(
    points: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Of points (P, 2) with labels (P,), as they were given: the corners of the last box, and all that are not."""
    corners = np.flatnonzero(labels >= TOP_LEFT)
    order = np.concatenate([corners[-2:], np.flatnonzero(labels < TOP_LEFT)])
    return points[order], labels[order]
