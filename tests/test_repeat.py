"""A labelled folder's run.json is enough to label the same again."""

from __future__ import annotations

import json
import shutil

import pytest
from autodistill.detection import CaptionOntology

from autodistill_sam3 import SegmentAnything3, SettingError
from autodistill_sam3.base_models.repeat import read_repeat
from autodistill_sam3.cli.main import main

EXAMPLES = "examples/images"


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("times.json", ".lock")
    }


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    asked = [
        "label", "--category", "shapes", "--limit", "2", "--background", "ground", "--threshold", "ball=0.6", "--quiet",
        "--seed", "3", "--formats", "yolo", "coco", "voc", "--record-confidence", "--output", str(folder),
    ]  # fmt: skip
    assert main(asked) == 0
    return folder


def test_a_repeated_run_writes_the_same(labelled, capsys):
    assert main(["label", "--from-run", str(labelled / "run.json"), "--quiet"]) == 0
    repeated = labelled.with_name("first_repeated")
    assert files(repeated) == files(labelled)
    assert json.loads((repeated / "report.json").read_text())["objects"]["ground"]
    assert not capsys.readouterr().err


def test_flags_replace_what_the_run_says(labelled, tmp_path):
    asked = ["label", "--from-run", str(labelled), "--confidence", "0.9", "--limit", "1", "--seed", "0", "--quiet"]
    assert main([*asked, "--output", str(tmp_path / "other")]) == 0
    run = json.loads((tmp_path / "other" / "run.json").read_text())
    assert run["settings"]["thresholds"] == {"confidence": 0.9, "box_confidence": 0.35, "per_class": {"ball": 0.6}}
    assert run["settings"]["split"]["seed"] == 0
    assert len(list((tmp_path / "other").glob("*/images/*"))) == 1


def test_other_models_and_predict(labelled, tmp_path, capsys):
    model = SegmentAnything3(CaptionOntology({"red circle": "ball"}), checkpoint="shapes", device="cpu", confidence=0.4)
    model.label(EXAMPLES, output_folder=tmp_path / "text", limit=1, progress=False)
    again = read_repeat(tmp_path / "text").build(device="cpu")
    assert isinstance(again, SegmentAnything3)
    assert again._settings() == model._settings()
    with pytest.raises(SettingError, match="keywords of SegmentAnything3"):
        read_repeat(tmp_path / "text").build(prompting="text")
    capsys.readouterr()
    assert main(["predict", f"{EXAMPLES}/scene_00.jpg", "--from-run", str(labelled), "--quiet"]) == 0
    assert "ground" in capsys.readouterr().out


class Own(SegmentAnything3):
    """A model of somebody's own, whose constructor takes something else."""

    def __init__(self, words):
        super().__init__(CaptionOntology({word: word for word in words}), checkpoint="shapes", device="cpu")


def test_models_of_ones_own_label_and_are_built_by_hand(tmp_path):
    Own(["star"]).label(EXAMPLES, output_folder=tmp_path / "own", limit=1, progress=False)
    with pytest.raises(SettingError, match="how to repeat it"):
        read_repeat(tmp_path / "own")


def test_other_checkpoints_are_said(labelled, tmp_path, caplog):
    copy = tmp_path / "copy"
    copy.mkdir()
    run = json.loads((labelled / "run.json").read_text())
    run["settings"]["identity"]["checkpoint_sha256"] = "0"
    (copy / "run.json").write_text(json.dumps(run))
    read_repeat(copy / "run.json").build()
    assert "not those of the run" in caplog.text


@pytest.mark.parametrize("change", ["missing", "no such file", "earlier", "list", "other"])
def test_what_is_no_run_is_refused(labelled, tmp_path, capsys, change):
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "run.json"
    shutil.copyfile(labelled / "run.json", path)
    run = json.loads(path.read_text())
    if change == "missing":
        path.unlink()
    elif change == "no such file":
        path = folder / "data.yaml"
        path.touch()
    elif change == "earlier":
        del run["provenance"]["repeat"]
    elif change == "list":
        run["provenance"]["repeat"]["source"] = None
    else:
        run["format"] = "something else"
    if path.name == "run.json" and path.exists():
        path.write_text(json.dumps(run))
    assert main(["label", "--from-run", str(path), "--output", str(tmp_path / "out")]) == 1
    assert "error: Expected a run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
