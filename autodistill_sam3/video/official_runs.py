"""Meta's sessions: one part of a clip on the GPU, and what each prompt says of its frames."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from autodistill_sam3.errors import OutOfMemoryError, SettingError
from autodistill_sam3.instances import compact_masks, tight_xyxy
from autodistill_sam3.video.official_predictor import OfficialPredictor
from autodistill_sam3.video.parts import Part
from autodistill_sam3.video.tracks import NO_TEXT, FrameTracks, ObjectPrompt

# A box is two points to Meta's code, told apart by these labels, ahead of the others.
_CORNERS = [2, 3]


@contextlib.contextmanager
def loaded(predictor: OfficialPredictor, part: Part, hw: tuple[int, int]) -> Iterator[PartRuns]:
    """A session of Meta's with these frames, which is closed however the context is left.

    Raises:
        OutOfMemoryError: The part, or what is tracked in it, does not fit the GPU.
    """
    session_id = str(uuid.uuid4())
    reason = None
    try:
        predictor.request({"type": "start_session", "resource_path": part.images, "session_id": session_id})
        yield PartRuns(predictor, session_id, part, hw)
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
    finally:
        predictor.request({"type": "close_session", "session_id": session_id})
    # Only here, where the exception no longer holds the tensors of the frames that it went through.
    if reason is not None:
        raise OutOfMemoryError(
            f"Out of memory with {len(part)} frames on the GPU: {reason} Use a smaller part_frames, or fewer prompts."
        )


class PartRuns:
    """Runs over the frames of one part, one after the other."""

    def __init__(self, predictor: OfficialPredictor, session_id: str, part: Part, hw: tuple[int, int]) -> None:
        self._predictor, self._session_id, self._part, self._hw = predictor, session_id, part, hw

    def text(self, place: int, text: str, prompt: int) -> list[FrameTracks]:
        """What a text prompt finds from a place in the part on, in every frame of it; ids are this run's own."""
        tracks = [FrameTracks.empty(index, self._hw) for index in self._part.indices]
        self._predictor.request(
            {"type": "add_prompt", "session_id": self._session_id, "frame_index": place, "text": text}
        )
        for at, outputs in self._forward(place):
            ids = outputs["out_obj_ids"]
            tracks[at] = self._tracks(self._part.indices[at], outputs, dict.fromkeys(ids.tolist(), prompt), "text")
        return tracks

    def objects(
        self,
        pointed: Mapping[int, Mapping[int, Sequence[ObjectPrompt]]],
        carried: Mapping[int, ObjectPrompt],
        prompt_of: Mapping[int, int],
    ) -> list[FrameTracks]:
        """Where the objects that a person pointed at are in each frame.

        Args:
            pointed: By object and frame, what was said, in this order.
            carried: Of objects that were tracked before the part, where they are in one of its first frames.
            prompt_of: Which text prompt found each object, or `NO_TEXT`.
        """
        tracks = [FrameTracks.empty(index, self._hw) for index in self._part.indices]
        first: dict[int, int] = {}
        if pointed:
            self._begin_objects()
        for object_id, prompts in pointed.items():
            before = carried.get(object_id)
            for place, index in enumerate(self._part.indices):
                said = list(prompts.get(index, ()))
                if before is not None and before.frame_index == index:
                    said.insert(0, before)
                if said:
                    self._point(place, object_id, said)
                    first.setdefault(object_id, place)
        if first:
            for at, outputs in self._forward(min(first.values())):
                found = self._tracks(self._part.indices[at], outputs, prompt_of, "prompt")
                begun = [first[int(object_id)] <= at for object_id in found.object_ids]
                tracks[at] = found.select(np.array(begun, dtype=bool))
        return tracks

    def object(self, object_id: int, said: Sequence[ObjectPrompt], prompt: int) -> FrameTracks:
        """What the first frame shows of one object, which a text prompt found or none."""
        self._begin_objects()
        outputs = self._point(0, object_id, said)
        return self._tracks(self._part.indices[0], outputs, {object_id: prompt}, "prompt")

    def _begin_objects(self) -> None:
        self._predictor.request({"type": "reset_session", "session_id": self._session_id})
        self._predictor.let_point_anywhere(self._session_id)

    def _point(self, place: int, object_id: int, said: Sequence[ObjectPrompt]) -> dict[str, Any]:
        """Say one thing after the other: Meta's code remembers its last answer, and is told all that was said again."""
        outputs: dict[str, Any] = {}
        for count in range(1, len(said) + 1):
            points, labels = _points(said[:count], self._hw)
            outputs = self._predictor.request(
                {
                    "type": "add_prompt",
                    "session_id": self._session_id,
                    "frame_index": place,
                    "points": points,
                    "point_labels": labels,
                    "obj_id": object_id,
                }
            )["outputs"]
        return outputs

    def _forward(self, place: int) -> Iterator[tuple[int, dict[str, Any]]]:
        request = {
            "type": "propagate_in_video",
            "session_id": self._session_id,
            "propagation_direction": "forward",
            "start_frame_index": place,
        }
        for answer in self._predictor.stream(request):
            yield answer["frame_index"], answer["outputs"]

    def _tracks(
        self, frame_index: int, outputs: Mapping[str, Any], prompt_of: Mapping[int, int], source: str
    ) -> FrameTracks:
        """Meta's answer for one frame; masks that lost all pixels to others are in it and are left out."""
        masks = outputs["out_binary_masks"]
        kept = np.flatnonzero(masks.any(axis=(1, 2)))
        ids = outputs["out_obj_ids"][kept].astype(np.int64)
        prompts = np.array([prompt_of[int(object_id)] for object_id in ids], dtype=np.int64)
        return FrameTracks(
            frame_index,
            ids,
            compact_masks(((masks[place], 0, 0) for place in kept), self._hw),
            outputs["out_probs"][kept].astype(np.float32).clip(0, 1),
            prompts,
            np.where(prompts == NO_TEXT, source, "text").astype("<U6"),
        )


def _points(said: Sequence[ObjectPrompt], hw: tuple[int, int]) -> tuple[list[list[float]], list[int]]:
    """Points in 0..1 and their labels; of several boxes the last one counts."""
    points = [prompt.points_xy.reshape(-1, 2) for prompt in said]
    labels = [int(label) for prompt in said for label in prompt.labels]
    box = next((prompt.box_xyxy for prompt in reversed(said) if prompt.box_xyxy is not None), None)
    if box is not None:
        points, labels = [box.reshape(2, 2), *points], [*_CORNERS, *labels]
    relative = np.concatenate(points).astype(np.float64) / [hw[1], hw[0]]
    return relative.tolist(), labels


def box_prompt(frame_index: int, box_xyxy: npt.NDArray[np.float32]) -> ObjectPrompt:
    """A prompt of a (4,) box alone."""
    return ObjectPrompt(frame_index, np.zeros((0, 2), np.float32), np.zeros(0, np.int64), box_xyxy)


def boxes_by_object(frames: Sequence[FrameTracks]) -> dict[int, ObjectPrompt]:
    """Of each object, the box of the first mask that these frames have of it."""
    found: dict[int, ObjectPrompt] = {}
    for tracks in frames:
        for object_id, box in zip(tracks.object_ids.tolist(), tight_xyxy(tracks.masks), strict=True):
            found.setdefault(object_id, box_prompt(tracks.frame_index, box))
    return found


def check_prompt(prompt: ObjectPrompt) -> None:
    """Raise SettingError unless the prompt says something, in the shapes that it should have."""
    points, labels, box = prompt.points_xy, prompt.labels, prompt.box_xyxy
    if points.shape != (len(labels), 2) or not np.isin(labels, (0, 1)).all():
        raise SettingError(f"Expected a label of 0 or 1 for each point (x, y), received {points} and {labels}")
    if not len(points) and box is None:
        raise SettingError("Expected points or a box, received neither")
    if box is not None and (box.shape != (4,) or not (box[2:] > box[:2]).all()):
        raise SettingError(f"Expected a box (x1, y1, x2, y2) with x1 < x2 and y1 < y2, received {box}")
