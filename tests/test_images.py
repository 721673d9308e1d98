"""Every kind of image comes out RGB, upright, 8 bit; everything else is an ImageError."""

from __future__ import annotations

import http.server
import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image, ImageCms, ImageFile, ImageOps, features
from PIL.PngImagePlugin import PngInfo

from autodistill_sam3 import ImageError
from autodistill_sam3.images import MAX_SIDE, is_plain_rgb_file, load_image, loading

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def picture():
    """Red left half, blue right half, 6 wide and 4 high."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, :3] = RED
    pixels[:, 3:] = BLUE
    return pixels


def test_path_pil_and_bgr_array_agree(picture, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    for source in (path, str(path), Image.open(path), picture[..., ::-1]):
        loaded = load_image(source)
        assert loaded.dtype == np.uint8
        assert loaded.flags.c_contiguous
        assert loaded.flags.writeable
        np.testing.assert_array_equal(loaded, picture)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_exif_orientation_is_applied(picture, tmp_path, orientation, suffix):
    big = np.kron(picture, np.ones((16, 16, 1), np.uint8))
    big[:32, :48] = GREEN
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}  # fmt: skip
    stored = Image.fromarray(big)
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif)
    loaded = load_image(path)
    assert loaded.shape == big.shape
    assert np.abs(loaded.astype(int) - big).mean() < 8
    assert is_plain_rgb_file(path) == (orientation == 1 and suffix != "tiff")


def test_transparent_pixels_are_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0] = (*RED, 255)
    rgba[1] = (*RED, 0)
    expected = np.array([[RED, RED], [WHITE, WHITE]])
    path = tmp_path / "a.png"
    Image.fromarray(rgba).save(path)
    np.testing.assert_array_equal(load_image(path), expected)
    np.testing.assert_array_equal(load_image(rgba[..., [2, 1, 0, 3]]), expected)
    gray_alpha = Image.fromarray(np.dstack([np.zeros((2, 2), np.uint8), rgba[..., 3]]), mode=None)
    gray_alpha.save(path)
    np.testing.assert_array_equal(load_image(path)[:, 0, 0], [0, 255])
    assert not is_plain_rgb_file(path)


def test_palette_with_and_without_transparency(tmp_path, picture):
    palette = Image.fromarray(picture).quantize(4)
    palette.save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), picture)
    index = palette.getpixel((0, 0))
    palette.save(tmp_path / "b.png", transparency=index)
    loaded = load_image(tmp_path / "b.png")
    assert tuple(loaded[0, 0]) == WHITE
    assert tuple(loaded[0, 5]) == BLUE


def test_gray_cmyk_one_bit_and_gif(tmp_path, picture):
    Image.fromarray(picture[..., 0]).save(tmp_path / "gray.jpg")
    assert load_image(tmp_path / "gray.jpg").shape == (4, 6, 3)
    assert is_plain_rgb_file(tmp_path / "gray.jpg")
    flat = Image.new("RGB", (32, 32), GREEN)
    flat.convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert np.abs(load_image(tmp_path / "cmyk.jpg").astype(int) - GREEN).max() < 6
    flat.convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(load_image(tmp_path / "bits.png"))) <= {0, 255}
    frames = [Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert tuple(load_image(tmp_path / "a.gif")[0, 0]) == RED


def scaled(deep, white=65_535):
    """The definition of the scaling, in exact integers: round(value * 255 / white)."""
    return ((deep.astype(np.int64) * 510 + white) // (2 * white)).astype(np.uint8)


def on_white(rgba, white=255):
    colour, alpha = rgba[..., :3].astype(np.int64), rgba[..., 3:].astype(np.int64)
    return scaled(colour * alpha + white * (white - alpha), white * white)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(array, colour_type, depth=8, before=b"", after=b"", size_wh=None):
    """A PNG with chunks of one's own around the pixels. `array` holds packed bytes or uint16 samples."""
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else np.uint8).tobytes() for row in array)
    width, height = size_wh or (array.shape[1], array.shape[0])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")


def tiff_of(array, photometric, order="<", sample_format=1, orientation=None, extra=None, planar=1):
    """An uncompressed TIFF in one strip, or in one strip a sample if planar."""
    height, width = array.shape[:2]
    samples = 1 if array.ndim == 2 else array.shape[2]
    strips = [array] if planar == 1 else list(np.moveaxis(array, 2, 0))
    strips = [strip.astype(array.dtype.newbyteorder(order)).tobytes() for strip in strips]
    tags = {256: [width], 257: [height], 258: [array.dtype.itemsize * 8] * samples, 259: [1], 262: [photometric],
            273: [0] * len(strips), 277: [samples], 278: [height], 279: [len(strip) for strip in strips],
            284: [planar], 339: [sample_format] * samples}  # fmt: skip
    tags |= {274: [orientation]} if orientation else {}
    tags |= {338: [extra]} if extra is not None else {}
    start = 8 + 2 + 12 * len(tags) + 4
    position = start + sum(4 * len(values) for values in tags.values() if len(values) > 1)
    tags[273] = list(np.cumsum([position, *tags[279]])[:-1])
    entries, values_behind = b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            packed, values_behind = struct.pack(f"{order}I", start + len(values_behind)), values_behind + packed
        entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + packed
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + values_behind + b"".join(strips)


def read(content, tmp_path, name="a.png"):
    (tmp_path / name).write_bytes(content)
    assert not is_plain_rgb_file(tmp_path / name)
    return load_image(tmp_path / name)


DEEP = np.random.default_rng(1).integers(0, 65_536, (5, 7, 4), dtype=np.uint16)
DEEP[0, :3] = [[0, 128, 129, 65_535], [65_535, 65_406, 65_407, 0], [257, 385, 386, 1]]


@pytest.mark.parametrize("kind", ["gray", "rgb", "gray and alpha", "rgba"])
def test_sixteen_bit_png_is_scaled_exactly(kind, tmp_path):
    array, colour_type = {
        "gray": (DEEP[..., 0], 0), "rgb": (DEEP[..., :3], 2), "gray and alpha": (DEEP[..., 2:], 4), "rgba": (DEEP, 6)
    }[kind]  # fmt: skip
    content = png_of(array, colour_type, 16)
    loaded = read(content, tmp_path)
    if kind in ("gray", "rgb"):
        stored = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(loaded, np.broadcast_to(scaled(stored).reshape(5, 7, -1)[..., ::-1], (5, 7, 3)))
    else:
        rgba = DEEP if kind == "rgba" else DEEP[..., [2, 2, 2, 3]]
        assert np.abs(loaded.astype(int) - on_white(rgba, 65_535)).max() <= 1
        np.testing.assert_array_equal(loaded[0, 0], scaled(rgba[0, 0, :3]))
        assert tuple(loaded[0, 1]) == WHITE


def test_sixteen_bit_png_with_a_transparent_colour(tmp_path):
    gray, rgb = DEEP[..., 0], DEEP[..., :3]
    loaded = read(png_of(gray, 0, 16, chunk(b"tRNS", struct.pack(">H", gray[2, 3]))), tmp_path)
    assert (loaded[gray == gray[2, 3]] == 255).all()
    np.testing.assert_array_equal(loaded[gray != gray[2, 3]][:, 0], scaled(gray[gray != gray[2, 3]]))
    loaded = read(png_of(rgb, 2, 16, chunk(b"tRNS", struct.pack(">HHH", *rgb[2, 3]))), tmp_path)
    assert tuple(loaded[2, 3]) == WHITE
    np.testing.assert_array_equal(np.delete(loaded.reshape(-1, 3), 17, 0), np.delete(scaled(rgb).reshape(-1, 3), 17, 0))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_shallow_gray_png_with_a_transparent_gray(depth, tmp_path):
    values = {1: [0, 1] * 4, 2: [0, 1, 2, 3], 4: [2, 15]}[depth]
    packed = np.array([[int("".join(f"{value:0{depth}b}" for value in values), 2)]], np.uint8)
    for transparent in set(values):
        key = chunk(b"tRNS", struct.pack(">H", transparent))
        loaded = read(png_of(packed, 0, depth, key, size_wh=(len(values), 1)), tmp_path)
        expected = [255 if value == transparent else value * 255 // (2**depth - 1) for value in values]
        assert loaded[0, :, 1].tolist() == expected


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_sixteen_bit_tiff(order, orientation, tmp_path):
    rgb = DEEP[..., :3]
    for array, photometric, extra, expected in (
        (rgb, 2, None, scaled(rgb)),
        (DEEP, 2, 0, scaled(rgb)),
        (DEEP[..., 0], 1, None, scaled(DEEP[..., [0, 0, 0]])),
        (DEEP[..., 0], 0, None, 255 - scaled(DEEP[..., [0, 0, 0]])),
    ):
        content = tiff_of(array, photometric, order, orientation=orientation, extra=extra)
        np.testing.assert_array_equal(read(content, tmp_path), UPRIGHT[orientation or 1](expected))
    translucent = read(tiff_of(DEEP, 2, order, orientation=orientation, extra=2), tmp_path)
    assert np.abs(translucent.astype(int) - UPRIGHT[orientation or 1](on_white(DEEP, 65_535))).max() <= 1


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("white", [1.0, 255.0, 65_535.0, 1e6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tiff_of_floats_is_scaled_by_its_largest_value(white, dtype, tmp_path):
    unit = DEEP[..., :3].astype(np.float64) / 65_535
    values = (unit * white).astype(dtype)
    for array, photometric in ((values, 2), (values[..., 0], 1)):
        loaded = read(tiff_of(array, photometric, sample_format=3), tmp_path)
        expected = (unit if array.ndim == 3 else unit[..., :1]) * 255
        assert np.abs(loaded - expected).max() < 0.51
    values[0, :3, 0] = np.nan, np.inf, -np.inf
    loaded = read(tiff_of(values[..., 0], 1, sample_format=3), tmp_path)
    assert loaded[0, [0, 2], 0].tolist() == [0, 0]
    assert loaded[0, 1, 0] == 255


def test_other_tiffs(tmp_path):
    rgb = np.random.default_rng(2).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    picture = Image.fromarray(rgb)
    np.testing.assert_array_equal(read(tiff_of(rgb, 2, planar=2), tmp_path), rgb)
    np.testing.assert_array_equal(
        read(tiff_of(DEEP[..., 0].astype(np.uint32), 1), tmp_path)[..., 0], scaled(DEEP[..., 0])
    )
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        buffer = io.BytesIO()
        picture.save(buffer, "TIFF", compression=compression)
        np.testing.assert_array_equal(read(buffer.getvalue(), tmp_path), rgb)
    buffer = io.BytesIO()
    picture.save(buffer, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))], big_tiff=True)
    np.testing.assert_array_equal(read(buffer.getvalue(), tmp_path), rgb)
    smooth = Image.new("RGB", (32, 32), (200, 80, 40))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    for other in (smooth.convert("YCbCr"), ImageCms.profileToProfile(smooth, *profiles, outputMode="LAB")):
        other.save(tmp_path / "a.tif")
        assert np.abs(load_image(tmp_path / "a.tif").astype(int) - (200, 80, 40)).max() <= 3
    smooth.save(tmp_path / "jpeg.tif", compression="jpeg")
    assert np.abs(load_image(tmp_path / "jpeg.tif").astype(int) - (200, 80, 40)).max() <= 3


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_deep_tiffs_that_no_reader_gets_right_are_refused(samples, tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff_of(DEEP[..., :samples], 2 if samples > 2 else 1, planar=2))
    with pytest.raises(ImageError, match="Convert it to PNG"):
        load_image(tmp_path / "a.tif")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif(tmp_path, picture):
    big = np.kron(picture, np.ones((16, 16, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(big)).save(tmp_path / "a.avif", quality=95, exif=exif)
    assert np.abs(load_image(tmp_path / "a.avif").astype(int) - big).mean() < 8
    assert not is_plain_rgb_file(tmp_path / "a.avif")


LOSSLESS = {
    "PNG": ("RGB", "L", "1", "LA", "RGBA", "P"),
    "BMP": ("RGB", "L", "1", "P"),
    "TIFF": ("RGB", "L", "1", "LA", "RGBA", "P"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "1"),
    "PPM": ("RGB", "L"),
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_lossless_files_come_back_exactly(data, tmp_path):
    file_format = data.draw(st.sampled_from(sorted(LOSSLESS)))
    mode = data.draw(st.sampled_from(LOSSLESS[file_format]))
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    rgba = data.draw(npst.arrays(np.uint8, (*shape, 4), elements=st.integers(0, 255), fill=st.integers(0, 255)))
    image = Image.fromarray(rgba if mode in ("RGBA", "LA") else rgba[..., :3].copy()).convert(mode)
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    image.save(tmp_path / "a.img", file_format, **options)
    expected = on_white(np.asarray(image.convert("RGBA")))
    difference = np.abs(load_image(tmp_path / "a.img").astype(int) - expected)
    # Pillow composes alpha in fixed point.
    assert difference.max() <= (1 if mode in ("RGBA", "LA") else 0)


@settings(max_examples=40, deadline=None)
@given(npst.arrays(st.sampled_from([np.uint8, np.uint16]), st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4))))
def test_arrays_with_alpha(bgra):
    white = np.iinfo(bgra.dtype).max
    expected = on_white(bgra[..., [2, 1, 0, 3]], white)
    assert np.abs(load_image(bgra).astype(int) - expected).max() <= (bgra.dtype == np.uint16)


def saved(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def exif_of(orientation, order="<", kind=3):
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, 1)
    value = struct.pack(f"{order}{'H' if kind == 3 else 'I'}", orientation).ljust(4, b"\0")
    return head + struct.pack(f"{order}HHI", 0x0112, kind, 1) + value + bytes(4)


def bmp_of(rgb, bits, compression=0, top_down=False, masks=b""):
    height, width = rgb.shape[:2]
    if bits == 16:
        red, green, blue = np.moveaxis(rgb.astype(np.uint16) >> 3, 2, 0)
        pixels = (red << 10 | green << 5 | blue).astype("<u2")[..., None].view(np.uint8).reshape(height, width * 2)
    else:
        pixels = rgb[..., ::-1] if bits == 24 else np.dstack([rgb[..., ::-1], rgb[..., 0]])
        pixels = pixels.reshape(height, -1)
    rows = np.pad(pixels, ((0, 0), (0, -pixels.shape[1] % 4)))
    body = (rows if top_down else rows[::-1]).tobytes()
    start = 54 + len(masks)
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, -height if top_down else height, 1, bits, compression, len(body), 0, 0, 0, 0
    )
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + masks + body


def jpeg_with(image, segments, **options):
    """A JPEG with segments of one's own behind its start marker."""
    content = saved(image, "JPEG", **options)
    packed = b"".join(b"\xff" + bytes([kind]) + struct.pack(">H", len(body) + 2) + body for kind, body in segments)
    return content[:2] + packed + content[2:]


def reader_cases():
    noise = np.random.default_rng(3).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    rgb = cv2.GaussianBlur(noise, (5, 5), 0)
    image, gray = Image.fromarray(rgb), Image.fromarray(rgb[..., 0])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = Image.Exif()
    upright[0x0112] = 1
    upright[0x010F] = "maker"
    profile_text = PngInfo()
    exif_text = b"exif\n\n  %d\n%s\n" % (len(exif_of(6)) + 6, (b"Exif\0\0" + exif_of(6)).hex().encode())
    profile_text.add_text("Raw profile type exif", "\n" + exif_text.decode())
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    red_green_blue = saved(image, "JPEG", keep_rgb=True)
    yield from {
        "JPEG": (saved(image, "JPEG"), True),
        "JPEG, gray": (saved(gray, "JPEG"), True),
        "JPEG, progressive": (saved(image, "JPEG", progressive=True), True),
        "JPEG, progressive gray": (saved(gray, "JPEG", progressive=True), True),
        "JPEG, 4:4:4": (saved(image, "JPEG", subsampling=0), True),
        "JPEG, 4:2:2": (saved(image, "JPEG", subsampling=1), True),
        "JPEG, restart markers": (saved(image, "JPEG", restart_marker_blocks=1), True),
        "JPEG, stored as RGB": (red_green_blue, True),
        "JPEG, other colour profile": (saved(image, "JPEG", icc_profile=profile), True),
        "JPEG, Adobe marker": (jpeg_with(image, [(0xEE, b"Adobe\0\x64\0\0\0\0\1")]), True),
        "JPEG, bytes behind its end": (saved(image, "JPEG") + b"more\xff\xd8 and more", True),
        "JPEG, fill bytes before its end": (saved(image, "JPEG")[:-2] + b"\xff\xff\xff\xd9", True),
        "JPEG, two pictures (MPO)": (saved(image, "MPO", save_all=True, append_images=[gray.convert("RGB")]), True),
        "JPEG, upright EXIF": (saved(image, "JPEG", exif=upright), True),
        "JPEG, EXIF that is none": (jpeg_with(image, [(0xE1, b"Exif\0\0rubbish")]), None),
        "JPEG, empty EXIF": (jpeg_with(image, [(0xE1, b"Exif\0\0")]), True),
        "JPEG, turned": (saved(image, "JPEG", exif=turned), False),
        "JPEG, turned, big-endian": (jpeg_with(image, [(0xE1, b"Exif\0\0" + exif_of(6, ">"))]), False),
        "JPEG, turned as a long": (jpeg_with(image, [(0xE1, b"Exif\0\0" + exif_of(6, kind=4))]), False),
        "JPEG, orientation 9": (jpeg_with(image, [(0xE1, b"Exif\0\0" + exif_of(9))]), False),
        "JPEG, two EXIFs": (jpeg_with(image, [(0xE1, b"Exif\0\0" + exif_of(k)) for k in (1, 6)]), False),
        "JPEG, turned in XMP": (jpeg_with(image, [(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)]), False),
        "JPEG, CMYK": (saved(image.convert("CMYK"), "JPEG"), False),
        "PNG": (saved(image, "PNG"), True),
        "PNG, gray": (saved(gray, "PNG"), True),
        "PNG, interlaced": (interlaced_png(rgb), True),
        "PNG, other colour profile": (saved(image, "PNG", icc_profile=profile), True),
        "PNG, gamma": (
            png_of(rgb.reshape(24, -1), 2, before=chunk(b"gAMA", struct.pack(">I", 100_000)), size_wh=(40, 24)),
            True,
        ),
        "PNG, 2-bit gray": (png_of(np.array([[0b00011011]]), 0, 2, size_wh=(4, 1)), True),
        "PNG, upright EXIF": (saved(image, "PNG", exif=upright), True),
        "PNG, turned": (saved(image, "PNG", exif=turned), False),
        "PNG, turned behind its pixels": (
            png_of(rgb.reshape(24, -1), 2, after=chunk(b"eXIf", exif_of(6)), size_wh=(40, 24)),
            False,
        ),
        "PNG, turned in a text": (saved(image, "PNG", pnginfo=profile_text), False),
        "PNG, transparent colour": (saved(image, "PNG", transparency=(1, 2, 3)), False),
        "PNG, alpha": (saved(image.convert("RGBA"), "PNG"), False),
        "PNG, palette": (saved(image.quantize(9), "PNG"), False),
        "PNG, 1 bit": (saved(gray.convert("1"), "PNG"), False),
        "PNG, animated": (saved(image, "PNG", save_all=True, append_images=[image.rotate(180)]), False),
        "WebP": (saved(image, "WEBP"), True),
        "WebP, lossless": (saved(image, "WEBP", lossless=True), True),
        "WebP, other colour profile": (saved(image, "WEBP", icc_profile=profile), True),
        "WebP, turned": (saved(image, "WEBP", exif=turned), False),
        "WebP, alpha": (saved(image.convert("RGBA"), "WEBP"), None),
        "WebP, animated": (saved(image, "WEBP", save_all=True, append_images=[image.rotate(180)]), False),
        "BMP": (saved(image, "BMP"), True),
        "BMP, gray": (saved(gray, "BMP"), True),
        "BMP, top down": (bmp_of(rgb, 24, top_down=True), True),
        "BMP, 16 bit": (bmp_of(rgb, 16), False),
        "BMP, 32 bit": (bmp_of(rgb, 32), False),
        "BMP, palette": (saved(image.quantize(9), "BMP"), False),
        "TIFF": (saved(image, "TIFF"), False),
        "GIF": (saved(image, "GIF"), False),
    }.items()


def interlaced_png(rgb):
    """Adam7: seven passes over the pixels, each with rows of its own."""
    rows = b""
    for y, x, y_step, x_step in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in rgb[y::y_step, x::x_step])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 8, 2, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged EXIF.
@pytest.mark.parametrize(
    ("name", "case"), list(reader_cases()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_copied_looks_the_same_to_every_reader(name, case, tmp_path):
    content, expected = case
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    ours = load_image(path)
    is_plain = is_plain_rgb_file(path)
    if expected is not None:
        assert is_plain == expected
    if not is_plain:
        return
    with Image.open(path) as image:
        seen = {
            "OpenCV": cv2.imread(str(path))[..., ::-1],
            "OpenCV, orientation ignored": cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)[
                ..., ::-1
            ],
            "Pillow": np.asarray(image.convert("RGB")),
            "Pillow, transposed": np.asarray(ImageOps.exif_transpose(image).convert("RGB")),
        }
    if not name.startswith("BMP"):
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        for turn in (False, True):
            decoded = torchvision.io.decode_image(data, torchvision.io.ImageReadMode.RGB, apply_exif_orientation=turn)
            seen[f"torchvision, {turn}"] = decoded.permute(1, 2, 0).numpy()
    for reader, pixels in seen.items():
        np.testing.assert_array_equal(pixels, ours, err_msg=reader)


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a.tif", "a.gif", "a.avif", "a"])
def test_what_trainers_do_not_look_for_is_not_copied(name, tmp_path):
    for path in (tmp_path / "a.JPG", tmp_path / name):
        Image.new("RGB", (8, 8), RED).save(path, "JPEG")
    assert is_plain_rgb_file(tmp_path / "a.JPG")
    assert not is_plain_rgb_file(tmp_path / name)
    assert load_image(tmp_path / name).shape == (8, 8, 3)


def test_adobes_inverted_cmyk(tmp_path):
    """Photoshop stores the ink that is missing, and a marker that says so."""
    content = saved(Image.new("RGB", (32, 32), (200, 80, 40)).convert("CMYK"), "JPEG")
    marker = content.index(b"\xff\xee\0\x0eAdobe")
    # Without the marker every reader takes it for granted.
    for number, version in enumerate((content, content[:marker] + content[marker + 16 :])):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(version)
        loaded = load_image(path)
        assert np.abs(loaded.astype(int) - cv2.imread(str(path))[..., ::-1]).max() <= 3
        assert np.abs(loaded.astype(int) - (200, 80, 40)).max() <= 4


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), GREEN).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").tolist() == [[list(GREEN)]]


@pytest.mark.parametrize("size_wh", [(1, MAX_SIDE), (MAX_SIDE, 1), (MAX_SIDE, 20)])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "TIFF", "GIF"])
def test_the_longest_sides(size_wh, file_format, tmp_path):
    Image.new("RGB", size_wh, RED).save(tmp_path / "a.img", file_format)
    loaded = load_image(tmp_path / "a.img")
    assert loaded.shape == (size_wh[1], size_wh[0], 3)
    assert np.abs(loaded[-1, -1].astype(int) - RED).max() <= 3


SMOOTH = Image.fromarray(
    cv2.resize(
        np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC
    )
)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"<!doctype html><html></html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
     b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xd9", b"BM", b"GIF89a", b"RIFF0000WEBP", b"II*\0",
     b"MM\0+", b"\0\0\0\x18ftypavif", b"P6 4 4 255\n", bytes(4096)],
)  # fmt: skip
def test_damaged_files(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png"):
        load_image(tmp_path / "a.png")
    assert not is_plain_rgb_file(tmp_path / "a.png")


def test_what_can_be_read_is_said(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(ImageError, match=r"JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF .* HEIC .* Convert"):
        load_image(tmp_path / "a.heic")


@pytest.mark.parametrize("is_lenient", [False, True])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.97])
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
    ],
    ids=str,
)
def test_truncated_files(tmp_path, monkeypatch, file_format, options, keep, is_lenient):
    """Also where other code told Pillow to fill what is missing with gray, as training scripts do."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", is_lenient)
    content = saved(SMOOTH, file_format, **options)
    (tmp_path / "a.jpg").write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("file_format", ["TIFF", "GIF", "AVIF"])
def test_other_truncated_files(tmp_path, file_format):
    content = saved(SMOOTH, file_format)
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("end", [b"\xff\xd9", b"\xff\xc4\xff\xd9", b"\xff\xfe\0\x04ok\xff\xd9"])
def test_jpeg_whose_pixels_end_early(tmp_path, mode, end):
    """A decoder fills what is missing before the end marker with gray, and only warns on the standard error stream."""
    content = saved(SMOOTH.convert(mode), "JPEG")
    (tmp_path / "a.jpg").write_bytes(content[: int(len(content) * 0.7)] + end)
    with Image.open(tmp_path / "a.jpg") as image:
        image.load()
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(tmp_path / "a.jpg")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "PPM"]), st.data())
@pytest.mark.filterwarnings("ignore")
def test_damage_is_an_image_error_or_an_image(tmp_path, file_format, data):
    content = bytearray(saved(SMOOTH.resize((24, 16)), file_format))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, min(len(content), 600) - 1))
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.png"
    path.write_bytes(content)
    try:
        loaded = load_image(path)
    except ImageError:
        return
    assert loaded.dtype == np.uint8
    assert loaded.ndim == 3
    is_plain_rgb_file(path)


def bombs():
    yield "PNG", png_of(np.zeros((1, 1)), 0, size_wh=(MAX_SIDE + 1, 1))
    yield "PNG, every side", png_of(np.zeros((1, 1)), 6, 16, size_wh=(2**31 - 1, 2**31 - 1))
    jpeg = bytearray(saved(SMOOTH, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_535, 65_535)
    yield "JPEG", bytes(jpeg)
    gif = bytearray(saved(SMOOTH, "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    yield "GIF", bytes(gif)
    bmp = bytearray(saved(SMOOTH, "BMP"))
    bmp[18:26] = struct.pack("<ii", 100_000, 100_000)
    yield "BMP", bytes(bmp)
    tiff = tiff_of(np.zeros((1, 1, 3), np.uint16), 2)
    yield "TIFF", tiff.replace(struct.pack("<HHII", 256, 4, 1, 1), struct.pack("<HHII", 256, 4, 1, 10**6))
    text = b"k\0\0" + zlib.compress(bytes(2**27))
    yield "PNG, text", png_of(np.zeros((1, 1)), 0, before=chunk(b"zTXt", text))
    yield "PNG, profile", png_of(np.zeros((1, 1)), 0, before=chunk(b"iCCP", text))
    yield "PNG, text behind", png_of(np.zeros((1, 1)), 0, after=chunk(b"zTXt", text))


LIMITED = """
import sys
from pathlib import Path
from PIL import Image
from memory import peak_mb
from autodistill_sam3.errors import ImageError
from autodistill_sam3.images import load_image
before, limit = peak_mb(), Image.MAX_IMAGE_PIXELS
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, load_image(path).shape)
    except ImageError as error:
        print(path.name, "refused:", error)
print(round(peak_mb() - before), "MB")
assert limit == Image.MAX_IMAGE_PIXELS
"""


def test_bombs_are_refused_before_they_take_memory(tmp_path):
    for name, content in bombs():
        (tmp_path / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip
    *lines, memory = done.stdout.splitlines()
    assert len(lines) == 9
    for line in lines:
        # A text behind the pixels is never looked at.
        assert ("refused" in line) == ("text behind" not in line), line
        assert ("too many pixels" in line) == ("text" not in line and "profile" not in line), line
    assert int(memory.split()[0]) < 64, done.stdout


def test_pillows_limit_is_neither_used_nor_changed(tmp_path, monkeypatch):
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with ThreadPoolExecutor(4) as pool:
        shapes = list(pool.map(lambda _: load_image(tmp_path / "a.png").shape, range(16)))
    assert shapes == [(100, 100, 3)] * 16
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="pipe"):
        load_image(tmp_path / "a.jpg")


def test_missing_path_and_folder(tmp_path):
    with pytest.raises(ImageError, match="does not exist"):
        load_image(tmp_path / "no.jpg")
    with pytest.raises(ImageError, match="folder"):
        load_image(tmp_path)


@pytest.mark.parametrize(
    "source",
    [None, 3, np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3)), np.zeros(4, np.uint8)],
)
def test_what_is_no_image(source):
    with pytest.raises(ImageError, match="Expected"):
        load_image(source)


@pytest.fixture
def server():
    closing = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            buffer = io.BytesIO()
            Image.new("RGB", (5, 4), RED).save(buffer, "PNG")
            body = {"/a.png": buffer.getvalue(), "/big": b"0" * 4096, "/slow": b""}.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")
            while self.path == "/slow" and not closing.wait(0.05):
                self.wfile.write(b"0")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_urls(server, monkeypatch):
    assert load_image(f"{server}/a.png").shape == (4, 5, 3)
    with pytest.raises(ImageError, match="404"):
        load_image(f"{server}/missing")
    monkeypatch.setattr(loading, "URL_MAX_BYTES", 1024)
    with pytest.raises(ImageError, match="larger than"):
        load_image(f"{server}/big")
    monkeypatch.setattr(loading, "URL_TIMEOUT_S", 0.5)
    with pytest.raises(ImageError, match="longer than"):
        load_image(f"{server}/slow")
    with pytest.raises(ImageError, match="download failed"):
        load_image("http://127.0.0.1:9/a.png")
