"""Tracks of a clip in a file: a line of JSON for each object in each frame.

    {"frame":12,"time":0.48,"id":3,"class":"car","prompt":"red car","source":"text","box":[8.0,6.0,40.0,22.0],
     "score":0.93,"mask":{"size":[72,96],"counts":"..."}}

`time` is in seconds from the clip's first frame, null where frames have no times; `box` is x1, y1, x2, y2 in pixels,
right and bottom edges exclusive; `mask` is COCO's compressed RLE. Lines are ordered by frame, then by id.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import supervision as sv

from autodistill_sam3.errors import LabelingError
from autodistill_sam3.instances import compact_masks, tight_xyxy
from autodistill_sam3.rle import crop_to_rle, rle_to_crop
from autodistill_sam3.whole_files import PART, replacing

_FRAME = re.compile(rb'\{"frame":(\d+),')


class TrackWriter:
    """Writes the tracks of a clip as they come; the file has its name when the `with` block ends without an error.

    Args:
        path: The file.
        image_hw: Height and width of the frames.
    """

    def __init__(self, path: Path, image_hw: tuple[int, int]) -> None:
        self._path, self._hw = path, image_hw
        # Frame, and where its lines begin.
        self._frames, self._starts = array("q"), array("q")
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> TrackWriter:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Readable while it is written, to put frames in their order at the end.
        self._file = self._stack.enter_context(replacing(self._path, "w+b", part=f".{self._path.stem[:50]}{PART}"))
        return self

    def __exit__(self, *error: Any) -> None:
        with self._stack:
            if error[0] is None:
                self._put_in_order()
            else:
                self._stack.__exit__(*error)

    def write(self, frame_index: int, time: float | None, detections: sv.Detections) -> None:
        """Append the objects of a frame, in any order of frames.

        Args:
            frame_index: Which frame.
            time: In seconds.
            detections: With compact masks, `tracker_id`, and what `SAM3Video.track` gives beside it.
        """
        self._frames.append(frame_index)
        self._starts.append(self._file.tell())
        ids = np.zeros(0, np.int64) if detections.tracker_id is None else detections.tracker_id
        for place in np.argsort(ids, kind="stable").tolist():
            line = {"frame": frame_index, "time": None if time is None else round(time, 6)}
            line |= _object(detections, place, self._hw)
            self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def _put_in_order(self) -> None:
        """Frames of falling order come one after another in rising order, a frame in memory at a time."""
        if all(first < second for first, second in itertools.pairwise(self._frames)):
            return
        ends = [*self._starts[1:], self._file.tell()]
        with tempfile.TemporaryFile(dir=self._path.parent) as ordered:
            for _, start, end in sorted(zip(self._frames, self._starts, ends, strict=True)):
                self._file.seek(start)
                ordered.write(self._file.read(end - start))
            ordered.seek(0)
            self._file.seek(0)
            shutil.copyfileobj(ordered, self._file)


class TrackFile:
    """Tracks of a clip, read frame by frame; of the others, no more is kept than where they begin.

    Args:
        path: The file.
        classes: Class names; class ids are indices into them.

    Raises:
        LabelingError: It is missing or damaged.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self._path, self._classes = path, list(classes)
        self._span_of_frame: dict[int, tuple[int, int]] = {}
        try:
            with path.open("rb") as file:
                self._index(file)
        except OSError as error:
            raise LabelingError(f"Expected the tracks of a clip, but they cannot be read: {error}") from error

    def __contains__(self, frame_index: int) -> bool:
        return frame_index in self._span_of_frame

    def __iter__(self) -> Iterator[int]:
        """The frames with objects, in rising order."""
        return iter(self._span_of_frame)

    def __len__(self) -> int:
        """How many frames have objects."""
        return len(self._span_of_frame)

    def lines(self, frame_index: int) -> list[dict[str, Any]]:
        """What the file says of a frame, an object each."""
        start, end = self._span_of_frame.get(frame_index, (0, 0))
        with self._path.open("rb") as file:
            file.seek(start)
            return [json.loads(line) for line in file.read(end - start).splitlines()]

    def detections(self, frame_index: int) -> sv.Detections:
        """The objects of a frame as `SAM3Video.track` gives them, with compact masks."""
        lines = self.lines(frame_index)
        if not lines:
            return _detections([], None, self._classes)
        height, width = lines[0]["mask"]["size"]
        boxes = [(int(x1), int(y1), int(x2 - x1), int(y2 - y1)) for x1, y1, x2, y2 in (one["box"] for one in lines)]
        crops = [(rle_to_crop(one["mask"], box), box[0], box[1]) for one, box in zip(lines, boxes, strict=True)]
        return _detections(lines, compact_masks(crops, (height, width)), self._classes)

    def _index(self, file: IO[bytes]) -> None:
        position = 0
        for number, line in enumerate(file, 1):
            match = _FRAME.match(line)
            if match is None or not line.endswith(b"}\n"):
                raise LabelingError(
                    f"Expected an object of a frame in line {number} of {self._path}, which is damaged. Remove the "
                    "file, and track again."
                )
            frame, end = int(match[1]), position + len(line)
            self._span_of_frame[frame] = self._span_of_frame.get(frame, (position,))[0], end
            position = end


def _object(detections: sv.Detections, place: int, image_hw: tuple[int, int]) -> dict[str, Any]:
    masks: Any = detections.mask
    ids: Any = detections.tracker_id
    scores: Any = detections.confidence
    x, y = masks.offsets[place]
    return {
        "id": int(ids[place]),
        "class": str(detections.data["class_name"][place]),
        "prompt": str(detections.data["prompt"][place]),
        "source": str(detections.data["source"][place]),
        "box": [float(value) for value in detections.xyxy[place]],
        "score": round(float(scores[place]), 6),
        "mask": crop_to_rle(masks.crop(place), int(x), int(y), image_hw),
    }


def _detections(lines: Sequence[dict[str, Any]], masks: sv.CompactMask | None, classes: list[str]) -> sv.Detections:
    names = [line["class"] for line in lines]
    return sv.Detections(
        xyxy=np.zeros((0, 4), np.float32) if masks is None else tight_xyxy(masks),
        mask=masks,
        confidence=np.array([line["score"] for line in lines], np.float32),
        class_id=np.array([classes.index(name) for name in names], np.int64),
        tracker_id=np.array([line["id"] for line in lines], np.int64),
        data={
            "class_name": np.array(names, np.str_),
            "prompt": np.array([line["prompt"] for line in lines], np.str_),
            "source": np.array([line["source"] for line in lines], np.str_),
        },
    )
