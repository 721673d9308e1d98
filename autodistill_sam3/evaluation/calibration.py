"""Whether confidences mean what they say, and which threshold is best."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_BINS = 10
# Datasets hold confidences rounded to six digits.
_DIGITS = 6
_ROUNDING = 1e-6


@dataclass(frozen=True)
class CalibrationBin:
    """The detections of a range of confidences.

    Attributes:
        low: From this confidence.
        high: To below this one; the last range has its upper end in it.
        count: How many there are.
        mean_confidence: Their mean; NaN without any.
        right: The share of them that is right; NaN without any.
    """

    low: float
    high: float
    count: int
    mean_confidence: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """Confidence against how often it is right.

    Attributes:
        bins: Ten ranges of equal width.
        expected_error: Expected calibration error: the mean gap between confidence and share right over the ranges,
            weighted by count (Naeini et al. 2015); NaN without detections.
    """

    bins: tuple[CalibrationBin, ...]
    expected_error: float


@dataclass(frozen=True)
class ClassThreshold:
    """The confidence threshold that gives a class its best F1.

    Attributes:
        class_name: The class.
        threshold: Keep what has this confidence or more; None if there is nothing to learn it from (no detection is
            right, or no confidence is below 1), or if everything is worth keeping and nothing says from which
            confidence on the labelling let objects through.
        f1: With it; NaN without objects and detections.
        precision: With it.
        recall: With it.
        keeps_all: Whether everything is worth keeping: a lower threshold than was used for labelling might be better
            still. False where there is nothing to learn from.
        f1_without: With everything in the dataset kept.
    """

    class_name: str
    threshold: float | None
    f1: float
    precision: float
    recall: float
    keeps_all: bool
    f1_without: float


def calibrate(confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> Calibration:
    """Compare confidences with how often they are right.

    Args:
        confidence: (D,) in 0..1.
        right: (D,).

    Example:
        >>> calibrate(np.array([0.95, 0.95]), np.array([True, False])).expected_error
        0.45
    """
    # 0.7 itself, and not the float above it that linspace makes.
    edges = np.arange(_BINS + 1) / _BINS
    place = np.minimum(np.searchsorted(edges, confidence, side="right") - 1, _BINS - 1)
    bins = []
    for index in range(_BINS):
        inside = place == index
        count = int(inside.sum())
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if count else (math.nan, math.nan)
        bins.append(CalibrationBin(float(edges[index]), float(edges[index + 1]), count, *means))
    gaps = [item.count * abs(item.mean_confidence - item.right) for item in bins if item.count]
    return Calibration(tuple(bins), round(sum(gaps) / len(confidence), 12) if len(confidence) else math.nan)


def best_threshold(
    class_name: str,
    confidence: npt.NDArray[np.float64],
    right: npt.NDArray[np.bool_],
    objects: int,
    floor: float | None = None,
) -> ClassThreshold:
    """Try every confidence that occurs as the threshold and take the one with the highest F1.

    Of several with the same F1 the lowest is taken: an object too many is sooner removed than a missing one drawn. The
    threshold lies halfway to the next lower confidence, so that rounding drops nothing. Where everything is worth
    keeping, it is what the labelling let through: a higher one would drop objects of new images, and nothing measured
    speaks for that.

    Args:
        class_name: The class.
        confidence: (D,) in 0..1.
        right: (D,) which of them are right; a detection stays so under a higher threshold.
        objects: How many true objects there are.
        floor: The threshold of the labelling; None if it is not known. Of no use where lower confidences occur.

    Example:
        >>> best_threshold("ball", np.array([0.9, 0.6, 0.2]), np.array([True, True, False]), 2).threshold
        0.4
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, hits = confidence[order], np.cumsum(right[order])
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, dtype=int)
    total = len(ranked) + objects
    without = 2 * int(right.sum()) / total if total else math.nan
    # Labels that people made say 1 or nothing; a threshold just below 1 would drop all that a model finds.
    if not (right.any() and (confidence < 1).any()):
        hit = int(right.sum())
        return ClassThreshold(class_name, None, without, _ratio(hit, len(ranked)), _ratio(hit, objects), False, without)
    scores = 2 * hits[last] / (last + 1 + objects)
    # The last of equal ones has the lowest threshold. They are fractions of small integers: equal means equal.
    best = int(last[np.flatnonzero(scores == scores.max())[-1]])
    value = float(ranked[best])
    keeps_all = best + 1 == len(ranked)
    return ClassThreshold(
        class_name,
        _at_most(value, floor) if keeps_all else _between(float(ranked[best + 1]), value),
        float(scores.max()),
        float(hits[best]) / (best + 1),
        float(hits[best]) / objects,
        keeps_all,
        without,
    )


def _between(below: float, value: float) -> float:
    middle = (below + value) / 2
    rounded = round(middle, _DIGITS)
    return rounded if below < rounded <= value else middle


def _at_most(value: float, floor: float | None) -> float | None:
    if floor is None or floor <= value:
        return floor
    return max(round(value - _ROUNDING, _DIGITS), 0.0)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
