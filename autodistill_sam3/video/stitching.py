"""Runs over neighbouring parts of one clip -> which object of one run is which of the other. numpy only.

Both runs show the same frames where the parts overlap. An object of one and an object of the other are the same if they
answer one prompt and their masks agree there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from supervision import CompactMask
from supervision.detection.utils.iou_and_nms import compact_mask_iou_batch

from autodistill_sam3.video.tracks import FrameTracks

# Of the masks of two tracks, on average over the frames that show both.
SAME_TRACK_IOU = 0.5

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


def match_ids(previous: Sequence[FrameTracks], following: Sequence[FrameTracks]) -> dict[int, int]:
    """Which object of a later run is which of an earlier one.

    Objects of one prompt are paired so that the sum of their masks' IoU over all frames is largest (Kuhn, 1955). A pair
    whose masks have a mean IoU below 0.5 over the frames that show both is none.

    Args:
        previous: What the earlier run says of some frames.
        following: What the later one says; frames that only one of the two has do not count.

    Returns:
        Ids of the later run that were found again, with their ids in the earlier one; no id appears twice.

    Example:
        >>> match_ids([], [])
        {}
    """
    old, new = _objects(previous), _objects(following)
    summed, shown = np.zeros((len(new), len(old))), np.zeros((len(new), len(old)))
    for before, after in _common(previous, following):
        at = np.ix_([new[int(i)][0] for i in after.object_ids], [old[int(i)][0] for i in before.object_ids])
        summed[at] += compact_mask_iou_batch(after.masks, before.masks)
        shown[at] += 1
    same_prompt = _prompts(new)[:, None] == _prompts(old)[None]
    similar = same_prompt & (summed >= SAME_TRACK_IOU * shown) & (summed > 0)
    # What may not be paired is worth nothing, and is left out if it is paired all the same.
    rows, columns = linear_sum_assignment(np.where(similar, summed, 0.0), maximize=True)
    old_ids, new_ids = list(old), list(new)
    return {
        new_ids[row]: old_ids[column]
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if similar[row, column]
    }


def rename(tracks: FrameTracks, ids: dict[int, int]) -> FrameTracks:
    """The same instances under other ids, each of which must be in `ids`."""
    return replace(tracks, object_ids=np.array([ids[int(i)] for i in tracks.object_ids], dtype=np.int64))


def merge_tracks(parts: Sequence[FrameTracks]) -> FrameTracks:
    """What several runs say of one frame, in their order; there must be at least one.

    Ids are taken as they are.
    """
    if len(parts) == 1:
        return parts[0]
    return FrameTracks(
        parts[0].frame_index,
        np.concatenate([part.object_ids for part in parts]),
        CompactMask.merge([part.masks for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.prompt_index for part in parts]),
        np.concatenate([part.source for part in parts]),
    )


def _objects(frames: Sequence[FrameTracks]) -> dict[int, tuple[int, int]]:
    """Of each id, its place in the order of appearance and its prompt."""
    found: dict[int, tuple[int, int]] = {}
    for tracks in frames:
        for object_id, prompt in zip(tracks.object_ids.tolist(), tracks.prompt_index.tolist(), strict=True):
            found.setdefault(object_id, (len(found), prompt))
    return found


def _prompts(objects: dict[int, tuple[int, int]]) -> _Ints:
    return np.array([prompt for _, prompt in objects.values()], dtype=np.int64)


def _common(
    previous: Sequence[FrameTracks], following: Sequence[FrameTracks]
) -> Iterator[tuple[FrameTracks, FrameTracks]]:
    """The frames in which both runs show something."""
    later = {tracks.frame_index: tracks for tracks in following}
    for before in previous:
        after = later.get(before.frame_index)
        if after is not None and len(before) and len(after):
            yield before, after
