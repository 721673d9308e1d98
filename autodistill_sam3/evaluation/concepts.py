"""SA-Co's measures of finding everything that a noun phrase names: cgF1 = pmF1 x IL_MCC.

Each class name is a noun phrase that is asked of each image. A pair of an image and a phrase is one datapoint: positive
if the image has such objects, negative if not. IL_MCC, Matthews' correlation over the datapoints, says how well it is
told whether there is anything at all. pmF1 says how well the objects of the positive datapoints are found, at IoU
thresholds 0.5, 0.55, ... 0.95. Source: the SAM 3 paper (section on SA-Co's metrics) and `sam3/eval/cgf1_eval.py`.

As there: only detections of confidence 0.5 or more count; they are assigned to objects so that the sum of the IoU is
largest; crowds are left out; small constants keep the quotients defined.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from autodistill_sam3.evaluation.comparison import Comparison

CONCEPT_SCORE = 0.5

_IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_SINGLE = {"0.5": 0, "0.75": 5}
# What the official evaluator adds to denominators.
_OBJECT_EPSILON = 1e-4
_IMAGE_EPSILON = 1e-6

_PerThreshold = npt.NDArray[np.float64]


@dataclass
class ConceptCounts:
    """Sums over datapoints; arrays are (10,), one value per IoU threshold.

    Attributes:
        outcomes: Datapoints by whether there are objects and whether anything was found.
        matched: Detections on an object.
        wrong: Detections on none.
        wrong_in_positive: Those of them in datapoints that have objects.
        missed: Objects without a detection.
        f1_sum: Sum of the F1 of datapoints with objects and detections.
    """

    outcomes: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    matched: _PerThreshold = field(default_factory=lambda: np.zeros(len(_IOU_THRESHOLDS)))
    wrong: _PerThreshold = field(default_factory=lambda: np.zeros(len(_IOU_THRESHOLDS)))
    wrong_in_positive: _PerThreshold = field(default_factory=lambda: np.zeros(len(_IOU_THRESHOLDS)))
    missed: _PerThreshold = field(default_factory=lambda: np.zeros(len(_IOU_THRESHOLDS)))
    f1_sum: _PerThreshold = field(default_factory=lambda: np.zeros(len(_IOU_THRESHOLDS)))

    def add(self, comparison: Comparison) -> None:
        """Take in one datapoint."""
        from scipy.optimize import linear_sum_assignment

        iou = comparison.iou[comparison.scores >= CONCEPT_SCORE][:, ~comparison.crowd]
        found, objects = iou.shape
        self.outcomes[objects > 0, found > 0] += 1
        pairs = iou[linear_sum_assignment(iou, maximize=True)]
        matched = (pairs[:, None] >= _IOU_THRESHOLDS).sum(axis=0).astype(np.float64)
        self.matched += matched
        self.wrong += found - matched
        self.missed += objects - matched
        if found and objects:
            self.wrong_in_positive += found - matched
            self.f1_sum += _f1(_share(matched, found - matched), _share(matched, objects - matched))

    def add_empty(self, datapoints: int) -> None:
        """Take in datapoints without objects and without detections."""
        self.outcomes[False, False] += datapoints

    def __add__(self, other: ConceptCounts) -> ConceptCounts:
        return ConceptCounts(
            self.outcomes + other.outcomes,
            self.matched + other.matched,
            self.wrong + other.wrong,
            self.wrong_in_positive + other.wrong_in_positive,
            self.missed + other.missed,
            self.f1_sum + other.f1_sum,
        )

    def summary(self) -> dict[str, float]:
        """The numbers of the official evaluator, under its names, and pmF1 for `positive_micro_F1`.

        Those at single IoU thresholds end in `@0.5` and `@0.75`; the others are means over all ten.
        """
        image_level = self._image_level()
        curves = self._curves(image_level["IL_MCC"])
        means = {name: float(curve.mean()) for name, curve in curves.items()}
        single = {
            f"{name}@{key}": float(curve[index]) for key, index in _SINGLE.items() for name, curve in curves.items()
        }
        return {**means, **image_level, **single}

    def _curves(self, correlation: float) -> dict[str, _PerThreshold]:
        precision, recall = _share(self.matched, self.wrong), _share(self.matched, self.missed)
        positive_precision = _share(self.matched, self.wrong_in_positive)
        positive_f1 = _f1(positive_precision, recall)
        counted = self.outcomes[True, True]
        return {
            "cgF1": positive_f1 * correlation,
            "pmF1": positive_f1,
            "positive_macro_F1": self.f1_sum / counted if counted else np.full(len(_IOU_THRESHOLDS), np.nan),
            "positive_micro_precision": positive_precision,
            "precision": precision,
            "recall": recall,
            "F1": _f1(precision, recall),
        }

    def _image_level(self) -> dict[str, float]:
        both, neither = self.outcomes[True, True], self.outcomes[False, False]
        missed, invented = self.outcomes[True, False], self.outcomes[False, True]
        precision = both / (both + invented + _IMAGE_EPSILON)
        recall = both / (both + missed + _IMAGE_EPSILON)
        spread = float(both + invented) * (both + missed) * (neither + invented) * (neither + missed)
        return {
            "IL_MCC": (both * neither - invented * missed) / (spread**0.5 + _IMAGE_EPSILON),
            "IL_precision": precision,
            "IL_recall": recall,
            "IL_F1": 2 * precision * recall / (precision + recall + _IMAGE_EPSILON),
            "IL_FPR": invented / (invented + neither + _IMAGE_EPSILON),
        }


def _share(part: _PerThreshold, rest: _PerThreshold) -> _PerThreshold:
    return part / (part + rest + _OBJECT_EPSILON)


def _f1(precision: _PerThreshold, recall: _PerThreshold) -> _PerThreshold:
    return 2 * precision * recall / (precision + recall + _OBJECT_EPSILON)
