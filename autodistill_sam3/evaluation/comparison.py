"""One class in one image: what was found against what is there, as the measures take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from autodistill_sam3.evaluation.detections import MATCH_IOU
from autodistill_sam3.evaluation.labels import LabeledObject
from autodistill_sam3.evaluation.masks import areas, pairwise_iou

Kind: TypeAlias = Literal["mask", "box"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was found of one class in one image, in the order of the file, against what is there.

    Attributes:
        scores: (D,) confidence of what was found.
        found_area: (D,) pixels of the masks, or of the boxes.
        true_area: (G,) pixels of the true objects; where the file says them, as it says.
        crowd: (G,) which true objects are crowds.
        iou: (D, G); with a crowd the share of what was found that lies inside.
    """

    scores: npt.NDArray[np.float64]
    found_area: npt.NDArray[np.float64]
    true_area: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.bool_]
    iou: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Matches:
    """Which detections are right at IoU 0.5.

    Attributes:
        iou: (D,) with the object each was matched to; 0 where it was matched to none.
        ignored: (D,) those that lie on a crowd and on no object, which are neither right nor wrong.
    """

    iou: npt.NDArray[np.float64]
    ignored: npt.NDArray[np.bool_]


def compare(found: Sequence[LabeledObject], truth: Sequence[LabeledObject], kind: Kind) -> Comparison:
    """Compare objects of one class in one image; for "mask" all of them need one."""
    crowd = np.array([item.crowd for item in truth], dtype=bool)
    measured = _areas(truth, kind).tolist()
    stated = [own if item.area is None else item.area for own, item in zip(measured, truth, strict=True)]
    return Comparison(
        # Labels without a confidence are taken as certain.
        scores=np.array([1.0 if item.score is None else item.score for item in found], dtype=np.float64),
        found_area=_areas(found, kind),
        true_area=np.array(stated, dtype=np.float64),
        crowd=crowd,
        iou=pairwise_iou(_shapes(found, kind), _shapes(truth, kind), crowd),
    )


def match(comparison: Comparison) -> Matches:
    """Give each detection, the best confidence first, the free object it overlaps most, if that is by 0.5 or more.

    A detection's match does not depend on those below it, so that a higher confidence threshold changes none.
    """
    iou = np.where(comparison.crowd, 0.0, comparison.iou)
    matched = np.zeros(len(comparison.scores))
    ignored = np.zeros(len(comparison.scores), dtype=bool)
    for index in np.argsort(-comparison.scores, kind="stable"):
        best = int(iou[index].argmax()) if iou.shape[1] else -1
        if best >= 0 and iou[index, best] >= MATCH_IOU:
            matched[index] = iou[index, best]
            iou[:, best] = 0
        else:
            ignored[index] = bool((comparison.iou[index, comparison.crowd] >= MATCH_IOU).any())
    return Matches(matched, ignored)


def _shapes(objects: Sequence[LabeledObject], kind: Kind) -> list[object]:
    return [item.rle if kind == "mask" else [*item.xywh] for item in objects]


def _areas(objects: Sequence[LabeledObject], kind: Kind) -> npt.NDArray[np.float64]:
    if kind == "mask":
        return areas([item.rle for item in objects if item.rle is not None])
    return np.array([item.xywh[2] * item.xywh[3] for item in objects], dtype=np.float64)
