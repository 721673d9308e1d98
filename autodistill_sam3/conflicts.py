"""One object that was found under two classes -> one detection; and the count of what is taken away.

Counts stand in `metadata["removed"]` of an image's detections, by reason.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import supervision as sv
from supervision.detection.utils.iou_and_nms import compact_mask_iou_batch

from autodistill_sam3.instances import tight_xyxy

# The bar is higher than within a class, since a large part of an object may be a class of its own: the body of a bottle
# is about three quarters of it.
OTHER_CLASS_IOU = 0.8
# A box holds background too, so that a dish and what fills it have nearly one box.
OTHER_CLASS_BOX_IOU = 0.9

_REMOVED = "removed"


def resolve_conflicts(
    detections: sv.Detections, *, keep_both: bool = False, priority: npt.NDArray[np.float64] | None = None
) -> sv.Detections:
    """Give an object that was found under several classes to the most confident of them.

    Two detections of different classes show one object if their masks have an IoU of 0.8 or more; without masks, their
    boxes one of 0.9. A part inside a whole stays, unless it is nearly all of it. Of two with equal confidence, the one
    with the smaller class id stays.

    Args:
        detections: Of one image, with `class_id` and `confidence`.
        keep_both: Change nothing.
        priority: (N,), what decides instead of confidence.

    Returns:
        The detections that stay, in their order. How many went is counted under "other_class".

    Example:
        >>> from autodistill_sam3.instances import compact_masks
        >>> masks = compact_masks([(np.ones((10, 10), bool), 5, 5), (np.ones((10, 9), bool), 5, 5)], (20, 20))
        >>> found = sv.Detections(
        ...     tight_xyxy(masks), mask=masks, confidence=np.array([0.6, 0.7]), class_id=np.array([0, 1])
        ... )
        >>> better = resolve_conflicts(found)
        >>> better.class_id.tolist(), removed_counts(better)
        ([1], {'other_class': 1})
    """
    if keep_both or len(detections) < 2:
        return detections
    if detections.class_id is None or detections.confidence is None:
        raise ValueError("resolve_conflicts() needs detections with class_id and confidence")
    classes, same_object = detections.class_id, _object_test(detections)
    kept: list[int] = []
    surest = detections.confidence if priority is None else priority
    for index in np.lexsort((classes, -surest)).tolist():
        if not same_object(index, np.array([other for other in kept if classes[other] != classes[index]], np.int64)):
            kept.append(index)
    if len(kept) == len(detections):
        return detections
    best = detections.select(sorted(kept))
    add_removed(best, "other_class", len(detections) - len(kept))
    return best


def add_removed(detections: sv.Detections, reason: str, count: int) -> None:
    """Count detections of this image that were taken away, in `metadata["removed"]`; a count of 0 leaves no trace."""
    if count:
        counts = removed_counts(detections)
        # A new dictionary: selections of detections share the one within their metadata.
        detections.metadata[_REMOVED] = counts | {reason: counts.get(reason, 0) + count}


def removed_counts(detections: sv.Detections) -> dict[str, int]:
    """How many detections of this image were taken away, by reason, such as {"same_class": 2}.

    Example:
        >>> found = sv.Detections.empty()
        >>> add_removed(found, "nms", 2)
        >>> add_removed(found, "nms", 1)
        >>> removed_counts(found)
        {'nms': 3}
    """
    return dict(detections.metadata.get(_REMOVED, {}))


def _object_test(detections: sv.Detections) -> Callable[[int, npt.NDArray[np.int64]], bool]:
    """A test whether a detection shows the same object as one of others of other classes."""
    xyxy, masks = detections.xyxy, detections.mask
    if masks is None:
        return lambda index, others: bool((sv.box_iou_batch(xyxy[[index]], xyxy[others]) >= OTHER_CLASS_BOX_IOU).any())
    compact = (
        masks
        if isinstance(masks, sv.CompactMask)
        else sv.CompactMask.from_dense(masks, sv.mask_to_xyxy(masks), masks.shape[1:])
    )
    boxes, areas = tight_xyxy(compact).astype(np.int64), compact.area

    def test(index: int, others: npt.NDArray[np.int64]) -> bool:
        close = others[greatest_iou(boxes, areas, index, others) >= OTHER_CLASS_IOU]
        return bool((compact_mask_iou_batch(compact[[index]], compact[close]) >= OTHER_CLASS_IOU).any())

    return test


def greatest_iou(
    boxes: npt.NDArray[np.int64], areas: npt.NDArray[np.int64], index: int, others: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The IoU of a mask with others that boxes and areas leave room for: the pixels of few pairs must be looked at.

    Args:
        boxes: (N, 4) xyxy in pixels, right and bottom edges exclusive.
        areas: (N,) in pixels.
        index: Which mask.
        others: (M,) which others.
    """
    size = np.minimum(boxes[index, 2:], boxes[others, 2:]) - np.maximum(boxes[index, :2], boxes[others, :2])
    common = np.minimum(np.maximum(size, 0).prod(axis=1), np.minimum(areas[index], areas[others]))
    # An empty mask shows nothing.
    greatest: npt.NDArray[np.float64] = common / np.maximum(areas[index] + areas[others] - common, 1)
    return greatest
