"""Reading, the model and writing at the same time: they overlap, within bounds, and the outcome never shows it."""

from __future__ import annotations

import errno
import gc
import hashlib
import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from labelers import discs, discs_from_scratch, discs_of, discs_unless_elsewhere
from PIL import Image

from autodistill_sam3 import LabelingError, OutOfMemoryError
from autodistill_sam3.base_models.base import LabelingModel
from autodistill_sam3.labeling import LabelingPlan, SplitRule, encoding, folder, label_images, reading
from autodistill_sam3.labeling.folder import read_quarantine
from autodistill_sam3.labeling.reading import LOOK_AHEAD
from autodistill_sam3.labeling.writing import BATCHES_BEHIND
from autodistill_sam3.ontology import PromptPairs
from autodistill_sam3.thresholds import Thresholds

CLASSES = ("ball", "box")
PATIENCE_S = 20


def digest(place):
    """Everything but the time that it took; the journal too."""
    return {
        path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name != "times.json"
    }


def save_images(source, count, size_wh=(64, 48)):
    source.mkdir()
    for index in range(count):
        rng = np.random.default_rng(index)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize(size_wh, Image.Resampling.BICUBIC).save(source / f"{index:03d}.png")


def plan_for(tmp_path, count, **changes):
    save_images(tmp_path / "in", count)
    plan = LabelingPlan(tmp_path / "in", tmp_path / "out", CLASSES, {}, batch_size=2, split=SplitRule(1),
                        progress=False)  # fmt: skip
    return replace(plan, **changes)


def count_reads(monkeypatch):
    reads = []
    real = reading.load_image
    monkeypatch.setattr(reading, "load_image", lambda path: (reads.append(path.name), real(path))[1])
    return reads


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


class DiscsModel(LabelingModel):
    """Finds discs, and remembers the sizes of its batches."""

    def __init__(self):
        super().__init__(PromptPairs((("a", "ball"), ("b", "box"))), Thresholds(), "best", "cpu", "fp32")
        self.sizes = []

    def _begin(self, images):
        self.sizes.append(len(images))
        return lambda: discs(images)

    def _identity(self):
        return {}

    def _checkpoints(self):
        return {}


def test_the_next_batch_is_read_while_the_model_works(tmp_path, monkeypatch):
    plan = plan_for(tmp_path, 6)
    reads, seen = count_reads(monkeypatch), []

    def model(images):
        seen.append(1)
        # Waits for what a loop that reads, predicts and writes in turn would never do.
        assert wait_until(lambda: len(reads) >= min(2 * len(seen) + 2, 6))
        return discs(images)

    assert len(label_images(plan, model)) == 6


def test_the_model_goes_on_while_a_batch_is_written(tmp_path, monkeypatch):
    plan = plan_for(tmp_path, 6)
    seen, real = [], folder.write_files

    def write_files(*arguments):
        assert wait_until(lambda: len(seen) >= 2)
        real(*arguments)

    def model(images):
        seen.append(1)
        return discs(images)

    monkeypatch.setattr(folder, "write_files", write_files)
    assert len(label_images(plan, model)) == 6


@pytest.mark.parametrize("bytes_ahead", [2**30, 0])
def test_reading_stays_within_its_bound(tmp_path, monkeypatch, bytes_ahead):
    plan = plan_for(tmp_path, 20)
    monkeypatch.setattr(reading, "PIXELS_AHEAD_BYTES", bytes_ahead)
    reads, seen = count_reads(monkeypatch), []
    ahead = LOOK_AHEAD if bytes_ahead else 0

    def model(images):
        seen.append(1)
        bound = min(2 * (len(seen) + ahead), 20)
        assert wait_until(lambda: len(reads) >= bound)
        time.sleep(0.02)
        assert len(reads) == bound
        return discs(images)

    assert len(label_images(plan, model)) == 20


def test_the_model_waits_for_a_disk_that_is_too_slow(tmp_path, monkeypatch):
    plan = plan_for(tmp_path, 20)
    seen, at_release, released, real = [], [], threading.Event(), folder.write_files

    def write_files(*arguments):
        released.wait(PATIENCE_S)
        real(*arguments)

    def release():
        wait_until(lambda: len(seen) > BATCHES_BEHIND)
        time.sleep(0.1)
        at_release.append(len(seen))
        released.set()

    def model(images):
        seen.append(1)
        return discs(images)

    monkeypatch.setattr(folder, "write_files", write_files)
    helper = threading.Thread(target=release)
    helper.start()
    assert len(label_images(plan, model)) == 20
    helper.join()
    # Those that wait, and the one that the model has seen since.
    assert at_release == [BATCHES_BEHIND + 1]


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    """A folder with what is written in an order: near-duplicates, and images left out for every reason."""
    place = tmp_path_factory.mktemp("awkward")
    plan = plan_for(place, 9, group_near_duplicates=True)
    (plan.source / "0055.png").write_bytes(b"no image")
    (plan.source / "0015.png").write_bytes(b"no image")
    Image.open(plan.source / "003.png").resize((80, 60)).save(plan.source / "006b.png")
    Image.new("RGB", (33, 21)).save(plan.source / "0045.png")
    Image.new("RGB", (22, 31)).save(plan.source / "007b.png")
    Image.new("I;16", (30, 20)).save(plan.source / "008b.png")
    return plan


def fail_on_wide(images):
    if any(image.shape[:2] == (21, 33) for image in images):
        raise IndexError("a bug")
    return images


def fail_on_tall(image):
    if image.shape[:2] == (31, 22):
        raise ValueError("no such shape")
    return discs_of(image)


@pytest.fixture(scope="module")
def expected(awkward):
    label_images(awkward, fail_on_wide, fail_on_tall)
    assert [item["source"] for item in read_quarantine(awkward.output)] == [
        "0015.png", "0045.png", "0055.png", "007b.png"
    ]  # fmt: skip
    return digest(awkward.output)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_what_is_written_does_not_depend_on_who_is_faster(awkward, expected, tmp_path_factory, seed):
    chance, lock = np.random.default_rng(seed), threading.Lock()

    def nap(real, *arguments):
        with lock:
            seconds = chance.choice([0, 0.001, 0.02])
        time.sleep(seconds)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "load_image", partial(nap, reading.load_image))
        patch.setattr(folder, "place_image", partial(nap, folder.place_image))
        patch.setattr(folder, "write_files", partial(nap, folder.write_files))
        output = tmp_path_factory.mktemp("out") / "out"
        label_images(replace(awkward, output=output), partial(nap, fail_on_wide), partial(nap, fail_on_tall))
    assert digest(output) == expected


def test_a_disk_that_fails_ends_the_run_soon(tmp_path, monkeypatch):
    plan = plan_for(tmp_path, 40)
    seen, failed, real = [], threading.Event(), folder.write_files

    def write_files(place, contents, part):
        if any("002" in name for name in contents):
            failed.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        real(place, contents, part)

    def model(images):
        seen.append(1)
        assert len(seen) < 4 or failed.wait(PATIENCE_S)
        time.sleep(0.02)
        return discs(images)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_files", write_files)
        with pytest.raises(LabelingError, match="No space left"):
            label_images(plan, model)
    assert len(seen) < 10
    assert threading.active_count() < 10
    assert len(label_images(plan, discs)) == 40
    assert not list(plan.output.rglob(".part*"))


def test_lines_that_a_power_cut_tore_within_the_last_batch(tmp_path):
    """A batch's lines are waited for together, so that any of them may be missing, but none of earlier batches."""
    plan = plan_for(tmp_path, 9, batch_size=3)
    label_images(plan, discs)
    expected = {**digest(plan.output), "journal.jsonl": ""}
    for torn in (1, 2, 3):
        output = tmp_path / f"torn {torn}"
        second = killed_after_two_batches(replace(plan, output=output), torn_line=torn)
        assert second == 4
        assert len(label_images(replace(plan, output=output), discs)) == 9
        assert {**digest(output), "journal.jsonl": ""} == expected
    killed_after_two_batches(replace(plan, output=tmp_path / "earlier"), torn_line=-1)
    with pytest.raises(LabelingError, match="damaged"):
        label_images(replace(plan, output=tmp_path / "earlier"), discs)


def killed_after_two_batches(plan, torn_line):
    """Leave what such a run leaves, with a damaged line, counted from where the second batch begins."""
    label_images(replace(plan, limit=6), discs)
    journal = plan.output / "journal.jsonl"
    lines = [line for line in journal.read_bytes().splitlines(keepends=True) if b'"wrote"' not in line]
    begin = [index for index, line in enumerate(lines) if b'"writing"' in line][1]
    lines[begin + torn_line] = b"\0" * 80 + b"\n"
    journal.write_bytes(b"".join(lines))
    for path in plan.output.glob("*/_annotations.coco.json"):
        path.unlink()
    return begin


class Ahead:
    """Finds discs, in two halves; memory ends with one batch, where it is begun or where it is waited for."""

    def __init__(self, ends_at=0, where="begun"):
        self.log, self.ends_at, self.where = [], ends_at, where

    def __call__(self, images):
        number = len([event for event, *_ in self.log if event == "begun"])
        self.log.append(("begun", number, len(images)))
        if number == self.ends_at and self.where == "begun":
            raise OutOfMemoryError("too much")

        def wait():
            self.log.append(("waited for", number, len(images)))
            if number == self.ends_at and self.where == "waited for":
                raise OutOfMemoryError("too much")
            return discs(images)

        return wait


def test_a_gpu_has_the_next_batch_before_this_one_is_done(tmp_path):
    plan = plan_for(tmp_path, 8, on_gpu=True)
    begun = []

    def model(images):
        begun.append(len(images))
        number = len(begun)

        def wait():
            # The first is alone, and behind the last there is none.
            assert number in (1, 4) or wait_until(lambda: len(begun) > number)
            return discs(images)

        return wait

    label_images(plan, model)
    label_images(replace(plan, output=tmp_path / "in turn", on_gpu=False), discs)
    assert digest(plan.output) == digest(tmp_path / "in turn")


@pytest.mark.parametrize("where", ["begun", "waited for"])
def test_batches_in_flight_when_memory_ends_are_done_in_the_smaller_size(tmp_path, where):
    plan = plan_for(tmp_path, 12, on_gpu=True, batch_size=4)
    model = Ahead(ends_at=1, where=where)
    assert len(label_images(plan, model)) == 12
    counted = [(number, size) for event, number, size in model.log if event == "waited for" and number != 1]
    # The third batch may have been begun in the old size, and is not waited for then.
    assert [size for _, size in counted] == [4, 2, 2, 2, 2]
    assert not (plan.output / "quarantine.jsonl").exists()


class Held:
    """What a model holds for a batch."""


def test_what_was_begun_is_let_go_when_memory_ends(tmp_path):
    plan = plan_for(tmp_path, 16, on_gpu=True, batch_size=4)
    held, alive = [], []

    def model(images):
        own = Held()
        held.append(weakref.ref(own))
        number = len(held)

        def wait():
            if number == 2:
                # Not before the batches behind this one are begun.
                assert wait_until(lambda: len(held) >= 4)
                raise OutOfMemoryError(f"too much beside {own}")
            if len(images) == 2:
                alive.append([index for index, other in enumerate(held[:4]) if other() is not None])
            return discs(images)

        return wait

    gc.disable()
    try:
        assert len(label_images(plan, model)) == 16
    finally:
        gc.enable()
    assert alive[0] == []


def test_a_model_is_checked_with_less_where_memory_is_short(tmp_path):
    plan = plan_for(tmp_path, 5, on_gpu=True, batch_size=4)
    Image.new("RGB", (22, 31)).save(plan.source / "zzz.png")
    (plan.source / "004.png").unlink()

    def model(images):
        if any(image.shape[:2] == (31, 22) for image in images):
            raise ValueError("no such shape")
        if len(images) == 4 and all(image.shape[:2] == (64, 64) for image in images):
            raise OutOfMemoryError("too much beside what is begun")
        return discs(images)

    assert len(label_images(plan, model)) == 4
    [item] = read_quarantine(plan.output)
    assert item["source"] == "zzz.png"


def test_a_job_that_cannot_be_sent_ends_no_run(tmp_path):
    count = encoding.MIN_IMAGES_FOR_PROCESSES
    plan = plan_for(tmp_path, count, batch_size=8)
    label_images(plan, list, discs_from_scratch)

    def model(images):
        # A lock cannot be pickled, the others wait behind it.
        return [partial(unsendable, images[0], threading.Lock()), *images[1:]]

    output = tmp_path / "there"
    label_images(replace(plan, output=output, on_gpu=True), model, partial(discs_of_either, home=os.getpid()))
    assert digest(output) == digest(plan.output)


def unsendable(image, _):
    return image


def discs_of_either(seen, home):
    # So that others wait when one cannot be sent.
    time.sleep(0 if os.getpid() == home else 0.1)
    return discs_from_scratch(seen() if callable(seen) else seen)


def test_what_cannot_be_interpreted_is_left_out_and_a_bug_ends_the_run(tmp_path):
    plan = plan_for(tmp_path, 6)
    Image.new("RGB", (22, 31)).save(plan.source / "0025.png")
    assert len(label_images(plan, list, fail_on_tall)) == 6
    [item] = read_quarantine(plan.output)
    assert (item["source"], item["reason"]) == ("0025.png", "the model failed on it: ValueError: no such shape")
    with pytest.raises(ZeroDivisionError):
        label_images(replace(plan, overwrite=True), list, lambda seen: 1 / 0)


def test_processes_write_what_the_thread_writes(tmp_path, monkeypatch, caplog):
    plan = plan_for(tmp_path, encoding.MIN_IMAGES_FOR_PROCESSES, batch_size=8)
    label_images(plan, list, discs_from_scratch)
    expected = digest(plan.output)
    for name, model in (("there", discs_from_scratch), ("dying", partial(discs_unless_elsewhere, home=os.getpid()))):
        caplog.clear()
        output = tmp_path / name
        assert len(label_images(replace(plan, output=output, on_gpu=True), list, model)) == len(
            list(plan.source.iterdir())
        )
        assert digest(output) == expected
        assert ("goes on without processes" in caplog.text) == (name == "dying")
    assert encoding.processes_for(encoding.MIN_IMAGES_FOR_PROCESSES, on_gpu=True) >= 1
    assert encoding.processes_for(encoding.MIN_IMAGES_FOR_PROCESSES - 1, on_gpu=True) == 0
    assert encoding.processes_for(10**6, on_gpu=False) == 0


# As a user writes it: no main guard, functions of its own, other processes must not run it again.
SCRIPT = """
import os, signal, sys
from pathlib import Path
print("started", flush=True)
from labelers import discs_of
from autodistill_sam3.labeling import LabelingPlan, label_images

home, place, ending = os.getpid(), Path(sys.argv[1]), sys.argv[2]
seen = []

def model(images):
    seen.append(1)
    if len(seen) == 8:
        # Ctrl-C reaches every process of the terminal.
        os.killpg(0, signal.SIGINT) if ending == "ctrl-c" else os.kill(home, signal.SIGKILL)
    return list(images)

def to_detections(image):
    assert os.getpid() != home and "torch" not in sys.modules
    (place / "processes" / str(os.getpid())).touch()
    return discs_of(image)

plan = LabelingPlan(place / "in", place / "out", ("ball", "box"), {}, batch_size=8, on_gpu=True, progress=False)
label_images(plan, model, to_detections)
"""


@pytest.mark.parametrize("ending", ["ctrl-c", "killed"])
def test_a_plain_script_with_processes(tmp_path, ending):
    save_images(tmp_path / "in", 80)
    (tmp_path / "processes").mkdir()
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path, ending], check=False, text=True, env=environment,
        capture_output=True, start_new_session=True, timeout=60,
    )  # fmt: skip
    journal = (tmp_path / "out" / "journal.jsonl").read_text()
    finished = journal.count('{"source"')
    assert not (tmp_path / "out" / "quarantine.jsonl").exists(), (tmp_path / "out" / "quarantine.jsonl").read_text()
    if ending == "ctrl-c":
        assert "KeyboardInterrupt" in done.stderr
        assert "without processes" not in done.stderr
        assert (done.stdout, finished) == ("started\n", 64)
    else:
        assert done.returncode == -signal.SIGKILL
    processes = [int(path.name) for path in (tmp_path / "processes").iterdir()]
    assert processes
    assert wait_until(lambda: not any(Path("/proc", str(process)).exists() for process in processes))


def test_where_the_time_went(tmp_path, caplog):
    plan = plan_for(tmp_path, 5)
    (plan.source / "0.png").write_bytes(b"no image")
    with caplog.at_level("INFO", "autodistill_sam3"):
        label_images(plan, discs)
    times = json.loads((plan.output / "times.json").read_text())
    assert times["images"] == 6
    assert times["gpu_idle_share"] is None
    assert {"decode", "encode", "write"} <= times["stages"].keys()
    assert all(0 < value < times["seconds"] * 8 for value in times["stages"].values())
    assert f"6 images in {times['seconds']:.1f} s" in caplog.text
    assert "ms an image" in caplog.text
    before = (plan.output / "times.json").read_bytes()
    (plan.source / "0.png").unlink()
    label_images(plan, discs)
    # Nothing was done, and nothing is said of it.
    assert (plan.output / "times.json").read_bytes() == before
    label_images(replace(plan, overwrite=True), discs)
    assert json.loads((plan.output / "times.json").read_text())["images"] == 5


INTERPRET = """
import pickle, sys
interpret, seen = pickle.load(sys.stdin.buffer)
print([len(interpret(item)) for item in seen], "torch" in sys.modules)
"""


def test_what_the_models_see_is_interpreted_without_torch():
    from autodistill.detection import CaptionOntology

    from autodistill_sam3 import GroundedSAM3

    model = GroundedSAM3(CaptionOntology({"star": "star", "cross": "plus"}), checkpoint="shapes", device="cpu")
    images = [reading.load_image(path) for path in sorted((REPOSITORY / "examples" / "images").iterdir())[:3]]
    counts = [len(found) for found in model.predict_batch([image[..., ::-1] for image in images])]
    assert sum(counts)
    sent = pickle.dumps((model._interpretation(), [model._see([image])[0] for image in images]))
    done = subprocess.run([sys.executable, "-c", INTERPRET], input=sent, capture_output=True, check=True)
    assert done.stdout.decode().strip() == f"{counts} False"


def test_a_run_that_goes_on_keeps_its_batch_size(tmp_path):
    save_images(tmp_path / "in", 3)
    model = DiscsModel()
    model.label(tmp_path / "in", output_folder=tmp_path / "out", batch_size=3, limit=1, progress=False)
    model.label(tmp_path / "in", output_folder=tmp_path / "out", progress=False)
    assert model.sizes == [3, 3]
    model.label(tmp_path / "in", output_folder=tmp_path / "out", progress=False, overwrite=True)
    assert model.sizes == [3, 3, 1, 1, 1]


def test_the_benchmark_of_the_overhead_runs(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "examples")
    script = importlib.import_module("benchmark_overhead")
    monkeypatch.setattr(script, "on_one_core", lambda: None)
    lines = script.report(images=2, rounds=1).splitlines()
    assert sum(line.startswith("| ") for line in lines) == 5
    assert all(float(line.split("|")[2]) > 0 for line in lines if line.startswith("| ") and "ms" not in line)
