"""Which detection of a frame belongs to which track: numbers in, numbers out.

The rules and their numbers are those of Meta's video model (sam3/model/sam3_video_base.py, `_associate_det_trk` and
`_process_hotstart`), within classes instead of within the one prompt of a session there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

# The class of objects that a person pointed at: whatever lies on them shows them.
ANY_CLASS = -1

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TrackingRules:
    """Numbers by which tracks begin and end; those of a checkpoint stand in its configuration.

    Attributes:
        nms_iou: Of two detections of a class with a higher mask IoU, the surer one stays.
        new_iou: A detection with at least this IoU to a track of its class is not new.
        match_iou: A track with at least this IoU to a detection is supported by it.
        new_confidence: What a detection must reach to begin a track, once there are tracks.
        hotstart_delay: Frames after which a track is beyond doubt; results wait for so long.
        hotstart_unmatched: Frames without support that end a track before.
        hotstart_duplicate: Frames shared with an earlier track that end it.
        renew_every: Frames between renewals of the memory by sure detections; 0 for never.
        renew_confidence: Of those detections.
        renew_iou: With their tracks.
        is_corrected: Whether such detections take the place of the tracks' masks, instead of confirming them.
        occluded_iou: Of two tracks of a class with this IoU, the one that was hidden later gives way.
        hide_after: An object that no detection supports for more than so many frames is not shown until one does again;
            None shows whatever the tracker says.
        relink: Sizes of an object that it may have moved, and more for each frame, for a new detection of its class to
            show it after it was hidden; None begins a new track.
        shrunk_area: A mask that would keep less than this share, each pixel going to one object, is not remembered.
        fill_area: Holes and specks of so many pixels of the model's mask are removed.
        max_objects: As many are tracked at a time; of more, the surest begin.
        forget_after: Frames after which an object that was not seen is given up.
    """

    nms_iou: float
    new_iou: float
    match_iou: float
    new_confidence: float
    hotstart_delay: int
    hotstart_unmatched: int
    hotstart_duplicate: int
    renew_every: int
    renew_confidence: float
    renew_iou: float
    occluded_iou: float
    fill_area: int
    max_objects: int
    is_corrected: bool = False
    hide_after: int | None = None
    relink: tuple[float, float] | None = (1.0, 0.3)
    shrunk_area: float = 0.3
    forget_after: int = 90

    @classmethod
    def from_config(cls, config: Any) -> TrackingRules:
        """Those of a `Sam3VideoConfig`."""
        return cls(
            nms_iou=config.det_nms_thresh,
            new_iou=config.assoc_iou_thresh,
            match_iou=config.trk_assoc_iou_thresh,
            new_confidence=config.new_det_thresh,
            hotstart_delay=config.hotstart_delay,
            hotstart_unmatched=config.hotstart_unmatch_thresh,
            hotstart_duplicate=config.hotstart_dup_thresh,
            renew_every=config.recondition_every_nth_frame,
            renew_confidence=config.high_conf_thresh,
            renew_iou=config.high_iou_thresh,
            occluded_iou=config.suppress_overlapping_based_on_recent_occlusion_threshold,
            fill_area=config.fill_hole_area,
            max_objects=config.max_num_objects,
            is_corrected=not config.recondition_on_trk_masks,
            # Their counter begins at its highest value and falls by one for each frame without support.
            hide_after=None if config.suppress_unmatched_only_within_hotstart else config.max_trk_keep_alive,
        )


@dataclass(frozen=True)
class Association:
    """What D detections say of T tracks.

    Attributes:
        new: Detections that are of no track.
        supporters: For each track the detection it overlaps most, if it supports it; else -1. One detection may support
            several tracks, but where detections are believed (`TrackingRules.is_corrected`), each shows one: what lies
            on the edge of another object's is lost, and may be found again.
        duplicates: Groups of tracks that lie on one detection.
        renewed: Track -> the detection, sure and alike, that confirms it.
        found_again: Hidden track -> the detection that is where it would be drawn.
    """

    new: list[int]
    supporters: Ints
    duplicates: list[list[int]]
    renewed: dict[int, int]
    found_again: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Found:
    """What the detections of a frame are held against.

    Attributes:
        scores: (D,) in 0..1.
        class_id: (D,).
        new_confidence: (D,), what each must reach to begin a track.
        new_iou: (D,), a detection with at least this IoU to a track of its class is not new.
    """

    scores: Floats
    class_id: Ints
    new_confidence: Floats
    new_iou: Floats


def associate(iou: Floats, found: Found, track_class: Ints, rules: TrackingRules) -> Association:
    """Bring D detections and T tracks together.

    Args:
        iou: (D, T) of masks.
        found: The detections.
        track_class: (T,) class ids, or `ANY_CLASS`.
        rules: The numbers.

    Example:
        >>> from transformers import Sam3VideoConfig
        >>> rules = TrackingRules.from_config(Sam3VideoConfig())
        >>> scores = np.array([0.9, 0.8], np.float32)
        >>> found = Found(scores, np.zeros(2, np.int64), np.full(2, 0.7), np.full(2, 0.1))
        >>> told = associate(np.array([[0.9], [0.0]], np.float32), found, np.array([0]), rules)
        >>> told.new, told.supporters.tolist()
        ([1], [0])
    """
    detections, tracks = iou.shape
    if not (detections and tracks):
        # As in the reference, the first frame takes whatever was detected.
        return Association(list(range(detections)), np.full(tracks, -1, np.int64), [], {})
    same = (found.class_id[:, None] == track_class[None]) | (track_class[None] == ANY_CLASS)
    iou = np.where(same, iou, 0)
    touching = iou >= found.new_iou[:, None]
    is_new = (found.scores >= found.new_confidence) & ~touching.any(axis=1)
    if rules.is_corrected:
        supporters = _one_each(iou, rules.match_iou)
        best = supporters[None] == np.arange(detections)[:, None]
    else:
        supporters = np.where(iou.max(axis=0) >= rules.match_iou, iou.argmax(axis=0), -1)
        best = iou.argmax(axis=1)[:, None] == np.arange(tracks)
    sure = (found.scores >= rules.renew_confidence)[:, None] & (iou >= rules.renew_iou) & best
    return Association(
        new=np.flatnonzero(is_new).tolist(),
        supporters=supporters,
        duplicates=[np.flatnonzero(row).tolist() for row in touching if row.sum() > 1],
        renewed={track: detection for detection, track in np.argwhere(sure).tolist()},
    )


def _one_each(iou: Floats, least: float) -> Ints:
    """For each of T tracks a detection of its own, or -1, so that the sum of IoU of at least this is greatest."""
    supporters = np.full(iou.shape[1], -1, dtype=np.int64)
    detections, tracks = linear_sum_assignment(np.where(iou >= least, iou, 0), maximize=True)
    is_pair = iou[detections, tracks] >= least
    supporters[tracks[is_pair]] = detections[is_pair]
    return supporters


def find_again(association: Association, iou: Floats, found: Found, track_class: Ints, limit: float) -> Association:
    """New detections that show objects which were hidden.

    Without it, an object that the tracker places rightly, but does not trust to be there, would begin anew.

    Args:
        association: Of the frame.
        iou: (D, T) with the masks that tracks would have if they were there; 0 for tracks that are seen.
        found: The detections.
        track_class: (T,) class ids, or `ANY_CLASS`.
        limit: The least IoU.
    """
    same = (found.class_id[:, None] == track_class[None]) | (track_class[None] == ANY_CLASS)
    likely = np.where(same, iou, 0)
    again: dict[int, int] = {}
    for detection in sorted(association.new, key=lambda place: -found.scores[place]):
        row = likely[detection].copy()
        row[list(again)] = 0
        if len(row) and row.max() >= limit:
            again[int(row.argmax())] = detection
    new = [place for place in association.new if place not in again.values()]
    return replace(association, new=new, found_again=again)


def within_reach(
    association: Association, boxes: tuple[Floats, Floats], same: Bools, gaps: Ints, reach: tuple[float, float]
) -> Association:
    """New detections that are near enough to where objects were seen last, the nearest first.

    Args:
        association: Of the frame.
        boxes: xyxy of the D detections, and of the T tracks when they were supported last.
        same: (D, T), whether a detection may show a track: of its class, and hidden.
        gaps: (T,) frames since then.
        reach: In sizes of the object, a size being the square root of its box's area: at once, and for each frame. The
            larger of both boxes counts: who goes out of sight is last seen in part.
    """
    sizes = [np.sqrt(np.prod(xyxy[:, 2:] - xyxy[:, :2], axis=1)).clip(min=1.0) for xyxy in boxes]
    centres = [(xyxy[:, :2] + xyxy[:, 2:]) / 2 for xyxy in boxes]
    far = np.linalg.norm(centres[0][:, None] - centres[1][None], axis=2) / np.maximum(sizes[0][:, None], sizes[1][None])
    is_near = same & (far <= reach[0] + reach[1] * gaps)
    is_near[:, list(association.found_again)] = False
    candidates = [
        (far[detection, track], detection, track)
        for detection in association.new
        for track in np.flatnonzero(is_near[detection]).tolist()
    ]
    again = dict(association.found_again)
    for _, detection, track in sorted(candidates):
        if track not in again and detection not in again.values():
            again[track] = detection
    new = [place for place in association.new if place not in again.values()]
    return replace(association, new=new, found_again=again)


def suppress_duplicates(iou: Floats, scores: Floats, classes: Ints, limit: float) -> Ints:
    """Greedy non-maximum suppression by mask IoU, within classes.

    Args:
        iou: (N, N).
        scores: (N,).
        classes: (N,).
        limit: Above it, two are one.

    Returns:
        Positions of those that stay, in rising order.

    Example:
        >>> iou = np.array([[1, 0.8, 0], [0.8, 1, 0], [0, 0, 1]], np.float32)
        >>> suppress_duplicates(iou, np.array([0.6, 0.9, 0.5]), np.zeros(3, np.int64), 0.1).tolist()
        [1, 2]
    """
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        if not any(iou[index, other] > limit and classes[index] == classes[other] for other in kept):
            kept.append(index)
    return np.array(sorted(kept), dtype=np.int64)


def give_way(iou: Floats, hidden: Sequence[int], classes: Ints, rules: TrackingRules, *, reverse: bool) -> Bools:
    """Which tracks lie on another one of their class that was hidden before them.

    Args:
        iou: (T, T) of masks.
        hidden: (T,) the frame in which each track was last hidden, -1 for never.
        classes: (T,).
        rules: The numbers.
        reverse: Whether frames come in falling order.
    """
    last = np.asarray(hidden, dtype=np.int64)
    pairs = (iou >= rules.occluded_iou) & (classes[:, None] == classes[None]) & ~np.eye(len(last), dtype=bool)
    later = last[:, None] < last[None] if reverse else last[:, None] > last[None]
    yields: Bools = (pairs & later & (last[None] > -1)).any(axis=1)
    return yields


@dataclass
class Probation:
    """What speaks against a young track.

    Attributes:
        first_frame: Where it began.
        unmatched: Frames in which nothing supported it.
        shared: Frames in which it lay on the detection of an earlier track, by that track's id.
    """

    first_frame: int
    unmatched: int = 0
    shared: dict[int, int] = field(default_factory=dict)

    def share(self, object_id: int) -> None:
        """Note that the track lies on the detection of an earlier one."""
        self.shared[object_id] = self.shared.get(object_id, 0) + 1

    def is_over(self, frame_index: int, rules: TrackingRules) -> bool:
        """Whether the track is beyond doubt."""
        return abs(frame_index - self.first_frame) >= rules.hotstart_delay

    def failed(self, rules: TrackingRules) -> bool:
        """Whether the track is to be taken back."""
        longest = max(self.shared.values(), default=0)
        return self.unmatched >= rules.hotstart_unmatched or longest >= rules.hotstart_duplicate
