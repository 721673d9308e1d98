"""Clips of single images: folders, lists, and streams that pass by once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from autodistill_sam3.errors import ImageError, SettingError, VideoError
from autodistill_sam3.images import ImageInput, RGBImage, has_image_suffix, load_image
from autodistill_sam3.video.clip import Frame
from autodistill_sam3.video.opened import OpenedClip

UNNAMED = "clip"


class ImageSequence(OpenedClip):
    """Images that can be read again, each when it is asked for.

    Args:
        images: Whatever :func:`autodistill_sam3.images.load_image` reads, in order.
        name: The clip's.

    Raises:
        VideoError: There are no images, or none that can be read.
    """

    def __init__(self, images: Sequence[ImageInput], name: str = UNNAMED) -> None:
        super().__init__(name)
        self._images: Sequence[ImageInput] = images
        self.num_frames = len(images)
        first = next((frame for index in range(len(images)) if (frame := self._read(index))), None)
        if first is None:
            raise _nothing_to_read(self)

    def close(self) -> None:
        """Let go of the images; closing twice is harmless."""
        super().close()
        self._images = ()

    def _forward(self, start: int, stop: int | None) -> Iterator[Frame]:
        return self._each(range(*self._range(start, stop)))

    def _backward(self, start: int, stop: int | None) -> Iterator[Frame]:
        return self._each(reversed(range(*self._range(start, stop))))

    def _each(self, indices: Iterator[int] | range) -> Iterator[Frame]:
        for index in indices:
            if self._is_closed:
                return
            if frame := self._read(index):
                yield frame

    def _read(self, index: int) -> Frame | None:
        return _frame_of(self, index, self._images[index])


class ImageStream(OpenedClip):
    """Images that come one by one. The first is read at once, to know the size, and no other before it is asked for.

    Args:
        images: An iterator; if it is a generator, closing the clip closes it.
        name: The clip's.

    Raises:
        VideoError: It ends without an image that can be read.
    """

    def __init__(self, images: Iterator[ImageInput], name: str = UNNAMED) -> None:
        super().__init__(name)
        self._images = images
        # How many were taken from the iterator, and the last of them while nobody has asked for it.
        self._taken = 0
        self._kept: Frame | None = None
        for image in images:
            self._taken += 1
            self._kept = _frame_of(self, self._taken - 1, image)
            if self._kept:
                return
        raise _nothing_to_read(self)

    def close(self) -> None:
        """Close the generator behind the stream; closing twice is harmless."""
        super().close()
        self._kept = None
        close = getattr(self._images, "close", None)
        self._images = iter(())
        if close is not None:
            close()

    def _forward(self, start: int, stop: int | None) -> Iterator[Frame]:
        self._check_is_ahead(start)
        return self._passing(start, stop)

    def _backward(self, start: int, stop: int | None) -> Iterator[Frame]:
        raise SettingError("Expected forward reading, as the clip is a stream. Pass a list or a file to go backward.")

    @property
    def _here(self) -> int:
        """The next frame that can be had."""
        return self._taken - (self._kept is not None)

    def _check_is_ahead(self, index: int) -> None:
        # What could not be read has gone by without anybody missing it.
        unread = {skipped.index for skipped in self.skipped}
        if any(frame not in unread for frame in range(index, self._here)):
            raise SettingError(
                f"Expected a frame from {self._here} on, as the clip is a stream, received {index}, which has gone by. "
                "Pass a list or a file to read frames again."
            )

    def _passing(self, start: int, stop: int | None) -> Iterator[Frame]:
        index = start
        while stop is None or self._here < stop:
            self._check_is_ahead(index)
            frame, self._kept = self._kept, None
            if frame is None:
                image = next(self._images, None)
                if image is None:
                    return
                self._taken += 1
                frame = _frame_of(self, self._taken - 1, image) if self._taken > start else None
            if frame and frame.index >= start:
                index = frame.index + 1
                yield frame


def frames_in(folder: Path) -> list[Path]:
    """The images of a folder in natural order, hidden files left out.

    Raises:
        VideoError: There are none, or the folder cannot be read.
    """
    try:
        found = [path for path in folder.iterdir() if has_image_suffix(path) and not path.name.startswith(".")]
    except OSError as error:
        raise VideoError(f"Expected a folder of frames, but it cannot be read: {error}") from error
    if not found:
        raise VideoError(
            f"Expected a folder of frames, received one without images: {folder}. Name the folder that has them, or a "
            "video file."
        )
    return sorted(found, key=natural_order)


def natural_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Numbers in names by their value: frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name


def _frame_of(clip: OpenedClip, index: int, image: ImageInput) -> Frame | None:
    """The frame, or None after it was listed as skipped. The first one gives the clip its size.

    Raises:
        VideoError: It is of another size than those before.
    """
    try:
        pixels = load_image(image)
    except ImageError as error:
        clip._skip(index, str(error))
        return None
    _check_size(clip, index, pixels, image)
    return Frame(index, pixels)


def _check_size(clip: OpenedClip, index: int, pixels: RGBImage, image: ImageInput) -> None:
    height, width = pixels.shape[:2]
    if clip.hw == (0, 0):
        clip.hw = height, width
    if clip.hw != (height, width):
        what = f" ({image})" if isinstance(image, (str, Path)) else ""
        raise VideoError(
            f"Expected frames of one size, {clip.hw[1]} x {clip.hw[0]}, received {width} x {height} as frame {index}"
            f"{what}. Leave out what is of another size, or scale it first."
        )


def _nothing_to_read(clip: OpenedClip) -> VideoError:
    if not clip.skipped:
        return VideoError("Expected at least one frame, received none. Pass images, a folder of them or a video file.")
    return VideoError(
        f"Expected frames that can be read, received {len(clip.skipped)}, none of which can. The first: "
        f"{clip.skipped[0].reason}"
    )
