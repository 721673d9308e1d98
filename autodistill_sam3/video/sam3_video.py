"""SAM 3 on clips."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import supervision as sv

from autodistill_sam3.devices import Precision, precision_name, select_device
from autodistill_sam3.errors import SettingError
from autodistill_sam3.ontology import Ontology, Prompting, PromptTable
from autodistill_sam3.segmentation import DEFAULT_BACKEND, Backend, check_backend, segmenter_identity
from autodistill_sam3.thresholds import Thresholds
from autodistill_sam3.video.clip_session import ClipSession, Direction, OnEmpty, Presentation
from autodistill_sam3.video.detections import DEFAULT_EVERY
from autodistill_sam3.video.looking import Lookout
from autodistill_sam3.video.prompts import Coordinates
from autodistill_sam3.video.requests import RequestSessions
from autodistill_sam3.video.sources import ClipInput, open_clip
from autodistill_sam3.video.tracks import VideoEngine
from autodistill_sam3.weights import FLORENCE2, SAM3, find_checkpoint, florence2_argument, sha256_of

OverlappingClasses = Literal["best", "keep"]


class SAM3Video:
    """Instances tracked through clips, from text prompts, boxes and points.

    Args:
        ontology: Prompts and classes; None for objects that are pointed at alone.
        checkpoint: `"shapes"` for the small bundled models, a SAM 3 folder or file such as `sam3.pt`, or a models root
            that holds `sam3/` and `florence2/`; by default the places of `autodistill_sam3.weights.find_checkpoint`.
        bpe_path: `bpe_simple_vocab_16e6.txt.gz` or `tokenizer.json`, if it is not with the checkpoint.
        florence2_checkpoint: A Florence-2 folder, if it lies elsewhere.
        backend: "transformers": this package's engine. "sam3": Meta's own predictor, which needs a GPU and runs a clip
            once per prompt.
        gpus_to_use: With "sam3", the GPUs of the predictor, by number.
        prompting: "text": SAM 3 looks for the prompts in every frame. "boxes": Florence-2 proposes boxes in key frames,
            and what they show is tracked. "both": both, an object that both show being one track.
        key_frames: Frames from one to the next in which Florence-2 is asked.
        confidence: For what text found: detections below it are not looked at.
        box_confidence: For what boxes alone found.
        thresholds: By class name, a value that replaces both for that class.
        overlapping_classes: One object that is tracked under two classes: "best" shows the one that was surer in the
            frames so far, all together, "keep" shows both.
        on_empty: Frames without objects: "zeros" gives empty detections, "skip" leaves the frame out, "retry" looks
            once more, at half the threshold.
        coordinates: Of points and boxes. "relative": 0 to 1 of the frame. "absolute": pixels. "auto": relative if every
            value is below 1.
        device: Such as "cuda:1"; by default the best one there is.
        precision: "auto", "bf16", "fp16" or "fp32".

    Raises:
        CheckpointNotFoundError, CheckpointError, DeviceError, OntologyError, SettingError

    Example:
        >>> import numpy as np
        >>> from autodistill_sam3.ontology import PromptPairs
        >>> frames = [np.full((48, 64, 3), 127, np.uint8)] * 2
        >>> with SAM3Video(PromptPairs((("red circle", "ball"),)), checkpoint="shapes", device="cpu") as video:
        ...     [(index, len(detections)) for index, detections in video.track(frames)]
        [(0, 0), (1, 0)]
    """

    def __init__(
        self,
        ontology: Ontology | None = None,
        *,
        checkpoint: str | Path | None = None,
        bpe_path: str | Path | None = None,
        florence2_checkpoint: str | Path | None = None,
        backend: Backend = DEFAULT_BACKEND,
        gpus_to_use: Sequence[int] | None = None,
        prompting: Prompting = "text",
        key_frames: int = DEFAULT_EVERY,
        confidence: float = Thresholds.confidence,
        box_confidence: float = Thresholds.box_confidence,
        thresholds: Mapping[str, float] | None = None,
        overlapping_classes: OverlappingClasses = "best",
        on_empty: OnEmpty = "zeros",
        coordinates: Coordinates = "auto",
        device: str | None = None,
        precision: Precision = "auto",
    ) -> None:
        check_backend(backend)
        for name, value, kind in (
            ("prompting", prompting, Prompting),
            ("overlapping_classes", overlapping_classes, OverlappingClasses),
            ("on_empty", on_empty, OnEmpty),
            ("coordinates", coordinates, Coordinates),
        ):
            if value not in get_args(kind):
                raise SettingError(f"Expected {name} to be one of {get_args(kind)}, received {value!r}")
        if key_frames < 1:
            raise SettingError(f"Expected key_frames of at least 1, received {key_frames}")
        self.table = PromptTable((), (), ()) if ontology is None else PromptTable.from_ontology(ontology)
        self.thresholds = Thresholds(confidence, box_confidence, dict(thresholds or {}))
        self.thresholds.check_classes(self.table.classes)
        self.backend, self.bpe_path, self.prompting, self.key_frames = backend, bpe_path, prompting, key_frames
        self._presentation = Presentation(self.table, on_empty, overlapping_classes == "keep", coordinates)
        self.checkpoint = find_checkpoint(SAM3, checkpoint, official=backend == "sam3")
        self.florence2_checkpoint: Path | None = None
        if prompting != "text":
            self.florence2_checkpoint = find_checkpoint(FLORENCE2, florence2_argument(checkpoint, florence2_checkpoint))
        selected = select_device(device)
        self._computes_in = {"device": selected.type, "precision": precision_name(precision, selected)}
        self._session: ClipSession | None = None
        self._engine: VideoEngine = self._load(device, precision, gpus_to_use)
        self._requests = RequestSessions(self._engine)

    def track(
        self,
        source: ClipInput,
        *,
        start_frame: int | None = None,
        max_frames: int | None = None,
        direction: Direction = "forward",
        compact: bool = False,
    ) -> Iterator[tuple[int, sv.Detections]]:
        """Track the ontology's classes through a clip.

        Args:
            source: A video file, a folder of frames, a list of images or an iterator of them (BGR arrays, paths or PIL
                images); see `open_clip`. An iterator is read frame by frame, and each frame is answered at once: tracks
                that turn out to be mistakes cannot be taken back, as they are otherwise.
            start_frame: By default the first; backward, the last.
            max_frames: At most so many in each direction, the first one included.
            direction: "forward", "backward", or "both": forward to the end, then backward from before `start_frame`.
            compact: Masks as `supervision.CompactMask`.

        Yields:
            Frame index and detections; see `ClipSession.track`.

        Raises:
            VideoError: The source cannot be read as a clip.
            SettingError: A value is out of its range.
        """
        # At once, and not when the first frame is asked for.
        session = self.open(source)
        try:
            found = session.track(start_frame, max_frames, direction, compact=compact)
        except BaseException:
            session.close()
            raise
        return _until_closed(session, found)

    def open(self, source: ClipInput) -> ClipSession:
        """Open a clip to point at objects in it; the session before is closed.

        Raises:
            VideoError: The source cannot be read as a clip.
        """
        self.close_session()
        clip = open_clip(source)
        try:
            session = self._engine.open(clip)
            session.set_texts(self.table.prompts)
        except BaseException:
            clip.close()
            raise
        self._session = ClipSession(clip, session, self._presentation)
        return self._session

    def handle_request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a request as Meta's predictor does: a dictionary in, a dictionary out; see `RequestSessions`.

        Raises:
            SettingError: The request is of an unknown type, lacks keys, or names an unknown session.
            VideoError: The clip of "start_session" cannot be read.
        """
        return self._requests.handle(request)

    def handle_stream_request(self, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Answer "propagate_in_video" as Meta's predictor does, frame by frame; see `RequestSessions`.

        Raises:
            SettingError: As :meth:`handle_request`, before the first frame is asked for.
        """
        return self._requests.stream(request)

    def close_session(self) -> None:
        """Close the clip that is open, if any."""
        if self._session is not None:
            self._session.close()
        self._session = None

    def close(self) -> None:
        """Give back memory; closing twice is harmless. The weights go with the object."""
        self.close_session()
        self._requests.close()
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def identity(self) -> dict[str, Any]:
        """What decides the tracks, as hashes and settings, for caches and runs that go on."""
        hashes = segmenter_identity(self.checkpoint, self.backend, self.bpe_path)
        if self.florence2_checkpoint is not None:
            hashes["florence2_sha256"] = sha256_of(self.florence2_checkpoint)
        return {
            **hashes,
            **self._computes_in,
            "prompts": list(self.table.prompts),
            "classes": [self.table.classes[index] for index in self.table.class_of_prompt],
            "prompting": self.prompting,
            "key_frames": self.key_frames,
            "confidence": self.thresholds.confidence,
            "box_confidence": self.thresholds.box_confidence,
            "thresholds": dict(self.thresholds.per_class),
            "on_empty": self._presentation.on_empty,
            "keep_overlapping": self._presentation.keep_overlapping,
        }

    def _load(self, device: str | None, precision: Precision, gpus_to_use: Sequence[int] | None) -> VideoEngine:
        if self.backend == "sam3":
            return self._load_official(device, gpus_to_use)
        from autodistill_sam3.segmentation.transformers_segmenter import TransformersSegmenter
        from autodistill_sam3.video.engine import TransformersVideoEngine

        if gpus_to_use is not None:
            raise SettingError("Expected gpus_to_use with backend='sam3' alone; here, device='cuda:1' chooses a GPU")
        segmenter = TransformersSegmenter.load(
            self.checkpoint, bpe_path=self.bpe_path, device=device, precision=precision
        )
        return TransformersVideoEngine(segmenter, self._lookout(device, precision))

    def _load_official(self, device: str | None, gpus_to_use: Sequence[int] | None) -> VideoEngine:
        from autodistill_sam3.video.official_engine import OfficialVideoEngine

        if self.prompting != "text":
            raise SettingError(f"Expected prompting='text' with backend='sam3', received {self.prompting!r}")
        return OfficialVideoEngine.load(self.checkpoint, bpe_path=self.bpe_path, gpus_to_use=gpus_to_use, device=device)

    def _lookout(self, device: str | None, precision: Precision) -> Lookout:
        grounder = None
        if self.florence2_checkpoint is not None:
            from autodistill_sam3.grounding.florence2 import Florence2Grounder

            grounder = Florence2Grounder.load(self.florence2_checkpoint, device=device, precision=precision)
        return Lookout(
            self.table,
            self.thresholds,
            use_text=self.prompting != "boxes",
            grounder=grounder,
            key_frames=self.key_frames,
            is_retried=self._presentation.on_empty == "retry",
        )


def _until_closed(
    session: ClipSession, found: Iterator[tuple[int, sv.Detections]]
) -> Iterator[tuple[int, sv.Detections]]:
    """The same, closing the session at the end, whichever it is."""

    def run() -> Iterator[tuple[int, sv.Detections]]:
        with session:
            yield from found

    running = run()
    # A generator that nobody has asked for anything never enters its `with` block.
    weakref.finalize(running, session.close).atexit = False
    return running
