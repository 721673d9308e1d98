"""The benchmark on the small checkpoint: every engine runs, results are kept, and the report says what they mean."""

from __future__ import annotations

import importlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from autodistill_sam3 import SegmentAnything3, SettingError
from autodistill_sam3.benchmark import ENGINES, Settings, run, run_benchmark
from autodistill_sam3.benchmark.calibration import confidence_for
from autodistill_sam3.benchmark.ceilings import floor_tflop
from autodistill_sam3.benchmark.checkpoints import given_checkpoints
from autodistill_sam3.benchmark.engines.autodistill_loop import measure_loop
from autodistill_sam3.benchmark.engines.ours import FixedBoxes
from autodistill_sam3.benchmark.engines.reference import Found
from autodistill_sam3.benchmark.memory import measured_memory
from autodistill_sam3.benchmark.pictures import draw_pictures
from autodistill_sam3.benchmark.plot import write_plot
from autodistill_sam3.benchmark.report import markdown
from autodistill_sam3.benchmark.settings import PROMPTS, Work
from autodistill_sam3.benchmark.tasks import run_task
from autodistill_sam3.cli import main
from autodistill_sam3.instances import Boxes
from autodistill_sam3.ontology import PromptPairs


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Two pictures, of a quarter of the size, and the small checkpoints."""
    small = Settings(
        output=tmp_path_factory.mktemp("benchmark"),
        device="cpu", images=2, reference_images=1, warmup_images=1, seconds=1.0, classes=(1,),
        **given_checkpoints("shapes", None, None),
    )  # fmt: skip
    for path in draw_pictures(small.pictures, 2):
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (320, 240), interpolation=cv2.INTER_AREA))
    return small


def rows_of(task, settings, *works):
    return dict(run_task(task, settings, list(works), time.time()))


# What is measured.


def test_this_package_labels_with_both_and_a_gate(settings):
    rows = rows_of("ours", settings, Work(1, "both", 0.3), Work(1, "both", 0.3, presence_gate=1.0))
    assert list(rows) == ["ours/both/1", "ours/both/1/gate"]
    for row in rows.values():
        assert row["images"] == 2
        assert row["ms_per_image"] == pytest.approx(1000 / row["images_per_s"])
        assert {"decode", "write"} <= set(row["stages_ms"])
    assert rows["ours/both/1"]["prompts_asked"] == 1
    # Nothing is that present.
    assert rows["ours/both/1/gate"]["prompts_asked"] == 0
    assert rows["ours/both/1/gate"]["masks_per_image"] < rows["ours/both/1"]["masks_per_image"]
    assert not (settings.output / "labeled").exists()


@pytest.mark.slow
def test_autodistills_loop_finds_what_predict_finds(settings):
    work = Work(2, "text", 0.3)
    row = rows_of("autodistill-loop", settings, work)["autodistill-loop/text/2"]
    model = SegmentAnything3(
        PromptPairs(tuple((p, p) for p in work.prompts)), checkpoint="shapes", confidence=0.3, device="cpu"
    )
    first = sorted(settings.pictures.glob("*.jpg"))[0]
    assert row["images"] == 1
    assert row["masks_per_image"] == len(model.predict(first))
    assert not (settings.output / "loop").exists()


def test_autodistills_loop_writes_masks_with_any_holes(settings):
    """Supervision refuses some, and random weights make such masks."""

    class Noise:
        def segment(self, image, work):
            rng = np.random.default_rng(5)
            mask = cv2.resize(rng.random((12, 16)).astype(np.float32), image.size, interpolation=cv2.INTER_CUBIC) < (
                0.65 - 0.3 * rng.random((image.height, image.width))
            )
            return Found(mask[None], np.ones(1, np.float32), np.zeros(1, np.int64))

    measured = measure_loop(Noise(), Work(1, "text", 0.5), settings, warm_up=False)
    assert measured.masks == 1


def test_transformers_with_boxes_and_florence2(settings):
    row = rows_of("transformers", settings, Work(1, "both", 0.99))["transformers/both/1"]
    # Nothing scores that high, and each box has its mask.
    assert row["masks_per_image"] == 10


def test_an_engine_that_cannot_run_says_why(settings):
    rows = rows_of("sam3-package", settings, Work(1, "text", 0.5), Work(1, "both", 0.5))
    assert len(rows) == 2
    assert all("sam3.pt" in row["error"] for row in rows.values())


def test_start_is_measured_on_a_long_job_that_is_stopped(settings):
    start = rows_of("start", settings, Work(1, "text", 0.5))["start"]
    assert 0 < start["loaded_s"] < start["first_image_s"]
    assert not (settings.output / "labeled").exists()


def test_vision_compares_two_engines(settings):
    results = [result for _, result in run_task("vision", settings, [], time.time())]
    assert [result["engine"] for result in results] == ["transformers", "ours"]
    assert all(result["ms_per_image"] > 0 for result in results)


class Scores:
    """A segmenter whose instances have these scores in each of two images."""

    def __init__(self, scores):
        self.scores = scores

    def segment_text(self, features, prompts, min_scores):
        found = [score for score in self.scores if score > min_scores[0]]
        return [SimpleNamespace(instances=found)] * 2


def test_confidence_leaves_about_twenty_masks():
    scores = np.random.default_rng(0).beta(1, 3, 400)
    confidence = confidence_for(Scores(scores), None, PROMPTS[:1])
    assert 20 <= (scores > confidence).sum() <= 22


def test_confidence_of_too_few_masks_is_the_lowest_tried():
    assert confidence_for(Scores(np.full(5, 0.9)), None, PROMPTS[:1]) < 0.01


def test_fixed_boxes_ask_the_grounder_and_keep_to_the_wanted_prompts():
    calls = []

    class Grounder:
        def ground(self, images, prompts, wanted=None):
            calls.append((len(images), list(prompts), wanted))
            return [Boxes.empty()] * len(images)

    fixed = FixedBoxes(Grounder())
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    first, second = fixed.ground([image, image], ["a", "b", "c"], [[0, 2], []])
    assert calls == [(2, ["a", "b", "c"], [[0, 2], []])]
    assert (len(first), set(first.prompt_index.tolist()), len(second)) == (10, {0, 2}, 0)
    assert (first.xyxy[:, 2:] <= [60, 40]).all() and (first.xyxy >= 0).all()
    assert fixed.asked / fixed.images == 1


def test_memory_of_the_host_is_watched():
    with measured_memory("cpu") as before:
        pass
    with measured_memory("cpu") as during:
        held = np.ones(40_000_000)
        time.sleep(0.2)
    assert during.host_gb - before.host_gb == pytest.approx(held.nbytes / 1e9, abs=0.1)


def test_floor_is_the_arithmetic_of_facts():
    assert floor_tflop(Work(5, "text", 0.5)) == pytest.approx(5.61 + 5 * 0.42)
    # Florence-2-large has 0.78 billion parameters: two operations for each of about 600 tokens, and its image encoder.
    extra = floor_tflop(Work(1, "both", 0.5)) - floor_tflop(Work(1, "text", 0.5))
    assert 1.5 < extra < 2.5
    gated = floor_tflop(Work(5, "both", 0.5), pairs_asked=0)
    assert gated < floor_tflop(Work(5, "both", 0.5)) - 5 * 0.2


# Pictures.


def test_pictures_are_of_one_scene_and_as_large_as_photographs(tmp_path):
    paths = draw_pictures(tmp_path, 2)
    first, second = (np.asarray(Image.open(path)).astype(float) for path in paths)
    assert first.shape == (960, 1280, 3)
    assert all(150_000 < path.stat().st_size < 400_000 for path in paths)
    assert (first != second).mean() > 0.5
    assert np.corrcoef(first[20:-20, 20:-20].ravel(), second[20:-20, 20:-20].ravel())[0, 1] > 0.8


def test_pictures_that_are_there_are_kept(tmp_path):
    [path] = draw_pictures(tmp_path, 1)
    path.write_bytes(b"mine")
    assert draw_pictures(tmp_path, 2)[0].read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 2


# Settings, results that are kept, and the report.


@given(
    st.integers(1, 500),
    st.floats(0.5, 60),
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.sampled_from([("text",), ("text", "both")]),
)
@hypothesis_settings(max_examples=20, deadline=None)
def test_settings_survive_json(images, seconds, classes, prompting):
    settings = Settings(
        Path("out"), Path("a.pt"), None, "shapes", images=images, seconds=seconds,
        classes=tuple(classes), prompting=prompting,
    )  # fmt: skip
    assert Settings.from_json(json.loads(json.dumps(settings.as_json()))) == settings


@pytest.mark.parametrize(
    "wrong", [{"images": 0}, {"classes": ()}, {"classes": (21,)}, {"prompting": ("boxes",)}, {"warmup_images": 0}]
)
def test_settings_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(SettingError, match="Expected"):
        Settings(tmp_path, **wrong)


@pytest.fixture
def processes(monkeypatch):
    """What would have been run in processes, which all give results at once."""
    seen = []

    def fake(settings, task, works, results, echo):
        seen.append((task, [run.row_name(task, work) if task in ENGINES else task for work in works]))
        if task == "prepare":
            results.add("ceilings", {"matmul_tflops": 700.0, "copy_gb_s": 3000.0})
            confidence = {str(count): 0.5 for count in settings.classes}
            results.add("calibration", {"confidence": confidence, "presence_gate": 0.4})
        for work in works if task in ENGINES else []:
            failed = (task, work.classes) == ("sam3-package", 5)
            row = {"error": "no | luck"} if failed else measured(task, work, 100.0 if task == "ours" else 2000.0)
            results.add(run.row_name(task, work), row)
        return None

    monkeypatch.setattr(run, "_run", fake)
    return seen


def measured(engine, work, ms):
    return {
        "engine": engine, "prompting": work.prompting, "classes": work.classes, "presence_gate": work.presence_gate,
        "confidence": work.threshold, "images": 4, "seconds": ms * 4 / 1000, "ms_per_image": ms,
        "images_per_s": 1000 / ms, "masks_per_image": 20.0, "host_gb": 2.0, "gpu_reserved_gb": 11.0,
        "stages_ms": {"decode": 3.0, "ViT": 60.0} if engine == "ours" else {}, "gpu_idle_share": 0.25,
    }  # fmt: skip


def planned(tmp_path, **changes):
    values = {"output": tmp_path / "out", "checkpoint": "somewhere/sam3.pt", "device": "cpu", "images": 1,
              "reference_images": 1, "warmup_images": 1, "classes": (1, 5)} | changes  # fmt: skip
    return Settings(**values)


def test_a_second_run_measures_what_is_missing(tmp_path, processes):
    run_benchmark(planned(tmp_path), rows=["ours/text/*", "sam3-package/text/*"], echo=lambda text: None)
    assert processes == [
        ("prepare", []),
        ("ours", ["ours/text/1", "ours/text/5"]),
        ("sam3-package", ["sam3-package/text/1", "sam3-package/text/5"]),
    ]
    processes.clear()
    content = run_benchmark(planned(tmp_path), rows=["*/text/*"], skip=["transformers"], echo=lambda text: None)
    assert processes == [
        ("sam3-package", ["sam3-package/text/5"]),
        ("autodistill-loop", ["autodistill-loop/text/1", "autodistill-loop/text/5"]),
    ]
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text()) == content
    processes.clear()
    run_benchmark(planned(tmp_path), rows=["ours/text/1"], overwrite=True, echo=lambda text: None)
    assert processes == [("ours", ["ours/text/1"])]


def test_other_settings_and_unknown_rows_are_refused(tmp_path, processes):
    run_benchmark(planned(tmp_path), rows=["ours/text/1"], echo=lambda text: None)
    with pytest.raises(SettingError, match="Choose another --output"):
        run_benchmark(planned(tmp_path, checkpoint="elsewhere"), echo=lambda text: None)
    with pytest.raises(SettingError, match="Expected rows"):
        run_benchmark(planned(tmp_path), rows=["ours/text/7"], echo=lambda text: None)
    # A number of classes that was not calibrated is.
    processes.clear()
    run_benchmark(planned(tmp_path, classes=(20,)), rows=["ours/text/*"], echo=lambda text: None)
    assert [task for task, _ in processes] == ["prepare", "ours"]


def test_report_says_how_many_times_and_how_near_the_floor(tmp_path, processes):
    content = run_benchmark(planned(tmp_path), rows=["*/text/*", "*/both/5*"], echo=lambda text: None)
    text = (tmp_path / "out" / "benchmark.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    by_work = {tuple(line[:3]): line for line in lines}
    own = by_work["text", "1", "this package"]
    floor = (5.61 + 0.42) / 700 * 1000
    assert own[3:8] == ["100.0", "10.00", "20.0", "20.0", f"{floor:.1f} ms, {floor / 100:.0%}"]
    assert by_work["text", "5", "sam3 package"][3] == "not measured: no / luck"
    assert by_work["text", "5", "this package"][5:7] == ["", "20.0"]
    assert ("both", "5", "this package, presence gate") in by_work
    assert len({len(line) for line in lines if line[0] in ("text", "both")}) == 1
    assert by_work["text/1", "100.0", ""][3:] == ["3.0", "60.0", "25%"]
    assert markdown(content) == text


def test_plot_has_a_bar_for_each_row(tmp_path, processes):
    content = run_benchmark(planned(tmp_path), echo=lambda text: None)
    first = np.asarray(Image.open(tmp_path / "out" / "benchmark.png").convert("RGB"))
    assert (first == [0x2F, 0x6F, 0xDE]).all(axis=-1).sum() > 5000
    # Without the rows of this package, its colour is gone but for nothing.
    others = {name: row for name, row in content["rows"].items() if not name.startswith("ours")}
    write_plot(content | {"rows": others}, tmp_path / "others.png")
    second = np.asarray(Image.open(tmp_path / "others.png").convert("RGB"))
    assert not (second == [0x2F, 0x6F, 0xDE]).all(axis=-1).any()
    write_plot(content | {"rows": {}}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


# The notebook.


def code_cells():
    notebook = json.loads((REPOSITORY / "examples" / "notebooks" / "benchmark.ipynb").read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_cells(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    for cell in code_cells():
        exec(compile(cell, "benchmark.ipynb", "exec"), names)
    assert (folder / "benchmark_small" / "benchmark.png").exists()
    return names["results"]


def test_notebook(tmp_path, monkeypatch, processes, capsys):
    run_cells(tmp_path, monkeypatch)
    assert "| text | 5 | this package | 100.0 |" in capsys.readouterr().out


@pytest.mark.slow
def test_notebook_with_its_processes(tmp_path, monkeypatch, capsys):
    results = run_cells(tmp_path, monkeypatch)
    assert not any("error" in row for row in results["rows"].values())


# The command.


@pytest.fixture
def command(settings, tmp_path):
    shutil.copytree(settings.pictures, tmp_path / "out" / "pictures")

    def benchmark(*rows):
        flags = ["--checkpoint", "shapes", "--device", "cpu", "--images", "2", "--reference-images", "1",
                 "--classes", "1", "--warmup-images", "1", "--output", str(tmp_path / "out")]  # fmt: skip
        assert main(["benchmark", *flags, "--rows", *rows]) == 0
        return json.loads((tmp_path / "out" / "benchmark.json").read_text())

    return benchmark


@pytest.mark.slow
def test_command(command, tmp_path, capsys):
    content = command("prepare")
    assert content["ceilings"]["matmul_tflops"] > 0
    assert 0 < content["calibration"]["confidence"]["1"] < 1
    assert "matmul_tflops" in capsys.readouterr().out
    assert "TFLOP/s" in (tmp_path / "out" / "benchmark.md").read_text()


def test_kernels_are_added_up(settings, tmp_path, monkeypatch):
    shutil.copytree(settings.pictures, tmp_path / "pictures")
    content = {
        "device_type": "cpu", "settings": {"checkpoint": "shapes", "bpe_path": None, "classes": [1]},
        "calibration": {"confidence": {"1": 0.5}},
    }  # fmt: skip
    (tmp_path / "benchmark.json").write_text(json.dumps(content))
    monkeypatch.syspath_prepend(REPOSITORY / "examples")
    first, *lines = importlib.import_module("profile_kernels").report(tmp_path, 3)
    kinds = [float(line.split()[0]) for line in lines[:-3]]
    assert len(kinds) == 5 and min(kinds) > 0
    assert float(first.split(":")[1].split()[0]) == pytest.approx(sum(kinds), abs=0.05)


@pytest.mark.slow
def test_whole_command(command, tmp_path, capsys):
    content = command("*")
    rows = content["rows"]
    assert len(rows) == 8
    assert {name for name, row in rows.items() if "error" in row} == {"sam3-package/text/1", "sam3-package/both/1"}
    assert content["start"]["first_image_s"] > 0 and len(content["vision"]) == 2
    assert (tmp_path / "out" / "benchmark.png").exists()
    capsys.readouterr()
    # Only what failed is tried again.
    assert command("*")["rows"]["ours/text/1"] == rows["ours/text/1"]
    out = capsys.readouterr().out
    assert "sam3-package" in out and "ours" not in out and "start" not in out


def test_random_weights_need_a_vocabulary(tmp_path, capsys):
    assert main(["benchmark", "--full-size-random", "--output", str(tmp_path)]) == 1
    assert "--bpe-path" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_that_dies_is_an_error_of_its_rows(settings, tmp_path):
    results = run._Results(replace(settings, output=tmp_path))
    broken = replace(settings, output=tmp_path, device="abacus")
    error = run._run(broken, "prepare", [], results, lambda text: None)
    assert error is not None and "prepare.log" in error and "abacus" in error
    results.finish("ours", [Work(1, "text", 0.5)], error)
    assert results.content["rows"]["ours/text/1"]["error"] == error
    assert results.content["finished"] == []
