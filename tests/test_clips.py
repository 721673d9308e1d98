"""Clips of every kind give every frame at its place, forward and backward, and hold on to nothing."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import supervision as sv
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autodistill_sam3.errors import SettingError, VideoError
from autodistill_sam3.instances import compact_masks
from autodistill_sam3.video import files
from autodistill_sam3.video.clip import Frame
from autodistill_sam3.video.rendering import contact_sheet, render
from autodistill_sam3.video.sources import open_clip
from autodistill_sam3.video.tracks import NO_TEXT, FrameTracks
from autodistill_sam3.video.writing import VideoWriter

HW = (64, 96)
TICK = Fraction(1, 25)
LOSSLESS = {"codec": "libx264rgb", "pix_fmt": "rgb24", "options": {"qp": "0"}}
# From what a file stores to what is upright.
QUARTERS = {0: 0, 90: 1, 180: 2, 270: 3, -90: 3}


def picture(number, hw=HW):
    """A picture that no other number has, different in its corners, and not like its mirror image."""
    pixels = np.random.default_rng(number).integers(0, 255, (4, 6, 3), np.uint8)
    pixels = cv2.resize(pixels, hw[::-1], interpolation=cv2.INTER_CUBIC)
    pixels[: hw[0] // 4, : hw[1] // 4] = (255, 0, 0)
    return pixels


def write(path, count=12, *, hw=HW, codec="libx264", pix_fmt="yuv420p", options=None, gop=6, b_frames=2, times=None,
          turn=None, container_options=None, pictures=None):  # fmt: skip
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = hw
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        if turn is not None:
            turn(stream)
        for number in range(count):
            pixels = picture(number, hw) if pictures is None else pictures[number]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number if times is None else times[number], TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read(source, **keywords):
    with open_clip(source) as clip:
        return list(clip.frames(**keywords))


def assert_same(found, expected):
    assert [frame.index for frame in found] == [frame.index for frame in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert one.time == other.time


def by_opencv(path):
    capture = cv2.VideoCapture(str(path))
    pictures = []
    while (read := capture.read())[0]:
        pictures.append(read[1][..., ::-1])
    capture.release()
    return pictures


CONTAINERS = [
    ("a.mp4", {}), ("a.mov", {}), ("a.mkv", {}), ("a.webm", {"codec": "libvpx-vp9", "b_frames": 0}),
    ("vp8.webm", {"codec": "libvpx", "b_frames": 0}), ("mpeg4.mp4", {"codec": "mpeg4"}), ("a.ts", {}), ("a.avi", {}),
    ("open.mkv", {"options": {"x264-params": "open-gop=1:scenecut=0:b-adapt=0"}}),
    ("refresh.mkv", {"options": {"x264-params": "intra-refresh=1"}, "b_frames": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), CONTAINERS, ids=[name for name, _ in CONTAINERS])
def test_each_container_gives_the_frames_that_opencv_reads(tmp_path, name, settings):
    path = write(tmp_path / name, **settings)
    with open_clip(str(path)) as clip:
        assert (clip.name, clip.hw, clip.num_frames, clip.frame_rate) == (path.stem, HW, 12, pytest.approx(25))
        found = list(clip.frames())
        assert_same(list(clip.frames(backward=True)), found[::-1])
        for index in (7, 3, 11, 0):
            assert_same(list(clip.frames(index, index + 1)), [found[index]])
        assert not clip.skipped
    assert [frame.time for frame in found] == pytest.approx([number / 25 for number in range(12)])
    for frame, expected in zip(found, by_opencv(path), strict=True):
        np.testing.assert_array_equal(frame.image, expected)


@pytest.mark.parametrize("hw", [HW, (63, 97), (33, 17)])
@pytest.mark.parametrize("settings", [LOSSLESS, {"codec": "ffv1", "pix_fmt": "bgr0", "b_frames": 0}])
def test_lossless_pixels_come_back_exactly(tmp_path, hw, settings):
    found = read(write(tmp_path / "a.mkv", 5, hw=hw, **settings))
    for number, frame in enumerate(found):
        np.testing.assert_array_equal(frame.image, picture(number, hw))
        assert frame.image.flags.writeable and frame.image.flags.c_contiguous


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [("libx264", "yuv420p10le"), ("libx264", "yuv444p"), ("libx264", "yuvj420p"), ("ffv1", "yuva420p"),
     ("ffv1", "gray"), ("ffv1", "gray16le"), ("libx264", "yuv422p")],
)  # fmt: skip
def test_deep_gray_and_alpha_formats_become_rgb(tmp_path, codec, pix_fmt):
    flat = np.full((*HW, 3), (200, 80, 40), np.uint8)
    options = {"crf": "1"} if codec == "libx264" else {}
    path = write(tmp_path / "a.mkv", 2, codec=codec, pix_fmt=pix_fmt, options=options, b_frames=0, pictures=[flat] * 2)
    expected = (111, 111, 111) if pix_fmt.startswith("gray") else (200, 80, 40)
    for frame in read(path):
        assert frame.image.shape == flat.shape
        assert np.abs(frame.image.astype(int) - expected).max() <= 4


@pytest.mark.parametrize("matrix", [1, 5])
def test_colours_follow_the_matrix_that_the_stream_names(tmp_path, matrix):
    flat = av.VideoFrame.from_ndarray(np.full((*HW, 3), (220, 30, 60), np.uint8), format="rgb24")
    flat = flat.reformat(format="yuv444p", dst_colorspace=matrix, dst_color_range=1)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
        (stream.height, stream.width), stream.pix_fmt = HW, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 1
        container.mux(stream.encode(flat))
        container.mux(stream.encode())
    [frame] = read(tmp_path / "a.mp4")
    assert np.abs(frame.image.astype(int) - (220, 30, 60)).max() <= 3


@pytest.mark.parametrize("mirrors", [{}, {"hflip": True}, {"vflip": True}])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_the_display_matrix_is_applied(tmp_path, degrees, mirrors):
    path = write(tmp_path / "a.mp4", 2, turn=lambda stream: stream.set_display_rotation(degrees, **mirrors), **LOSSLESS)
    upright = np.rot90(picture(1), QUARTERS[degrees])
    if mirrors:
        upright = upright[:, ::-1] if "hflip" in mirrors else upright[::-1]
    with open_clip(path) as clip:
        assert clip.hw == upright.shape[:2]
        np.testing.assert_array_equal(list(clip.frames())[1].image, upright)
    if not mirrors:
        np.testing.assert_array_equal(by_opencv(path)[1], upright)


def test_a_turn_that_is_no_quarter_leaves_the_pixels(tmp_path):
    path = write(tmp_path / "a.mp4", 1, turn=lambda stream: stream.set_display_rotation(30), **LOSSLESS)
    np.testing.assert_array_equal(read(path)[0].image, picture(0))


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_times_are_those_of_presentation(tmp_path, suffix):
    ticks = [3, 4, 8, 9, 23]
    with open_clip(write(tmp_path / f"a.{suffix}", 5, times=ticks, **LOSSLESS)) as clip:
        assert [frame.time for frame in clip.frames()] == pytest.approx([(tick - 3) / 25 for tick in ticks])
        assert clip.frame_rate == pytest.approx(4 / (20 / 25))


def test_an_edit_list_takes_frames_away_and_nothing_else_does(tmp_path):
    ticks = [-3, -2, -1, 0, 1]
    mp4, mkv = (write(tmp_path / f"a.{suffix}", 5, times=ticks, b_frames=0, **LOSSLESS) for suffix in ("mp4", "mkv"))
    assert len(by_opencv(mp4)) == 2
    for path, numbers in ((mp4, [3, 4]), (mkv, range(5))):
        for frame, number in zip(read(path), numbers, strict=True):
            np.testing.assert_array_equal(frame.image, picture(number))


@pytest.fixture(scope="module")
def long_groups(tmp_path_factory):
    """Clips of 40 frames, by the length of their groups and their frames between two others."""
    folder = tmp_path_factory.mktemp("groups")
    return {
        (gop, b_frames): write(folder / f"{gop}_{b_frames}.mp4", 40, gop=gop, b_frames=b_frames, **LOSSLESS)
        for gop, b_frames in itertools.product((1, 7, 40), (0, 3))
    }


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_backward_is_forward_reversed(long_groups, data):
    path = long_groups[data.draw(st.sampled_from(sorted(long_groups)))]
    start = data.draw(st.integers(0, 45))
    stop = data.draw(st.none() | st.integers(start, 50))
    num_held = data.draw(st.sampled_from([1, 5, 16, 100]))
    with pytest.MonkeyPatch.context() as patch, open_clip(path) as clip:
        patch.setattr(files, "HELD_BYTES", num_held * HW[0] * HW[1] * 3)
        forward, backward = list(clip.frames(start, stop)), list(clip.frames(start, stop, backward=True))
    assert [frame.index for frame in forward] == list(range(40))[start:stop]
    assert_same(backward, forward[::-1])
    for frame in forward[:2] + forward[-2:]:
        np.testing.assert_array_equal(frame.image, picture(frame.index))


def test_iterators_of_one_clip_do_not_disturb_each_other(long_groups):
    with open_clip(long_groups[7, 3]) as clip:
        pairs = list(zip(clip.frames(), clip.frames(backward=True), clip.frames(20), strict=False))
    for number, (first, second, third) in enumerate(pairs):
        assert (first.index, second.index, third.index) == (number, 39 - number, 20 + number)
        for frame in (first, second, third):
            np.testing.assert_array_equal(frame.image, picture(frame.index))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("damaged", [5, 12])
def test_damaged_packets_are_skipped_and_listed(tmp_path, suffix, damaged):
    """12 begins a group: what builds on it cannot be shown either, up to the next."""
    path = write(tmp_path / f"a.{suffix}", 24, gop=6, codec="mpeg4" if suffix == "mp4" else "ffv1", b_frames=0,
                 pix_fmt="yuv420p")  # fmt: skip
    with av.open(str(path)) as container:
        packet = next(itertools.islice(container.demux(video=0), damaged, None))
    content = bytearray(path.read_bytes())
    at = content.find(bytes(packet))
    content[at : at + packet.size] = os.urandom(packet.size) if suffix == "mp4" else bytes([255]) * packet.size
    whole = read(path)
    path.write_bytes(content)
    with open_clip(path) as clip:
        found = list(clip.frames())
        missing = [skipped.index for skipped in clip.skipped]
        assert clip.num_frames == 24
        assert damaged in missing and set(missing) <= set(range(damaged, damaged // 6 * 6 + 6))
        assert all(skipped.reason for skipped in clip.skipped)
        assert [frame.index for frame in found] == [index for index in range(24) if index not in missing]
        assert [frame.index for frame in clip.frames(backward=True)] == [frame.index for frame in found][::-1]
        assert [skipped.index for skipped in clip.skipped] == missing
    for frame in found:
        if frame.index // 6 != damaged // 6:
            np.testing.assert_array_equal(frame.image, whole[frame.index].image)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["7_3.mp4", "7_3.mkv"]), st.randoms(use_true_random=False), st.booleans())
def test_no_damage_raises_anything_else(long_groups, name, random, is_cut):
    folder = long_groups[7, 3].parent
    if not (folder / name).exists():
        write(folder / name, 40, gop=7, b_frames=3)
    content = bytearray((folder / name).read_bytes())
    for _ in range(random.choice([1, 10, 100])):
        content[random.randrange(len(content))] = random.randrange(256)
    path = folder / f"damaged{Path(name).suffix}"
    path.write_bytes(content[: random.randrange(len(content))] if is_cut else content)
    try:
        with open_clip(path) as clip:
            forward = [frame.index for frame in clip.frames()]
            assert sorted(forward + [skipped.index for skipped in clip.skipped]) == list(range(clip.num_frames))
            assert [frame.index for frame in clip.frames(backward=True)] == forward[::-1]
    except VideoError as error:
        assert "Expected" in str(error)


def test_a_file_that_is_cut_short_ends_where_its_pictures_do(tmp_path, caplog):
    path = write(tmp_path / "a.mp4", 24, container_options={"movflags": "faststart"}, codec="mpeg4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with open_clip(path) as clip:
        found = list(clip.frames())
        assert 6 < clip.num_frames < 24
        assert clip.num_frames - 1 <= len(found) <= clip.num_frames
    assert "of the 24 frames that it announces" in caplog.text


def test_frames_of_another_size_are_scaled_to_the_first(tmp_path):
    """As browsers record calls."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libvpx", rate=25)
        (stream.height, stream.width), stream.pix_fmt = HW, "yuv420p"
        for start, hw in enumerate([HW, (32, 48), HW]):
            context = av.CodecContext.create("libvpx", "w")
            (context.height, context.width), context.pix_fmt, context.time_base = hw, "yuv420p", TICK
            frame = av.VideoFrame.from_ndarray(np.full((*hw, 3), (0, 160, 0), np.uint8), format="rgb24")
            frame.pts, frame.time_base = start, TICK
            for packet in context.encode(frame) + context.encode():
                packet.stream = stream
                container.mux(packet)
    found = read(tmp_path / "a.mkv")
    assert [frame.image.shape for frame in found] == [(*HW, 3)] * 3
    assert all(np.abs(frame.image.astype(int) - (0, 160, 0)).max() < 10 for frame in found)


def write_audio(path, *, cover=False):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44_100, layout="mono")
        picture_stream = container.add_stream("mjpeg", rate=25) if cover else None
        if picture_stream is not None:
            (picture_stream.height, picture_stream.width), picture_stream.pix_fmt = HW, "yuvj420p"
            picture_stream.disposition = av.stream.Disposition.attached_pic
            container.mux(picture_stream.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        for start in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.rate, frame.pts = 44_100, start * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_what_is_no_video_is_refused(tmp_path):
    write_audio(tmp_path / "audio.mp4")
    write_audio(tmp_path / "cover.mp4", cover=True)
    whole = write(tmp_path / "whole.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "headless.mp4").write_bytes(whole.read_bytes()[:200])
    (tmp_path / "text.txt").write_text("words\n" * 99)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile whole.mp4\n")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nwhole.mp4\n#EXT-X-ENDLIST\n")
    Image.fromarray(picture(0)).save(tmp_path / "still.png")
    (tmp_path / "no frames").mkdir()
    os.mkfifo(tmp_path / "pipe")
    paths = sorted(set(tmp_path.iterdir()) - {whole})
    before = open_files()
    for source in (*paths, tmp_path / "none.mp4", "http://localhost/a.mp4", "a\0b", b"bytes", 7, None, picture(0), [],
                   iter(()), [tmp_path / "none.png"], iter([tmp_path / "none.png"]), {"a": 1}):  # fmt: skip
        with pytest.raises(VideoError, match=r"Expected .*(received|but)"):
            open_clip(source)
    assert open_files() == before


def test_a_clip_without_a_picture_is_refused(tmp_path):
    path = write(tmp_path / "a.mkv", 3, codec="ffv1", b_frames=0)
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            at = content.find(bytes(packet)) if packet.size else 0
            content[at : at + packet.size] = bytes([255]) * packet.size
    path.write_bytes(content)
    with pytest.raises(VideoError, match="received 3, none of which can be decoded"):
        open_clip(path)


def open_files():
    gc.collect()
    # What lists the folder is a file of its own, gone by now.
    return sorted(str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_closed_clip_holds_no_file(long_groups):
    path = long_groups[7, 3]
    clip = open_clip(path)
    frames = clip.frames(10)
    kept = next(frames)
    assert str(path) in open_files()
    clip.close()
    clip.close()
    assert str(path) not in open_files()
    np.testing.assert_array_equal(kept.image, picture(10))
    with pytest.raises(VideoError, match="closed"):
        next(frames)
    with pytest.raises(VideoError, match="closed"):
        clip.frames()
    with pytest.raises(KeyboardInterrupt), open_clip(path) as clip:
        for frame in clip.frames(backward=True):
            if frame.index == 30:
                raise KeyboardInterrupt
    assert str(path) not in open_files()


PEAK = """
import sys
from memory import peak_mb
from autodistill_sam3.video.sources import open_clip
with open_clip(sys.argv[1]) as clip:
    next(clip.frames())
    before = peak_mb()
    count = sum(1 for _ in clip.frames(backward=sys.argv[2] == "backward"))
print(count, peak_mb() - before)
"""


def peak_of(path, direction):
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    result = subprocess.run([sys.executable, "-c", PEAK, str(path), direction], env={**os.environ, "PYTHONPATH": paths},
                            capture_output=True, text=True, check=True)  # fmt: skip
    count, peak = result.stdout.split()
    return int(count), float(peak)


def write_long(path, count, hw):
    flat = [np.full((*hw, 3), value, np.uint8) for value in range(0, 250, 10)]
    options = {"preset": "ultrafast", "x264-params": "keyint=infinite:scenecut=0"}
    return write(
        path, count, hw=hw, gop=count, options=options, pictures=list(itertools.islice(itertools.cycle(flat), count))
    )


def test_frames_are_not_kept(tmp_path):
    """One group of 100 frames of 1.4 MB."""
    path = write_long(tmp_path / "long.mp4", 100, (480, 960))
    count, peak = peak_of(path, "forward")
    assert count == 100
    assert peak < 40


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_long_group_is_read_in_bounded_memory(tmp_path, direction):
    path = write_long(tmp_path / "long.mp4", 1500, (720, 1280))
    count, peak = peak_of(path, direction)
    assert count == 1500
    assert peak < 220


def test_a_folder_is_read_in_natural_order(tmp_path):
    folder = tmp_path / "walk"
    folder.mkdir()
    for number in (10, 2, 1):
        Image.fromarray(picture(number)).save(folder / f"frame{number}.png")
    Image.fromarray(picture(0)).save(folder / ".hidden.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "frame3.png").write_bytes(b"no image either")
    with open_clip(folder) as clip:
        assert (clip.name, clip.hw, clip.num_frames, clip.frame_rate) == ("walk", HW, 4, None)
        found = list(clip.frames())
        assert_same(list(clip.frames(backward=True)), found[::-1])
        assert [frame.index for frame in clip.frames(1, 3)] == [1]
        [skipped] = clip.skipped
    assert skipped.index == 2 and "frame3.png" in skipped.reason
    assert [(frame.index, frame.time) for frame in found] == [(0, None), (1, None), (3, None)]
    for frame, number in zip(found, (1, 2, 10), strict=True):
        np.testing.assert_array_equal(frame.image, picture(number))


def test_frames_of_different_sizes_are_refused(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    Image.fromarray(picture(0, (32, 48))).save(tmp_path / "b.png")
    with open_clip(tmp_path) as clip, pytest.raises(VideoError, match=r"96 x 64, received 48 x 32 as frame 1.*b\.png"):
        list(clip.frames())


def test_lists_take_arrays_pil_images_and_paths(tmp_path):
    Image.fromarray(picture(2)).save(tmp_path / "a.png")
    deep = picture(3)[..., ::-1].astype(np.uint16) * 257
    images = [picture(0)[..., ::-1], Image.fromarray(picture(1)), tmp_path / "a.png", deep, str(tmp_path / "none.png")]
    with open_clip(images) as clip:
        assert (clip.num_frames, clip.hw, clip.name) == (5, HW, "clip")
        for number, frame in enumerate(clip.frames()):
            np.testing.assert_array_equal(frame.image, picture(number))
        assert [skipped.index for skipped in clip.skipped] == [4]
        with pytest.raises(SettingError):
            clip.frames(3, 2)
        with pytest.raises(SettingError):
            clip.frames(-1)
    stack = np.stack([picture(number)[..., ::-1] for number in range(3)])
    assert_same(read(stack), read(tuple(stack)))


class Source:
    """A generator that says how far it was read."""

    def __init__(self):
        self.given, self.is_closed = 0, False

    def images(self):
        try:
            for number in range(10):
                self.given += 1
                yield picture(number)[..., ::-1] if number != 4 else "none.png"
        finally:
            self.is_closed = True


def test_a_stream_is_read_frame_by_frame():
    source = Source()
    with open_clip(source.images()) as clip:
        assert (clip.num_frames, clip.hw, clip.frame_rate, source.given) == (None, HW, None, 1)
        frames = clip.frames()
        for number in range(3):
            frame = next(frames)
            assert (frame.index, source.given) == (number, number + 1)
            np.testing.assert_array_equal(frame.image, picture(number))
        with pytest.raises(SettingError, match="gone by"):
            clip.frames(1)
        with pytest.raises(SettingError, match="stream"):
            clip.frames(5, backward=True)
        assert [frame.index for frame in clip.frames(3, 6)] == [3, 5]
        assert source.given == 6
        assert [skipped.index for skipped in clip.skipped] == [4]
        assert [frame.index for frame in clip.frames(8)] == [8, 9]
        with pytest.raises(SettingError, match="gone by"):
            list(clip.frames(9))
    assert source.is_closed


def test_a_stream_dropped_half_way_is_closed():
    source = Source()
    with pytest.raises(ZeroDivisionError), open_clip(source.images()) as clip:
        next(clip.frames())
        raise ZeroDivisionError
    assert source.is_closed
    clip.close()
    assert source.given == 1


def test_a_stream_ends_as_its_source_does():
    def broken():
        yield picture(0)
        raise OSError("unplugged")

    with open_clip(broken()) as clip, pytest.raises(OSError, match="unplugged"):
        list(clip.frames())


@pytest.mark.parametrize("hw", [HW, (63, 97)])
def test_written_frames_are_read_again(tmp_path, hw):
    path = tmp_path / "deep" / "out.mp4"
    shown = [np.full((*hw, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 128, 255), (250, 250, 250), (9, 9, 9))]
    with VideoWriter(path, 12.5, hw) as writer:
        for pixels in shown:
            writer.write(pixels)
        assert not path.exists()
    assert [child.name for child in path.parent.iterdir()] == ["out.mp4"]
    even = tuple(side + side % 2 for side in hw)
    with open_clip(path) as clip:
        assert (clip.num_frames, clip.hw, clip.frame_rate) == (4, even, 12.5)
        for frame, pixels in zip(clip.frames(), shown, strict=True):
            assert np.abs(frame.image.astype(int) - pixels[0, 0]).max() <= 6


def test_times_of_frames_are_kept(tmp_path):
    times = [0.0, 0.04, 0.5, 0.54]
    with VideoWriter(tmp_path / "a.mp4", 25, HW) as writer:
        for number, time in enumerate(times):
            writer.write(picture(number), time)
        writer.write(picture(4))
        with pytest.raises(SettingError, match="rise"):
            writer.write(picture(5), 0.1)
    assert [frame.time for frame in read(tmp_path / "a.mp4")] == pytest.approx([*times, 0.58], abs=1e-4)


def test_a_video_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.mp4"
    with pytest.raises(ZeroDivisionError), VideoWriter(path, 25, HW) as writer:
        writer.write(picture(0))
        raise ZeroDivisionError
    with pytest.raises(SettingError, match="at least one frame"), VideoWriter(path, 25, HW):
        pass
    with pytest.raises(SettingError, match="shape"), VideoWriter(path, 25, HW) as writer:
        writer.write(picture(0, (32, 48)))
    with pytest.raises(SettingError, match="rate"):
        VideoWriter(path, 0, HW)
    assert not list(tmp_path.iterdir())


def tracks(ids, at, hw=HW):
    """A square of 16 for each id, side by side from this column on."""
    masks = [(np.ones((16, 16), bool), at + 20 * position, 30) for position in range(len(ids))]
    count = len(ids)
    return FrameTracks(
        0, np.array(ids, np.int64), compact_masks(masks, hw), np.full(count, 0.93, np.float32),
        np.arange(count, dtype=np.int64) - 1, np.array(["text"] * count),
    )  # fmt: skip


def test_an_id_has_one_colour_wherever_it_is():
    gray = np.full((*HW, 3), 90, np.uint8)
    first = render(gray, tracks([7, 8, 9], 10), ["car", "dog"])
    second = render(gray, tracks([9, 7], 30), ["car"])
    seven, nine = first[40, 18], first[40, 58]
    assert {tuple(seven), tuple(nine), tuple(first[40, 38]), (90, 90, 90)} == {
        tuple(second[40, 58]), tuple(second[40, 38]), tuple(first[40, 38]), (90, 90, 90)}  # fmt: skip
    assert len({tuple(seven), tuple(nine), tuple(first[40, 38])}) == 3
    assert (gray == 90).all() and first.dtype == np.uint8 and first.shape == gray.shape
    np.testing.assert_array_equal(render(gray, FrameTracks.empty(0, HW), []), gray)


def test_detections_are_drawn_as_tracks_are():
    gray = np.full((*HW, 3), 90, np.uint8)
    drawn = tracks([3, 4], 10)
    boxes = np.array([[10, 30, 26, 46], [30, 30, 46, 46]], np.float32)
    detections = sv.Detections(boxes, mask=drawn.masks, confidence=drawn.scores, class_id=drawn.prompt_index,
                               tracker_id=drawn.object_ids)  # fmt: skip
    assert drawn.prompt_index[0] == NO_TEXT
    np.testing.assert_array_equal(render(gray, detections, ["car"]), render(gray, drawn, ["car"]))
    assert (render(gray, detections, ["車"]) != render(gray, detections, ["car"])).any()
    bare = render(gray, sv.Detections(boxes), [])
    assert (bare[30, 12:24] != 90).any() and (bare[38, 18] == 90).all()


def test_a_contact_sheet_shows_its_frames():
    frames = [Frame(index, picture(index), index / 25) for index in range(5)]
    sheet = contact_sheet(frames)
    one = contact_sheet(frames[:1])
    assert sheet.dtype == np.uint8 and sheet.shape == (2 * one.shape[0], 4 * one.shape[1], 3)
    np.testing.assert_array_equal(sheet[: one.shape[0], : one.shape[1]], one)
    with pytest.raises(SettingError, match="received none"):
        contact_sheet([])


def test_only_video_files_need_pyav(tmp_path):
    code = """
import sys
sys.modules["av"] = None
import numpy as np
import autodistill_sam3.video.writing, autodistill_sam3.video.rendering
from autodistill_sam3.video.sources import open_clip
with open_clip([np.zeros((4, 6, 3), np.uint8)]) as clip:
    assert len(list(clip.frames())) == 1
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=True)
