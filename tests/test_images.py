"""Every kind of image comes out RGB, upright, 8 bit; everything else is an ImageError."""

from __future__ import annotations

import http.server
import io
import threading

import numpy as np
import pytest
from PIL import Image

from autodistill_sam3 import ImageError, images
from autodistill_sam3.images import is_plain_rgb_file, load_image

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


def test_sixteen_bit_is_scaled(tmp_path):
    deep = np.array([[0, 257 * 100, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    Image.fromarray(deep).save(tmp_path / "a.tif")
    for source in (tmp_path / "a.png", tmp_path / "a.tif", deep):
        assert load_image(source)[0, :, 0].tolist() == [0, 100, 255]
    bgr = np.dstack([np.zeros((1, 1)), np.zeros((1, 1)), np.full((1, 1), 65535)]).astype(np.uint16)
    assert tuple(load_image(bgr)[0, 0]) == RED


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), GREEN).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").tolist() == [[list(GREEN)]]


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"BM", b"GIF89a", b"RIFF0000WEBP"]
)
def test_damaged_files(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png"):
        load_image(tmp_path / "a.png")


def test_truncated_file(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(tmp_path / "a.jpg")


def test_decompression_bomb(tmp_path, monkeypatch):
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="too many pixels"):
        load_image(tmp_path / "a.png")


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
    monkeypatch.setattr(images, "URL_MAX_BYTES", 1024)
    with pytest.raises(ImageError, match="larger than"):
        load_image(f"{server}/big")
    monkeypatch.setattr(images, "URL_TIMEOUT_S", 0.5)
    with pytest.raises(ImageError, match="longer than"):
        load_image(f"{server}/slow")
    with pytest.raises(ImageError, match="download failed"):
        load_image("http://127.0.0.1:9/a.png")
