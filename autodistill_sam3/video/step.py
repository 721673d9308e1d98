"""One frame of tracking: tracks carried over, brought together with what was detected, and remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import supervision as sv
import torch
from torch.nn.functional import interpolate

from autodistill_sam3.segmentation.masks import upsampled_masks
from autodistill_sam3.segmentation.memory import Decoded, FrameMaps, Memory, MemoryTracker
from autodistill_sam3.video.association import Association, TrackingRules, associate, find_again, give_way, within_reach
from autodistill_sam3.video.detections import Detections
from autodistill_sam3.video.masks import mask_iou, tight_boxes, without_overlap, without_shrunk, without_specks
from autodistill_sam3.video.objects import TrackedObject
from autodistill_sam3.video.tracks import NO_TEXT, FrameTracks

_HIDDEN, _SURE = -10.0, 10.0
# Of boxes: beside it, another object's box overlaps less.
_STAYED_IOU = 0.5


@dataclass(eq=False)
class FrameStep:
    """The tracks of one frame.

    Attributes:
        frame_index: Which frame.
        image_hw: Its height and width in pixels.
        maps: The tracker's view of it.
        tracker: The model.
        rules: The numbers.
        max_pointers: See `MemoryTracker.propagate`.
        reverse: Whether frames come in falling order.
    """

    frame_index: int
    image_hw: tuple[int, int]
    maps: FrameMaps
    tracker: MemoryTracker
    rules: TrackingRules
    max_pointers: int
    reverse: bool

    def carry(self, objects: Sequence[TrackedObject]) -> Decoded:
        """Masks of objects by what they remember; where one was pointed at in this frame, that mask."""
        recalls = [own.memory.recall(self.frame_index, reverse=self.reverse) for own in objects]
        told = self.tracker.propagate(self.maps, recalls, self.max_pointers)
        # Copies: what the model answers under inference mode cannot be written to.
        logits, object_logits = self.clean(told.logits).clone(), told.object_logits.clone()
        for place, own in enumerate(objects):
            if self.frame_index in own.shown:
                logits[place] = own.shown[self.frame_index].to(logits.device)
                object_logits[place] = _SURE
        return Decoded(logits, told.drawn, object_logits, told.iou, told.pointers)

    def clean(self, logits: torch.Tensor) -> torch.Tensor:
        """Masks (N, 4g, 4g) without small holes and specks."""
        return without_specks(logits, self.rules.fill_area)

    def match(self, objects: Sequence[TrackedObject], carried: Decoded, detected: Detections) -> Association:
        """Which detections show which objects."""
        classes, positive = _classes(objects), carried.logits > 0
        iou = mask_iou(detected.masks.logits > 0, positive)
        if self.rules.is_corrected:
            # What looks alike draws a mask away: a detection where the object was a frame ago shows it all the same.
            was_there = np.array([own.unsupported == 0 for own in objects], dtype=bool)
            stayed = sv.box_iou_batch(*_boxes(detected, objects)).astype(np.float32)
            iou = np.maximum(iou, np.where(was_there[None] & (stayed >= _STAYED_IOU), stayed, 0))
        association = associate(iou, detected.found, classes, self.rules)
        hidden = ~positive.flatten(1).any(1)
        if self.rules.is_corrected:
            # Where detections are believed, a track that none supports is as good as hidden.
            hidden |= torch.from_numpy(association.supporters < 0).to(hidden.device)
        if not association.new or not hidden.any():
            return association
        drawn = (carried.drawn > 0) & hidden[:, None, None]
        iou = mask_iou(detected.masks.logits > 0, drawn)
        association = find_again(association, iou, detected.found, classes, self.rules.match_iou)
        if self.rules.relink is None or not association.new:
            return association
        same = (detected.found.class_id[:, None] == classes[None]) & hidden.cpu().numpy()[None]
        gaps = np.array([own.unsupported + 1 for own in objects])
        return within_reach(association, _boxes(detected, objects), same, gaps, self.rules.relink)

    def correct(
        self, objects: Sequence[TrackedObject], carried: Decoded, detected: Detections, association: Association
    ) -> Decoded:
        """What was carried over, with the masks of detections where these are to be believed instead."""
        chosen = dict(association.found_again)
        every = self.rules.renew_every
        if self.rules.is_corrected and every and self.frame_index % every == 0:
            chosen |= association.renewed
        chosen = {track: place for track, place in chosen.items() if self.frame_index not in objects[track].shown}
        if not chosen:
            return carried
        tracks, places = list(chosen), list(chosen.values())
        logits, object_logits = carried.logits.clone(), carried.object_logits.clone()
        logits[tracks] = self.clean(detected.masks.logits[places])
        object_logits[tracks] = object_logits[tracks].clamp(min=_SURE)
        return Decoded(logits, carried.drawn, object_logits, carried.iou, carried.pointers)

    def settle(self, objects: Sequence[TrackedObject], carried: Decoded) -> torch.Tensor:
        """Masks (N, 4g, 4g) after objects that lie on others have given way; notes who is hidden."""
        positive = carried.logits > 0
        hidden = [own.last_hidden for own in objects]
        classes = _classes(objects)
        yielding = give_way(mask_iou(positive, positive), hidden, classes, self.rules, reverse=self.reverse)
        empty = ~positive.flatten(1).any(1).cpu().numpy()
        for own, is_hidden in zip(objects, yielding | empty, strict=True):
            if is_hidden:
                own.last_hidden = self.frame_index
            else:
                own.last_seen = self.frame_index
        gone = torch.from_numpy(yielding).to(carried.logits.device)[:, None, None]
        return torch.where(gone, carried.logits.clamp(max=_HIDDEN), carried.logits)

    def remember(
        self,
        objects: Sequence[TrackedObject],
        carried: Decoded,
        logits: torch.Tensor,
        detected: Detections,
        association: Association,
    ) -> None:
        """Keep the frame in mind for all objects, with the masks (N, 4g, 4g) that they are left with."""
        if not objects:
            return
        told = without_shrunk(logits, _classes(objects), self.rules.shrunk_area)
        memories = self.tracker.remember(self.maps, told, carried.pointers, is_prompted=False)
        sure = (2 * carried.object_logits.sigmoid() - 1).clamp(min=0) * carried.iou
        for own, memory, quality in zip(objects, memories, sure.tolist(), strict=True):
            # What was pointed at is remembered already.
            if self.frame_index not in own.shown:
                own.memory.keep(self.frame_index, memory, quality)
        every = self.rules.renew_every
        if every and self.frame_index % every == 0 and not self.rules.is_corrected:
            self._renew(objects, carried, memories, detected, association)

    def _renew(
        self,
        objects: Sequence[TrackedObject],
        carried: Decoded,
        memories: Sequence[Memory],
        detected: Detections,
        association: Association,
    ) -> None:
        """Count frames in which a sure detection agrees with a track as ones in which it was pointed at.

        As in Meta's model, the pointer is that of the detection, and the features are those of the track.
        """
        sure = carried.object_logits.cpu().numpy() > self.rules.renew_confidence
        chosen = [
            (track, detection)
            for track, detection in association.renewed.items()
            if sure[track] and self.frame_index not in objects[track].shown
        ]
        if chosen:
            pointers = self._from_detections(detected.masks.logits[[place for _, place in chosen]])[0].pointers
            for (track, _), pointer in zip(chosen, pointers, strict=True):
                memory = Memory(memories[track].spatial, pointer.clone())
                objects[track].memory.condition(self.frame_index, memory, is_renewal=True)

    def begin(self, objects: Sequence[TrackedObject], logits: torch.Tensor) -> None:
        """Have new objects remember the masks (N, 4g, 4g) that were detected."""
        if not objects:
            return
        decoded, large = self._from_detections(logits)
        memories = self.tracker.remember(self.maps, large, decoded.pointers, is_prompted=True)
        for own, memory in zip(objects, memories, strict=True):
            own.memory.condition(self.frame_index, memory)

    def point_at(
        self, own: TrackedObject, points: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
    ) -> torch.Tensor:
        """The mask (1, 4g, 4g) of an object by points (P, 2) in 0..1 with labels (P,), which it will remember."""
        others = [at for at in own.memory.conditioning if at != self.frame_index]
        recall = own.memory.recall(self.frame_index, reverse=self.reverse) if others else None
        asked, told = torch.from_numpy(points)[None], torch.from_numpy(labels)[None]
        decoded = self.tracker.prompt(self.maps, asked, told, recall, self.max_pointers)
        size = (self.tracker.memory_side, self.tracker.memory_side)
        large = interpolate(decoded.logits[:, None], size=size, mode="bilinear")[:, 0]
        memory = self.tracker.remember(self.maps, large, decoded.pointers, is_prompted=True)[0]
        own.memory.condition(self.frame_index, memory)
        own.prompts[self.frame_index] = (points, labels)
        logits = self.clean(decoded.logits)
        own.shown[self.frame_index] = logits[0].cpu()
        own.confidence = float(decoded.iou[0].clamp(0, 1))
        return logits

    def show(
        self,
        objects: Sequence[TrackedObject],
        logits: torch.Tensor,
        scores: Sequence[float],
        presence: Sequence[float],
    ) -> FrameTracks:
        """What the frame shows of objects.

        Args:
            objects: N objects.
            logits: (N, 4g, 4g), their masks.
            scores: (N,) in 0..1.
            presence: (N,), how surely each is in the frame: of a class, a pixel goes to the surest.
        """
        if not objects:
            return FrameTracks.empty(self.frame_index, self.image_hw)
        masks, kept = upsampled_masks(logits, self.image_hw)
        if not kept:
            return FrameTracks.empty(self.frame_index, self.image_hw)
        seen = [objects[place] for place in kept]
        masks, left = without_overlap(masks, [presence[place] for place in kept], _classes(seen), self.image_hw)
        order = sorted(range(len(left)), key=lambda place: seen[left[place]].object_id)
        shown = [seen[left[place]] for place in order]
        return FrameTracks(
            frame_index=self.frame_index,
            object_ids=np.array([own.object_id for own in shown], dtype=np.int64),
            masks=masks[np.array(order, dtype=np.int64)],
            scores=np.array([scores[kept[left[place]]] for place in order], dtype=np.float32),
            prompt_index=np.array([own.prompt_index for own in shown], dtype=np.int64),
            source=np.array([own.source for own in shown], dtype="<U6"),
        )

    def _from_detections(self, logits: torch.Tensor) -> tuple[Decoded, torch.Tensor]:
        size = (self.tracker.memory_side, self.tracker.memory_side)
        masks = interpolate(logits[:, None], size=size, mode="bilinear")[:, 0] > 0
        return self.tracker.from_masks(self.maps, masks)


def _classes(objects: Sequence[TrackedObject]) -> npt.NDArray[np.int64]:
    return np.array([own.class_id for own in objects], dtype=np.int64)


def _boxes(
    detected: Detections, objects: Sequence[TrackedObject]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Boxes xyxy of the D detections, and of those that supported N objects last: (D, 4) and (N, 4)."""
    last = np.array([own.last_xyxy for own in objects], dtype=np.float32).reshape(-1, 4)
    return tight_boxes(detected.masks.logits > 0), last


def adopt(own: TrackedObject, score: float, prompt_index: int, source: str) -> None:
    """Note a detection that shows an object."""
    own.confidence = score
    if own.prompt_index == NO_TEXT:
        own.prompt_index = prompt_index
    if own.source not in ("prompt", source):
        own.source = "both"
