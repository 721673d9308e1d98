"""Runs that stop, change or meet each other: nothing finished is lost, and the end is always the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from labelers import discs, discs_of
from PIL import Image

from autodistill_sam3 import CheckpointError, LabelingError, OutOfMemoryError, OutputFolderError
from autodistill_sam3.labeling import LabelingPlan, SplitRule, folder, label_images
from autodistill_sam3.labeling.batches import PADDING
from autodistill_sam3.labeling.folder import read_quarantine
from autodistill_sam3.labeling.journal import Journal

CLASSES = ("ball", "box")
# What says how a dataset came about, rather than what is in it.
ABOUT_THE_RUN = {"journal.jsonl", "run.json", "times.json", ".lock"}


def digest(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ABOUT_THE_RUN
    }


def save_noise(path, seed, size_wh=(64, 48)):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    coarse.resize(size_wh, Image.Resampling.BICUBIC).save(path)


def pixels_of(path):
    with Image.open(path) as image:
        return np.array(image)


def journal_of(output):
    lines = (output / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def finished_of(output):
    return [line["source"] for line in journal_of(output) if "event" not in line]


@pytest.fixture
def plan(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for index in range(10):
        save_noise(source / f"{index}.png", index)
    return LabelingPlan(
        source, tmp_path / "out", CLASSES, {"model": "discs"}, batch_size=4, split=SplitRule(seed=1), progress=False
    )


class Watched:
    """A model that remembers what it was asked, and does something before."""

    def __init__(self, before=lambda call: None):
        self.batches = []
        self._before = before

    def __call__(self, images):
        self.batches.append([int(image.astype(np.int64).sum()) for image in images])
        self._before(images)
        return discs(images)


def test_batches_have_one_size_and_are_cut_from_all_images(plan):
    undisturbed = Watched()
    label_images(replace(plan, output=plan.output.with_name("undisturbed")), undisturbed)
    assert [len(batch) for batch in undisturbed.batches] == [4, 4, 4]
    assert undisturbed.batches[2][2:] == [int(PADDING.astype(np.int64).sum())] * 2

    def stop_at_last(images):
        if len(stopping.batches) == 2:
            raise KeyboardInterrupt

    stopping = Watched(stop_at_last)
    with pytest.raises(KeyboardInterrupt):
        label_images(plan, stopping)
    # As if it had been killed within the first batch.
    journal = plan.output / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:3]) + b'{"cut')
    resumed = Watched()
    label_images(plan, resumed)
    assert resumed.batches == undisturbed.batches
    assert digest(plan.output) == digest(plan.output.with_name("undisturbed"))


def test_a_batch_that_is_finished_is_not_computed_again(plan):
    label_images(replace(plan, limit=8), discs)
    rest = Watched()
    label_images(plan, rest)
    assert len(rest.batches) == 1


def test_out_of_memory_shrinks_the_batch_once_and_for_all(plan):
    def limited(images):
        if len(images) > 2:
            raise OutOfMemoryError("too much")

    first = Watched(limited)
    label_images(replace(plan, limit=8), first)
    assert [len(batch) for batch in first.batches] == [4, 2, 2, 2, 2]
    assert {"event": "out_of_memory", "batch_size": 2} in journal_of(plan.output)
    rest = Watched(limited)
    assert len(label_images(plan, rest)) == 10
    assert [len(batch) for batch in rest.batches] == [2]


def test_an_image_that_never_fits_is_left_out(plan):
    save_noise(plan.source / "55.png", 55, (300, 200))

    def limited(images):
        if any(image.shape[0] == 200 for image in images):
            raise OutOfMemoryError("too much")

    assert len(label_images(plan, Watched(limited))) == 10
    [item] = read_quarantine(plan.output)
    assert item["source"] == "55.png"
    assert "OutOfMemoryError: too much" in item["reason"]


def test_a_model_that_fits_nothing_stops(plan):
    def nothing_fits(images):
        raise OutOfMemoryError("too much")

    with pytest.raises(OutOfMemoryError):
        label_images(plan, Watched(nothing_fits))


@pytest.mark.parametrize("error", [CheckpointError("not finite"), IndexError("a bug")])
def test_one_image_that_the_model_fails_on_is_left_out(plan, error):
    save_noise(plan.source / "55.png", 55, (300, 200))

    def fail(images):
        if any(image.shape[0] == 200 for image in images):
            raise error

    dataset = label_images(plan, Watched(fail))
    assert len(dataset) == 10
    [item] = read_quarantine(plan.output)
    assert item["source"] == "55.png"
    assert str(error) in item["reason"]
    # Its neighbours have what they would have without it.
    for path in dataset.image_paths:
        expected = discs_of(pixels_of(path))
        np.testing.assert_array_equal(dataset.annotations[path].mask, np.asarray(expected.mask))


def test_a_model_that_fails_on_everything_stops(plan):
    with pytest.raises(ZeroDivisionError):
        label_images(plan, lambda images: 1 / 0)
    assert not (plan.output / "quarantine.jsonl").exists()
    assert len(label_images(plan, discs)) == 10


def test_other_settings_are_refused_with_the_difference(plan):
    label_images(plan, discs)
    before = digest(plan.output)
    nested = {"model": "discs", "identity": {"checkpoint_sha256": "aa"}}
    for other, difference in (
        (replace(plan, settings={"model": "other"}), "model: 'discs' there, 'other' now"),
        (replace(plan, settings=nested), "identity.checkpoint_sha256: nothing there, 'aa' now"),
        (replace(plan, batch_size=2), "batch_size: 4 there, 2 now"),
        (replace(plan, split=SplitRule(seed=2)), "split.seed: 1 there, 2 now"),
        (replace(plan, formats=("yolo-detection",)), "one kind of YOLO labels"),
    ):
        with pytest.raises(OutputFolderError, match=difference):
            label_images(other, discs)
        assert digest(plan.output) == before
    assert len(label_images(replace(plan, batch_size=2, overwrite=True), discs)) == 10


def test_changed_added_and_removed_images(plan, caplog):
    label_images(plan, discs)
    before = digest(plan.output)
    os.utime(plan.source / "0.png", ns=(1, 1))
    save_noise(plan.source / "1.png", 111)
    save_noise(plan.source / "10.png", 10)
    (plan.source / "2.png").unlink()
    model = Watched()
    dataset = label_images(plan, model)
    assert len(dataset) == 11
    assert "1 images of the dataset are no longer in the input" in caplog.text
    assert json.loads((plan.output / "report.json").read_text())["removed_from_input"] == ["2.png"]
    after = digest(plan.output)
    changed = {name for name in before if after[name] != before[name]} - {"report.json"}
    assert {Path(name).stem for name in changed} == {"1", "_annotations.coco"}
    by_name = {Path(path).name: path for path in dataset.image_paths}
    for name in ("1.png", "10.png"):
        expected = discs_of(pixels_of(plan.source / name))
        np.testing.assert_array_equal(dataset.annotations[by_name[name]].mask, np.asarray(expected.mask))
    # None moved.
    assert {name for name in before if "/images/" in name} < {name for name in after if "/images/" in name}


def test_a_changed_image_keeps_its_place_and_leaves_nothing_behind(plan):
    label_images(plan, discs)
    [old] = plan.output.glob("*/images/3.png")
    Image.new("I;16", (30, 20)).save(plan.source / "3.png")
    Image.new("RGB", (30, 20)).save(plan.source / "4.png", format="BMP")
    label_images(plan, discs)
    assert [path.parent for path in plan.output.glob("*/images/3.*")] == [old.parent]
    with Image.open(old) as image:
        assert image.size == (30, 20)


def test_edited_annotations_are_never_overwritten(plan, caplog):
    label_images(plan, discs)
    [label] = plan.output.glob("*/labels/1.txt")
    label.write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    label_images(plan, discs)
    assert label.read_text().startswith("0 0.1 0.1")
    save_noise(plan.source / "1.png", 111)
    label_images(plan, discs)
    assert label.read_text().startswith("0 0.1 0.1")
    assert "was edited since" in caplog.text
    coco = plan.output / "train" / "_annotations.coco.json"
    content = json.loads(coco.read_text())
    content["annotations"].pop()
    coco.write_text(json.dumps(content))
    with pytest.raises(OutputFolderError, match="was changed since"):
        label_images(plan, discs)
    assert json.loads(coco.read_text()) == content
    coco.unlink()
    label_images(plan, discs)
    assert coco.exists()
    label_images(replace(plan, overwrite=True), discs)
    assert not label.read_text().startswith("0 0.1 0.1")


class Crash(BaseException):
    """What no code catches, as a SIGKILL."""


def crash_at(monkeypatch, name, count):
    """Let a step of the writing fail at its n-th call, before it does anything."""
    owner, attribute = {
        "files": (folder, "write_files"), "image": (folder, "place_image"), "journal": (Journal, "append"),
        "remove": (folder, "remove_files"), "begin": (Journal, "begin"),
    }[name]  # fmt: skip
    real, calls = getattr(owner, attribute), []

    def step(*arguments, **keywords):
        calls.append(1)
        if len(calls) == count:
            raise Crash
        return real(*arguments, **keywords)

    monkeypatch.setattr(owner, attribute, step)


@pytest.mark.parametrize("step", ["begin", "image", "files", "journal", "remove"])
def test_a_crash_while_changed_images_are_labelled_again(plan, step, monkeypatch, tmp_path):
    """Wherever it comes, the next run ends as if it had not come, and takes nothing for edited."""
    for index in (3, 4, 5):
        save_noise(plan.source / f"{index}.png", index)
    label_images(plan, discs)
    for index in (3, 4):
        save_noise(plan.source / f"{index}.png", 100 + index, (80, 60))
    # Turned, so that its copy gets another suffix.
    (plan.source / "5.png").unlink()
    save_noise(plan.source / "5.jpg", 105)
    shutil.copytree(plan.output, tmp_path / "before")
    label_images(plan, discs)
    expected = digest(plan.output)
    for count in (1, 2, 3):
        shutil.rmtree(plan.output)
        shutil.copytree(tmp_path / "before", plan.output)
        with monkeypatch.context() as patch:
            crash_at(patch, step, count)
            with contextlib.suppress(Crash):
                label_images(plan, discs)
        label_images(plan, discs)
        assert digest(plan.output) == expected, count


def test_what_a_killed_run_left_of_images_that_are_gone_is_removed(plan, monkeypatch):
    with monkeypatch.context() as patch:
        crash_at(patch, "journal", 3)
        with pytest.raises(Crash):
            label_images(plan, discs)
    (plan.source / "2.png").unlink()
    label_images(plan, discs)
    assert not list(plan.output.glob("*/*/2.*"))
    assert len(list(plan.output.glob("*/images/*"))) == len(list(plan.output.glob("*/labels/*"))) == 9


def test_a_finished_image_that_fails_later_keeps_what_it_had(plan):
    label_images(plan, discs)
    before = digest(plan.output)
    (plan.source / "1.png").write_bytes(b"no longer an image")
    dataset = label_images(plan, discs)
    assert len(dataset) == 10
    assert [item["source"] for item in read_quarantine(plan.output)] == ["1.png"]
    after = digest(plan.output)
    assert {name for name in after if after[name] != before.get(name)} == {"report.json", "quarantine.jsonl"}


def test_files_of_others_in_the_dataset_are_not_overwritten(plan):
    label_images(plan, discs)
    for place, content in (("images/mine.png", b"my image"), ("labels/mine.txt", b"my label")):
        (plan.output / "train" / place).write_bytes(content)
    save_noise(plan.source / "mine.png", 77)
    assert len(label_images(plan, discs)) == 11
    assert (plan.output / "train/images/mine.png").read_bytes() == b"my image"
    assert (plan.output / "train/labels/mine.txt").read_bytes() == b"my label"


def test_an_edited_label_whose_image_was_removed_stays(plan):
    label_images(plan, discs)
    [label] = plan.output.glob("*/labels/1.txt")
    label.write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (label.parent.parent / "images" / "1.png").unlink()
    label_images(plan, discs)
    assert label.read_text().startswith("0 0.1 0.1")


def test_batches_in_which_every_image_fails_do_not_end_the_run(plan):
    for name in ("0.png", "1.png", "2.png", "3.png"):
        save_noise(plan.source / name, 55, (300, 200))

    def fail(images):
        if any(image.shape[0] == 200 for image in images):
            raise IndexError("a bug")

    for batch_size in (4, 1):
        sized = replace(plan, batch_size=batch_size, overwrite=True)
        assert len(label_images(sized, Watched(fail))) == 6
        assert len(read_quarantine(plan.output)) == 4


def test_a_model_that_forgets_an_image_stops_the_run(plan):
    for forgets in (lambda images: discs(images)[1:], lambda images: []):
        with pytest.raises(LabelingError, match="Expected detections of 4 images"):
            label_images(replace(plan, overwrite=True), forgets)


def test_an_image_that_changes_while_it_is_labelled_is_not_mixed_up(plan):
    def change(images):
        if len(model.batches) == 1:
            save_noise(plan.source / "1.png", 111, (90, 70))

    model = Watched(change)
    label_images(plan, model)
    [item] = read_quarantine(plan.output)
    assert item["source"] == "1.png"
    assert "changed while" in item["reason"]
    assert not list(plan.output.glob("*/*/1.*"))
    assert len(label_images(plan, discs)) == 10


def test_pipes_are_not_waited_for(plan):
    os.mkfifo(plan.source / "pipe.png")
    assert len(label_images(plan, discs)) == 10
    assert [item["source"] for item in read_quarantine(plan.output)] == ["pipe.png"]


def test_overwriting_that_was_interrupted_is_completed(plan, monkeypatch):
    label_images(plan, discs)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: crash())
        with pytest.raises(Crash):
            label_images(replace(plan, overwrite=True), discs)
    (plan.output / "test").mkdir()
    (plan.output / "test" / "mine").write_text("")
    assert len(label_images(plan, discs)) == 10
    assert (plan.output / "test" / "mine").exists()


def crash():
    raise Crash


def test_settings_that_are_no_json_are_refused_before_anything_is_removed(plan):
    label_images(plan, discs)
    before = digest(plan.output)
    with pytest.raises(TypeError):
        label_images(replace(plan, settings={"value": {1, 2}}, overwrite=True), discs)
    assert digest(plan.output) == before


def test_yolo_can_be_added_to_coco(plan):
    label_images(replace(plan, formats=("coco",)), discs)
    assert not list(plan.output.glob("*/labels/*"))
    label_images(plan, discs)
    assert len(list(plan.output.glob("*/labels/*"))) == 10


def test_formats_can_be_added_and_stay(plan):
    label_images(replace(plan, formats=("yolo",)), discs)
    assert not list(plan.output.glob("*/_annotations.coco.json"))
    label_images(replace(plan, formats=("yolo", "coco", "voc"), record_confidence=True), discs)
    save_noise(plan.source / "10.png", 10)
    label_images(replace(plan, formats=("yolo",)), discs)
    for pattern in ("voc/*.xml", "labels/confidence-*.txt", "labels/[0-9]*.txt"):
        assert len(list(plan.output.glob(f"*/{pattern}"))) == 11, pattern
    images = [json.loads(path.read_text())["images"] for path in plan.output.glob("*/_annotations.coco.json")]
    assert sum(map(len, images)) == 11


def test_a_second_run_on_the_same_output_is_refused(plan):
    inner = []

    def start_another(images):
        if not inner:
            script = f"""
            from pathlib import Path
            from autodistill_sam3.labeling import LabelingPlan, SplitRule, label_images
            source, output = Path({str(plan.source)!r}), Path({str(plan.output)!r})
            plan = LabelingPlan(source, output, {CLASSES!r}, {{"model": "discs"}}, batch_size=4,
                                split=SplitRule(seed=1), overwrite=True, progress=False)
            label_images(plan, None)
            """
            inner.append(run_script(script))

    label_images(plan, Watched(start_another))
    assert "Error: Another run is at work" in inner[0].stderr
    assert len(label_images(plan, discs)) == 10


def test_ctrl_c_finishes_the_images_in_flight(plan, caplog):
    def press(images):
        if len(model.batches) == 2:
            signal.raise_signal(signal.SIGINT)

    model = Watched(press)
    with pytest.raises(KeyboardInterrupt):
        label_images(plan, model)
    assert "what is finished stays" in caplog.text
    assert len(finished_of(plan.output)) == 8
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(label_images(plan, discs)) == 10

    def press_twice(images):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        label_images(replace(plan, overwrite=True), Watched(press_twice))
    assert not (plan.output / "journal.jsonl").exists()


def run_script(script, *arguments, **keywords):
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True, text=True, check=False, env=environment, **keywords,
    )  # fmt: skip


LABEL_TO = """
import resource, sys
from pathlib import Path
from labelers import discs
from memory import peak_mb
from autodistill_sam3.labeling import LabelingPlan, label_images
source, output = map(Path, sys.argv[1:3])
limit = int(sys.argv[3]) or None
if len(sys.argv) > 4:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), int(sys.argv[4])))
plan = LabelingPlan(source, output, ("ball", "box"), {}, limit=limit, batch_size=4, progress=False)
dataset = label_images(plan, discs)
objects = sum(len(detections) for _, _, detections in dataset)
print(objects, round(peak_mb()))
"""


def test_a_disk_that_is_full_in_the_middle_of_a_file(plan, tmp_path):
    """The kernel cuts a write short, as on a full disk: nothing half-written has a final name."""
    for index in range(10, 60):
        save_noise(plan.source / f"{index}.png", index)
    label_images(replace(plan, settings={}, split=SplitRule(), output=tmp_path / "undisturbed"), discs)
    size = (tmp_path / "undisturbed" / "journal.jsonl").stat().st_size // 2
    done = run_script(LABEL_TO, plan.source, plan.output, 0, size)
    assert "LabelingError: Cannot write" in done.stderr
    assert "the same command goes on" in done.stderr.lower()
    finished = len(finished_of(plan.output))
    assert 10 < finished < 60
    for name, value in digest(plan.output).items():
        assert digest(tmp_path / "undisturbed")[name] == value
    done = run_script(LABEL_TO, plan.source, plan.output, 0)
    assert done.returncode == 0, done.stderr
    assert digest(plan.output) == digest(tmp_path / "undisturbed")


def peak_mb(source, output, count):
    done = run_script(LABEL_TO, source, output, count)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[1])


@pytest.mark.parametrize(
    ("few", "many"), [(100, 300), pytest.param(200, 5000, marks=pytest.mark.slow)], ids=["short", "5000"]
)
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, few, many):
    source = tmp_path / "in"
    source.mkdir()
    for index in range(many):
        save_noise(source / f"{index:05d}.jpg", index, (320, 240))
    small, large = peak_mb(source, tmp_path / "few", few), peak_mb(source, tmp_path / "many", many)
    print(f"peak of {few} images: {small} MB, of {many}: {large} MB")
    assert large <= 1.1 * small + 50


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path, kills):
    """With the real models: SIGKILL comes between the first and the last line of the journal, wherever that is."""
    pytest.importorskip("torch")
    source = tmp_path / "in"
    source.mkdir()
    examples = sorted((Path(__file__).parent.parent / "examples" / "images").iterdir())[: 8 if kills == 3 else None]
    copies = kills // 3
    for copy in range(copies):
        for path in examples:
            (source / f"{copy} {path.name}").write_bytes(path.read_bytes())
    done = run_script(KILL_SCRIPT, source, tmp_path, kills, timeout=1500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("killed after") == kills, done.stdout
    assert digest(tmp_path / "killed") == digest(tmp_path / "undisturbed")
    assert len(list((tmp_path / "killed").glob("*/images/*"))) == copies * len(examples)


KILL_SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
torch.set_num_interop_threads(1)
from autodistill_sam3 import GroundedSAM3
from autodistill_sam3.ontology import PromptPairs

source, place, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
images = len(list(source.iterdir()))
# Only loaded here; threads would not survive the fork.
model = GroundedSAM3(PromptPairs((("red circle", "ball"), ("star", "star"))), checkpoint="shapes", device="cpu")

def label(name):
    child = os.fork()
    if child == 0:
        try:
            model.label(source, output_folder=place / name, batch_size=2, progress=False, record_confidence=True)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child

def lines(name):
    journal = place / name / "journal.jsonl"
    return (b"\\n" + journal.read_bytes()).count(b'\\n{"source"') if journal.exists() else 0

_, status = os.waitpid(label("undisturbed"), 0)
assert status == 0
chance = random.Random(0)
done = 0
for number in range(kills):
    child = label("killed")
    # Always at least one line more than before, and some way from the last.
    target = done + max(1, round((images - 4 - done) / (kills - number) * chance.uniform(0.4, 1)))
    while lines("killed") < target and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    done = lines("killed")
    assert 0 < done < images, done
    print("killed after", done, "of", images)
_, status = os.waitpid(label("killed"), 0)
assert status == 0
"""
