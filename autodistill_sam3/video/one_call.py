"""A clip in, one tensor of masks out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from autodistill_sam3.devices import Precision, precision_name, select_device
from autodistill_sam3.errors import SettingError
from autodistill_sam3.labeling.versions import installed_versions
from autodistill_sam3.ontology import PromptPairs
from autodistill_sam3.segmentation import DEFAULT_BACKEND, segmenter_identity
from autodistill_sam3.thresholds import Thresholds
from autodistill_sam3.video.clip import Clip
from autodistill_sam3.video.mask_cache import MaskCache, Masks
from autodistill_sam3.video.prompts import Coordinates, read_prompt
from autodistill_sam3.video.sam3_video import SAM3Video
from autodistill_sam3.video.sources import ClipInput, open_clip
from autodistill_sam3.weights import SAM3, find_checkpoint, sha256_of

if TYPE_CHECKING:
    import supervision as sv
    import torch

OnEmptyMask = Literal["zeros", "retry"]

# Another one of these may give other masks.
_DECIDING_PACKAGES = ("autodistill-grounded-sam3", "torch", "transformers", "av")


def video_masks(
    video_path: ClipInput,
    text: str | Sequence[str] | None = None,
    *,
    points: Sequence[Sequence[float]] | None = None,
    labels: Sequence[int] | None = None,
    box: Sequence[float] | None = None,
    frame: int = 0,
    coordinates: Coordinates = "auto",
    start_frame: int | None = None,
    max_frames: int | None = None,
    on_empty: OnEmptyMask = "zeros",
    confidence: float = Thresholds.confidence,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    precision: Precision = "auto",
    cache: str | Path | None = None,
) -> torch.Tensor:
    """Where in a clip something is: what a text names, or one object that is pointed at.

    The model is loaded for the call. For more than one clip, or to tell instances apart, use :class:`SAM3Video`.

    Args:
        video_path: A video file, a folder of frames or a list of images; see `open_clip`.
        text: What to look for, or a list of that.
        points: In place of a text, (P, 2), x and y of points on an object or beside it.
        labels: (P,): 1 for a point on the object, 0 for one beside it; all are on it without.
        box: In place of a text or with points, x1, y1, x2, y2 around the object.
        frame: Where points and box are.
        coordinates: Of points and box, "relative", "absolute" or "auto"; see `SAM3Video`.
        start_frame: From which frame on; by default from the first, and from `frame` both ways for points and box.
        max_frames: How many frames at most, in each direction.
        on_empty: Frames in which nothing is found: "zeros" leaves them empty, "retry" looks once more, at half the
            threshold. None is ever left out; `SAM3Video.track` does that.
        confidence: What a detection of a text must reach.
        checkpoint: See `SAM3Video`; "shapes" for the small bundled one.
        device: Such as "cuda:1"; by default the best one there is.
        precision: "auto", "bf16", "fp16" or "fp32".
        cache: A folder in which results are kept, by the contents of clip and checkpoint and by all settings, so that
            the same question is answered without the model.

    Returns:
        (num_frames, H, W) ``bool`` on the CPU, the union of all instances in each frame. Frames that cannot be read, or
        were not asked for, are all false.

    Raises:
        VideoError: The clip cannot be read.
        SettingError: There is neither a text nor a place, or both; a value is out of its range; the clip is a stream.
        CheckpointNotFoundError, CheckpointError, DeviceError

    Example:
        >>> frames = [np.full((48, 64, 3), 127, np.uint8)] * 2
        >>> video_masks(frames, "red circle", checkpoint="shapes", device="cpu").shape
        torch.Size([2, 48, 64])
    """
    import torch

    places = {"points": points, "labels": labels, "box": box, "coordinates": coordinates}
    question = _Question(text, frame, places, start_frame, max_frames, on_empty, confidence)
    with open_clip(video_path) as clip:
        shape = question.check(clip)
        settings = {} if cache is None else question.settings(clip) | {"clip": _content(clip, video_path)}
    store = None if cache is None else MaskCache(Path(cache))
    if store is not None:
        settings |= _model_settings(checkpoint, device, precision)
        found = store.load(settings, shape)
        if found is not None:
            return torch.from_numpy(found)
    masks = np.zeros(shape, dtype=np.bool_)
    with SAM3Video(
        question.ontology(),
        checkpoint=checkpoint,
        confidence=confidence,
        on_empty=on_empty,
        device=device,
        precision=precision,
    ) as model:
        question.ask(model, video_path, masks)
    if store is not None:
        store.store(settings, masks)
    return torch.from_numpy(masks)


# The name under which some look for it.
sam3_inference = video_masks


@dataclass(frozen=True)
class _Question:
    """What is asked of a clip; attributes are the arguments of `video_masks`."""

    text: str | Sequence[str] | None
    frame: int
    places: dict[str, Any]
    start_frame: int | None
    max_frames: int | None
    on_empty: str
    confidence: float

    @property
    def texts(self) -> list[str]:
        return [self.text] if isinstance(self.text, str) else list(self.text or ())

    @property
    def is_pointed(self) -> bool:
        return self.places["points"] is not None or self.places["box"] is not None

    def check(self, clip: Clip) -> tuple[int, int, int]:
        """The shape of the answer.

        Raises:
            SettingError: There is none.
        """
        if self.on_empty not in get_args(OnEmptyMask):
            raise SettingError(
                f"Expected on_empty to be one of {get_args(OnEmptyMask)}, received {self.on_empty!r}. The tensor has a "
                "mask for every frame; SAM3Video.track can leave frames out."
            )
        if bool(self.texts) == self.is_pointed:
            raise SettingError(
                f"Expected either a text, or points or a box, received {'both' if self.is_pointed else 'neither'}"
            )
        if clip.num_frames is None:
            raise SettingError("Expected a clip of known length, received a stream. Put its frames into a list.")
        return (clip.num_frames, *clip.hw)

    def ontology(self) -> PromptPairs | None:
        return PromptPairs(tuple((text, text) for text in self.texts)) if self.texts else None

    def ask(self, model: SAM3Video, source: ClipInput, masks: Masks) -> None:
        """Fill in the masks (T, H, W), which are all false."""
        with model.open(source) as session:
            start, direction = self.start_frame, "forward"
            if self.is_pointed:
                session.add_object(self.frame, **self.places)
                if start is None:
                    start, direction = self.frame, "both"
            for index, detections in session.track(start, self.max_frames, direction, compact=True):  # type: ignore[arg-type]  # checked by track
                _unite(masks[index], detections)

    def settings(self, clip: Clip) -> dict[str, Any]:
        """What decides the answer, apart from the clip and the model."""
        pointed = {}
        if self.is_pointed:
            prompt = read_prompt(self.frame, clip.hw, **self.places)
            pointed = {"frame": self.frame, "points": prompt.points_xy.tolist(), "labels": prompt.labels.tolist()}
            pointed["box"] = None if prompt.box_xyxy is None else prompt.box_xyxy.tolist()
        return {
            "text": self.texts,
            **pointed,
            "start_frame": self.start_frame,
            "max_frames": self.max_frames,
            "on_empty": self.on_empty,
            "confidence": self.confidence,
        }


def _unite(mask: npt.NDArray[np.bool_], detections: sv.Detections) -> None:
    found: Any = detections.mask
    for place, (left, top, right, bottom) in enumerate(found.bbox_xyxy.tolist()):
        mask[top : bottom + 1, left : right + 1] |= found.crop(place)


def _content(clip: Clip, source: ClipInput) -> str:
    """Of a video file the bytes, of anything else the pixels."""
    if isinstance(source, (str, Path)) and Path(source).is_file():
        return sha256_of(Path(source))
    digest = hashlib.sha256(f"{clip.num_frames} {clip.hw}".encode())
    for frame in clip.frames():
        digest.update(f"\n{frame.index}\n".encode() + frame.image.tobytes())
    return digest.hexdigest()


def _model_settings(checkpoint: str | Path | None, device: str | None, precision: Precision) -> dict[str, Any]:
    chosen = select_device(device)
    return {
        **segmenter_identity(find_checkpoint(SAM3, checkpoint), DEFAULT_BACKEND, None),
        "device": chosen.type,
        "precision": precision_name(precision, chosen),
        "versions": installed_versions(_DECIDING_PACKAGES),
    }
