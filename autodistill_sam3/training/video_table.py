"""How well `SAM3Video` tracks objects of held-out clips; needs the whole package, and trackeval.

J and F are those of DAVIS (Perazzi et al. 2016), HOTA is Luiten et al. 2021, id switches are those of CLEAR MOT, all as
`trackeval` computes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import supervision as sv

from autodistill_sam3.ontology import PromptPairs
from autodistill_sam3.training.clips import DrawnClip, draw_clip
from autodistill_sam3.training.world import COLOURS, SHAPES, is_held_out
from autodistill_sam3.video import SAM3Video

LENGTH = 60
HIDDEN = 10
# Names asked for that no object of a clip has.
ABSENT = 2
# Smaller parts of objects are not asked for by a box.
LEAST_AREA = 40
# An object counts as hidden after so many frames out of sight; then it is judged on so many of those it is seen in.
LEAST_HIDDEN, AFTERWARDS = 8, 15

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TrackScores:
    """Scores over clips.

    Attributes:
        j: Mean over objects and frames of the IoU of masks; 1 where neither shows anything.
        f: The same of contours.
        hota: In 0..1.
        switches: Id switches as a share of the tracks of the truth.
        before_hidden: J of objects before they are hidden for long.
        just_before: The same in the last `AFTERWARDS` of these frames: who goes behind something is half hidden, too.
        after_hidden: J of the same tracks in as many frames after the objects have come back.
        after_by_any: J then of whichever track fits best: what identity costs is the difference.
        objects: How many there are.
    """

    j: float
    f: float
    hota: float
    switches: float
    before_hidden: float
    just_before: float
    after_hidden: float
    after_by_any: float
    objects: int

    def as_dict(self) -> dict[str, float]:
        """By name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False)
class Tracked:
    """A clip's objects and its tracks.

    Attributes:
        truth: (K, T, H, W) ``bool``.
        found: (M, T, H, W) ``bool``, of each track.
    """

    truth: Bools
    found: Bools


def held_out(count: int, *, hidden: int = 0, length: int = LENGTH) -> Iterator[DrawnClip]:
    """Clips that training does not draw, of 3 to 6 objects."""
    for seed in range(count):
        yield draw_clip(70_000 + seed, length=length, hidden=hidden)


def track_text(checkpoint: str, clip: DrawnClip, device: str) -> Tracked:
    """By the names of all objects, and of some that are not there."""
    names = list(dict.fromkeys(f"{a} {b}" for a, b in zip(clip.colours, clip.shapes, strict=True)))
    everything = [f"{a} {b}" for a in COLOURS for b in SHAPES if not is_held_out(a, b)]
    absent = [name for name in everything if name not in names]
    rng = np.random.default_rng(len(clip.masks))
    names += rng.choice(absent, ABSENT, replace=False).tolist()
    ontology = PromptPairs(tuple((name, name) for name in names))
    with SAM3Video(ontology, checkpoint=checkpoint, device=device) as video:
        return Tracked(clip.masks, _dense(clip, video.track(_bgr(clip))))


def track_boxes(checkpoint: str, clip: DrawnClip, device: str) -> Tracked:
    """By the exact box of each object that the first frame shows."""
    shown = np.flatnonzero(clip.masks[:, 0].sum(axis=(1, 2)) >= LEAST_AREA)
    inclusive = sv.mask_to_xyxy(clip.masks[shown, 0])
    model = SAM3Video(checkpoint=checkpoint, device=device, coordinates="absolute")
    with model as video, video.open(_bgr(clip)) as session:
        for left, top, right, bottom in inclusive.tolist():
            session.add_object(0, box=[left, top, right + 1, bottom + 1])
        return Tracked(clip.masks[shown], _dense(clip, session.track()))


def score(clips: Sequence[Tracked]) -> TrackScores:
    """Scores of tracked clips."""
    # Their names are those of the measures.
    from trackeval.metrics import CLEAR, HOTA, JAndF

    results = [_sequence(clip) for clip in clips]
    region = [JAndF().eval_sequence(dict(data)) for data in results]
    hota = HOTA()
    combined = hota.combine_sequences({str(index): hota.eval_sequence(data) for index, data in enumerate(results)})
    clear = CLEAR({"PRINT_CONFIG": False})
    switches = sum(clear.eval_sequence(data)["IDSW"] for data in results)
    objects = [len(clip.truth) for clip in clips]
    before, just_before, after, after_by_any = _around_gaps(clips)
    return TrackScores(
        j=float(np.average([one["J-Mean"] for one in region], weights=objects)),
        f=float(np.average([one["F-Mean"] for one in region], weights=objects)),
        hota=float(combined["HOTA"].mean()),
        switches=float(switches / sum(objects)),
        before_hidden=before,
        just_before=just_before,
        after_hidden=after,
        after_by_any=after_by_any,
        objects=sum(objects),
    )


def measure_tracks(checkpoint: str, count: int, device: str) -> dict[str, TrackScores]:
    """Scores by text and by a box on the first frame.

    Args:
        checkpoint: As `SAM3Video` takes it.
        count: Clips, in each of which an object is hidden for at least 10 frames.
        device: Where to run.
    """
    clips = list(held_out(count, hidden=HIDDEN))
    ways = {"text": track_text, "box on the first frame": track_boxes}
    return {name: score([track(checkpoint, clip, device) for clip in clips]) for name, track in ways.items()}


def tracks_to_markdown(measured: dict[str, TrackScores]) -> str:
    """The table, a row for each way to ask."""
    names = ["J", "F", "HOTA", "id switches / objects", "J before hidden", "just before", "after", "by any track"]
    lines = ["| | " + " | ".join([*names, "objects"]) + " |", "| --- |" + " --- |" * (len(names) + 1)]
    for way, scores in measured.items():
        *shares, objects = scores.as_dict().values()
        lines.append(f"| {way} | " + " | ".join(f"{value:.3f}" for value in shares) + f" | {objects:.0f} |")
    return "\n".join(lines) + "\n"


def _bgr(clip: DrawnClip) -> list[npt.NDArray[np.uint8]]:
    return [np.ascontiguousarray(frame[..., ::-1]) for frame in clip.frames]


def _dense(clip: DrawnClip, tracks: Iterator[tuple[int, sv.Detections]]) -> Bools:
    """(M, T, H, W) of what was tracked."""
    found: dict[int, Bools] = {}
    for index, detections in tracks:
        masks = np.asarray(detections.mask, dtype=bool)
        for object_id, mask in zip(np.asarray(detections.tracker_id).tolist(), masks, strict=True):
            found.setdefault(object_id, np.zeros(clip.masks.shape[1:], dtype=bool))[index] = mask
    return np.stack(list(found.values())) if found else np.zeros((0, *clip.masks.shape[1:]), dtype=bool)


def overlaps(truth: Bools, found: Bools) -> npt.NDArray[np.float64]:
    """(K, M, T) IoU of (K, T, H, W) with (M, T, H, W); 1 where both are empty."""
    pixels = truth.shape[2] * truth.shape[3]
    a, b = (masks.reshape(*masks.shape[:2], pixels).swapaxes(0, 1).astype(np.float32) for masks in (truth, found))
    shared = a @ b.transpose(0, 2, 1)
    union = a.sum(-1)[:, :, None] + b.sum(-1)[:, None] - shared
    iou: npt.NDArray[np.float64] = np.where(union > 0, shared / np.maximum(union, 1), 1.0).transpose(1, 2, 0)
    return iou


def _sequence(clip: Tracked) -> dict[str, Any]:
    """A clip as trackeval takes it."""
    from pycocotools import mask as coco

    frames = clip.truth.shape[1]
    iou = overlaps(clip.truth, clip.found)
    data: dict[str, Any] = {"num_timesteps": frames, "num_gt_ids": len(clip.truth), "num_tracker_ids": len(clip.found)}
    for name, masks in (("gt", clip.truth), ("tracker", clip.found)):
        seen = [np.flatnonzero(masks[:, index].any(axis=(1, 2))) for index in range(frames)]
        data[f"{name}_ids"] = seen
        data[f"{name}_dets"] = [
            [coco.encode(np.asfortranarray(masks[row, index].astype(np.uint8))) for row in rows]
            for index, rows in enumerate(seen)
        ]
        data[f"num_{name}_dets"] = sum(len(rows) for rows in seen)
    pairs = zip(data["gt_ids"], data["tracker_ids"], strict=True)
    data["similarity_scores"] = [iou[np.ix_(*rows, [index])][..., 0] for index, rows in enumerate(pairs)]
    return data


def _around_gaps(clips: Sequence[Tracked]) -> tuple[float, ...]:
    """The four J of `TrackScores` around frames in which objects are hidden for long; NaN without any."""
    found: list[list[float]] = []
    for clip in clips:
        iou = overlaps(clip.truth, clip.found)
        for masks, own in zip(clip.truth, iou, strict=True):
            seen = np.flatnonzero(masks.sum(axis=(1, 2)) >= LEAST_AREA)
            gaps = np.flatnonzero(np.diff(seen) > LEAST_HIDDEN)
            if len(gaps) and len(own):
                early, late = seen[: gaps[0] + 1], seen[gaps[0] + 1 :][:AFTERWARDS]
                track = own[own[:, early].mean(axis=1).argmax()]
                frames = (early, early[-AFTERWARDS:], late)
                found.append([*(float(track[part].mean()) for part in frames), float(own[:, late].max(axis=0).mean())])
    return tuple(np.mean(found, axis=0).tolist()) if found else (float("nan"),) * 4
