"""One clip, tracked by this package's own engine: frames in, `FrameTracks` out.

What SAM 3's detector finds in each frame, for all prompts at once, is brought together with what its tracker carries
over from the frames before (sam3/model/sam3_video_base.py). Memory is bounded however long the clip is.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Self

import numpy as np
import torch

from autodistill_sam3.errors import SettingError
from autodistill_sam3.queueing import groups_ahead
from autodistill_sam3.segmentation.memory import Decoded
from autodistill_sam3.video.association import ANY_CLASS, Association, Probation, TrackingRules
from autodistill_sam3.video.clip import Clip, Frame
from autodistill_sam3.video.detections import Detecting, Detections, FrameViewer, Seen, detections_of
from autodistill_sam3.video.masks import tight_boxes
from autodistill_sam3.video.objects import MemoryLimits, ObjectMemory, TrackedObject
from autodistill_sam3.video.prompts import as_points, one_box
from autodistill_sam3.video.step import FrameStep, adopt
from autodistill_sam3.video.tracks import NO_TEXT, FrameTracks, ObjectPrompt

logger = logging.getLogger("autodistill_sam3")

# Frames that a GPU encodes at a time, where the clip is at hand.
FRAMES_PER_PASS = 8


class TransformersTrackingSession:
    """A `TrackingSession` of this package's engine."""

    def __init__(
        self, viewer: FrameViewer, detecting: Callable[[Sequence[str]], Detecting], rules: TrackingRules, clip: Clip
    ) -> None:
        self._viewer, self._detecting_of, self._rules, self._clip = viewer, detecting, rules, clip
        self._detecting = Detecting()
        self._objects: dict[int, TrackedObject] = {}
        self._next_id = 0
        self._is_open = True
        self._taken_back: set[int] = set()
        self._run: Generator[FrameTracks, None, None] | None = None
        tracker, frames = viewer.tracker, clip.num_frames
        pointers = min(tracker.max_pointers, frames) if frames else tracker.max_pointers
        self._limits = MemoryLimits(tracker.memory_frames, pointers, tracker.max_conditioning)

    def set_texts(self, prompts: Sequence[str]) -> None:
        """Look for these text prompts from now on, and forget all that was tracked."""
        self.reset()
        self._detecting = self._detecting_of(prompts)

    def reset(self) -> None:
        """Forget prompts and objects; the clip stays open."""
        self._check_open()
        self._detecting, self._next_id = Detecting(), 0
        self._objects.clear()

    def close(self) -> None:
        """Give back memory; a run that is not at its end, ends."""
        self._end_run()
        self._objects.clear()
        self._is_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def remove_object(self, object_id: int) -> None:
        """Stop tracking an object."""
        self._check_open()
        if object_id not in self._objects:
            known = sorted(self._objects) or "none"
            raise SettingError(f"Expected the id of a tracked object, of which there are {known}, received {object_id}")
        del self._objects[object_id]

    def prompt_object(
        self, prompt: ObjectPrompt, object_id: int | None = None, *, replace: bool = False
    ) -> tuple[int, FrameTracks]:
        """Add an object, or refine one; see `TrackingSession.prompt_object`."""
        self._check_open()
        frame = self._frame(prompt.frame_index)
        own = None if object_id is None else self._objects.get(object_id)
        if own is None:
            own = self._new(object_id, ANY_CLASS, NO_TEXT, "prompt", 1.0)
        points, labels = as_points(prompt, self._clip.hw)
        if prompt.frame_index in own.prompts and not replace:
            earlier = own.prompts[prompt.frame_index]
            points, labels = np.concatenate([earlier[0], points]), np.concatenate([earlier[1], labels])
        # The corners of a box come first, and the last box counts.
        points, labels = one_box(points, labels)
        step = self._step(self._viewer.see([frame], Detecting())[0], reverse=False)
        logits = step.point_at(own, points, labels)
        self._objects[own.object_id] = own
        return own.object_id, step.show([own], logits, [own.confidence], [1.0])

    def propagate(
        self, start_frame: int = 0, max_frames: int | None = None, *, reverse: bool = False
    ) -> Generator[FrameTracks, None, None]:
        """Track from a frame on; see `TrackingSession.propagate`."""
        self._check_open()
        total = self._clip.num_frames
        if start_frame < 0 or (total is not None and start_frame >= total):
            raise SettingError(f"Expected start_frame between 0 and {(total or 1) - 1}, received {start_frame}")
        if max_frames is not None and max_frames < 1:
            raise SettingError(f"Expected max_frames of at least 1, received {max_frames}")
        # Two runs at a time would remember each other's frames.
        self._end_run()
        self._run = self._delayed(start_frame, max_frames, reverse)
        return self._run

    def _end_run(self) -> None:
        if self._run is not None:
            self._run.close()
        self._run = None

    def _delayed(self, start: int, max_frames: int | None, reverse: bool) -> Generator[FrameTracks, None, None]:
        """Tracks, held back until young ones among them are beyond doubt; a stream cannot wait."""
        delay = 0 if self._is_stream else self._rules.hotstart_delay
        waiting: deque[FrameTracks] = deque()
        with contextlib.closing(self._track(start, max_frames, reverse)) as run:
            for tracks in run:
                waiting.append(tracks)
                if len(waiting) > delay:
                    yield self._without_removed(waiting.popleft())
        while waiting:
            yield self._without_removed(waiting.popleft())

    def _without_removed(self, tracks: FrameTracks) -> FrameTracks:
        return tracks if not self._taken_back else tracks.select(~np.isin(tracks.object_ids, list(self._taken_back)))

    def _track(self, start: int, max_frames: int | None, reverse: bool) -> Generator[FrameTracks, None, None]:
        self._taken_back.clear()
        for own in self._objects.values():
            own.memory.forget_tracked()
        first, stop = (start, None if max_frames is None else start + max_frames)
        if reverse:
            first, stop = (0 if max_frames is None else max(start - max_frames + 1, 0)), start + 1
        frames = self._clip.frames(first, stop, backward=reverse)
        # A frame of a stream is answered before the next one is asked for.
        is_ahead = self._viewer.is_on_gpu and not self._is_stream
        groups = groups_ahead(frames, FRAMES_PER_PASS) if is_ahead else ([frame] for frame in frames)
        with contextlib.closing(groups):
            for group in groups:
                for seen in self._viewer.see(group, self._detecting):
                    yield self._advance(seen, start, reverse)

    def _advance(self, seen: Seen, start: int, reverse: bool) -> FrameTracks:
        """One frame."""
        step, frame = self._step(seen, reverse=reverse), seen.frame.index
        objects = [own for own in self._objects.values() if own.lives_at(frame, reverse=reverse)]
        carried = step.carry(objects)
        detected = detections_of(seen, self._detecting, self._rules, retry=False)
        if not len(detected) and not (carried.logits > 0).any():
            detected = detections_of(seen, self._detecting, self._rules, retry=True)
        association = step.match(objects, carried, detected)
        # Before the tracks that it ends are gone.
        self._judge(frame, objects, carried, detected, association)
        carried = step.correct(objects, carried, detected, association)
        settled = step.settle(objects, carried)
        step.remember(objects, carried, settled, detected, association)
        born = None if frame == start else (frame, reverse)
        places = self._with_room(association.new, detected)
        new = [self._begin(detected, place, frame, born) for place in places]
        masks = detected.masks.logits[places]
        step.begin(new, masks)
        self._drop(frame)
        presence = carried.object_logits.sigmoid().tolist()
        scores = [own.confidence * value for own, value in zip(objects, presence, strict=True)]
        born_with = [own.confidence for own in new]
        limit = self._rules.hide_after
        kept = [limit is None or own.is_pointed or own.unsupported <= limit for own in objects]
        settled = torch.where(torch.tensor(kept, device=settled.device, dtype=torch.bool)[:, None, None], settled, -1.0)
        logits = torch.cat([settled, step.clean(masks)])
        shown = step.show([*objects, *new], logits, [*scores, *born_with], [*presence, *born_with])
        return self._without_removed(shown)

    def _judge(
        self,
        frame: int,
        objects: Sequence[TrackedObject],
        carried: Decoded,
        detected: Detections,
        association: Association,
    ) -> None:
        """Note what the detections say of each track, and take back those that nothing speaks for."""
        visible = (carried.logits > 0).flatten(1).any(1).cpu().numpy()
        supporters = association.supporters.copy()
        for track, detection in association.found_again.items():
            supporters[track] = detection
        boxes = tight_boxes(detected.masks.logits > 0)
        for own, supporter, is_visible in zip(objects, supporters.tolist(), visible, strict=True):
            own.unsupported = 0 if supporter >= 0 else own.unsupported + 1
            if supporter >= 0:
                own.last_xyxy = boxes[supporter]
                masks = detected.masks
                prompt, source = int(masks.prompt_index[supporter]), str(detected.source[supporter])
                adopt(own, float(masks.scores[supporter]), prompt, source)
            elif own.probation is not None and is_visible and own.source == "text":
                own.probation.unmatched += 1
        for group in association.duplicates:
            first, *later = sorted((objects[place] for place in group), key=lambda own: own.object_id)
            for own in later:
                if own.probation is not None:
                    own.probation.share(first.object_id)
        for own in objects:
            self._end_probation(frame, own)

    def _end_probation(self, frame: int, own: TrackedObject) -> None:
        """A stream's tracks cannot be taken back: they have been shown."""
        if own.probation is None or self._is_stream:
            return
        if own.probation.is_over(frame, self._rules):
            own.probation = None
        elif own.probation.failed(self._rules):
            self._taken_back.add(own.object_id)

    def _drop(self, frame: int) -> None:
        """Objects that were taken back, or not seen for long."""
        for own in list(self._objects.values()):
            is_lost = not own.is_pointed and abs(frame - own.last_seen) > self._rules.forget_after
            if own.object_id in self._taken_back or is_lost:
                del self._objects[own.object_id]

    def _with_room(self, new: Sequence[int], detected: Detections) -> list[int]:
        """Of new detections, the surest that there is room for, in their order."""
        room = max(self._rules.max_objects - len(self._objects), 0)
        surest = sorted(new, key=lambda place: -detected.masks.scores[place])[:room]
        if len(surest) < len(new):
            logger.warning("%s: %d objects are tracked, and no more begin.", self._clip.name, self._rules.max_objects)
        return sorted(surest)

    def _begin(self, detected: Detections, place: int, frame: int, born: tuple[int, bool] | None) -> TrackedObject:
        """A new object from a detection."""
        masks = detected.masks
        prompt, source = int(masks.prompt_index[place]), str(detected.source[place])
        own = self._new(None, int(detected.found.class_id[place]), prompt, source, float(masks.scores[place]))
        own.born = born
        own.last_seen, own.probation = frame, Probation(frame)
        own.last_xyxy = tight_boxes(masks.logits[[place]] > 0)[0]
        self._objects[own.object_id] = own
        return own

    def _new(
        self, object_id: int | None, class_id: int, prompt_index: int, source: str, confidence: float
    ) -> TrackedObject:
        if object_id is None:
            object_id = self._next_id
        self._next_id = max(self._next_id, object_id + 1)
        memory = ObjectMemory(self._limits)
        return TrackedObject(object_id, class_id, prompt_index, source, memory, confidence)

    def _step(self, seen: Seen, *, reverse: bool) -> FrameStep:
        tracker, hw = self._viewer.tracker, self._clip.hw
        return FrameStep(seen.frame.index, hw, seen.maps, tracker, self._rules, self._limits.pointers, reverse)

    def _frame(self, index: int) -> Frame:
        total = self._clip.num_frames
        if index < 0 or (total is not None and index >= total):
            raise SettingError(f"Expected a frame between 0 and {(total or 1) - 1}, received {index}")
        for frame in self._clip.frames(index, index + 1):
            return frame
        raise SettingError(f"Expected a frame that can be read, received {index}: {self._clip.skipped[-1:]}")

    @property
    def _is_stream(self) -> bool:
        return self._clip.num_frames is None

    def _check_open(self) -> None:
        if not self._is_open:
            raise SettingError("Expected an open session, received one that was closed. Begin anew with the clip.")
