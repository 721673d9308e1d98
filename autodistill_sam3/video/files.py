"""Video files: every frame at its place, decoded when it is asked for.

PyAV does the decoding. Packets are counted before anything is decoded, so the number of frames is exact, and a frame
that cannot be decoded leaves the places of all others as they are.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from autodistill_sam3.errors import VideoError
from autodistill_sam3.images import RGBImage
from autodistill_sam3.video.clip import Frame
from autodistill_sam3.video.opened import OpenedClip
from autodistill_sam3.video.packets import PacketFile

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# What going backward holds: decoded frames as they are stored, 90 of 1280 x 720 in 4:2:0.
HELD_BYTES = 128 * 2**20

_NO_PICTURE = "the decoder made no picture of it"
_NO_KEY = "the key frame that it builds on cannot be decoded"
_DAMAGED = "its picture is damaged"


class VideoFile(OpenedClip):
    """A video file.

    Its first video stream that is no cover picture. Frames stand upright as the file's display matrix says, if that
    turns by quarters or mirrors. Pixels stay as they are stored where they are not square, interlaced lines where they
    are, alpha is ignored, and high dynamic range is cut to 8 bits without tone mapping. Frames of another size than the
    first are scaled to it, as players do.

    Args:
        path: A local file.

    Raises:
        VideoError: It cannot be read, is no video, or has no frame that can be decoded.
    """

    def __init__(self, path: Path) -> None:
        from av.video.reformatter import VideoReformatter

        super().__init__(path.stem)
        try:
            if not path.is_file():
                raise VideoError(f"Expected a video file, received a pipe, socket or device: {path}. Save it first.")
            self._packets = PacketFile(path.open("rb"))
        except OSError as error:
            raise VideoError(f"Expected a video file, but it cannot be read: {error}") from error
        except VideoError as error:
            raise VideoError(f"{error} ({path})") from error
        self._decoder = _Decoder(self._packets)
        # One for all frames: it prepares itself for a kind of picture in five times the time that one takes.
        self._reformatter = VideoReformatter()
        self._matrix: npt.NDArray[np.int32] | None = None
        self._shown_at = self._packets.index.pts[self._packets.index.packet_of]
        self.num_frames = len(self._shown_at)
        self.frame_rate = self._mean_rate()
        try:
            self._find_size(path)
        except BaseException:
            self.close()
            raise

    def time_of(self, index: int) -> float | None:
        """Seconds from the first frame to this one."""
        time_base = self._packets.stream.time_base
        return float((self._shown_at[index] - self._shown_at[0]) * time_base) if time_base else None

    def close(self) -> None:
        """Close the decoder and the file; twice is harmless."""
        super().close()
        self._decoder.close()
        self._packets.close()

    def _mean_rate(self) -> float | None:
        stream = self._packets.stream
        if len(self._shown_at) > 1 and stream.time_base and self._shown_at[-1] > self._shown_at[0]:
            seconds = float((self._shown_at[-1] - self._shown_at[0]) * stream.time_base)
            return (len(self._shown_at) - 1) / seconds
        return float(stream.average_rate) if stream.average_rate else None

    def _find_size(self, path: Path) -> None:
        for index in range(len(self._shown_at)):
            picture = self._picture(index)
            if picture is not None:
                self._matrix = _display_matrix(picture)
                height, width = _upright(self._rgb(picture), self._matrix).shape[:2]
                self.hw = height, width
                return
        what = f"{len(self._shown_at)}, none of which can be decoded" if len(self._shown_at) else "none"
        first = f" The first: {self.skipped[0].reason}." if self.skipped else ""
        raise VideoError(f"Expected a video with frames, received {what}: {path}.{first} Export it again.")

    def _forward(self, start: int, stop: int | None) -> Iterator[Frame]:
        for index in range(*self._range(start, stop)):
            picture = self._picture(index)
            if picture is not None:
                yield self._frame(index, picture)

    def _backward(self, start: int, stop: int | None) -> Iterator[Frame]:
        start, stop = self._range(start, stop)
        while stop > start:
            first = self._chunk_before(stop, start)
            held = [self._picture(index) for index in range(first, stop)]
            while held:
                stop -= 1
                picture = held.pop()
                if picture is not None:
                    yield self._frame(stop, picture)

    def _chunk_before(self, stop: int, start: int) -> int:
        """Where to begin, so that what comes before `stop` can be held; at a key frame if there is one."""
        start = max(start, stop - self._num_held())
        index = self._packets.index
        keys = (frame for frame in range(start, stop) if index.is_key[index.packet_of[frame]])
        return next(keys, start)

    def _num_held(self) -> int:
        bits = self._packets.stream.codec_context.format
        per_pixel = bits.bits_per_pixel if bits is not None else 24
        return max(HELD_BYTES * 8 // (self.hw[0] * self.hw[1] * max(per_pixel, 8)), 1)

    def _picture(self, index: int) -> VideoFrame | None:
        if self._is_closed:
            raise VideoError(f"Expected an open clip, but {self.name!r} was closed while it was read. Open it again.")
        picture = self._decoder.picture(index)
        if isinstance(picture, str):
            self._skip(index, picture)
            return None
        return picture

    def _frame(self, index: int, picture: VideoFrame) -> Frame:
        pixels = _upright(self._rgb(picture), self._matrix)
        if pixels.shape[:2] != self.hw:
            pixels = np.asarray(cv2.resize(pixels, self.hw[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
        return Frame(index, pixels, self.time_of(index))

    def _rgb(self, picture: VideoFrame) -> RGBImage:
        """Colours by the matrix and range that the stream names, as FFmpeg converts them."""
        converted = self._reformatter.reformat(picture, format="rgb24", interpolation="BICUBIC")
        # A copy: what is RGB already comes back as the decoder's own memory, which later frames may build on.
        return np.array(converted.to_ndarray(), np.uint8, order="C")


class _Decoder:
    """Pictures by their index; those that follow one another are decoded in one go."""

    def __init__(self, packets: PacketFile) -> None:
        self._packets = packets
        self._index = packets.index
        self._next = 0
        self._running: Iterator[VideoFrame | str] = iter(())
        self._is_running = False
        self._entrances: set[int] = set()

    def close(self) -> None:
        self._running, self._is_running = iter(()), False

    def picture(self, index: int) -> VideoFrame | str:
        """The picture of a frame, or why there is none."""
        if not self._is_running or not self._is_nearer_than_a_key_frame(index):
            self.close()
            self._running, self._is_running, self._next = self._pictures_from(index), True, index
        while True:
            picture = next(self._running, _NO_PICTURE)
            self._next += 1
            if self._next > index:
                return picture

    def _is_nearer_than_a_key_frame(self, index: int) -> bool:
        return self._next == index or (
            self._next < index and self._index.start_of(index) <= self._index.packet_of[self._next]
        )

    def _pictures_from(self, first: int) -> Iterator[VideoFrame | str]:
        """Every frame's picture from the first on, in their order; a reason in place of those that are missing."""
        start, reasons, expected = self._index.start_of(first), dict[int, str](), first
        while start and not self._is_entrance(start):
            self._index.forget_key(start)
            start = self._index.start_of(first)
        for index, picture in self._decoded(start, reasons):
            if index < expected:
                continue
            for missing in range(expected, index):
                yield reasons.pop(missing, _NO_PICTURE)
            yield _DAMAGED if picture.is_corrupt else picture
            expected = index + 1
        for missing in range(expected, len(self._index.packet_of)):
            yield reasons.pop(missing, _NO_PICTURE)

    def _is_entrance(self, start: int) -> bool:
        """Whether a key packet gives a picture by itself, as none does where pictures are refreshed bit by bit."""
        if start not in self._entrances:
            key, reasons = int(self._index.frame_of[start]), dict[int, str]()
            arrived = next((index for index, _ in self._decoded(start, reasons) if index >= key), None)
            if key >= 0 and key not in reasons and arrived != key:
                return False
            self._entrances.add(start)
        return True

    def _decoded(self, start: int, reasons: dict[int, str]) -> Iterator[tuple[int, VideoFrame]]:
        """Pictures as the decoder puts them out, each with its frame's index."""
        from av import FFmpegError

        waits_for_key = False
        in_decoder: list[int] = []
        for number, packet in self._packets.packets_from(start):
            frame, is_key = int(self._index.frame_of[number]), bool(self._index.is_key[number])
            if number < start:
                continue
            waits_for_key &= not is_key
            if waits_for_key:
                reasons[frame] = _NO_KEY
                continue
            # A decoder hands a packet's time on to its picture, and so tells which packet a picture is of.
            packet.pts = packet.dts = number
            try:
                pictures = self._packets.stream.codec_context.decode(packet)
            except FFmpegError as error:
                reasons[frame] = f"it cannot be decoded: {error.strerror or error}"
                # Whoever begins here has nothing to go on with; whoever came from before would draw on an old scene.
                waits_for_key = is_key
                continue
            if frame >= 0 and not self._index.is_ordered:
                heapq.heappush(in_decoder, frame)
            yield from self._placed(pictures, in_decoder)
        yield from self._placed(self._flushed(), in_decoder)

    def _flushed(self) -> list[VideoFrame]:
        from av import FFmpegError

        try:
            return self._packets.stream.codec_context.decode(None)
        except FFmpegError:
            return []

    def _placed(self, pictures: list[VideoFrame], in_decoder: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        for picture in pictures:
            if in_decoder:
                yield heapq.heappop(in_decoder), picture
            elif picture.pts is not None and 0 <= picture.pts < len(self._index.frame_of):
                frame = int(self._index.frame_of[picture.pts])
                if frame >= 0:
                    yield frame, picture


def _upright(pixels: RGBImage, matrix: npt.NDArray[np.int32] | None) -> RGBImage:
    """Turned and mirrored by a display matrix, where that maps pixels to pixels; C-contiguous."""
    if matrix is None:
        return pixels
    (a, b), (c, d) = matrix
    if b == c == 0 and a and d:
        along_x, along_y = a, d
    elif a == d == 0 and b and c:
        pixels, along_x, along_y = pixels.swapaxes(0, 1), c, b
    else:
        return pixels
    return np.ascontiguousarray(pixels[:: 1 if along_y > 0 else -1, :: 1 if along_x > 0 else -1])


def _display_matrix(picture: VideoFrame) -> npt.NDArray[np.int32] | None:
    """What x and y of a stored picture become, (2, 2) in FFmpeg's fixed point; None if they stay.

    For one picture of a clip only: PyAV ties a picture that was asked for this to itself, so that it is kept until the
    garbage collector comes by.
    """
    all_data: Any = picture.side_data
    data = all_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2]
