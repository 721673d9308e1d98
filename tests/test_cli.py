"""The command line, as a user runs it."""

from __future__ import annotations

import inspect
import subprocess
import sys
import zipfile

import pytest
from conftest import REPOSITORY
from PIL import Image

import autodistill_sam3
from autodistill_sam3 import GroundedSAM3
from autodistill_sam3.cli import build_parser, main
from autodistill_sam3.images import load_image

EXAMPLES = REPOSITORY / "examples" / "images"


def flags_of(command):
    subparsers = next(action for action in build_parser()._actions if action.choices)
    return {option for action in subparsers.choices[command]._actions for option in action.option_strings}


def test_every_keyword_of_label_is_a_flag():
    keywords = set(inspect.signature(GroundedSAM3.label).parameters) - {"self", "input_folder"}
    assert {f"--{name.replace('_', '-')}" for name in keywords} <= flags_of("label")


def test_every_keyword_of_the_model_is_a_flag():
    names = set(inspect.signature(GroundedSAM3).parameters) - {"ontology", "model", "thresholds"}
    for command in ("label", "predict"):
        assert {f"--{name.replace('_', '-')}" for name in names} | {"--class", "--threshold"} <= flags_of(command)


@pytest.fixture
def label(tmp_path):
    def run(*arguments):
        output = tmp_path / "out"
        return main(
            ["label", str(EXAMPLES), "--output", str(output), "--checkpoint", "shapes", "--device", "cpu", *arguments]
        )

    return run


def test_label(label, tmp_path, capsys):
    assert label("--class", "red circle=ball", "--class", "star", "--limit", "3", "--plot") == 0
    out = capsys.readouterr().out
    assert "3 images" in out
    assert str(tmp_path / "out") in out
    assert (tmp_path / "out" / "data.yaml").read_text().count("ball") == 1
    assert len(list(tmp_path.glob("out/*/labels/*.txt"))) == 3
    assert len(list(tmp_path.glob("out/review/*.png"))) == 1


def test_default_output_stands_beside_the_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "in" / "a.png")
    flags = ["--class", "star", "--checkpoint", "shapes", "--prompting", "text", "--device", "cpu", "--quiet"]
    assert main(["label", "in/", *flags]) == 0
    assert (tmp_path / "in_labeled" / "data.yaml").exists()


def test_quiet_says_nothing(label, capfd):
    assert label("--class", "star", "--limit", "1", "--prompting", "text", "--quiet") == 0
    assert capfd.readouterr() == ("", "")


def test_predict_writes_an_overlay(tmp_path, capsys):
    source = sorted(EXAMPLES.iterdir())[0]
    output = tmp_path / "deep" / "overlay.png"
    flags = ["--class", "red circle=ball", "--checkpoint", "shapes", "--device", "cpu"]
    assert main(["predict", str(source), *flags, "--output", str(output)]) == 0
    assert load_image(output).shape == load_image(source).shape
    assert "found" in capsys.readouterr().out
    assert main(["predict", str(source), str(source), *flags, "--output", str(output), "--threshold", "ball=0.9"]) == 0
    assert load_image(output).std() > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label", "missing", "--class", "a", "--checkpoint", "shapes"], "Expected a folder of images"),
        (["label", "here", "--class", "a", "--checkpoint", "shapes"], "received none"),
        (["predict", "missing.jpg", "--class", "a", "--checkpoint", "shapes"], "does not exist"),
        (["predict", "a.jpg", "--class", "a", "--checkpoint", "nowhere"], "No SAM 3 checkpoint found"),
        (["predict", "a.jpg", "--class", "a", "--checkpoint", "shapes", "--confidence", "2"], "between 0 and 1"),
        (["predict", "a.jpg", "--class", "a", "--checkpoint", "shapes", "--device", "cuda:99"], "CUDA devices"),
        (["predict", "a.jpg", "--class", "a", "--checkpoint", "shapes", "--device", "abacus"], "Expected a device"),
        (["predict", "a.jpg", "--class", "a=x", "--class", "a=y", "--checkpoint", "shapes"], "one class per prompt"),
        (["predict", "a.jpg", "--class", "=x", "--checkpoint", "shapes"], "at least one character"),
        (["predict", "a.jpg", "--class", "a", "--checkpoint", "shapes", "--threshold", "a"], "CLASS=VALUE"),
        (["predict", "a.jpg", "--class", "a", "--checkpoint", "shapes", "--threshold", "b=0.5"], "'b'"),
        (["label", "here", "--class", "a", "--checkpoint", "shapes", "--limit", "0"], "at least 1"),
    ],
)
def test_errors_are_one_clear_line_and_status_1(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_module_and_version():
    done = subprocess.run(
        [sys.executable, "-m", "autodistill_sam3", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == autodistill_sam3.__version__


@pytest.mark.slow
def test_demo_from_a_wheel_outside_the_repository(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    (tmp_path / "elsewhere").mkdir()
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "installed")}

    def demo(*options):
        command = [sys.executable, "-m", "autodistill_sam3", "demo", *options]
        return subprocess.run(
            command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, check=True
        )

    done = demo()
    assert str(tmp_path / "installed" / "autodistill_sam3" / "_bundled") in done.stdout
    for text in ("objects", "precision", "recall", "mask IoU", "ball", "all", "review sheet", "ground truth"):
        assert text in done.stdout
    assert (tmp_path / "elsewhere" / "demo_output" / "data.yaml").exists()
    assert (tmp_path / "installed" / "autodistill_sam3" / "py.typed").exists()
    # Its own folder is no stranger's; one image is enough to see that.
    for image in sorted(tmp_path.glob("installed/autodistill_sam3/_bundled/examples/images/*"))[1:]:
        image.unlink()
    demo("--quiet")
    assert len(list(tmp_path.glob("elsewhere/demo_output/*/labels/*.txt"))) == 1


def test_demo_leaves_what_is_not_its_own(tmp_path, capsys):
    label = ["label", str(EXAMPLES), "--class", "star", "--checkpoint", "shapes", "--prompting", "text", "--limit", "1"]
    assert main([*label, "--output", str(tmp_path / "own"), "--quiet"]) == 0
    assert main(["demo", "--output", str(tmp_path / "own")]) == 1
    assert "another dataset" in capsys.readouterr().err
    assert len(list(tmp_path.glob("own/*/labels/*.txt"))) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    assert main(["demo", "--output", str(tmp_path / "mine")]) == 1
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep"


def test_doctor_says_whether_labelling_can_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--checkpoint", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "could not run" in out and "download sam3" in out
    assert main(["doctor", "--checkpoint", "shapes", "--device", "cpu"]) == 0
    assert "Labelling can run" in capsys.readouterr().out


def test_download_of_nothing_known_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["download", "sam9", "--output", str(tmp_path)])
    assert "florence2-base" in capsys.readouterr().err
    assert main(["download", "sam3-code", "--format", "pt", "--output", str(tmp_path)]) == 1
    assert "Expected no format" in capsys.readouterr().err
