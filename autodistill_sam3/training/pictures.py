"""A picture for each row of the table: a best, a typical and a worst scene, truth above and what was found below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import supervision as sv

from autodistill_sam3.images import RGBImage
from autodistill_sam3.thresholds import Thresholds
from autodistill_sam3.training.asking import Answer, BoxAnswer, matches_of
from autodistill_sam3.training.held_out import ABSENT_PROMPTS, PRESENT_PROMPTS, HeldOutScene, SceneKey, held_out_scene
from autodistill_sam3.training.matching import Calibration, Match, calibrate
from autodistill_sam3.training.table import Measurement, score

MAX_BYTES = 150_000

_CELL = 320
_GAP = 12
_LINE = 19
_HEADER = 54
_PAPER = 255
_INK = (30, 30, 30)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_SCALE = 0.45
# One per prompt and one for what is ignored; none of them is a colour of the shapes world.
_PALETTE = sv.ColorPalette.from_hex(["#ff4fd8", "#00d5e8", "#b4e600", "#ffb46b", "#b0b0b0"])
_IGNORED = 4

Ranked = TypeVar("Ranked")


@dataclass(frozen=True)
class _Mark:
    """An object or a detection to be drawn: a mask, a box, or both."""

    group: int
    text: str
    mask: npt.NDArray[np.bool_] | None = None
    box_xyxy: npt.NDArray[np.floating] | None = None


@dataclass(frozen=True)
class _Column:
    image: RGBImage
    truth: list[_Mark]
    found: list[_Mark]
    caption: list[tuple[str, int | None]]


@dataclass(frozen=True)
class _View:
    """One row of the table: whose answers, from which confidence on, to which of the four prompts."""

    name: str
    title: str
    answers: str
    threshold: float
    prompts: range

    def quality(self, answer: Answer) -> tuple[float, int]:
        """F1 of one scene, or without objects minus the number of detections; and the number of objects."""
        total = score("", self.matches(answer))
        return (total.f1 if total.objects else -float(total.detections)), total.objects

    def matches(self, answer: Answer) -> list[Match]:
        """The matches of the view's prompts."""
        return [answer.matches[index].above(self.threshold) for index in self.prompts]


_PRESENT, _ALL = range(PRESENT_PROMPTS), range(PRESENT_PROMPTS + ABSENT_PROMPTS)
_VIEWS = (
    _View("text", "Text prompts", "text", Thresholds.confidence, _ALL),
    _View("absent", "Absent prompts (text)", "text", Thresholds.confidence, _ALL[PRESENT_PROMPTS:]),
    _View("never_seen_pairs", "Never-seen pairs (text)", "unseen", Thresholds.confidence, _PRESENT),
    _View("florence2", "Florence-2's boxes", "florence2", 0.0, _ALL),
    _View("boxes", 'Boxes alone: prompting="boxes"', "boxes", 0.0, _ALL),
    _View("both", 'Text and boxes: prompting="both"', "both", 0.0, _ALL),
)


def draw_pictures(measurement: Measurement, folder: Path) -> list[Path]:
    """Write `text.jpg`, `absent.jpg`, `never_seen_pairs.jpg`, `florence2.jpg`, `boxes.jpg` and so on.

    One JPEG per row of the table, none larger than 150 kB.

    Args:
        measurement: From `table.measure`; the scenes are drawn again from their keys.
        folder: Where to write; made if missing.

    Returns:
        The paths.
    """
    pictures = {
        view.name: _picture(
            view.title,
            "prompt and confidence, x where it is wrong, - where it is neither right nor wrong",
            [
                _answer_column(view, rank, answer)
                for rank, answer in _best_typical_worst(measurement.answers[view.answers], view.quality)
            ],
        )
        for view in _VIEWS
    }
    chosen = _best_typical_worst(measurement.box_answers, lambda answer: (float(answer.iou.mean()), len(answer.iou)))
    pictures["box_prompts"] = _picture(
        "Box prompts, each side moved by up to 5 %",
        "IoU / predicted IoU",
        [_box_column(rank, answer) for rank, answer in chosen],
    )
    pictures["calibration"] = draw_calibration(calibrate(matches_of(measurement.answers["both"])))
    folder.mkdir(parents=True, exist_ok=True)
    return [_save(picture, folder / f"{name}.jpg") for name, picture in pictures.items()]


def _best_typical_worst(
    answers: Sequence[Ranked], quality: Callable[[Ranked], tuple[float, int]]
) -> list[tuple[str, Ranked]]:
    """By quality; of the best and of the worst, the scene with most objects, which says most."""
    rated = sorted(((*quality(answer), answer) for answer in answers), key=lambda row: row[:2])
    worst = max(rated, key=lambda row: (-row[0], row[1]))
    return [("best", rated[-1][2]), ("typical", rated[len(rated) // 2][2]), ("worst", worst[2])]


def _scene_of(key: SceneKey) -> HeldOutScene:
    scene = held_out_scene(key)
    assert scene is not None, "the key of an answer has a scene"
    return scene


def _answer_column(view: _View, rank: str, answer: Answer) -> _Column:
    scene = _scene_of(answer.key)
    masked = answer.detections.mask is not None
    truth = [mark for prompt in view.prompts for mark in _truth_marks(scene, prompt, masked)]
    total = score("", view.matches(answer))
    result = f"F1 {total.f1:.2f}" if total.objects else f"{total.detections} detection{'s' * (total.detections != 1)}"
    caption: list[tuple[str, int | None]] = [(f"{rank}: {result}", None)]
    for prompt in view.prompts:
        absent = "" if answer.matches[prompt].objects else "  (absent)"
        caption.append((f"{prompt + 1}  {scene.texts[prompt]}{absent}", prompt))
    return _Column(scene.image, truth, _found_marks(view, answer), caption)


def _truth_marks(scene: HeldOutScene, prompt: int, masked: bool) -> list[_Mark]:
    marks = []
    for indices, group, text in (
        (scene.wanted(prompt), prompt, str(prompt + 1)),
        (scene.ignored(prompt), _IGNORED, f"{prompt + 1} ignored"),
    ):
        for item in (scene.objects[index] for index in indices):
            if item.mask.any():
                box = None if masked else np.array(item.box_xyxy, dtype=np.float32)
                marks.append(_Mark(group, text, item.mask if masked else None, box))
    return marks


def _found_marks(view: _View, answer: Answer) -> list[_Mark]:
    marks = []
    masks = None if answer.detections.mask is None else np.asarray(answer.detections.mask)
    for prompt, match in zip(view.prompts, view.matches(answer), strict=True):
        for value, index, right, ignored in zip(match.scores, match.detection, match.right, match.ignored, strict=True):
            verdict = "" if right else " -" if ignored else " x"
            box = answer.detections.xyxy[index] if masks is None else None
            mask = None if masks is None else masks[index]
            marks.append(_Mark(prompt, f"{prompt + 1} {value:.2f}{verdict}", mask, box))
    return marks


def _box_column(rank: str, answer: BoxAnswer) -> _Column:
    scene = _scene_of(answer.key)
    masks = answer.instances.masks.to_dense()
    truth = [_Mark(row % 4, "", scene.objects[index].mask) for row, index in enumerate(answer.boxes.prompt_index)]
    found = []
    for row, (index, box) in enumerate(zip(answer.boxes.prompt_index, answer.boxes.xyxy, strict=True)):
        own = np.flatnonzero(answer.instances.prompt_index == index)
        text = f"{answer.iou[row]:.2f} / {answer.predicted_iou[row]:.2f}" if len(own) else "nothing"
        found.append(_Mark(row % 4, text, masks[own[0]] if len(own) else None, box))
    return _Column(scene.image, truth, found, [(f"{rank}: mean IoU {answer.iou.mean():.2f}", None)])


def _picture(title: str, legend: str, columns: list[_Column]) -> RGBImage:
    """Three columns: truth, what was found, caption."""
    truths = [_panel(column.image, column.truth) for column in columns]
    founds = [_panel(column.image, column.found) for column in columns]
    tallest = max(panel.shape[0] for panel in truths)
    tops = [_HEADER, _HEADER + tallest + _LINE + 6]
    below = tops[1] + tallest + _LINE + 2
    lines = max(len(column.caption) for column in columns)
    size = (below + lines * _LINE, 3 * _CELL + 4 * _GAP, 3)
    canvas = np.full(size, _PAPER, dtype=np.uint8)
    _write(canvas, title, _GAP, _LINE + 4, scale=0.55)
    for label, top in zip(("what is there", f"what was found: {legend}"), tops, strict=True):
        _write(canvas, label, _GAP, top - 5)
    for number, column in enumerate(columns):
        left = _GAP + number * (_CELL + _GAP)
        for panel, top in zip((truths[number], founds[number]), tops, strict=True):
            height, width = panel.shape[:2]
            canvas[top : top + height, left : left + width] = panel
        for line, (text, group) in enumerate(column.caption):
            baseline = below + line * _LINE
            if group is not None:
                swatch = _PALETTE.by_idx(group).as_rgb()
                cv2.rectangle(canvas, (left, baseline - 10), (left + 10, baseline), swatch, cv2.FILLED)
            _write(canvas, text, left + (16 if group is not None else 0), baseline)
    return canvas


def _panel(image: RGBImage, marks: list[_Mark]) -> RGBImage:
    """The image scaled to the cell, then its marks, so that lines and letters have one size."""
    height, width = image.shape[:2]
    scale = _CELL / max(height, width)
    size = round(width * scale), round(height * scale)
    scaled = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    scene: npt.NDArray[np.uint8] = np.ascontiguousarray(scaled[..., ::-1], dtype=np.uint8)
    for masked in (True, False):
        chosen = [mark for mark in marks if (mark.mask if masked else mark.box_xyxy) is not None]
        if chosen:
            scene = _outline(scene, chosen, scale, masked)
    if labelled := [mark for mark in marks if mark.text]:
        annotator = sv.LabelAnnotator(
            _PALETTE, text_color=sv.Color.BLACK, text_scale=0.38, text_padding=2, smart_position=True
        )
        detections = _detections(labelled, scale, size)
        scene = annotator.annotate(scene, detections, [mark.text for mark in labelled])
    return np.ascontiguousarray(scene[..., ::-1])


def _outline(scene: npt.NDArray[np.uint8], marks: list[_Mark], scale: float, masked: bool) -> npt.NDArray[np.uint8]:
    """Coloured lines on a black one, visible on any background."""
    detections = _detections(marks, scale, (scene.shape[1], scene.shape[0]))
    dark = sv.ColorPalette([sv.Color.BLACK])
    if not masked:
        scene = sv.BoxAnnotator(dark, thickness=4).annotate(scene, detections)
        return sv.BoxAnnotator(_PALETTE, thickness=2).annotate(scene, detections)
    scene = sv.PolygonAnnotator(dark, thickness=4).annotate(scene, detections)
    scene = sv.PolygonAnnotator(_PALETTE, thickness=2).annotate(scene, detections)
    return sv.MaskAnnotator(_PALETTE, opacity=0.3).annotate(scene, detections)


def _detections(marks: list[_Mark], scale: float, size_wh: tuple[int, int]) -> sv.Detections:
    masks = np.zeros((len(marks), size_wh[1], size_wh[0]), dtype=bool)
    boxes = np.zeros((len(marks), 4))
    for row, mark in enumerate(marks):
        if mark.mask is not None:
            masks[row] = cv2.resize(mark.mask.astype(np.uint8), size_wh, interpolation=cv2.INTER_NEAREST)
            boxes[row] = sv.mask_to_xyxy(masks[row : row + 1])[0]
        if mark.box_xyxy is not None:
            boxes[row] = mark.box_xyxy * scale
    return sv.Detections(boxes, mask=masks, class_id=np.array([mark.group for mark in marks]))


def _write(canvas: RGBImage, text: str, x: int, baseline: int, *, scale: float = _FONT_SCALE) -> None:
    cv2.putText(canvas, text, (x, baseline), _FONT, scale, _INK, 1, cv2.LINE_AA)


def draw_calibration(calibration: Calibration) -> RGBImage:
    """A reliability diagram: share of right detections by confidence, with the number of detections on each bar."""
    side, left, top = 400, 70, 60
    canvas = np.full((side + 130, side + 110, 3), _PAPER, dtype=np.uint8)
    _write(canvas, f'prompting="both": calibration error {calibration.error:.3f}', left - 50, 24, scale=0.55)
    step = side / len(calibration.count)
    for index in np.flatnonzero(calibration.count):
        x, height = left + round(index * step), round(side * calibration.accuracy[index])
        corners = (x + 2, top + side - height), (left + round((index + 1) * step) - 2, top + side)
        cv2.rectangle(canvas, *corners, (110, 160, 220), cv2.FILLED)
        mean = left + round(side * calibration.confidence[index]), top + side - height
        cv2.circle(canvas, mean, 4, (200, 60, 40), cv2.FILLED, cv2.LINE_AA)
        _write(canvas, str(calibration.count[index]), x + 4, max(top + side - height - 8, top - 6), scale=0.4)
    cv2.line(canvas, (left, top + side), (left + side, top), (120, 120, 120), 1, cv2.LINE_AA)
    cv2.rectangle(canvas, (left, top), (left + side, top + side), _INK, 1)
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = round(side * tick)
        _write(canvas, f"{tick:.2f}", left + at - 14, top + side + 18, scale=0.4)
        _write(canvas, f"{tick:.2f}", left - 38, top + side - at + 4, scale=0.4)
    _write(canvas, "confidence (dots: mean of the bin)", left + 80, top + side + 42)
    _write(canvas, "share of right detections", left - 50, top - 14)
    return canvas


def _save(picture: RGBImage, path: Path) -> Path:
    """As JPEG of quality 85, or less where it would be too large."""
    for quality in range(85, 20, -5):
        _, data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
        if len(data) <= MAX_BYTES:
            break
    path.write_bytes(data.tobytes())
    return path
