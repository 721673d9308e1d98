"""Meta's session dictionaries over a `VideoEngine`: the requests of `Sam3VideoPredictor`, and its answers.

Keys and meanings are those of sam3/model/sam3_video_predictor.py; where ours differ, `RequestSessions` says so.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autodistill_sam3.errors import SettingError
from autodistill_sam3.images import has_image_suffix
from autodistill_sam3.video.clip import Clip
from autodistill_sam3.video.request_session import RequestSession
from autodistill_sam3.video.sources import open_clip
from autodistill_sam3.video.tracks import VideoEngine


@dataclass(frozen=True)
class _Keys:
    """Of a request, besides "type"."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


_PROMPTS = ("text", "points", "point_labels", "bounding_boxes", "bounding_box_labels", "obj_id")
_REQUESTS = {
    "start_session": _Keys(("resource_path",), ("session_id",)),
    "add_prompt": _Keys(("session_id", "frame_index"), _PROMPTS),
    "remove_object": _Keys(("session_id", "obj_id"), ("is_user_action",)),
    "reset_session": _Keys(("session_id",)),
    "close_session": _Keys(("session_id",)),
}
_RANGE = ("propagation_direction", "start_frame_index", "max_frame_num_to_track")
_STREAMS = {"propagate_in_video": _Keys(("session_id",), _RANGE)}


class RequestSessions:
    """Sessions that are open, by id.

    - "start_session", `resource_path`: a video file, a folder of frames, an image or a list of images; `session_id`, if
      it should have a certain one, which replaces a session of that name. Gives "session_id".
    - "add_prompt", `frame_index` and one of two kinds. `text`: forget everything, and look for this in all frames.
      `points` with `point_labels` and `obj_id`: add an object, or say anew where it is in this frame. Gives
      "frame_index" and the "outputs" of that frame.
    - "remove_object", `obj_id`; "reset_session": forget everything, the text too; "close_session", which is harmless
      for a session that is not open. Give "is_success".
    - "propagate_in_video": a stream of "frame_index" and "outputs". `propagation_direction` is "forward", "backward"
      or "both" (the default); `start_frame_index` by default the earliest frame that was answered before. As
      officially, `max_frame_num_to_track=3` gives four frames forward, the start and three more; backward, the start is
      left out, so that "both" gives it once; the first frames come when some fifteen later ones have been seen, since
      young tracks may turn out to be mistakes.

    "outputs", for N objects in a frame of H x W pixels: "out_obj_ids" (N,) ``int64``, rising; "out_probs" (N,)
    ``float32``; "out_boxes_xywh" (N, 4) ``float32``, left, top, width and height in 0..1 of the frame;
    "out_binary_masks" (N, H, W) ``bool``; "frame_stats". Coordinates in requests are in 0..1 of the frame as well.

    What is different from the official predictor:

    - `text` may be a list; "out_prompt_index" (N,) ``int64`` says which of them each object answers, -1 for objects
      that were pointed at.
    - `bounding_boxes` with `obj_id` is one box around that object, as are two points with the labels 2 and 3 also
      officially. Officially, it is an example of what to look for, which is refused here.
    - Points may come first, on any frame. All objects are tracked in every propagation, which always computes: none is
      answered from an earlier one, and an object that was added or removed does not keep others from being tracked.
    - Probabilities are those of the engine, boxes hold the whole mask that is shown, their last pixel included, and
      objects without a visible pixel are left out, as are frames that cannot be read.
    - Errors are `SettingError` and `VideoError`, and a request with unknown keys is one.

    A session keeps what it last showed of each frame as compact masks, a few kilobytes an object, until it is reset.

    Args:
        engine: The model, which stays the caller's to close.
    """

    def __init__(self, engine: VideoEngine) -> None:
        self._engine = engine
        self._sessions: dict[str, RequestSession] = {}

    def handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer any request but "propagate_in_video".

        Raises:
            SettingError: The type, a key or a value is not as expected, or there is no such session.
            VideoError: The clip cannot be read.
        """
        kind, values = _checked(request, _REQUESTS, _STREAMS, "handle_stream_request")
        if kind == "start_session":
            return {"session_id": self._start(**values)}
        session_id = values.pop("session_id")
        if kind == "close_session":
            self._end(session_id)
            return {"is_success": True}
        session = self._session(session_id)
        if kind == "add_prompt":
            return session.add_prompt(**values)
        if kind == "remove_object":
            session.remove_object(values["obj_id"])
        else:
            session.reset()
        return {"is_success": True}

    def stream(self, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Answer "propagate_in_video". Whoever has seen enough drops the iterator; the session stays usable.

        Raises:
            SettingError: As :meth:`handle`, at once.
        """
        _, values = _checked(request, _STREAMS, _REQUESTS, "handle_request")
        return self._session(values.pop("session_id")).propagate(**values)

    def close(self) -> None:
        """Close all sessions; closing twice is harmless."""
        for session_id in list(self._sessions):
            self._end(session_id)

    def _start(self, resource_path: Any, session_id: str | None = None) -> str:
        if session_id is not None and not isinstance(session_id, str):
            raise SettingError(f"Expected session_id as text, received {session_id!r}")
        session_id = session_id or str(uuid.uuid4())
        clip = _open(resource_path)
        try:
            session = RequestSession(clip, self._engine.open(clip))
        except BaseException:
            clip.close()
            raise
        self._end(session_id)
        self._sessions[session_id] = session
        return session_id

    def _end(self, session_id: object) -> None:
        session = self._sessions.pop(session_id, None) if isinstance(session_id, str) else None
        if session is not None:
            session.close()

    def _session(self, session_id: object) -> RequestSession:
        session = self._sessions.get(session_id) if isinstance(session_id, str) else None
        if session is None:
            known = sorted(self._sessions) or "none"
            raise SettingError(
                f"Expected the id of an open session, of which there are {known}, received {session_id!r}. Begin one "
                "with start_session."
            )
        return session


def _open(source: Any) -> Clip:
    if isinstance(source, (str, Path)) and has_image_suffix(Path(source)):
        source = [source]
    clip = open_clip(source)
    if clip.num_frames is None:
        clip.close()
        raise SettingError("Expected a clip whose frames can be read again, received a stream. Put them into a list.")
    return clip


def _checked(
    request: Mapping[str, Any], known: Mapping[str, _Keys], elsewhere: Mapping[str, _Keys], other: str
) -> tuple[str, dict[str, Any]]:
    """The type, and the rest, of which None is as good as nothing."""
    if not isinstance(request, Mapping):
        raise SettingError(f"Expected a request as a dictionary, received {type(request).__name__}")
    kind = request.get("type")
    if not isinstance(kind, str) or kind not in known:
        hint = f" That one is for {other}." if isinstance(kind, str) and kind in elsewhere else ""
        raise SettingError(f"Expected the request's 'type' to be one of {list(known)}, received {kind!r}.{hint}")
    keys = known[kind]
    values = {key: value for key, value in request.items() if key != "type" and value is not None}
    missing = [key for key in keys.needed if key not in values]
    unknown = [key for key in values if key not in keys.needed + keys.optional]
    if unknown:
        raise SettingError(f"Expected {[*keys.needed, *keys.optional]} in {kind!r}, received {unknown} as well")
    if missing:
        raise SettingError(f"Expected {list(keys.needed)} in {kind!r}, received a request without {missing}")
    return kind, values
