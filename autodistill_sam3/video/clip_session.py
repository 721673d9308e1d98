"""A clip that a person works on: objects added, refined, removed, and tracked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
import supervision as sv

from autodistill_sam3.conflicts import resolve_conflicts
from autodistill_sam3.errors import SettingError
from autodistill_sam3.instances import tight_xyxy
from autodistill_sam3.ontology import PromptTable
from autodistill_sam3.video.clip import Clip
from autodistill_sam3.video.prompts import Coordinates, read_prompt
from autodistill_sam3.video.tracks import NO_TEXT, FrameTracks, ObjectPrompt, TrackingSession

Direction = Literal["forward", "backward", "both"]
OnEmpty = Literal["zeros", "skip", "retry"]

# The class of an object that a person pointed at without a name.
NO_CLASS = -1
NO_CLASS_NAME = "object"


@dataclass(frozen=True)
class Presentation:
    """How tracks become what users get.

    Attributes:
        table: Prompts and classes.
        on_empty: What becomes of frames without objects.
        keep_overlapping: Whether an object may be shown under two classes.
        coordinates: Of points and boxes.
    """

    table: PromptTable
    on_empty: OnEmpty
    keep_overlapping: bool
    coordinates: Coordinates


class ClipSession:
    """One clip of a :class:`SAM3Video`. Use it in a `with` block, or close it.

    Attributes:
        clip: The clip, with `num_frames`, `hw` and what could not be read of it, `skipped`.
    """

    def __init__(self, clip: Clip, session: TrackingSession, presentation: Presentation) -> None:
        self.clip = clip
        self._session, self._presentation = session, presentation
        self._known: set[int] = set()
        self._class_of_object: dict[int, int] = {}
        self._prompted: set[int] = set()
        # By object, the sum of its confidence in the frames of this run.
        self._evidence: dict[int, float] = {}
        self._is_open = True

    def add_object(
        self,
        frame_index: int,
        *,
        points: Sequence[Sequence[float]] | None = None,
        labels: Sequence[int] | None = None,
        box: Sequence[float] | None = None,
        class_name: str | None = None,
        coordinates: Coordinates | None = None,
    ) -> tuple[int, sv.Detections]:
        """Point at an object, to have it tracked.

        Args:
            frame_index: In which frame.
            points: (P, 2), x and y.
            labels: (P,): 1 for a point on the object, 0 for one beside it; all are on it without.
            box: x1, y1, x2, y2.
            class_name: Its class, one of the ontology's; without, that of a text prompt that finds it, too.
            coordinates: "relative", "absolute" or "auto", see `read_prompt`; by default the model's setting.

        Returns:
            The object's id, and what the frame shows of it: one detection, or none.

        Raises:
            SettingError: The points, the box, the class or the frame cannot be.
        """
        class_id = None if class_name is None else self._class_id(class_name)
        prompt = self._read(frame_index, points, labels, box, coordinates)
        object_id, tracks = self._session.prompt_object(prompt)
        self._prompted.add(frame_index)
        self._known.add(object_id)
        if class_id is not None:
            self._class_of_object[object_id] = class_id
        return object_id, self.to_detections(tracks)

    def refine_object(
        self,
        object_id: int,
        frame_index: int,
        *,
        points: Sequence[Sequence[float]] | None = None,
        labels: Sequence[int] | None = None,
        box: Sequence[float] | None = None,
        coordinates: Coordinates | None = None,
    ) -> sv.Detections:
        """Point again at an object that is tracked, in this frame or another; what was said before still counts.

        Returns:
            What the frame shows of it.

        Raises:
            SettingError: As :meth:`add_object`, or there is no such object.
        """
        prompt = self._read(frame_index, points, labels, box, coordinates)
        if object_id not in self._known:
            known = sorted(self._known) or "none"
            raise SettingError(f"Expected the id of an object of this clip, one of {known}, received {object_id}")
        self._prompted.add(frame_index)
        return self.to_detections(self._session.prompt_object(prompt, object_id)[1])

    def remove_object(self, object_id: int) -> None:
        """Stop tracking an object.

        Raises:
            SettingError: There is no such object.
        """
        self._session.remove_object(object_id)
        self._class_of_object.pop(object_id, None)
        self._known.discard(object_id)

    def track(
        self,
        start_frame: int | None = None,
        max_frames: int | None = None,
        direction: Direction = "forward",
        *,
        compact: bool = False,
    ) -> Iterator[tuple[int, sv.Detections]]:
        """Track from a frame on.

        Args:
            start_frame: By default the earliest frame with a prompt, else the first; backward, the latest, or the last.
            max_frames: At most so many in each direction, the first one included.
            direction: "both" goes forward to the end, then backward from the frame before `start_frame`.
            compact: Masks as `supervision.CompactMask`, which takes a hundredth of the memory.

        Yields:
            Frame index and detections, with `tracker_id`, `class_id`, `confidence`, `mask` (N, H, W) and `data` with
            "class_name", "prompt" and "source". Frames that cannot be read are left out.

        Raises:
            SettingError: A value is out of its range, or the session is closed.
        """
        if direction not in get_args(Direction):
            raise SettingError(f"Expected direction to be one of {get_args(Direction)}, received {direction!r}")
        start = self._default_start(direction) if start_frame is None else start_frame
        runs: list[Iterator[FrameTracks]] = [
            self._session.propagate(start, max_frames, reverse=direction == "backward")
        ]
        if direction == "both" and start > 0 and max_frames != 1:
            runs.append(self._back_from(start, max_frames))
        return self._present(runs, compact)

    def _back_from(self, start: int, max_frames: int | None) -> Iterator[FrameTracks]:
        """What comes before a frame; that one is seen again, by which engines know objects of both directions."""
        for tracks in self._session.propagate(start, max_frames, reverse=True):
            if tracks.frame_index < start:
                yield tracks

    def _present(self, runs: Sequence[Iterator[FrameTracks]], compact: bool) -> Iterator[tuple[int, sv.Detections]]:
        self._evidence.clear()
        for tracks in itertools.chain.from_iterable(runs):
            self._known.update(tracks.object_ids.tolist())
            for object_id, score in zip(tracks.object_ids.tolist(), tracks.scores.tolist(), strict=True):
                self._evidence[object_id] = self._evidence.get(object_id, 0.0) + score
            if len(tracks) or self._presentation.on_empty != "skip":
                yield tracks.frame_index, self.to_detections(tracks, compact=compact)

    def to_detections(self, tracks: FrameTracks, *, compact: bool = False) -> sv.Detections:
        """Tracks as users get them."""
        table = self._presentation.table
        class_id = np.full(len(tracks), NO_CLASS, dtype=np.int64)
        named = tracks.prompt_index != NO_TEXT
        class_id[named] = table.class_ids(tracks.prompt_index[named])
        for place, object_id in enumerate(tracks.object_ids.tolist()):
            class_id[place] = self._class_of_object.get(object_id, class_id[place])
        names = [*table.classes, NO_CLASS_NAME]
        prompts = [*table.prompts, ""]
        detections = sv.Detections(
            xyxy=tight_xyxy(tracks.masks),
            mask=tracks.masks,
            confidence=tracks.scores,
            class_id=class_id,
            tracker_id=tracks.object_ids,
            data={
                "class_name": np.array([names[index] for index in class_id], dtype=np.str_),
                "prompt": np.array([prompts[index] for index in tracks.prompt_index], dtype=np.str_),
                "source": tracks.source,
            },
        )
        # In a single frame another class may seem surer: an object would change its id back and forth.
        evidence = np.array([self._evidence.get(object_id, 0.0) for object_id in tracks.object_ids.tolist()])
        keep_both = self._presentation.keep_overlapping
        detections = resolve_conflicts(detections, keep_both=keep_both, priority=evidence)
        # Counts of one frame: detections with different ones could not be merged.
        detections.metadata.clear()
        if not compact and isinstance(detections.mask, sv.CompactMask):
            detections.mask = detections.mask.to_dense()
        return detections

    def reset(self) -> None:
        """Forget all that was added and tracked; the ontology's prompts stay."""
        self._session.set_texts(self._presentation.table.prompts)
        for notes in (self._known, self._class_of_object, self._prompted, self._evidence):
            notes.clear()

    def close(self) -> None:
        """Give back memory and close the clip; closing twice is harmless."""
        if self._is_open:
            self._is_open = False
            self._session.close()
            self.clip.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _default_start(self, direction: Direction) -> int:
        if direction == "backward":
            last = self.clip.num_frames
            if last is None:
                raise SettingError("Expected direction='forward' for a stream, whose end is not known")
            return max(self._prompted, default=last - 1)
        return min(self._prompted, default=0)

    def _class_id(self, class_name: str) -> int:
        classes = self._presentation.table.classes
        if class_name not in classes:
            raise SettingError(f"Expected class_name to be one of {list(classes)}, received {class_name!r}")
        return classes.index(class_name)

    def _read(
        self,
        frame_index: int,
        points: Sequence[Sequence[float]] | None,
        labels: Sequence[int] | None,
        box: Sequence[float] | None,
        coordinates: Coordinates | None,
    ) -> ObjectPrompt:
        return read_prompt(
            frame_index,
            self.clip.hw,
            points=points,
            labels=labels,
            box=box,
            coordinates=coordinates or self._presentation.coordinates,
        )
