"""RGB frames -> an MP4 that browsers play."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from autodistill_sam3.errors import SettingError
from autodistill_sam3.images import RGBImage
from autodistill_sam3.whole_files import PART, replacing

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

FRAME_RATE = 25.0

_TICKS_PER_SECOND = 90_000
# Of FFmpeg: BT.709 for matrix, primaries and transfer, and luma in 16..235, which players expect without being told.
_BT709, _LIMITED_RANGE = 1, 1
# Outlines of one pixel stay sharp. On its own, x264 takes code for AVX-512 that reads memory which nobody has written:
# the same frames would give other bytes.
_X264 = {"preset": "veryfast", "crf": "18", "x264-params": "cpu-independent=1"}


class VideoWriter:
    """Write frames into an MP4, H.264 where FFmpeg has an encoder of it and MPEG-4 elsewhere.

    The file has its name when the `with` block ends; if that ends with an error, there is no file, or the one there was
    before. A last row or column is repeated where height or width are odd, which 4:2:0 cannot store.

    Args:
        path: The file; missing folders are made.
        frame_rate: Frames per second, for those written without a time.
        hw: Height and width in pixels.

    Raises:
        SettingError: A rate or size is not above zero, or no frame was written.

    Example:
        >>> import tempfile
        >>> from autodistill_sam3.video.sources import open_clip
        >>> path = Path(tempfile.mkdtemp()) / "gray.mp4"
        >>> with VideoWriter(path, 25, (48, 64)) as writer:
        ...     for _ in range(3):
        ...         writer.write(np.full((48, 64, 3), 128, np.uint8))
        >>> with open_clip(path) as clip:
        ...     clip.num_frames, clip.hw, clip.frame_rate
        (3, (48, 64), 25.0)
    """

    def __init__(self, path: Path, frame_rate: float | None, hw: tuple[int, int]) -> None:
        frame_rate = FRAME_RATE if frame_rate is None else frame_rate
        if not 0 < frame_rate < _TICKS_PER_SECOND or min(hw) < 1:
            raise SettingError(
                f"Expected a frame rate from 0 to {_TICKS_PER_SECOND} and a size above zero, received {frame_rate} and "
                f"{hw[1]} x {hw[0]}."
            )
        self._path, self._rate, self._hw = path, frame_rate, hw
        self._stack = contextlib.ExitStack()
        self._last = -1
        self._next = 0.0

    def __enter__(self) -> Self:
        import av

        self._path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            # Several files of one folder may be written at a time, and their names may be as long as allowed.
            file = stack.enter_context(replacing(self._path, "wb", part=f".{self._path.stem[:50]}{PART}"))
            self._container = stack.enter_context(av.open(file, "w", format="mp4"))
            codec = _encoder()
            self._stream = self._container.add_stream(codec, options=_X264 if codec == "libx264" else {})
            self._set_up()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._stack:
            if self._last < 0:
                raise SettingError(f"Expected at least one frame for {self._path}, received none. Check the range.")
            self._container.mux(self._stream.encode())

    def write(self, image: RGBImage, time: float | None = None) -> None:
        """Append a frame.

        Args:
            image: (H, W, 3) RGB ``uint8`` of the video's size.
            time: Seconds from the video's start; one frame's length after the last if not given.

        Raises:
            SettingError: It is of another size or type, or not later than the last.
        """
        if image.shape != (*self._hw, 3) or image.dtype != np.uint8:
            raise SettingError(
                f"Expected a frame of shape {(*self._hw, 3)}, uint8, received {image.shape}, {image.dtype}."
            )
        time = self._next if time is None else time
        ticks = round(time * _TICKS_PER_SECOND)
        if ticks <= self._last:
            raise SettingError(f"Expected times that rise, received {time} s after {self._last / _TICKS_PER_SECOND} s.")
        self._last, self._next = ticks, time + 1 / self._rate
        frame = self._encodable(image)
        frame.pts, frame.time_base = ticks, Fraction(1, _TICKS_PER_SECOND)
        self._container.mux(self._stream.encode(frame))

    def _set_up(self) -> None:
        height, width = self._hw
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.framerate = Fraction(self._rate).limit_denominator(1001)
        context.time_base = Fraction(1, _TICKS_PER_SECOND)
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE

    def _encodable(self, image: RGBImage) -> VideoFrame:
        from av.video.frame import VideoFrame

        height, width = self._hw
        padded = (
            np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge") if height % 2 or width % 2 else image
        )
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
        return frame.reformat(
            format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE, interpolation="BICUBIC"
        )


def _encoder() -> Literal["libx264", "mpeg4"]:
    import av

    try:
        av.Codec("libx264", "w")
    except ValueError:
        return "mpeg4"
    return "libx264"
