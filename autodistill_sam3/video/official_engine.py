"""Meta's own video predictor as a `VideoEngine`: `backend="sam3"` for clips.

The predictor takes whole clips and one concept at a time, keeps every mask of a session on the GPU, and hides what it
has not made sure of only up to the end of a run. So a clip is run in parts that overlap: in each part one run per text
prompt and one for the objects that a person pointed at. Objects of neighbouring parts are joined by their masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from autodistill_sam3.devices import Precision
from autodistill_sam3.errors import SettingError
from autodistill_sam3.instances import tight_xyxy
from autodistill_sam3.video.clip import Clip, Frame
from autodistill_sam3.video.official_predictor import OfficialPredictor
from autodistill_sam3.video.official_runs import PartRuns, box_prompt, boxes_by_object, check_prompt, loaded
from autodistill_sam3.video.parts import Part, parts_of
from autodistill_sam3.video.stitching import match_ids, merge_tracks, rename
from autodistill_sam3.video.tracks import NO_TEXT, FrameTracks, ObjectPrompt
from autodistill_sam3.weights import find_bpe, find_official_code

# At 720p a part of 256 frames takes about 1.6 GB on the GPU, and 0.5 GB more for each object.
PART_FRAMES = 256
# One more than Meta's code waits before it shows an object. What is hidden for less than this keeps its id.
OVERLAP = 16


_Floats = npt.NDArray[np.float32]


class OfficialVideoEngine:
    """A `VideoEngine` on Meta's predictor."""

    def __init__(
        self,
        checkpoint: Path,
        bpe_path: Path,
        gpus_to_use: Sequence[int] | None = None,
        *,
        code: Path | None = None,
        device: str | None = None,
        precision: Precision = "auto",
        part_frames: int = PART_FRAMES,
        overlap: int = OVERLAP,
    ) -> None:
        """Build the predictor; nothing is downloaded.

        Args:
            checkpoint: `sam3.pt`.
            bpe_path: The vocabulary, `bpe_simple_vocab_16e6.txt.gz`.
            gpus_to_use: See `OfficialPredictor`.
            code: A clone of Meta's repository; by default the installed package.
            device: See `OfficialPredictor`.
            precision: See `OfficialPredictor`.
            part_frames: How many frames are on the GPU at once.
            overlap: How many of them neighbouring parts share.

        Raises:
            CheckpointError: The file cannot be used, or `code` is no clone.
            DeviceError: A GPU is not on this machine, or there is none at all and `device` is not "cpu".
            MissingPackageError: The package cannot be imported, or is of another version.
            SettingError: The overlap is not smaller than a part, or the predictor cannot run as asked.
        """
        if not 1 <= overlap < part_frames:
            raise SettingError(f"Expected 1 <= overlap < part_frames, received {overlap} and {part_frames}")
        self._part_frames, self._overlap = part_frames, overlap
        self.predictor = OfficialPredictor(
            checkpoint, bpe_path, gpus_to_use, code=code, device=device, precision=precision
        )
        self._session: OfficialTrackingSession | None = None

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        *,
        bpe_path: str | Path | None = None,
        gpus_to_use: Sequence[int] | None = None,
        device: str | None = None,
        precision: Precision = "auto",
    ) -> Self:
        """With the vocabulary and the clone of Meta's code that lie with a checkpoint; see `load_segmenter`.

        Raises:
            CheckpointError: Something there cannot be used, or there is no vocabulary.
            DeviceError: A GPU is not on this machine, or there is none at all and `device` is not "cpu".
            MissingPackageError: The package cannot be imported, or is of another version.
            SettingError: The predictor cannot run as asked.
        """
        code = find_official_code(checkpoint)
        vocabulary = find_bpe(checkpoint, bpe_path)
        return cls(checkpoint, vocabulary, gpus_to_use, code=code, device=device, precision=precision)

    def open(self, clip: Clip) -> OfficialTrackingSession:
        """Begin with a clip; the one before is closed."""
        if self._session is not None:
            self._session.close()
        self._session = OfficialTrackingSession(self.predictor, clip, self._part_frames, self._overlap)
        return self._session

    def close(self) -> None:
        """Close what is open and give back memory; closing twice is harmless."""
        if self._session is not None:
            self._session.close()
        self._session = None
        self.predictor.close()


class OfficialTrackingSession:
    """A `TrackingSession` on Meta's predictor; see there for what the methods do.

    Scores are Meta's: that of the detection that an object began with, and 1 for objects pointed at. An object pointed
    at shows from the first frame in which it was pointed at, in the direction of tracking; into the next part it is
    carried as the box of its mask. What is refined of a text's object begins with the box of what was shown of it.

    Nothing stays on the GPU between two results: a part is done before its first frame is handed out. The frames that
    it shares with the next part come with that one.
    """

    def __init__(self, predictor: OfficialPredictor, clip: Clip, part_frames: int, overlap: int) -> None:
        self._predictor, self._clip = predictor, clip
        self._part_frames, self._overlap = part_frames, overlap
        self._texts: tuple[str, ...] = ()
        self._closed = False
        self._forget()

    def _forget(self) -> None:
        # Which prompt found each object.
        self._prompt_of: dict[int, int] = {}
        # What a person said of an object in each frame, in the order in which it was said.
        self._pointed: dict[int, dict[int, list[ObjectPrompt]]] = {}
        self._removed: set[int] = set()
        # Run, part, prompt and Meta's id -> id: a run that is repeated gives the same ids.
        self._ids: dict[tuple[object, ...], int] = {}
        # What the text runs said of the frame that the last run began with.
        self._start: list[FrameTracks] = []
        # Ids and boxes of what was shown of each frame.
        self._shown: dict[int, tuple[npt.NDArray[np.int64], _Floats]] = {}

    def set_texts(self, prompts: Sequence[str]) -> None:
        """Look for these text prompts from now on, and forget all that was tracked."""
        self.reset()
        self._texts = tuple(prompts)

    def prompt_object(self, prompt: ObjectPrompt, object_id: int | None = None) -> tuple[int, FrameTracks]:
        """Add an object, or refine one; see `TrackingSession.prompt_object`."""
        self._check_open()
        check_prompt(prompt)
        part = self._single(prompt.frame_index)
        if object_id is None:
            object_id = self._new_id(NO_TEXT)
        self._check_object(object_id)
        said = self._pointed.get(object_id) or self._as_shown(object_id, prompt.frame_index)
        said = {**said, prompt.frame_index: [*said.get(prompt.frame_index, ()), prompt]}
        with loaded(self._predictor, part, self._clip.hw) as runs:
            tracks = runs.object(object_id, said[prompt.frame_index], self._prompt_of[object_id])
        self._pointed[object_id] = said
        return object_id, tracks

    def remove_object(self, object_id: int) -> None:
        """Stop showing an object; see `TrackingSession.remove_object`."""
        self._check_open()
        self._check_object(object_id)
        self._pointed.pop(object_id, None)
        self._removed.add(object_id)

    def reset(self) -> None:
        """Forget prompts and objects; the clip stays open."""
        self._check_open()
        self._texts = ()
        self._forget()

    def propagate(
        self, start_frame: int = 0, max_frames: int | None = None, *, reverse: bool = False
    ) -> Iterator[FrameTracks]:
        """Track from a frame on; see `TrackingSession.propagate`.

        Raises:
            OutOfMemoryError: A part does not fit the GPU.
            SettingError: There is no such frame.
        """
        self._check_open()
        count = self._clip.num_frames
        if start_frame < 0 or (count is not None and start_frame >= count):
            raise SettingError(f"Expected start_frame within the clip's {count} frames, received {start_frame}")
        if max_frames is not None and max_frames < 1:
            raise SettingError(f"Expected max_frames of at least 1, received {max_frames}")
        return self._propagate(start_frame, max_frames, reverse)

    def close(self) -> None:
        """Nothing is held but what was asked; closing twice is harmless."""
        self._closed = True
        self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Runs.

    def _propagate(self, start: int, max_frames: int | None, reverse: bool) -> Iterator[FrameTracks]:
        texts: list[FrameTracks] = []
        objects: list[FrameTracks] = []
        waiting: list[tuple[FrameTracks, FrameTracks]] = []
        sure: set[int] = set()
        frames = self._frames(start, max_frames, reverse)
        for number, part in enumerate(parts_of(frames, self._part_frames, self._overlap)):
            self._check_open()
            carried = boxes_by_object(objects[-part.shared :] if part.shared else [])
            with loaded(self._predictor, part, self._clip.hw) as runs:
                texts, again = self._run_texts(runs, part, (start, reverse, number), texts[-self._overlap :])
                objects = runs.objects(self._pointed, carried, self._prompt_of)
            for pair in waiting:
                yield from self._show(*pair, start, reverse, sure | again)
            # What begins in the last frames may be taken back: Meta's code shows it only because the part ends there.
            sure = {int(one) for tracks in texts[: -self._overlap] for one in tracks.object_ids}
            rows = list(zip(texts, objects, strict=True))[part.shared :]
            waiting = rows[-self._overlap :]
            for pair in rows[: -self._overlap]:
                yield from self._show(*pair, start, reverse)
        for pair in waiting:
            yield from self._show(*pair, start, reverse)

    def _show(
        self, texts: FrameTracks, objects: FrameTracks, start: int, reverse: bool, sure: set[int] | None = None
    ) -> Iterator[FrameTracks]:
        if _reached(texts.frame_index, start, reverse):
            kept = texts if sure is None else texts.select(np.isin(texts.object_ids, list(sure)))
            tracks = self._visible(kept, objects, reverse)
            self._shown[tracks.frame_index] = tracks.object_ids, tight_xyxy(tracks.masks)
            yield tracks

    def _frames(self, start: int, max_frames: int | None, reverse: bool) -> Iterator[Frame]:
        """From the start, or from where an object was pointed at before it."""
        pointed = [frame for prompts in self._pointed.values() for frame in prompts]
        if reverse:
            stop = 0 if max_frames is None else max(0, start + 1 - max_frames)
            return self._clip.frames(stop, max([start, *pointed]) + 1, backward=True)
        return self._clip.frames(min([start, *pointed]), None if max_frames is None else start + max_frames)

    def _run_texts(
        self, runs: PartRuns, part: Part, run: tuple[int, bool, int], before: Sequence[FrameTracks]
    ) -> tuple[list[FrameTracks], set[int]]:
        """What the text prompts find in each frame of a part, under this session's ids, and what they found again."""
        start, reverse, _ = run
        places = [place for place, index in enumerate(part.indices) if _reached(index, start, reverse)]
        begins = bool(places) and places[0] >= part.shared
        found, again = [], set[int]()
        for prompt, text in enumerate(self._texts if places else ()):
            tracks = runs.text(places[0], text, prompt)
            ids = match_ids(self._start if begins else before, tracks)
            again.update(ids.values())
            for official in sorted({int(one) for frame in tracks for one in frame.object_ids} - ids.keys()):
                key = (*run, prompt, official)
                if key not in self._ids:
                    self._ids[key] = self._new_id(prompt)
                ids[official] = self._ids[key]
            found.append([rename(frame, ids) for frame in tracks])
        empty = [FrameTracks.empty(index, self._clip.hw) for index in part.indices]
        merged = [merge_tracks(frames) for frames in zip(*(found or [empty]), strict=True)]
        if begins:
            self._start = [merged[places[0]]]
        return merged, again

    def _visible(self, texts: FrameTracks, objects: FrameTracks, reverse: bool) -> FrameTracks:
        """Without what was removed, and without texts' tracks of objects that have been pointed at."""
        taken = [
            object_id
            for object_id, prompts in self._pointed.items()
            if _reached(texts.frame_index, (max if reverse else min)(prompts), reverse)
        ]
        shown = texts.select(~np.isin(texts.object_ids, taken))
        merged = merge_tracks([shown, objects])
        return merged.select(~np.isin(merged.object_ids, list(self._removed)))

    def _as_shown(self, object_id: int, frame_index: int) -> dict[int, list[ObjectPrompt]]:
        ids, boxes = self._shown.get(frame_index, (np.zeros(0, np.int64), np.zeros((0, 4), np.float32)))
        return {frame_index: [box_prompt(frame_index, box) for box in boxes[ids == object_id]]}

    def _single(self, frame_index: int) -> Part:
        frames = self._clip.frames(frame_index, frame_index + 1) if frame_index >= 0 else iter(())
        for part in parts_of(frames, 1, 1):
            return part
        raise SettingError(f"{self._clip.name} has no frame {frame_index} that can be read")

    def _new_id(self, prompt: int) -> int:
        object_id = len(self._prompt_of)
        self._prompt_of[object_id] = prompt
        return object_id

    def _check_object(self, object_id: int) -> None:
        if object_id not in self._prompt_of or object_id in self._removed:
            raise SettingError(f"{self._clip.name} has no object {object_id}")

    def _check_open(self) -> None:
        if self._closed:
            raise SettingError(f"Expected an open session, received a closed one of {self._clip.name}. Open it again.")


def _reached(index: int, start: int, reverse: bool) -> bool:
    return index <= start if reverse else index >= start
