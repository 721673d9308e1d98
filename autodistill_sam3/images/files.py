"""The bytes of an image file -> RGB uint8 (H, W, 3), upright.

Pillow reads every header, which says what is in a file before a pixel of it is decoded. OpenCV then decodes what both
decode alike, in half the time and with one copy of the pixels, and what Pillow would cut down to 8 bits.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from autodistill_sam3.errors import ImageError
from autodistill_sam3.images.pixels import (
    RGBImage,
    check_size,
    orientation_of,
    rgb_from_pil,
    rgb_from_stored,
    strips,
    turned_upright,
)

# The orientation tag with any value but 1, in both byte orders.
_TURNED_EXIF = re.compile(rb"\x12\x01\x03\0\x01\0\0\0(?!\x01\0)|\x01\x12\0\x03\0\0\0\x01(?!\0\x01)")
_JPEG_ESCAPE = 0xFF
# What may end JPEG's compressed data: not a stuffed zero, a restart or a fill byte.
_IS_JPEG_MARKER = np.isin(np.arange(256), [0x00, *range(0xD0, 0xD8), 0xFF], invert=True)
_JPEG_END, _JPEG_SCAN, _JPEG_SEQUENTIAL = 0xD9, 0xDA, (0xC0, 0xC1)
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Where a PNG's header gives the bits of a sample, and the chunks that may turn it.
_PNG_DEPTH = 24
_PNG_ORIENTATION = re.compile(rb"eXIf|(tEXt|zTXt|iTXt)(Raw profile type|XML:com\.adobe\.xmp)")
_TIFF_MIN_IS_WHITE, _TIFF_GRAY_OR_RGB, _TIFF_PREMULTIPLIED, _TIFF_PLANAR = 0, (0, 1, 2), 1, 2


def decode_file(content: bytes) -> RGBImage:
    """Decode the first frame or page of a file.

    Raises:
        ImageError: It is of no format that is read, too large, or cut short.
        Exception: Whatever a decoder raises about damage.
    """
    plugin = _plugin_of(content)
    if plugin is TiffImagePlugin.TiffImageFile:
        return _from_tiff(content)
    if plugin is JpegImagePlugin.JpegImageFile:
        content = _first_jpeg(content)
    image = _open(content)
    if image.format == "PNG" and content[_PNG_DEPTH] == 16:
        stored = _imdecode(content, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
        return turned_upright(rgb_from_stored(_with_transparency(stored, image.info.get("transparency"))), image)
    if not _is_read_alike(image, content):
        return rgb_from_pil(image)
    pixels = _imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    for rows in strips(*pixels.shape[:2]):  # In one go, OpenCV would copy all of them.
        cv2.cvtColor(pixels[rows], cv2.COLOR_BGR2RGB, dst=pixels[rows])
    return turned_upright(pixels, image)


def is_plain(content: bytes) -> bool:
    """Whether OpenCV, Pillow and torchvision see the same upright pixels in this file.

    Raises:
        ImageError: It is of no format that is read, too large, or cut short.
        Exception: Whatever Pillow raises about damage in its header.
    """
    image = _open(content)
    is_marked = bool(_TURNED_EXIF.search(image.info.get("exif", b"")))
    is_marked |= any(str(key).startswith("Raw profile type") for key in image.info)
    return _is_read_alike(image, content) and not is_marked and orientation_of(image) == 1


def _open_avif(file: io.BytesIO) -> ImageFile.ImageFile:
    try:
        from PIL import AvifImagePlugin
    except ImportError as error:
        raise ImageError("AVIF images need Pillow 11.3 or newer: pip install --upgrade pillow") from error
    return AvifImagePlugin.AvifImageFile(file)


# Plugins are called by name. `Image.open` would apply a limit that is global to the process, and would hand a file
# that claims to be PostScript to another program. Of a JPEG with more pictures behind it (MPO), this is the first.
_PLUGINS: tuple[tuple[bytes, Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    (rb"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (rb"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (rb"RIFF....WEBP", WebPImagePlugin.WebPImageFile),
    (rb"BM", BmpImagePlugin.BmpImageFile),
    (rb"II[*+]\x00|MM\x00[*+]", TiffImagePlugin.TiffImageFile),
    (rb"GIF8[79]a", GifImagePlugin.GifImageFile),
    (rb"....ftypavi[fs]", _open_avif),
    (rb"P[1-6]\s|\x00\x00\x00\x0cjP  |\xffO\xffQ", lambda file: Image.open(file, formats=("PPM", "JPEG2000"))),
)


def _plugin_of(content: bytes) -> Callable[[io.BytesIO], ImageFile.ImageFile]:
    for signature, plugin in _PLUGINS:
        if re.match(signature, content, re.DOTALL):
            return plugin
    known = "Expected a JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF image"
    if re.match(rb"....ftyp(hei|hev|mif1|msf1)", content, re.DOTALL):
        raise ImageError(f"{known}, received HEIC or HEIF. Convert it first, for example to JPEG.")
    what = f"a file that starts with {content[:16]!r}" if content else "an empty file"
    raise ImageError(f"{known}, received {what}.")


def _open(content: bytes) -> ImageFile.ImageFile:
    """What Pillow reads of the header, without pixels."""
    image = _plugin_of(content)(io.BytesIO(content))
    check_size(image.size)
    if image.format == "PNG" and _has_late_orientation(content):
        image.load()
    if image.format == "PNG" and image.mode == "L" and "transparency" in image.info:
        # Pillow widens 2-bit and 4-bit gray, and leaves the gray that is transparent as it was.
        image.info["transparency"] *= 255 // (2 ** content[_PNG_DEPTH] - 1)
    return image


def _has_late_orientation(content: bytes) -> bool:
    """Whether a PNG's orientation may stand behind its pixels, where Pillow finds it only after decoding them.

    Raises:
        ImageError: The PNG ends early. Pillow does not say so where some other code told it to take such files.
    """
    position, kind, is_behind, is_late = 8, b"", False, False
    while kind != b"IEND":
        length, kind = int.from_bytes(content[position : position + 4]), content[position + 4 : position + 8]
        is_late |= is_behind and bool(_PNG_ORIENTATION.match(content, position + 4))
        is_behind |= kind == b"IDAT"
        position += 12 + length
        if position > len(content):
            raise ImageError("Expected a whole PNG, received one that cannot be decoded: it is cut short.")
    return is_late


def _is_read_alike(image: ImageFile.ImageFile, content: bytes) -> bool:
    """Whether OpenCV, Pillow and torchvision give the same pixels, but for the orientation."""
    if image.mode not in ("RGB", "L") or "transparency" in image.info:
        return False
    if image.format == "BMP":
        # 16-bit colours are widened in different ways, and 32-bit ones may have an alpha channel.
        # Of BMP the decoder's arguments are a tuple, which Pillow's types do not say.
        return image.tile[0][0] == "raw" and image.tile[0][3][0] in ("BGR", "L")  # type: ignore[index]
    if image.format == "PNG":
        return content[_PNG_DEPTH] <= 8 and getattr(image, "n_frames", 1) == 1
    return image.format == "JPEG" or (image.format == "WEBP" and getattr(image, "n_frames", 1) == 1)


def _imdecode(content: bytes, flags: int) -> npt.NDArray[Any]:
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if pixels is None:
        raise ValueError("its pixels are damaged or cut short")
    return pixels


def _first_jpeg(content: bytes) -> bytes:
    """The first picture of a JPEG file, in a form in which decoders notice that pixels are missing.

    Before an end marker they fill what is missing with gray. So where the picture is in one scan, zeros take the place
    of what follows it: a decoder that wants more of them than there are fails.

    Raises:
        ImageError: It has no end.
    """
    data = np.frombuffer(content, np.uint8)
    starts = np.flatnonzero(data[:-1] == _JPEG_ESCAPE)
    starts = starts[_IS_JPEG_MARKER[data[starts + 1]]]
    position, components, is_sequential, is_only_scan = 2, -1, False, False
    while (index := np.searchsorted(starts, position)) < len(starts):
        start = int(starts[index])
        kind, segment = content[start + 1], start + 2
        if is_only_scan:
            return content[:start] + bytes(16)
        if kind == _JPEG_END:
            return content[:segment]
        if kind in _JPEG_FRAMES:
            is_sequential, components = kind in _JPEG_SEQUENTIAL, content[segment + 7]
        if kind == _JPEG_SCAN:
            is_only_scan = is_sequential and content[segment + 2] == components
        position = segment + int.from_bytes(content[segment : segment + 2])
    raise ImageError("Expected a whole JPEG, received one that cannot be decoded: it is cut short.")


def _with_transparency(stored: npt.NDArray[Any], transparent: object) -> npt.NDArray[Any]:
    """OpenCV makes alpha from a PNG's transparent colour, but not from its transparent gray."""
    if stored.ndim != 2 or not isinstance(transparent, int):
        return stored
    alpha = np.where(stored == transparent, 0, 65_535).astype(np.uint16)
    return np.dstack([stored, stored, stored, alpha])


def _from_tiff(content: bytes) -> RGBImage:
    """The first page. Pillow and OpenCV turn it upright by themselves."""
    tags = _tiff_tags(content)
    check_size((tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]))
    is_inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _TIFF_MIN_IS_WHITE
    if max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) <= 8:
        return rgb_from_pil(TiffImagePlugin.TiffImageFile(io.BytesIO(content)))
    with contextlib.suppress(SyntaxError):  # What Pillow has no mode for, such as RGB in floats.
        image = TiffImagePlugin.TiffImageFile(io.BytesIO(content))
        if image.mode == "CMYK" or (image.mode not in ("RGB", "RGBA") and not is_inverted):
            return rgb_from_pil(image)
    return rgb_from_stored(_deep_tiff(content, tags), is_inverted=is_inverted)


def _tiff_tags(content: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    is_big = ord("+") in content[2:4]
    tags = TiffImagePlugin.ImageFileDirectory_v2(content[: 16 if is_big else 8])
    file = io.BytesIO(content)
    file.seek(tags.next)
    tags.load(file)
    return tags


def _deep_tiff(content: bytes, tags: TiffImagePlugin.ImageFileDirectory_v2) -> npt.NDArray[Any]:
    samples, extra = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1), tags.get(TiffImagePlugin.EXTRASAMPLES, ())
    is_planar = samples > 1 and tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == _TIFF_PLANAR
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
    if is_planar or photometric not in _TIFF_GRAY_OR_RGB or samples not in (1, 3, 4) or _TIFF_PREMULTIPLIED in extra:
        raise ImageError(
            "Expected a TIFF of 8-bit samples, or of deeper gray, RGB or RGBA ones stored pixel by pixel, received "
            f"{samples} deep samples (planar: {is_planar}, photometric {photometric}, extra {extra}). "
            "Convert it to PNG first."
        )
    stored = _imdecode(content, cv2.IMREAD_UNCHANGED)
    # The fourth sample is alpha only if the file says so; without a word it is, as everywhere.
    return stored[..., :3] if extra == (0,) else stored
