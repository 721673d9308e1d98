"""A video file opened for reading, and what its packets say of its frames before any of them is decoded."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autodistill_sam3.errors import VideoError

if TYPE_CHECKING:
    from av.codec import CodecContext
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

logger = logging.getLogger("autodistill_sam3")

# Containers of video alone. FFmpeg reads playlists, too, which name other files and hosts, and text as a picture of it.
_FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf,ivf,nut,gif,h264,hevc,m4v,yuv4mpegpipe"
# Formats whose times are those of decoding, which differ where frames build on later ones.
_UNORDERED = ("avi", "h264", "hevc", "m4v")
_EXPECTED = "Expected a video file such as MP4, MOV, MKV or WebM"


@dataclass(frozen=True, eq=False)
class PacketIndex:
    """The packets of a stream, P of them in the order of decoding, which show N frames.

    Attributes:
        pts: (P,) ``int64``, when each is shown, in units of the stream's time base.
        is_key: (P,) ``bool``, whether decoding can begin there.
        packet_of: (N,) ``int64``, each frame's packet, in the order of presentation.
        frame_of: (P,) ``int64``, each packet's frame, -1 where an edit list leaves it out.
        number_at: The number of the key packet with this position in the file and this time.
        is_ordered: Whether times are those of presentation; else frames come as the decoder puts them out.
    """

    pts: npt.NDArray[np.int64]
    is_key: npt.NDArray[np.bool_]
    packet_of: npt.NDArray[np.int64]
    frame_of: npt.NDArray[np.int64]
    number_at: dict[tuple[int | None, int | None], int]
    is_ordered: bool

    @cached_property
    def _keys(self) -> list[int]:
        return [int(number) for number in np.flatnonzero(self.is_key)]

    def start_of(self, frame: int) -> int:
        """The packet to begin with: the last key packet that is neither decoded nor shown after the frame.

        Frames between a key frame and those before it may need both.
        """
        number = int(self.packet_of[frame])
        at = bisect.bisect_right(self._keys, number) - 1
        while at >= 0 and self.pts[self._keys[at]] > self.pts[number]:
            at -= 1
        return self._keys[at] if at >= 0 and self.is_ordered else 0

    def forget_key(self, number: int) -> None:
        """Never begin with this packet again."""
        self._keys.remove(number)


class PacketFile:
    """One stream of packets out of an open file, from any key packet on.

    Args:
        file: Open for reading in binary; closed with this.

    Raises:
        VideoError: It is no video.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._open()
        try:
            self.index = self._indexed()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the container and the file; twice is harmless."""
        self._container.close()
        self._file.close()

    def packets_from(self, number: int) -> Iterator[tuple[int, Packet[VideoStream]]]:
        """Packets with their numbers, from this key packet or one before it on, and a decoder that starts anew."""
        from av import FFmpegError

        for is_sought in (True, False):
            try:
                if is_sought:
                    self._container.seek(int(self.index.pts[number]), stream=self.stream)
                else:
                    self._reopen()
                packets = self._numbered(is_sought)
                first = next(packets, None)
            except FFmpegError:
                continue
            if first is not None and first[0] <= number:
                yield first
                yield from packets
                return

    def _numbered(self, is_sought: bool) -> Iterator[tuple[int, Packet[VideoStream]]]:
        number = -1 if is_sought else 0
        for packet in self._demuxed():
            if number < 0:
                number = self.index.number_at.get((packet.pos, packet.pts), -1)
            if number >= 0:
                yield number, packet
                number += 1
            if number == len(self.index.pts):
                return

    def _demuxed(self) -> Iterator[Packet[VideoStream]]:
        """Packets with content, up to where the file ends or cannot be read any further."""
        from av import FFmpegError

        try:
            yield from (packet for packet in self._container.demux(self.stream) if packet.size)
        except FFmpegError as error:
            logger.debug("Reading packets ended early: %s", error)

    def _open(self) -> None:
        import av

        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
        try:
            self._container: InputContainer = av.open(self._file, "r", options=options, metadata_errors="replace")
        except (av.FFmpegError, OSError) as error:
            self._file.close()
            raise VideoError(
                f"{_EXPECTED}, received one that cannot be opened: {error.strerror or error}. "
                "If it plays elsewhere, convert it first."
            ) from error
        pictures = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
        streams = [stream for stream in self._container.streams.video if not stream.disposition & pictures]
        if not streams:
            kinds = " and ".join(sorted({stream.type for stream in self._container.streams})) or "nothing"
            self.close()
            raise VideoError(
                f"{_EXPECTED}, received one that holds {kinds}. Pass the file that has the moving pictures."
            )
        self.stream: VideoStream = streams[0]
        decoder: CodecContext | None = self.stream.codec_context
        if decoder is None:
            self.close()
            raise VideoError(
                f"{_EXPECTED}, received one in a code that FFmpeg cannot decode here. Convert it to H.264."
            )

    def _reopen(self) -> None:
        self._container.close()
        self._file.seek(0)
        self._open()

    def _indexed(self) -> PacketIndex:
        times: list[int] = []
        is_key, is_shown = [], []
        number_at: dict[tuple[int | None, int | None], int] = {}
        is_ordered = self._container.format.name not in _UNORDERED or not self.stream.codec_context.has_b_frames
        for number, packet in enumerate(self._demuxed()):
            is_ordered &= packet.pts is not None
            time = packet.dts if packet.pts is None else packet.pts
            times.append(time if time is not None else times[-1] + 1 if times else 0)
            is_key.append(packet.is_keyframe)
            is_shown.append(not packet.is_discard)
            if packet.is_keyframe:
                number_at.setdefault((packet.pos, packet.pts), number)
        if len(times) < self.stream.frames:
            logger.warning(
                "%s is cut short: it has %d of the %d frames that it announces.", self._container.name, len(times),
                self.stream.frames,
            )  # fmt: skip
        pts = np.array(times, np.int64)
        shown = np.flatnonzero(is_shown)
        packet_of = shown[np.argsort(pts[shown], kind="stable")]
        frame_of = np.full(len(pts), -1, np.int64)
        frame_of[packet_of] = np.arange(len(packet_of))
        return PacketIndex(pts, np.array(is_key, np.bool_), packet_of, frame_of, number_at, is_ordered)
