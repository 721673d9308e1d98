"""Florence-2's answer tokens -> boxes with confidences.

An answer to phrase grounding reads `</s><s>a phrase<loc_12><loc_3><loc_500><loc_610>...</s>`: four location tokens per
box, any number of boxes per phrase. Locations are thousandths of the image's width and height (Florence-2, section
3.1: 1,000 bins), x1 y1 x2 y2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LOCATION_BINS = 1000


@dataclass(frozen=True, eq=False)
class Answer:
    """Boxes read from one answer.

    Attributes:
        xyxy: (N, 4) ``float32`` in 0..1 of the image.
        scores: (N,) ``float32``, geometric mean of the probabilities of a box's four location tokens.
    """

    xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]


def parse_answer(
    token_ids: npt.NDArray[np.int64], log_probabilities: npt.NDArray[np.float32], first_location_id: int
) -> Answer:
    """Read the boxes of the first phrase that has any.

    One prompt is asked at a time, so the boxes belong to it by construction. A prompt of several noun phrases
    ("person wearing a red shirt") may be answered phrase by phrase; its head, which comes first in English, is the
    object that was asked for. Empty, repeated and cut-off boxes are dropped.

    Args:
        token_ids: (T,) generated tokens.
        log_probabilities: (T,) natural logarithm of each token's probability.
        first_location_id: The id of `<loc_0>`; the other 999 follow.

    Example:
        >>> ids = np.array([7, 100, 100, 1099, 1099])
        >>> answer = parse_answer(ids, np.zeros(5, dtype=np.float32), 100)
        >>> answer.xyxy.round(2).tolist(), answer.scores.tolist()
        ([[0.0, 0.0, 1.0, 1.0]], [1.0])
    """
    bins = token_ids - first_location_id
    is_location = np.append((bins >= 0) & (bins < LOCATION_BINS), False)
    start = int(is_location.argmax())
    stop = start + int((~is_location[start:]).argmax())
    stop -= (stop - start) % 4
    xyxy = ((bins[start:stop].reshape(-1, 4) + 0.5) / LOCATION_BINS).astype(np.float32)
    scores = np.exp(log_probabilities[start:stop].reshape(-1, 4).mean(axis=1)).astype(np.float32)
    is_box = (xyxy[:, 2:] > xyxy[:, :2]).all(axis=1)
    is_first = np.zeros(len(xyxy), dtype=bool)
    is_first[np.unique(xyxy, axis=0, return_index=True)[1]] = True
    return Answer(xyxy[is_box & is_first], scores[is_box & is_first])
