"""The scripts in `examples/`, in a copy that is not the repository: some as their users run them, as processes."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY

from autodistill_sam3.labeling import read_run
from autodistill_sam3.students import judging

SHAPES = REPOSITORY / "models" / "shapes"


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    ignored = shutil.ignore_patterns("images", "__pycache__")
    shutil.copytree(REPOSITORY / "examples", folder / "examples", ignore=ignored)
    return folder


def places_of(copied, models=None):
    """No checkpoints in the usual places, unless `models` names some."""
    places = {
        "AUTODISTILL_SAM3_MODELS": models or copied / "nothing",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": copied / "no hub",
        "XDG_CACHE_HOME": copied / "no cache",
        "HOME": copied / "home",
        "PYTHONPATH": REPOSITORY,
    }
    return {name: str(place) for name, place in places.items()}


def run(copied, script, *arguments, models=None):
    environment = os.environ | places_of(copied, models)
    command = [sys.executable, "-W", "default", copied / "examples" / script, *arguments]
    return subprocess.run(
        command, cwd=copied, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture
def run_here(copied, monkeypatch, capfd):
    """The same within this process, which has the large libraries already."""
    before = set(sys.modules)

    def call(script, *arguments):
        for name, place in places_of(copied).items():
            monkeypatch.setenv(name, place)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(copied / "no hub"))
        path = copied / "examples" / script
        monkeypatch.chdir(copied)
        monkeypatch.syspath_prepend(path.parent)
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            try:
                runpy.run_path(str(path), run_name="__main__")
                status = 0
            except SystemExit as ended:
                status = ended.code or 0
        out, error = capfd.readouterr()
        return SimpleNamespace(returncode=status, stdout=out, stderr=error)

    yield call
    # What the scripts import from beside them.
    for name in set(sys.modules) - before:
        if name in ("autodistill_runner", "custom_helpers"):
            del sys.modules[name]


def test_from_a_category_to_training_data(copied):
    ended = run(
        copied, "data_preparation/main_launcher.py", "--category", "shapes", "--plot", "--preprocess", "--limit", "4"
    )
    assert ended.returncode == 0, ended.stderr
    labels, prepared = copied / "output" / "shapes", copied / "output" / "shapes_prepared"
    assert len(list(labels.glob("*/images/*"))) == 4
    assert (labels / "review" / "index.html").exists()
    assert (prepared / "review" / "index.html").exists()
    assert read_run(prepared)["settings"]["prepared_from"] == str(labels)
    # Nothing of the older pipeline is asked for, which could not find its weights.
    assert "GroundedSAM2" not in ended.stderr


def test_labels_alone_with_places_and_settings_of_ones_own(copied, run_here):
    (copied / "mine.yaml").write_text("mine:\n  description: Mine.\n  prompts: {star: star}\n  checkpoint: shapes\n")
    asked = ["--category", "mine", "--category-file", "mine.yaml", "--input", str(REPOSITORY / "examples" / "images")]
    ended = run_here("data_preparation/autodistill_runner.py", *asked, "--output", "own", "--limit", "2",
                     "--prompting", "text")  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    settings = read_run(copied / "own")["settings"]
    assert (settings["classes"], settings["prompting"]) == (["star"], "text")
    assert not (copied / "own" / "review").exists()


@pytest.mark.parametrize(
    ("script", "asked", "message"),
    [
        ("main_launcher.py", ["--category", "shaeps"], "Did you mean 'shapes'?"),
        ("autodistill_runner.py", ["--category", "mine", "--category-file", "broken.yaml"], "broken.yaml, line 2"),
    ],
)
def test_bad_input_is_said_before_anything_is_loaded(copied, run_here, script, asked, message):
    (copied / "broken.yaml").write_text("mine:\n  promts: {}\n")
    ended = run_here(f"data_preparation/{script}", *asked)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_category_that_needs_weights_says_so(copied):
    """The older pipeline is warned about with the cure, and what ends the run is the launcher's own error."""
    ended = run(copied, "data_preparation/main_launcher.py", "--category", "person", "--input",
                str(REPOSITORY / "examples" / "images"), "--output", "people")  # fmt: skip
    assert ended.returncode == 1
    assert "GroundedSAM2 is not replaced" in ended.stderr
    assert "error: " in ended.stderr
    assert "autodistill-sam3 download" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (copied / "people").exists()


OLDER = """
import sys
sys.path.insert(0, "examples/data_preparation")
from custom_helpers import load_sam3_local, patch_grounded_sam2
assert patch_grounded_sam2() and patch_grounded_sam2()
from autodistill.detection import CaptionOntology
from autodistill_grounded_sam_2 import GroundedSAM2

import importlib.util
assert importlib.util.find_spec("autodistill_grounded_sam_2") is not None

base_model = GroundedSAM2(ontology=CaptionOntology({"star": "star", "red circle": "ball"}))
results = base_model.predict(sys.argv[1])
print(len(results), sorted(set(results.data["class_name"])))
print(type(load_sam3_local(sys.argv[2], device="cpu")).__name__)
"""

TOO_LATE = """
import sys, types
sys.modules["autodistill_grounded_sam_2"] = types.ModuleType("autodistill_grounded_sam_2")
sys.path.insert(0, "examples/data_preparation")
from custom_helpers import patch_grounded_sam2
assert not patch_grounded_sam2()
"""


def test_older_code_runs_on_this_package(copied):
    (copied / "examples" / "older.py").write_text(OLDER)
    image = REPOSITORY / "examples" / "images" / "scene_10.jpg"
    ended = run(copied, "older.py", str(image), str(SHAPES), models=SHAPES)
    assert ended.returncode == 0, ended.stderr
    count, *classes = ended.stdout.split(maxsplit=1)
    assert int(count) > 0
    assert "ball" in classes[0]
    assert "TransformersSegmenter" in ended.stdout


def test_what_is_imported_already_cannot_be_replaced(copied):
    (copied / "examples" / "late.py").write_text(TOO_LATE)
    ended = run(copied, "late.py", models=SHAPES)
    assert ended.returncode == 0, ended.stderr
    assert "Call this first" in ended.stderr


def test_the_distillation_demo_in_short(copied, run_here, monkeypatch):
    # How long an image takes is asked ten times; the teacher takes long.
    monkeypatch.setattr(judging, "_WARM_UP", 0)
    monkeypatch.setattr(judging, "_TIMED", 1)
    asked = ["--images", "8", "--epochs", "1", "--image-size", "64", "--student", "mask-rcnn", "--output", "demo"]
    ended = run_here("distill_demo.py", *asked)
    assert ended.returncode == 0, ended.stderr
    report = json.loads((copied / "demo" / "mask-rcnn" / "report.json").read_text())
    assert report["held_out"] == "test"
    assert report["teacher_ms"] > report["student_ms"] / 100
    assert report["against_truth"]["kind"] == "mask"
    truth = json.loads((copied / "demo" / "truth.coco.json").read_text())
    assert len(truth["images"]) == report["images"]["test"]
    assert len(truth["annotations"]) > 0
    assert "the truth" in ended.stdout
