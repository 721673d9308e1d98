"""Many workers give the bytes of one, whatever happens to them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from labelers import discs
from PIL import Image
from test_resume import digest, journal_of, save_noise
from workers import Model, Seeing

from autodistill_sam3 import DeviceError, InputFolderError, LabelingError, OutputFolderError, SettingError
from autodistill_sam3.cli import main
from autodistill_sam3.distributed import Labeler, device_names, label_on_devices, label_shard, merge_shards, parse_shard
from autodistill_sam3.labeling import LabelingPlan, SplitRule, label_images
from autodistill_sam3.labeling.attempts import Attempts, note_death
from autodistill_sam3.labeling.folder import read_quarantine

CLASSES = ("ball", "box")


def plan_for(source, output, **changes):
    base = LabelingPlan(source, output, CLASSES, {"model": "discs"}, batch_size=4, progress=False)
    return replace(base, split=SplitRule(seed=1), **changes)


@pytest.fixture
def plan(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for index in range(10):
        save_noise(source / f"{index}.png", index)
    return plan_for(source, tmp_path / "out")


def single(plan):
    """What one undisturbed run writes."""
    output = plan.output.with_name("single")
    shutil.rmtree(output, ignore_errors=True)
    label_images(replace(plan, output=output), discs)
    return digest(output)


def never(images):
    raise AssertionError("asked for what is finished")


def label_all(plan, count, merge=True, predict=discs):
    for index in range(1, count + 1):
        label_shard(plan, (index, count), Labeler(predict))
    return merge_shards(plan.output, progress=False) if merge else None


def awkward_folder(folder, count):
    """Noise with near-duplicates, colliding names and what cannot be read."""
    folder.mkdir()
    for index in range(count):
        save_noise(folder / f"{index:02}.png", index // 3)
        if index % 5 == 0:
            save_noise(folder / f"{index:02}.jpg", index)
        if index % 4 == 1:
            (folder / f"{index:02}_broken.png").write_bytes(b"no image")
        if index % 6 == 2:
            Image.new("I;16", (30, 20)).save(folder / f"deep{index:02}.png")


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    images=st.integers(1, 14),
    batch_size=st.integers(1, 5),
    count=st.integers(1, 7),
    groups=st.booleans(),
    formats=st.sampled_from([("yolo", "coco"), ("coco",), ("yolo-detection", "voc", "masks")]),
)
def test_any_number_of_shards_gives_the_bytes_of_one_run(tmp_path_factory, images, batch_size, count, groups, formats):
    place = tmp_path_factory.mktemp("any")
    awkward_folder(place / "in", images)
    plan = plan_for(place / "in", place / "out", batch_size=batch_size, group_near_duplicates=groups, formats=formats)
    expected = single(plan)
    dataset = label_all(plan, count)
    assert digest(plan.output) == expected
    assert len(dataset) == len([name for name in expected if "/images/" in name])
    # It is the folder of an ordinary run.
    assert len(label_images(plan, never)) == len(dataset)
    assert digest(plan.output) == expected
    shutil.rmtree(place)


def test_shards_are_cut_between_batches_and_may_be_empty(plan):
    batches = []

    def predict(images):
        batches.append(len(images))
        return discs(images)

    expected = single(plan)
    label_all(plan, 7, predict=predict)
    assert batches == [4, 4, 4]
    assert digest(plan.output) == expected
    assert not (plan.output / "shards").exists()


def test_merged_images_are_not_copied(plan, monkeypatch):
    label_all(plan, 2, merge=False)
    written = {path.name: path.stat().st_ino for path in plan.output.glob("shards/*/*/images/*.png")}
    merge_shards(plan.output, progress=False)
    assert {path.name: path.stat().st_ino for path in plan.output.glob("*/images/*.png")} == written
    assert len(written) == 10


def test_a_file_system_without_hard_links(plan, monkeypatch):
    def refuse(*arguments, **keywords):
        raise OSError("no links here")

    expected = single(plan)
    monkeypatch.setattr(os, "link", refuse)
    label_all(plan, 3)
    assert digest(plan.output) == expected


def test_a_merged_dataset_grows_by_one_run_or_by_shards(plan):
    label_all(plan, 3)
    journal = journal_of(plan.output)
    save_noise(plan.source / "55.png", 55)
    save_noise(plan.source / "0.jpg", 77)
    label_images(replace(plan, limit=4), discs)
    label_all(plan, 2)
    # Batches are cut from the whole input, whatever is finished of it.
    alone = replace(plan, output=plan.output.with_name("alone"))
    for name in ("55.png", "0.jpg"):
        (plan.source / name).rename(plan.source.parent / name)
    label_images(alone, discs)
    for name in ("55.png", "0.jpg"):
        (plan.source.parent / name).rename(plan.source / name)
    label_images(replace(alone, limit=4), discs)
    label_images(alone, discs)
    assert digest(plan.output) == digest(alone.output)
    assert journal_of(plan.output)[: len(journal)] == journal


def test_images_that_come_while_shards_are_labelled_wait_for_the_next_round(plan):
    expected = single(plan)
    label_shard(plan, (1, 2), Labeler(discs))
    save_noise(plan.source / "00.png", 55)
    label_shard(plan, (2, 2), Labeler(discs))
    merge_shards(plan.output, progress=False)
    assert digest(plan.output) == expected
    assert len(label_images(plan, discs)) == 11


def test_a_shard_that_is_finished_is_not_labelled_again(plan):
    assert len(label_shard(plan, (1, 2), Labeler(discs))) == 4
    assert len(label_shard(plan, (1, 2), Labeler(never))) == 4
    label_shard(plan, (2, 2), Labeler(discs))
    assert len(merge_shards(plan.output, progress=False)) == 10
    assert len(merge_shards(plan.output, progress=False)) == 10
    assert len(label_shard(plan, (1, 2), Labeler(never))) == 0
    assert not (plan.output / "shards").exists()


def test_a_list_of_relative_paths_is_merged_from_anywhere(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(plan.source)
    listed = replace(plan, source=[f"{index}.png" for index in range(6)], output=tmp_path / "out")
    expected = single(listed)
    for index in (1, 2):
        label_shard(listed, (index, 2), Labeler(discs))
    monkeypatch.chdir(tmp_path)
    merge_shards(tmp_path / "out", progress=False)
    assert digest(tmp_path / "out") == expected


class Crash(BaseException):
    """What no code catches, as a SIGKILL."""


@pytest.mark.parametrize("step", ["begin", "link", "journal", "summary", "remove"])
def test_a_merge_that_is_killed_is_repeated(plan, step, monkeypatch, tmp_path):
    from autodistill_sam3.distributed import merge
    from autodistill_sam3.labeling.journal import Journal

    # Some of it was there before, and has changed.
    label_images(replace(plan, limit=3), discs)
    save_noise(plan.source / "1.png", 111)
    save_noise(plan.source / "2.png", 112)
    shutil.copytree(plan.output, tmp_path / "before")
    label_images(plan, discs)
    expected = digest(plan.output)
    owner, name = {
        "begin": (Journal, "begin"), "link": (os, "link"), "journal": (Journal, "append"),
        "summary": (merge, "write_summaries"), "remove": (shutil, "rmtree"),
    }[step]  # fmt: skip
    for count in (1, 2, 6):
        shutil.rmtree(plan.output)
        shutil.copytree(tmp_path / "before", plan.output)
        label_all(plan, 3, merge=False)
        calls, real = [], getattr(owner, name)

        def crash(*arguments, calls=calls, real=real, count=count, **keywords):
            calls.append(1)
            if len(calls) == count:
                raise Crash
            return real(*arguments, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, crash)
            with contextlib.suppress(Crash):
                merge_shards(plan.output, progress=False)
        merge_shards(plan.output, progress=False)
        assert digest(plan.output) == expected, count


def test_missing_shards_are_listed(plan):
    label_shard(plan, (1, 3), Labeler(discs))
    with pytest.raises(OutputFolderError, match="2 are not: 2/3, 3/3"):
        merge_shards(plan.output, progress=False)
    with pytest.raises(OutputFolderError, match="without shards"):
        label_images(plan, never)
    with pytest.raises(SettingError, match="one of the 3 shards"):
        label_shard(plan, (1, 4), Labeler(never))
    with pytest.raises(OutputFolderError, match="confidence"):
        label_shard(replace(plan, settings={"model": "discs", "confidence": 1}), (2, 3), Labeler(never))
    with pytest.raises(SettingError, match="no overwrite"):
        label_shard(replace(plan, overwrite=True), (2, 3), Labeler(never))
    assert len(label_images(replace(plan, overwrite=True), discs)) == 10
    assert not (plan.output / "shards").exists()


def test_a_shard_that_is_being_written_is_not_merged(plan):
    label_shard(plan, (2, 2), Labeler(discs))
    seen = []

    def predict(images):
        for run in (lambda: merge_shards(plan.output), lambda: label_images(replace(plan, overwrite=True), never)):
            with pytest.raises(OutputFolderError) as error:
                run()
            seen.append(str(error.value))
        return discs(images)

    label_shard(plan, (1, 2), Labeler(predict))
    assert "1/2 (still being written)" in seen[0]
    assert "Another run is at work" in seen[1]
    assert len(merge_shards(plan.output, progress=False)) == 10


def test_shards_of_other_settings_or_images_are_not_merged(plan, tmp_path):
    other = replace(plan, output=tmp_path / "other", settings={"model": "boxes"})
    label_shard(other, (2, 2), Labeler(discs))
    fewer = replace(plan, output=tmp_path / "fewer", limit=9)
    label_shard(fewer, (2, 2), Labeler(discs))
    label_shard(plan, (1, 2), Labeler(discs))
    for made, difference in ((other, "model: 'discs'|model: 'boxes'"), (fewer, "images_sha256")):
        target = plan.output / "shards" / "00002-of-00002"
        shutil.copytree(made.output / "shards" / "00002-of-00002", target)
        with pytest.raises(OutputFolderError, match=difference):
            merge_shards(plan.output, progress=False)
        shutil.rmtree(target)
    label_shard(plan, (2, 2), Labeler(discs))
    assert len(merge_shards(plan.output, progress=False)) == 10


def test_shards_labelled_on_machines_without_a_common_disk(plan, tmp_path):
    expected = single(plan)
    there = replace(plan, output=tmp_path / "there")
    label_shard(plan, (1, 2), Labeler(discs))
    label_shard(there, (2, 2), Labeler(discs))
    name = "00002-of-00002"
    shutil.copytree(there.output / "shards" / name, plan.output / "shards" / name)
    merge_shards(plan.output, progress=False)
    assert digest(plan.output) == expected


def test_nothing_to_merge_or_to_label(plan, tmp_path):
    with pytest.raises(OutputFolderError, match="Label first"):
        merge_shards(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputFolderError):
        label_shard(replace(plan, source=empty), (1, 2), Labeler(never))
    # Nothing is left behind that would keep the folder from anybody.
    assert len(label_images(plan, discs)) == 10


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "a/b", "1/2/3", "-1/2"])
def test_what_is_no_shard(text):
    with pytest.raises(SettingError, match="'1/16'"):
        parse_shard(text)


def test_devices_that_are_not_there():
    with pytest.raises(DeviceError, match="cuda:98"):
        device_names([98, 99])
    with pytest.raises(SettingError, match="at least one"):
        device_names([])


@pytest.mark.parametrize(("visible", "seen"), [(None, {"0", "1"}), ("4,6", {"4", "6"})])
def test_each_worker_sees_its_gpu_alone(plan, tmp_path, monkeypatch, visible, seen):
    """What is compiled names its GPU: under one name for all, it is compiled once, and to the same code."""
    (tmp_path / "seen").mkdir()
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    label_on_devices(plan, Seeing(tmp_path / "seen"), ["cuda:0", "cuda:1"])
    told = {path.read_text() for path in (tmp_path / "seen").iterdir()}
    assert told == {f"cuda:0 {number}" for number in seen}


def test_deaths_are_counted_against_what_was_in_hand(tmp_path):
    (tmp_path / "journal.jsonl").write_text('{"source": "a"}\n{"event": "writing", "images": []}\n{"sou')
    (tmp_path / "quarantine.jsonl").write_text('{"source": "b", "reason": "broken"}\n')
    first = Attempts(tmp_path)
    first.begin(["a", "b"])
    first.begin(["c", "d"])
    assert note_death(tmp_path, "SIGSEGV") == ["c", "d"]
    second = Attempts(tmp_path)
    assert [second.is_suspect(name) for name in "abcd"] == [False, False, True, True]
    # Nobody supervised a run in between, which was killed, too.
    second.begin(["c"])
    third = Attempts(tmp_path)
    assert third.reason_against("c") is None
    third.begin(["c"])
    assert note_death(tmp_path, "SIGKILL") == ["c"]
    last = Attempts(tmp_path)
    assert "2 times" in last.reason_against("c") and "SIGKILL" in last.reason_against("c")
    assert last.reason_against("d") is None and last.is_suspect("d") and not last.is_suspect("c")
    assert note_death(tmp_path, "SIGKILL") == []


def test_two_workers_give_the_bytes_of_one_run(plan):
    save_noise(plan.source / "4.jpg", 4)
    (plan.source / "5.png").write_bytes(b"no image")
    twin = replace(plan, group_near_duplicates=True, plot=False)
    expected = single(twin)
    assert len(label_on_devices(twin, Model(), ["cpu", "cpu"])) == 10
    assert digest(plan.output) == expected


def test_a_killed_worker_costs_what_it_had_in_hand(plan, tmp_path, caplog):
    for index in range(10, 24):
        save_noise(plan.source / f"{index}.png", index)
    small = replace(plan, batch_size=2)
    expected = single(small)
    model = Model(once=tmp_path / "killed", calls=tmp_path / "calls")
    label_on_devices(small, model, ["cpu"])
    assert digest(plan.output) == expected
    assert "SIGKILL" in caplog.text and "one by one" in caplog.text
    assert not (plan.output / "quarantine.jsonl").exists()


@pytest.mark.parametrize("by", [pytest.param("model", marks=pytest.mark.slow), "reader"])
def test_an_image_that_kills_its_worker_is_tried_twice_and_left_out(plan, tmp_path, by):
    save_noise(plan.source / "44.png", 44, (64, 33))
    save_noise(plan.source / "9.jpg", 45, (64, 34))
    calls = tmp_path / "calls"
    model = Model(deadly_height=33, calls=calls) if by == "model" else Model(deadly_name="44.png")
    label_on_devices(plan, model, ["cpu"])
    [item] = read_quarantine(plan.output)
    assert item["source"] == "44.png"
    assert "died 2 times" in item["reason"] and "SIGKILL" in item["reason"]
    if by == "model":
        import numpy as np

        with Image.open(plan.source / "44.png") as image:
            assert calls.read_text().splitlines().count(str(int(np.array(image).sum()))) == 2
    # Its neighbours have what they have beside an image that cannot be read.
    (plan.source / "44.png").write_bytes(b"no image")
    expected = single(plan)
    after = digest(plan.output)
    different = {name for name in expected if expected[name] != after.get(name)}
    assert different <= {"quarantine.jsonl"} and expected.keys() == after.keys()


@pytest.mark.slow
def test_a_worker_that_dies_before_it_tries_anything_ends_the_run(plan):
    with pytest.raises(LabelingError, match="died 2 times before it tried any image"):
        label_on_devices(plan, Model(deadly_on="cpu"), ["cpu"])
    assert len(label_on_devices(plan, Model(), ["cpu"])) == 10


def test_a_model_that_fails_ends_the_run(plan):
    with pytest.raises(LabelingError, match="LookupError: no model"):
        label_on_devices(plan, Model(fails=True), ["cpu"])
    assert not (plan.output / "quarantine.jsonl").exists()


@pytest.mark.slow
def test_a_run_on_devices_goes_on_where_another_was(plan):
    label_shard(plan, (2, 3), Labeler(discs))
    save_noise(plan.source / "55.png", 55)
    # First the shards that are there, then what came since.
    assert len(label_on_devices(plan, Model(), ["cpu"])) == 11
    assert len(label_on_devices(plan, Model(deadly_on="cpu"), ["cpu"])) == 11


SCRIPT = """
import sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from workers import Model, Seeing
from test_distributed import plan_for
from autodistill_sam3.distributed import label_on_devices
print("begun", flush=True)
label_on_devices(plan_for(Path({source!r}), Path({output!r})), Model(seconds=0.4), ["cpu"])
"""


def start_script(plan, tmp_path):
    script = tmp_path / "no_main_guard.py"
    tests = str(REPOSITORY / "tests")
    script.write_text(SCRIPT.format(tests=tests, source=str(plan.source), output=str(plan.output)))
    return subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


def finished_in_shards(output):
    lines = [line for path in output.glob("shards/*/journal.jsonl") for line in path.read_text().splitlines()]
    return sum('"source"' in line and line.endswith("}") and '"event"' not in line for line in lines)


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers_of(output):
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            arguments = (path.parent / "cmdline").read_bytes()
            if (
                b"autodistill_sam3.distributed" in arguments
                and str(output).encode() in (path.parent / "fd").joinpath("2").readlink().as_posix().encode()
            ):
                found.append(path.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(plan, tmp_path, how):
    expected = single(plan)
    process = start_script(plan, tmp_path)
    wait_for(lambda: finished_in_shards(plan.output) >= 1)
    assert len(workers_of(plan.output)) == 1
    process.send_signal(how)
    out, error = process.communicate(timeout=30)
    assert out == b"begun\n"
    if how is signal.SIGINT:
        assert b"KeyboardInterrupt" in error and b"Stopping after the images in flight" in error
    wait_for(lambda: not workers_of(plan.output))
    label_on_devices(plan, Model(), ["cpu"])
    assert digest(plan.output) == expected


def test_ray_gives_the_bytes_of_one_run(plan, tmp_path):
    pytest.importorskip("ray")
    code = textwrap.dedent(
        f"""
        import sys
        sys.path[:0] = [{str(REPOSITORY / "tests")!r}]
        from pathlib import Path
        import ray
        from autodistill_sam3 import DeviceError
        from autodistill_sam3.distributed import label_with_ray, ray_workers
        from test_distributed import plan_for
        from workers import Model

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        for count, device in ((1, "cuda"), (3, "cpu")):
            try:
                ray_workers(count, device)
            except DeviceError as error:
                print(error)
        plan = plan_for(Path({str(plan.source)!r}), Path({str(plan.output)!r}))
        print("labelled", len(label_with_ray(plan, Model(deadly_height=33), ray_workers(2, "cpu"))))
        """
    )
    save_noise(plan.source / "44.png", 44, (64, 33))
    script = tmp_path / "cluster.py"
    script.write_text(code)
    environment = os.environ | {
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 GPUs, received one with 0" in done.stdout and "3 CPUs, received one with 2" in done.stdout
    assert "labelled 10" in done.stdout
    [item] = read_quarantine(plan.output)
    assert item["source"] == "44.png" and "died 2 times" in item["reason"]
    (plan.source / "44.png").write_bytes(b"no image")
    expected, after = single(plan), digest(plan.output)
    assert {name for name in expected if expected[name] != after.get(name)} <= {"quarantine.jsonl"}


FLAGS = ["--class", "red circle=ball", "--class", "star", "--checkpoint", "shapes", "--prompting", "text", "--quiet"]


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    """As users run it, with a real model: all ways give the same bytes."""
    source, place = tmp_path / "in", {}
    source.mkdir()
    for path in sorted((REPOSITORY / "examples" / "images").iterdir())[:2]:
        shutil.copy(path, source)
    base = ["label", str(source), *FLAGS, "--output"]
    for name in ("single", "gpus", "shards"):
        place[name] = tmp_path / name
    assert main([*base, str(place["single"]), "--device", "cpu"]) == 0
    assert main([*base, str(place["gpus"]), "--gpus", "cpu"]) == 0
    assert main([*base, str(place["shards"]), "--device", "cpu", "--shard", "2/2"]) == 0
    assert main(["merge", str(place["shards"])]) == 1
    assert "1 are not: 1/2" in capsys.readouterr().err
    assert main([*base, str(place["shards"]), "--device", "cpu", "--shard", "1/2"]) == 0
    assert main(["merge", str(place["shards"]), "--quiet"]) == 0
    expected = digest(place["single"])
    assert sum("/labels/" in name for name in expected) == 2
    assert digest(place["gpus"]) == digest(place["shards"]) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpus", "98", "99"], "cuda:98"),
        (["--gpus", "cpu", "--shard", "1/2"], "one kind of workers, received gpus and shard"),
        (["--shard", "3/2"], "'1/16'"),
        (["--workers", "2"], "engine='ray'"),
        (["--shard", "1/2", "--human-in-the-loop"], "human_in_the_loop"),
        (["--shard", "1/2", "--overwrite"], "no overwrite"),
    ],
)
def test_what_the_command_refuses_before_it_starts(plan, capsys, flags, message):
    assert main(["label", str(plan.source), *FLAGS, "--output", str(plan.output), *flags]) == 1
    assert message in capsys.readouterr().err
    assert not plan.output.exists()


def test_recipes_build_the_same_model_again():
    from autodistill.detection import CaptionOntology
    from autodistill.detection.detection_base_model import NmsSetting

    from autodistill_sam3 import Florence2, GroundedSAM3, SegmentAnything3
    from autodistill_sam3.base_models.launch import ModelRecipe

    ontology = CaptionOntology({"red circle": "ball", "star": "star"})
    limits = {"ball": 0.25}
    for model in (
        GroundedSAM3.without_weights(
            ontology, checkpoint="shapes", confidence=0.4, box_confidence=0.3, thresholds=limits, presence_gate=0.1,
            overlapping_classes="keep", device="cpu", precision="bf16",
        ),
        SegmentAnything3.without_weights(
            ontology, checkpoint="shapes", thresholds=limits, device="cpu", background="ground"
        ),
        Florence2.without_weights(ontology, checkpoint="shapes", confidence=0.2, device="cpu"),
    ):  # fmt: skip
        recipe = ModelRecipe.of(model, None, NmsSetting.NONE, has_settings=True)
        assert recipe("cpu").settings == model._settings()
