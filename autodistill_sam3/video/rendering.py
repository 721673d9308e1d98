"""Tracked instances drawn into frames, and sheets of frames."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import supervision as sv

from autodistill_sam3.errors import SettingError
from autodistill_sam3.images import RGBImage
from autodistill_sam3.instances import tight_xyxy
from autodistill_sam3.labeling.review.drawing import draw_cell, tile
from autodistill_sam3.labeling.review.text import font_path_for, printable
from autodistill_sam3.video.clip import Frame
from autodistill_sam3.video.tracks import FrameTracks

_OPACITY = 0.4
_NUM_COLOURS = 64
# Steps of this part of the circle keep hues of ids that follow one another apart, however many there are.
_HUE_STEP, _SATURATION = 0.618034, 0.65


def render(image: RGBImage, found: sv.Detections | FrameTracks, class_names: Sequence[str]) -> RGBImage:
    """Draw masks, outlines and labels ("#3 car 0.93") into a copy of a frame.

    An object's colour follows from its id alone, so it is the same in every frame.

    Args:
        image: (H, W, 3) RGB ``uint8``.
        found: What was tracked in it: detections with `tracker_id`, or an engine's tracks.
        class_names: The name of each `class_id`, or of each prompt; what has none of them is drawn without a name.

    Returns:
        (H, W, 3) RGB ``uint8``.
    """
    detections = _as_detections(found) if isinstance(found, FrameTracks) else found
    scene = np.ascontiguousarray(image[..., ::-1])
    if len(detections) == 0:
        return np.ascontiguousarray(scene[..., ::-1])
    by = sv.ColorLookup.INDEX if detections.tracker_id is None else sv.ColorLookup.TRACK
    colours: dict[str, Any] = {"color": _palette(), "color_lookup": by}
    thickness = max(1, max(image.shape[:2]) // 500)
    if detections.mask is not None:
        scene = sv.MaskAnnotator(opacity=_OPACITY, **colours).annotate(scene, detections)
        scene = sv.PolygonAnnotator(thickness=thickness, **colours).annotate(scene, detections)
    else:
        scene = sv.BoxAnnotator(thickness=thickness, **colours).annotate(scene, detections)
    scene = _labelled(scene, detections, _labels(detections, class_names), colours)
    return np.ascontiguousarray(scene[..., ::-1], dtype=np.uint8)


def contact_sheet(frames: Iterable[Frame]) -> RGBImage:
    """Frames in rows of four, each over its number and its time.

    Raises:
        SettingError: There are no frames.
    """
    nothing = sv.Detections.empty()
    cells = [
        draw_cell(frame.image, nothing, f"frame {frame.index}", "" if frame.time is None else f"{frame.time:.2f} s")
        for frame in frames
    ]
    if not cells:
        raise SettingError("Expected frames for a contact sheet, received none.")
    return tile(cells)


def _as_detections(tracks: FrameTracks) -> sv.Detections:
    return sv.Detections(
        xyxy=tight_xyxy(tracks.masks),
        mask=tracks.masks,
        confidence=tracks.scores,
        class_id=tracks.prompt_index,
        tracker_id=tracks.object_ids,
    )


def _labels(detections: sv.Detections, class_names: Sequence[str]) -> list[str]:
    ids, classes, scores = detections.tracker_id, detections.class_id, detections.confidence
    labels = []
    for index in range(len(detections)):
        class_id = -1 if classes is None else int(classes[index])
        parts = [
            "" if ids is None else f"#{ids[index]}",
            printable(class_names[class_id]) if 0 <= class_id < len(class_names) else "",
            "" if scores is None else f"{scores[index]:.2f}",
        ]
        labels.append(" ".join(part for part in parts if part))
    return labels


def _labelled(scene: RGBImage, detections: sv.Detections, labels: list[str], colours: dict[str, Any]) -> RGBImage:
    size = max(scene.shape[:2])
    padding, ink = max(2, size // 400), sv.Color.BLACK
    # OpenCV's letters are those of ASCII. Pillow's take half as long again, as it copies the frame.
    if all(label.isascii() for label in labels):
        plain = sv.LabelAnnotator(text_scale=max(0.35, size / 2600), text_padding=padding, text_color=ink, **colours)
        return np.asarray(plain.annotate(scene, detections, labels), np.uint8)
    font = font_path_for("".join(labels))
    rich = sv.RichLabelAnnotator(
        font_path=font, font_size=max(11, size // 80), text_padding=padding, text_color=ink, **colours
    )
    return np.asarray(rich.annotate(scene, detections, labels), np.uint8)


@lru_cache
def _palette() -> sv.ColorPalette:
    """Light colours, on which black letters can be read; supervision's own are dark in part."""
    hues = [index * _HUE_STEP % 1 for index in range(_NUM_COLOURS)]
    colours = [colorsys.hsv_to_rgb(hue, _SATURATION, 1) for hue in hues]
    return sv.ColorPalette([sv.Color(*(round(255 * part) for part in colour)) for colour in colours])
