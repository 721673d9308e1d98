"""Detections against the objects of held-out scenes. numpy only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autodistill_sam3.training.held_out import HeldOutScene

MATCH_IOU = 0.5
IGNORED_SHARE = 0.5
CALIBRATION_BINS = 10

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Match:
    """What became of the D detections of one prompt in one scene, by falling score.

    Whether a detection is right depends only on those with higher scores, so that a higher threshold is a shorter
    prefix.

    Attributes:
        scores: (D,) in 0..1.
        iou: (D,) with the object that the detection found, 0 without one.
        found: (D,) position in the scene of the object that the detection found, -1 without one.
        ignored: (D,) ``bool``, it found nothing that counts but lies on an object that hardly shows.
        detection: (D,) position among all detections of the scene.
        objects: How many objects the prompt asks for, 0 for an absent one.
    """

    scores: Floats
    iou: Floats
    found: Ints
    ignored: Bools
    detection: Ints
    objects: int

    def above(self, threshold: float) -> Match:
        """The detections that score at least `threshold`."""
        kept = self.scores >= threshold
        return Match(
            self.scores[kept],
            self.iou[kept],
            self.found[kept],
            self.ignored[kept],
            self.detection[kept],
            self.objects,
        )

    @property
    def right(self) -> Bools:
        """(D,) whether the detection found an object of its own."""
        return self.found >= 0

    @property
    def counted(self) -> int:
        """Detections that are right or wrong."""
        return int((~self.ignored).sum())

    @property
    def objects_found(self) -> set[int]:
        """Positions in the scene of the objects found."""
        return set(self.found[self.right].tolist())


def mask_overlaps(masks: Bools, truth: Bools) -> tuple[Floats, Floats]:
    """Overlaps of D masks with K objects.

    Args:
        masks: (D, H, W) ``bool``.
        truth: (K, H, W) ``bool``.

    Returns:
        IoU (D, K), and the share of each mask that lies on each object (D, K).

    Example:
        >>> iou, share = mask_overlaps(np.array([[[True, False]]]), np.array([[[True, True]]]))
        >>> iou.tolist(), share.tolist()
        ([[0.5]], [[1.0]])
    """
    pixels = int(np.prod(truth.shape[1:]))
    first, second = (part.reshape(len(part), pixels).astype(np.float32) for part in (masks, truth))
    return _overlaps(first @ second.T, first.sum(axis=1), second.sum(axis=1))


def box_overlaps(boxes_xyxy: Floats, truth_xyxy: Floats) -> tuple[Floats, Floats]:
    """As `mask_overlaps`, of (D, 4) and (K, 4) boxes in pixels with exclusive right and bottom edges."""
    low = np.maximum(boxes_xyxy[:, None, :2], truth_xyxy[None, :, :2])
    high = np.minimum(boxes_xyxy[:, None, 2:], truth_xyxy[None, :, 2:])
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (boxes_xyxy, truth_xyxy)]
    return _overlaps(np.prod(np.maximum(high - low, 0), axis=2), areas[0], areas[1])


def _overlaps(intersection: Floats, first: Floats, second: Floats) -> tuple[Floats, Floats]:
    union = first[:, None] + second[None] - intersection
    return intersection / np.maximum(union, 1e-9), intersection / np.maximum(first, 1e-9)[:, None]


def match_scene(scene: HeldOutScene, scores: Floats, prompt: Ints, iou: Floats, share: Floats) -> tuple[Match, ...]:
    """Match a scene's D detections with its K objects, prompt by prompt.

    Args:
        scene: The scene.
        scores: (D,) in 0..1.
        prompt: (D,) which of the scene's prompts each detection answers.
        iou: (D, K) with every object of the scene.
        share: (D, K) of the detection's area that lies on the object.
    """
    matches = []
    for index in range(len(scene.prompts)):
        own = np.flatnonzero(prompt == index)
        own = own[np.argsort(-scores[own], kind="stable")]
        wanted, hidden = scene.wanted(index), scene.ignored(index)
        lies_on = (iou[own][:, hidden] >= MATCH_IOU) | (share[own][:, hidden] > IGNORED_SHARE)
        on_hidden: Bools = np.any(lies_on, axis=1)
        matches.append(_match(scores[own], iou[own][:, wanted], wanted, on_hidden, own))
    return tuple(matches)


def _match(scores: Floats, iou: Floats, wanted: Ints, on_hidden: Bools, detection: Ints) -> Match:
    """Greedy by score; each object is found once, by the best-overlapping choice of the highest score."""
    free = np.ones(len(wanted), dtype=bool)
    found = np.full(len(scores), -1, dtype=np.int64)
    overlap = np.zeros(len(scores))
    for row in range(len(scores)):
        candidates = np.where(free, iou[row], 0.0)
        best = int(candidates.argmax()) if len(wanted) else 0
        if len(wanted) and candidates[best] >= MATCH_IOU:
            free[best] = False
            found[row], overlap[row] = wanted[best], candidates[best]
    return Match(scores, overlap, found, on_hidden & (found < 0), detection, len(wanted))


def alarm_rate(matches: Iterable[Match], threshold: float = 0.0) -> float:
    """Share of the absent prompts with any detection; NaN without absent ones."""
    alarms = [bool(match.above(threshold).counted) for match in matches if not match.objects]
    return float(np.mean(alarms)) if alarms else float("nan")


def share_found_only_by(first: Iterable[Match], second: Iterable[Match]) -> float:
    """Share of all objects asked for that `first` found and `second` did not, both over the same prompts."""
    pairs = list(zip(first, second, strict=True))
    objects = sum(match.objects for match, _ in pairs)
    only = sum(len(match.objects_found - other.objects_found) for match, other in pairs)
    return only / objects if objects else float("nan")


@dataclass(frozen=True, eq=False)
class Calibration:
    """Confidence against the share of right detections, in bins of equal width.

    Attributes:
        confidence: Mean per bin, NaN for empty bins.
        accuracy: Share of right detections per bin, NaN for empty bins.
        count: Detections per bin.
    """

    confidence: Floats
    accuracy: Floats
    count: Ints

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al. 2017): mean |confidence - accuracy|, weighted by count."""
        filled = self.count > 0
        if not filled.any():
            return float("nan")
        gap = np.abs(self.confidence - self.accuracy)[filled]
        return float(np.average(gap, weights=self.count[filled]))


def calibrate(matches: Iterable[Match]) -> Calibration:
    """How well confidence says whether a detection is right; ignored detections are left out."""
    listed = list(matches)
    scores = np.concatenate([np.zeros(0), *(match.scores[~match.ignored] for match in listed)])
    right = np.concatenate([np.zeros(0), *(match.right[~match.ignored] for match in listed)])
    bins = np.minimum((scores * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bins, scores, CALIBRATION_BINS) / count
        accuracy = np.bincount(bins, right, CALIBRATION_BINS) / count
    return Calibration(confidence, accuracy, count)
