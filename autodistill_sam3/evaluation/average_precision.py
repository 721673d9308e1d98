"""COCO's average precision and recall, by pycocotools, from one image at a time.

`COCOeval` wants all annotations in memory. It is given the objects of one image and class at a time instead; what it
says of them is kept as a few bytes per object and handed back to it for the summary. The numbers are its own.
"""

from __future__ import annotations

import contextlib
import copy
import io
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autodistill_sam3.evaluation.comparison import Comparison, Kind

# In the order of COCOeval.stats.
AP_NAMES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
_THRESHOLDS = 10


@dataclass
class _Column:
    """What COCOeval says of one class and size range, over all images, per detection and per object."""

    scores: array[float] = field(default_factory=lambda: array("d"))
    ranks: array[int] = field(default_factory=lambda: array("i"))
    matched: bytearray = field(default_factory=bytearray)
    found_ignored: bytearray = field(default_factory=bytearray)
    true_ignored: bytearray = field(default_factory=bytearray)
    images: int = 0

    def add(self, image: dict[str, Any]) -> None:
        self.images += 1
        self.scores.extend(image["dtScores"])
        self.ranks.extend(range(len(image["dtScores"])))
        self.matched += (image["dtMatches"] != 0).T.astype(np.uint8).tobytes()
        self.found_ignored += image["dtIgnore"].T.astype(np.uint8).tobytes()
        self.true_ignored += image["gtIgnore"].astype(np.uint8).tobytes()

    def as_one_image(self, max_detections: int) -> dict[str, Any] | None:
        """All images as one, of each only the first so many detections."""
        if not self.images:
            return None
        kept = np.frombuffer(self.ranks, dtype=np.int32) < max_detections
        return {
            "dtScores": np.frombuffer(self.scores)[kept],
            "dtMatches": _flags(self.matched).reshape(-1, _THRESHOLDS)[kept].T,
            "dtIgnore": _flags(self.found_ignored).reshape(-1, _THRESHOLDS)[kept].T,
            "gtIgnore": _flags(self.true_ignored),
        }


class AveragePrecision:
    """Collects comparisons and summarises them as COCOeval does.

    Args:
        classes: How many there are.
        kind: What is compared.
    """

    def __init__(self, classes: int, kind: Kind) -> None:
        from pycocotools.cocoeval import COCOeval

        self._evaluator: Any = COCOeval(iouType="segm" if kind == "mask" else "bbox")
        self._params: Any = self._evaluator.params
        self._params.catIds = list(range(classes))
        self._columns = [[_Column() for _ in self._params.areaRng] for _ in range(classes)]

    def add(self, class_index: int, comparison: Comparison) -> None:
        """Take in one class of one image."""
        most = self._params.maxDets[-1]
        order = np.argsort(-comparison.scores, kind="stable")[:most]
        key = (0, class_index)
        objects = zip(comparison.true_area.tolist(), comparison.crowd.tolist(), strict=True)
        self._evaluator._gts = {
            key: [
                {"id": number, "area": area, "ignore": crowd, "iscrowd": crowd}
                for number, (area, crowd) in enumerate(objects, 1)
            ]
        }
        detections = zip(comparison.scores[order].tolist(), comparison.found_area[order].tolist(), strict=True)
        self._evaluator._dts = {
            key: [{"id": number, "score": score, "area": area} for number, (score, area) in enumerate(detections, 1)]
        }
        self._evaluator.ious = {key: comparison.iou[order] if comparison.iou.size else []}
        for column, area_range in zip(self._columns[class_index], self._params.areaRng, strict=True):
            image = self._evaluator.evaluateImg(0, class_index, area_range, most)
            if image is not None:
                column.add(image)

    def summary(self) -> tuple[dict[str, float], list[dict[str, float]]]:
        """The twelve numbers of :data:`AP_NAMES`, overall and per class; NaN where there is no true object."""
        parts = [self._accumulate(most) for most in self._params.maxDets]
        precision = np.concatenate([part["precision"] for part in parts], axis=-1)
        recall = np.concatenate([part["recall"] for part in parts], axis=-1)
        per_class = [
            self._summarize(precision[:, :, index : index + 1], recall[:, index : index + 1])
            for index in range(len(self._columns))
        ]
        return self._summarize(precision, recall), per_class

    def _accumulate(self, max_detections: int) -> dict[str, Any]:
        """Precision (T, R, K, A, 1) and recall (T, K, A, 1) with so many detections per image and class."""
        evaluator, params = self._evaluator, copy.copy(self._params)
        params.imgIds = [0]
        # Each image has already been cut to its own best; all of them together are not cut again.
        params.maxDets = [2**31]
        evaluator._paramsEval = params
        evaluator.evalImgs = [column.as_one_image(max_detections) for row in self._columns for column in row]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.accumulate(params)
        result: dict[str, Any] = evaluator.eval
        return result

    def _summarize(self, precision: Any, recall: Any) -> dict[str, float]:
        self._evaluator.eval = {"precision": precision, "recall": recall}
        with contextlib.redirect_stdout(io.StringIO()):
            self._evaluator.summarize()
        values = self._evaluator.stats
        return {
            name: float(value) if value > -1 else float("nan") for name, value in zip(AP_NAMES, values, strict=True)
        }


def _flags(values: bytearray) -> Any:
    return np.frombuffer(values, dtype=np.uint8)
