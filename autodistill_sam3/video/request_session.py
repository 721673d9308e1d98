"""One clip asked in Meta's dictionaries, and tracks as its predictor gives them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from autodistill_sam3.errors import SettingError
from autodistill_sam3.instances import tight_xyxy
from autodistill_sam3.video.clip import Clip
from autodistill_sam3.video.prompts import read_official_prompt
from autodistill_sam3.video.stitching import merge_tracks
from autodistill_sam3.video.tracks import FrameTracks, TrackingSession

_DIRECTIONS = ("forward", "backward", "both")


class RequestSession:
    """A session of `RequestSessions`, which has the meaning of each request.

    Args:
        clip: Frames that can be read again; closed with the session.
        session: Of an engine that was opened with it.
    """

    def __init__(self, clip: Clip, session: TrackingSession) -> None:
        self._clip, self._session = clip, session
        self._total = clip.num_frames or 0
        # What was last shown of each frame.
        self._shown: dict[int, FrameTracks] = {}

    def add_prompt(
        self,
        frame_index: int,
        text: str | Sequence[str] | None = None,
        obj_id: int | None = None,
        **places: npt.ArrayLike,
    ) -> dict[str, Any]:
        """Look for a text, or point at an object."""
        frame_index = _whole("frame_index", frame_index, 0, self._total - 1)
        if text is not None:
            if places:
                raise SettingError(f"Expected text alone in an add_prompt, received {sorted(places)} as well")
            return self._look_for(frame_index, _texts(text))
        if not places:
            raise SettingError("Expected text, points or bounding_boxes in an add_prompt, received none of them")
        if obj_id is None:
            raise SettingError(
                "Expected obj_id with points or bounding_boxes, which say where one object is; any number that is not "
                "in use makes a new one. Boxes as examples of what to look for are not supported."
            )
        prompt = read_official_prompt(frame_index, self._clip.hw, **places)
        object_id = _whole("obj_id", obj_id, 0)
        tracks = self._session.prompt_object(prompt, object_id, replace=True)[1]
        earlier = self._shown.get(frame_index, FrameTracks.empty(frame_index, self._clip.hw))
        together = merge_tracks([earlier.select(earlier.object_ids != object_id), tracks])
        return self._answer(together.select(np.argsort(together.object_ids)))

    def _look_for(self, frame_index: int, texts: Sequence[str]) -> dict[str, Any]:
        self._shown.clear()
        self._session.set_texts(texts)
        with contextlib.closing(self._session.propagate(frame_index, 1)) as run:
            for tracks in run:
                return self._answer(tracks)
        raise SettingError(f"Expected a frame that can be read, received {frame_index}: {self._clip.skipped[-1:]}")

    def remove_object(self, obj_id: int) -> None:
        """Stop tracking an object."""
        object_id = _whole("obj_id", obj_id, 0)
        was_shown = any(object_id in tracks.object_ids for tracks in self._shown.values())
        try:
            self._session.remove_object(object_id)
        except SettingError:
            # It was given up since.
            if not was_shown:
                raise
        for index, tracks in self._shown.items():
            self._shown[index] = tracks.select(tracks.object_ids != object_id)

    def propagate(
        self,
        propagation_direction: str = "both",
        start_frame_index: int | None = None,
        max_frame_num_to_track: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Track; the range is checked at once."""
        if propagation_direction not in _DIRECTIONS:
            raise SettingError(
                f"Expected propagation_direction to be one of {_DIRECTIONS}, received {propagation_direction!r}"
            )
        if start_frame_index is None:
            if not self._shown:
                raise SettingError("Expected an add_prompt before propagate_in_video, or a start_frame_index")
            start_frame_index = min(self._shown)
        start = _whole("start_frame_index", start_frame_index, 0, self._total - 1)
        more = self._total
        if max_frame_num_to_track is not None:
            more = _whole("max_frame_num_to_track", max_frame_num_to_track, 0)
        return self._propagate(propagation_direction, start, more)

    def _propagate(self, direction: str, start: int, more: int) -> Iterator[dict[str, Any]]:
        if direction != "backward":
            with contextlib.closing(self._session.propagate(start, more + 1)) as run:
                for tracks in run:
                    yield self._answer(tracks)
        if direction != "forward" and start > 0 and more > 0:
            # From the start, by which objects of both directions are known to be the same.
            with contextlib.closing(self._session.propagate(start, more + 1, reverse=True)) as run:
                for tracks in run:
                    if tracks.frame_index < start:
                        yield self._answer(tracks)

    def reset(self) -> None:
        """Forget all prompts and objects."""
        self._session.reset()
        self._shown.clear()

    def close(self) -> None:
        """Give back memory and close the clip."""
        self._shown.clear()
        self._session.close()
        self._clip.close()

    def _answer(self, tracks: FrameTracks) -> dict[str, Any]:
        self._shown[tracks.frame_index] = tracks
        return {"frame_index": tracks.frame_index, "outputs": official_outputs(tracks, self._clip.hw)}


def official_outputs(tracks: FrameTracks, image_hw: tuple[int, int]) -> dict[str, Any]:
    """Tracks of a frame of this height and width under Meta's keys; see `RequestSessions`."""
    corners = tight_xyxy(tracks.masks)
    height, width = image_hw
    xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    return {
        "out_obj_ids": tracks.object_ids,
        "out_probs": tracks.scores,
        "out_boxes_xywh": (xywh / np.array([width, height, width, height])).astype(np.float32),
        "out_binary_masks": tracks.masks.to_dense(),
        "out_prompt_index": tracks.prompt_index,
        "frame_stats": {"num_obj_tracked": len(tracks), "num_obj_dropped": 0},
    }


def _whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """A whole number in a range, also one of numpy's."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or int(value) < least or (most is not None and int(value) > most):  # type: ignore[call-overload]  # a number
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise SettingError(f"Expected {name} as a whole number {limits}, received {value!r}")
    return int(value)  # type: ignore[call-overload,no-any-return]  # the same


def _texts(text: str | Sequence[str]) -> list[str]:
    texts = [text] if isinstance(text, str) else text
    is_list = isinstance(texts, Sequence) and len(texts) > 0
    if not is_list or not all(isinstance(one, str) and one.strip() for one in texts) or len({*texts}) < len(texts):
        raise SettingError(f"Expected one text or a list of different ones, none of them blank, received {text!r}")
    return list(texts)
