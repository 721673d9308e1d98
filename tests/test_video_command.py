"""`autodistill-sam3 video`: tracks, overlays and one dataset out of clips, whatever stops it or is wrong with them."""

from __future__ import annotations

import _thread
import hashlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
import supervision as sv
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask

from autodistill_sam3 import InputFolderError, OutputFolderError, SAM3Video, SettingError
from autodistill_sam3.cli.main import main
from autodistill_sam3.instances import compact_masks, tight_xyxy
from autodistill_sam3.labeling.names import SourceImage
from autodistill_sam3.ontology import PromptPairs
from autodistill_sam3.training.clips import draw_clip
from autodistill_sam3.video import TrackingPlan, track_clips
from autodistill_sam3.video.choosing import MeasuredFrame, choose_frames
from autodistill_sam3.video.find_clips import find_clips
from autodistill_sam3.video.sources import open_clip
from autodistill_sam3.video.track_files import TrackFile, TrackWriter
from autodistill_sam3.video.writing import VideoWriter

# pycocotools has not followed numpy's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

WH = (96, 72)
LENGTH = 4
RATE = 10.0
# Of the clips' drawings.
SEEDS = {"a clip.mp4": 17, "далеко/a clip.mp4": 10, "frames.of 8": 8}
PROMPTS = ("red circle=ball", "purple circle=ball", "blue square")
MODEL = ["--checkpoint", "shapes", "--device", "cpu", "--quiet"]
FLAGS = [*(part for prompt in PROMPTS for part in ("--class", prompt)), *MODEL, "--every", "2", "--valid-share", "0.5"]
# What says how the files came about, rather than what is in them.
ABOUT_THE_RUN = {"run.json", "times.json", ".lock"}


def drawn(seed, length=LENGTH):
    return draw_clip(seed, *WH, length=length, min_objects=2, max_objects=2).frames


def write_video(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, RATE, WH[::-1]) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def write_pictures(folder, frames):
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, 8):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return folder


def still(length=3):
    """A clip without objects, whose pictures differ."""
    rng = np.random.default_rng(3)
    return [np.kron(rng.integers(90, 140, (9, 12, 1), np.uint8), np.ones((8, 8, 3), np.uint8)) for _ in range(length)]


def digest(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ABOUT_THE_RUN
    }


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def coco_of(dataset):
    """Image name -> (split, its annotations)."""
    found = {}
    for path in dataset.glob("*/_annotations.coco.json"):
        content = json.loads(path.read_text())
        for image in content["images"]:
            own = [one for one in content["annotations"] if one["image_id"] == image["id"]]
            found[Path(image["file_name"]).name] = path.parent.name, own
    return found


@pytest.fixture(scope="module")
def video():
    pairs = tuple((prompt, name or prompt) for prompt, _, name in (text.partition("=") for text in PROMPTS))
    with SAM3Video(PromptPairs(pairs), checkpoint="shapes", device="cpu") as model:
        yield model


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two videos of one name, and a folder of frames."""
    place = tmp_path_factory.mktemp("clips")
    for name, seed in SEEDS.items():
        write = write_video if name.endswith(".mp4") else write_pictures
        write(place / name, drawn(seed))
    return [place / name for name in SEEDS]


@pytest.fixture(scope="module")
def tracked(clips):
    """What the command makes of them."""
    output = clips[0].parent.with_name("tracked")
    assert main(["video", *map(str, clips), *FLAGS, "--render", "--output", str(output)]) == 0
    return output


NAMES = ["a clip", "a clip_2", "frames.of 8"]


def test_files_of_all_clips_are_there_under_names_of_their_own(tracked, clips):
    assert sorted(path.stem for path in (tracked / "tracks").glob("*")) == NAMES
    assert sorted(path.stem for path in (tracked / "overlays").glob("*")) == NAMES
    reports = [json.loads((tracked / "clips" / f"{name}.json").read_text()) for name in NAMES]
    assert [report["source"] for report in reports] == [str(clip.resolve()) for clip in clips]
    assert all((report["num_frames"], report["stop_frame"]) == (LENGTH, LENGTH) for report in reports)
    assert not (tracked / "quarantine.jsonl").exists()
    run = json.loads((tracked / "run.json").read_text())
    assert run["settings"]["identity"]["prompts"][0] == "red circle"
    assert {"av", "torch"} <= run["settings"]["versions"].keys() and "python" in run["provenance"]["versions"]


def test_track_files_hold_what_the_model_tracks(tracked, clips, video):
    lines = lines_of(tracked / "tracks" / "a clip.jsonl")
    assert lines
    expected = [
        (index, int(detections.tracker_id[place]), detections, int(place))
        for index, detections in video.track(clips[0])
        for place in np.argsort(detections.tracker_id)
    ]
    assert [(line["frame"], line["id"]) for line in lines] == [(index, own) for index, own, _, _ in expected]
    for line, (index, _, detections, place) in zip(lines, expected, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(line["mask"]), detections.mask[place])
        assert line["box"] == detections.xyxy[place].tolist()
        x, y, width, height = coco_mask.toBbox(line["mask"])
        assert line["box"] == [x, y, x + width, y + height]
        assert line["score"] == pytest.approx(detections.confidence[place], abs=1e-6)
        assert line["time"] == pytest.approx(index / RATE)
        assert line["class"] == detections.data["class_name"][place]
        assert (line["prompt"], line["source"]) == (detections.data["prompt"][place], "text")
    assert {line["time"] for line in lines_of(tracked / "tracks" / "frames.of 8.jsonl")} <= {None}


def test_overlays_are_the_clips_with_objects_painted(tracked, clips):
    for name, clip in zip(NAMES, clips, strict=True):
        with open_clip(clip) as source, open_clip(tracked / "overlays" / f"{name}.mp4") as overlay:
            assert (overlay.num_frames, overlay.hw) == (LENGTH, WH[::-1])
            if clip.is_file():
                assert overlay.frame_rate == pytest.approx(RATE)
            pairs = list(zip(source.frames(), overlay.frames(), strict=True))
        inside, outside = [], []
        tracks = TrackFile(tracked / "tracks" / f"{name}.jsonl", ("ball", "blue square"))
        for before, after in pairs:
            if clip.is_file():
                assert after.time == pytest.approx(before.time)
            change = np.abs(before.image.astype(int) - after.image).sum(axis=2)
            found = tracks.detections(before.index)
            covered = np.zeros(WH[::-1], bool)
            far = np.ones(WH[::-1], bool)
            for place, (x1, y1, x2, y2) in enumerate(found.xyxy.astype(int)):
                covered |= found.mask[place]
                # Labels stand above or in the box.
                far[max(y1 - 24, 0) : y2 + 4, max(x1 - 4, 0) :] = False
                far[max(y1 - 24, 0) : y2 + 4, : x2 + 60] = False
            inside.append(change[covered])
            outside.append(change[far])
        # What encoding alone changes, in small pictures full of colours.
        assert np.concatenate(outside).mean() < 45
        if len(tracks):
            assert np.concatenate(inside).mean() > 60


def test_dataset_holds_the_chosen_frames_and_no_clip_is_in_two_splits(tracked):
    found = coco_of(tracked / "dataset")
    chosen = {
        f"{name}_{frame:06d}.png": (name, frame)
        for name in NAMES
        for frame in json.loads((tracked / "clips" / f"{name}.json").read_text())["chosen"]
    }
    assert found.keys() == chosen.keys()
    assert all(frame % 2 == 0 for _, frame in chosen.values())
    splits = {(chosen[image][0], split) for image, (split, _) in found.items()}
    assert len(splits) == len(NAMES)
    for image, (split, objects) in found.items():
        name, frame = chosen[image]
        lines = [line for line in lines_of(tracked / "tracks" / f"{name}.jsonl") if line["frame"] == frame]
        assert [one["track_id"] for one in objects] == [line["id"] for line in lines]
        assert [one["segmentation"] for one in objects] == [line["mask"] for line in lines]
        assert [one["score"] for one in objects] == [pytest.approx(line["score"], abs=1e-6) for line in lines]
        assert all(one["area"] == coco_mask.area(one["segmentation"]) for one in objects)
        assert (tracked / "dataset" / split / "labels" / f"{Path(image).stem}.txt").exists()
    eight = next(split for name, split in splits if name == "frames.of 8")
    with Image.open(tracked / "dataset" / eight / "images" / "frames.of 8_000000.png") as image:
        np.testing.assert_array_equal(np.array(image), drawn(SEEDS["frames.of 8"])[0])


def test_dataset_is_taken_by_other_commands(tracked, tmp_path, capsys):
    dataset = str(tracked / "dataset")
    quiet = ["--quiet", "--output"]
    assert main(["evaluate", dataset, "--ground-truth", dataset, *quiet, str(tmp_path / "evaluated")]) == 0
    assert main(["preprocess", dataset, "--items", "crops", *quiet, str(tmp_path / "crops")]) == 0
    assert main(["export", dataset, "--to", "label-studio", "--output", str(tmp_path / "tasks")]) == 0
    assert capsys.readouterr().err == ""
    objects = sum(len(annotations) for _, annotations in coco_of(tracked / "dataset").values())
    assert sum(len(annotations) for _, annotations in coco_of(tmp_path / "crops").values()) >= objects
    loaded = sv.DetectionDataset.from_yolo(
        images_directory_path=f"{dataset}/train/images",
        annotations_directory_path=f"{dataset}/train/labels",
        data_yaml_path=f"{dataset}/data.yaml",
    )
    assert loaded.classes == ["ball", "blue square"]


def plan_of(clips, output, **keywords):
    """What `FLAGS` ask for."""
    return TrackingPlan(clips, output, **{"every": 2, "valid_share": 0.5, "render": True, "progress": False} | keywords)


def test_a_rerun_changes_nothing_and_other_settings_are_refused(tracked, clips, video):
    before = digest(tracked)
    times = {path: path.stat().st_mtime_ns for path in tracked.glob("[tof]*/**/*") if path.is_file()}
    result = track_clips(video, plan_of(clips, tracked))
    assert [clip.name for clip in result.clips] == NAMES
    assert len(result.dataset) == sum(len(clip.chosen) for clip in result.clips)
    assert digest(tracked) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    with pytest.raises(OutputFolderError, match=r"tracking\.every: 2 there, 3 now"):
        track_clips(video, plan_of(clips, tracked, every=3))
    assert digest(tracked) == before


def wait_for(path, pattern):
    for _ in range(3000):
        if any(path.glob(pattern)):
            return True
        time.sleep(0.01)
    return False


def interrupted_at(pattern, output, command):
    watcher = threading.Thread(target=lambda: wait_for(output, pattern) and _thread.interrupt_main(signal.SIGINT))
    watcher.start()
    assert main(command) == 130
    watcher.join()


def killed_at(pattern, output, command):
    process = subprocess.Popen([sys.executable, "-m", "autodistill_sam3", *command], cwd=Path(__file__).parents[1])
    try:
        assert wait_for(output, pattern)
    finally:
        process.kill()
        process.wait()


def assert_same_results(output, other):
    found, expected = digest(output), digest(other)
    # Images that a run which was killed had begun with are noted twice.
    for files in (found, expected):
        files.pop("dataset/journal.jsonl")
    assert found == expected


def test_stopped_twice_the_same_command_goes_on_and_ends_with_the_same_bytes(tracked, clips, video, tmp_path, capsys):
    output = tmp_path / "tracked"
    command = ["video", *map(str, clips), *FLAGS, "--render", "--output", str(output)]
    interrupted_at("tracks/.a clip_2*", output, command)
    assert "goes on where this one was" in capsys.readouterr().err
    assert [path.name for path in (output / "tracks").iterdir()] == ["a clip.jsonl"]
    assert not (output / "dataset").exists()
    first = (output / "tracks" / "a clip.jsonl").stat().st_mtime_ns
    killed_at("frames/a clip_2/*.png", output, command)
    track_clips(video, plan_of(clips, output))
    assert (output / "tracks" / "a clip.jsonl").stat().st_mtime_ns == first
    assert_same_results(output, tracked)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern",
    [
        "run.json", "tracks/.a*", "clips/a clip.json", "frames/a clip/*.png", "overlays/.a*", "tracks/.a clip_2*",
        "overlays/a clip_2.mp4", "frames/frames.of 8/*", "dataset/journal.jsonl", "dataset/*/images/*.png",
    ],
)  # fmt: skip
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(tracked, clips, tmp_path, pattern):
    output = tmp_path / "tracked"
    command = ["video", *map(str, clips), *FLAGS, "--render", "--output", str(output)]
    killed_at(pattern, output, command)
    assert main(command) == 0
    assert_same_results(output, tracked)


def test_faulty_clips_are_left_out_and_the_others_finished(video, tmp_path):
    source = tmp_path / "in"
    good = write_video(source / "good.mp4", still())
    (source / "broken.mp4").write_bytes(b"no video")
    (source / "empty.mkv").touch()
    (source / ".hidden.mp4").write_bytes(b"no video")
    output = tmp_path / "out"
    plan = TrackingPlan([source], output, every=1, progress=False)
    result = track_clips(video, plan)
    faults = lines_of(output / "quarantine.jsonl")
    assert [Path(fault["source"]).name for fault in faults] == ["broken.mp4", "empty.mkv"]
    assert result.quarantined == {fault["source"]: fault["reason"] for fault in faults}
    assert all("Expected a video" in fault["reason"] for fault in faults)
    assert [path.name for path in (output / "tracks").iterdir()] == ["good.jsonl"]
    shutil.copy(good, source / "broken.mp4")
    (source / "empty.mkv").unlink()
    assert track_clips(video, plan).quarantined == {}
    assert not (output / "quarantine.jsonl").exists()
    assert sorted(path.stem for path in (output / "clips").iterdir()) == ["broken", "good"]


def test_frames_without_objects_are_negatives_unless_they_are_left_out(video, tmp_path):
    clip = write_video(tmp_path / "still.mp4", still())
    result = track_clips(video, TrackingPlan([clip], tmp_path / "out", every=1, progress=False))
    found = coco_of(tmp_path / "out" / "dataset")
    assert result.clips[0].chosen == [0, 1, 2]
    assert sorted(found) == [f"still_00000{frame}.png" for frame in range(3)]
    assert all(objects == [] for _, objects in found.values())
    assert lines_of(tmp_path / "out" / "tracks" / "still.jsonl") == []
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    flags = [
        "--class",
        "blue star",
        *MODEL,
        "--on-empty",
        "skip",
        "--every",
        "1",
        "--output",
        str(tmp_path / "skipped"),
    ]
    # The status says that a clip is in quarantine.
    assert main(["video", str(clip), str(tmp_path / "broken.mp4"), *flags]) == 1
    assert not (tmp_path / "skipped" / "dataset").exists()
    assert (tmp_path / "skipped" / "tracks" / "still.jsonl").exists()


def test_frames_that_cannot_be_read_are_listed(video, tmp_path):
    frames = write_pictures(tmp_path / "frames", still(4))
    (frames / "9.png").write_bytes(b"no image")
    result = track_clips(video, TrackingPlan([frames], tmp_path / "out", every=1, render=True, progress=False))
    (clip,) = result.clips
    assert [skipped.index for skipped in clip.skipped] == [1]
    assert 1 not in clip.chosen
    assert [one["index"] for one in json.loads((tmp_path / "out/clips/frames.json").read_text())["skipped"]] == [1]
    with av.open(str(tmp_path / "out/overlays/frames.mp4")) as overlay:
        assert sum(1 for _ in overlay.decode(video=0)) == 3


def test_a_clip_of_other_content_is_tracked_again_and_new_ones_are_added(video, tmp_path):
    plan = TrackingPlan([tmp_path / "in"], tmp_path / "out", every=1, progress=False)
    write_video(tmp_path / "in" / "one.mp4", still())
    track_clips(video, plan)
    write_video(tmp_path / "in" / "one.mp4", still(2))
    write_video(tmp_path / "in" / "another.mp4", still(2))
    reports = track_clips(video, plan).clips
    assert [(report.name, report.num_frames) for report in reports] == [("another", 2), ("one", 2)]
    assert sorted(path.name for path in (tmp_path / "out/frames/one").iterdir()) == ["000000.png", "000001.png"]
    before = digest(tmp_path / "out")
    # The same content, copied anew.
    (tmp_path / "in" / "one.mp4").touch()
    track_clips(video, plan)
    assert digest(tmp_path / "out") == before
    # Clips that are not named any more stay.
    (tmp_path / "in" / "one.mp4").unlink()
    assert len(track_clips(video, plan).clips) == 2


def test_overwriting_removes_what_was_there_and_nothing_else(video, tmp_path):
    write_video(tmp_path / "a.mp4", still(2))
    plan = TrackingPlan([tmp_path / "a.mp4"], tmp_path / "out", progress=False)
    track_clips(video, plan)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    other = TrackingPlan([tmp_path / "a.mp4"], tmp_path / "out", progress=False, max_frames=1)
    with pytest.raises(OutputFolderError, match=r"tracking\.max_frames: None there, 1 now"):
        track_clips(video, other)
    again = TrackingPlan([tmp_path / "a.mp4"], tmp_path / "out", progress=False, max_frames=1, overwrite=True)
    assert track_clips(video, again).clips[0].stop_frame == 1
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "letter.txt").write_text("mine")
    with pytest.raises(OutputFolderError, match="something else"):
        track_clips(video, TrackingPlan([tmp_path / "a.mp4"], tmp_path / "strange", overwrite=True))


@pytest.mark.parametrize(
    ("direction", "keywords", "frames"),
    [
        ("backward", {"max_frames": 2}, [2, 3]),
        ("both", {"start_frame": 2, "max_frames": 2}, [1, 2, 3]),
        ("forward", {"start_frame": 1, "max_frames": 1}, [1]),
    ],
)
def test_parts_of_clips_are_written_in_rising_order(video, clips, tmp_path, direction, keywords, frames):
    plan = TrackingPlan(clips[:1], tmp_path / "out", every=1, direction=direction, progress=False, **keywords)
    (clip,) = track_clips(video, plan).clips
    assert list(range(clip.first_frame, clip.stop_frame)) == frames
    found = [line["frame"] for line in lines_of(tmp_path / "out/tracks/a clip.jsonl")]
    assert found == sorted(found) and set(found) <= set(frames)
    assert set(clip.chosen) <= set(frames)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"every": 0}, "every"),
        ({"max_frames": 0}, "max_frames"),
        ({"start_frame": -1}, "start_frame"),
        ({"direction": "up"}, "direction"),
        ({"min_sharpness": 2}, "min_sharpness"),
        ({"valid_share": 1}, "valid_share"),
        ({"formats": ["gif"]}, "gif"),
    ],
)
def test_settings_out_of_their_range_are_refused(keywords, message):
    with pytest.raises(SettingError, match=message):
        TrackingPlan([], Path(), **keywords)


def test_clips_are_found_in_files_and_folders(tmp_path):
    for name in ("b.mp4", "a10.MOV", "a2.mp4", "thumbnail.jpg", "note.txt", ".x.mp4", "inner/b.mp4", "seq/1/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(*names, **keywords):
        return [clip.stem for clip in find_clips([tmp_path / name for name in names], **keywords)]

    assert found("") == ["a2", "a10", "b"]
    assert found("", recursive=True) == ["a2", "a10", "b", "inner_b", "seq_1"]
    assert found("b.mp4", "", "inner/b.mp4") == ["b", "a2", "a10", "b"]
    assert found("seq/1", "note.txt") == ["1", "note"]
    for name in ("seq", "missing.mp4"):
        with pytest.raises(InputFolderError):
            found(name)


def test_outputs_among_or_around_the_clips_are_refused(video, clips):
    for output in (clips[0].parent, clips[2] / "out"):
        with pytest.raises(OutputFolderError, match="apart"):
            track_clips(video, TrackingPlan(clips, output))


def test_several_clips_need_an_output(capsys):
    assert main(["video", "a.mp4", "b.mp4", "--class", "a", *MODEL]) == 1
    assert "--output" in capsys.readouterr().err


@settings(max_examples=100)
@given(st.text(min_size=1, max_size=20), st.integers(0, 9), st.lists(st.integers(0, 10**7), min_size=2, max_size=9))
def test_all_frames_of_a_clip_fall_into_one_split(name, seed, frames):
    rule = TrackingPlan([], Path(), seed=seed, valid_share=0.4, test_share=0.3).split
    folder = name.replace("/", "_")
    images = [SourceImage(Path("any"), f"{folder}/{frame:06d}.png") for frame in frames]
    assert len({rule.split_of(image) for image in images}) == 1


HASHES = st.integers(0, 2**64 - 1).map(lambda bits: f"{bits:016x}")
MEASURED = st.lists(st.tuples(st.floats(0, 1e4), HASHES), max_size=12).map(
    lambda values: [MeasuredFrame(5 * place, *value) for place, value in enumerate(values)]
)


@given(MEASURED, st.floats(0, 1))
def test_chosen_frames_are_sharp_and_none_is_lost(measured, share):
    chosen, left_out = choose_frames(measured, lambda index: {}, share)
    assert len(chosen) + left_out.total() == len(measured)
    median = np.median([frame.sharpness for frame in measured]) if measured else 0
    of_index = {frame.index: frame for frame in measured}
    assert all(of_index[index].sharpness >= share * median for index in chosen)
    for first, second in itertools.pairwise(chosen):
        assert bin(int(of_index[first].phash, 16) ^ int(of_index[second].phash, 16)).count("1") > 6
    # What is sharp and first is always chosen.
    assert chosen or not measured


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=6, unique=True),
    arrays(bool, (3, 9, 11)),
    st.permutations([4, 0, 17]),
)
def test_tracks_read_back_as_they_were_written_in_any_order_of_frames(tmp_path_factory, frames, masks, ids):
    path = tmp_path_factory.mktemp("tracks") / "clip.jsonl"
    masks = masks[masks.any(axis=(1, 2))]
    ids = np.array(ids[: len(masks)], np.int64)
    compact = compact_masks([(mask, 0, 0) for mask in masks], (9, 11))
    text = {"class_name": "é", "prompt": "p", "source": "text"}
    detections = sv.Detections(
        tight_xyxy(compact), mask=compact, tracker_id=ids, class_id=np.ones(len(ids), int),
        confidence=np.linspace(0, 1, len(ids), dtype=np.float32),
        data={key: np.array([value] * len(ids), np.str_) for key, value in text.items()},
    )  # fmt: skip
    with TrackWriter(path, (9, 11)) as writer:
        for frame in frames:
            writer.write(frame, frame / 3, detections)
    lines = lines_of(path)
    assert [(line["frame"], line["id"]) for line in lines] == [(f, i) for f in sorted(frames) for i in sorted(ids)]
    tracks = TrackFile(path, ("other", "é"))
    assert list(tracks) == (sorted(frames) if len(ids) else [])
    order = np.argsort(ids)
    for frame in frames:
        found = tracks.detections(frame)
        np.testing.assert_array_equal(found.tracker_id, ids[order])
        if len(ids):
            np.testing.assert_array_equal(found.mask.to_dense(), masks[order])
            np.testing.assert_array_equal(found.xyxy, detections.xyxy[order])
            np.testing.assert_array_equal(found.class_id, detections.class_id)
    for line in lines:
        np.testing.assert_array_equal(coco_mask.decode(line["mask"]), masks[ids.tolist().index(line["id"])])
    assert len(tracks.detections(51)) == 0
