"""Whatever a clip may be -> a clip that is open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from autodistill_sam3.errors import VideoError
from autodistill_sam3.images import ImageInput
from autodistill_sam3.video.clip import Clip
from autodistill_sam3.video.files import VideoFile
from autodistill_sam3.video.sequences import ImageSequence, ImageStream, frames_in

ClipInput: TypeAlias = "str | Path | Sequence[ImageInput] | Iterable[ImageInput] | npt.NDArray[Any]"

_EXPECTED = "Expected a video file, a folder of frames, a list of images or an iterator of them"


def open_clip(source: ClipInput) -> Clip:
    """Open a clip; close it, or use it in a `with` block.

    Args:
        source: A video file (``str`` or ``Path``: MP4, MOV, MKV, WebM and what else FFmpeg reads from one local file);
            a folder of images, which are taken in natural order (frame2 before frame10); a list of images, each a
            path, a PIL image or a BGR array, or one array (T, H, W, 3) of them; or an iterator of images, which is
            read frame by frame as they are asked for, forward only, and closed with the clip.

    Returns:
        The clip, with the size of its first frame that can be read.

    Raises:
        VideoError: It is missing, no clip, or has no frame that can be read.

    Example:
        >>> red_in_bgr = np.zeros((4, 6, 3), np.uint8)
        >>> red_in_bgr[..., 2] = 255
        >>> with open_clip([red_in_bgr, red_in_bgr]) as clip:
        ...     clip.num_frames, clip.hw, [frame.image[0, 0].tolist() for frame in clip.frames()]
        (2, (4, 6), [[255, 0, 0], [255, 0, 0]])
    """
    if isinstance(source, (str, Path)):
        return _from_path(source)
    if isinstance(source, np.ndarray):
        if source.ndim != 4:
            raise VideoError(f"{_EXPECTED}, received one array of shape {source.shape}. Put images into a list.")
        return ImageSequence(list(source))
    if isinstance(source, Sequence) and not isinstance(source, (bytes, bytearray, memoryview)):
        return ImageSequence(source)
    if isinstance(source, Iterator) or (
        isinstance(source, Iterable) and not isinstance(source, (Mapping, Sequence, set, frozenset))
    ):
        return ImageStream(iter(source))
    raise VideoError(f"{_EXPECTED}, received {type(source).__name__}. Pass a path, or images in a list.")


def _from_path(source: str | Path) -> Clip:
    if isinstance(source, str) and "://" in source:
        raise VideoError(f"{_EXPECTED}, received a URL: {source}. Download it first.")
    path = Path(source)
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        raise VideoError(f"{_EXPECTED}, received a path that cannot be used: {error}") from error
    if not is_there:
        raise VideoError(f"{_EXPECTED}, received a path that does not exist: {path}. Check how it is written.")
    if is_folder:
        return ImageSequence(frames_in(path), path.resolve().name or "clip")
    return VideoFile(path)
