"""The notebooks run from top to bottom, as they are in git: without what a machine wrote."""

from __future__ import annotations

import ast
import json

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

from autodistill_sam3.students import judging

NOTEBOOKS = REPOSITORY / "examples" / "notebooks"


def run_notebook(path):
    """The names that its cells leave, and the pictures that cells end with."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    names, pictures = {}, []
    for cell in cells:
        tree = ast.parse("".join(cell["source"]), path.name)
        shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, path.name, "exec"), names)
        if shown is not None:
            pictures.append(eval(compile(ast.Expression(shown.value), path.name, "eval"), names))
    return names, pictures


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_nothing_that_a_machine_wrote_is_kept(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)


def test_one_image_several_kinds_of_prompt(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names, pictures = run_notebook(NOTEBOOKS / "sam3_test.ipynb")
    assert "ball     red circle" in capsys.readouterr().out
    assert len(pictures) == 4
    for picture in pictures:
        assert isinstance(picture, Image.Image)
        assert np.asarray(picture).std() > 10
    assert len(names["found"]) >= 3
    assert all(len(detections) for detections in names["ways"].values())
    assert len(names["alone"]["red circle"]) == 2
    assert len(names["alone"]["zebra"]) == 0
    assert names["with_background"].data["source"][-1] == "background"
    assert not list(tmp_path.iterdir())


def test_from_a_folder_to_a_trained_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # How long an image takes is asked ten times; the teacher takes long.
    monkeypatch.setattr(judging, "_WARM_UP", 0)
    monkeypatch.setattr(judging, "_TIMED", 1)
    names, pictures = run_notebook(NOTEBOOKS / "label_a_folder.ipynb")
    out = capsys.readouterr().out
    assert "kept" in out
    assert "| student |" in out
    shown = [picture for picture in pictures if picture is not None]
    assert [np.asarray(picture).std() > 10 for picture in shown] == [True, True]
    for picture in shown:
        picture.close()
    assert len(names["dataset"]) == 12
    assert names["distilled"].results.teacher_ms > 0
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_a_clip(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names, pictures = run_notebook(NOTEBOOKS / "video.ipynb")
    drawn, tracked, followed = names["drawn"], names["tracked"], names["followed"]
    assert "yellow square" in capsys.readouterr().out
    assert len(tracked) == len(drawn.frames) == len(followed)
    # Each object keeps its number as long as it is to be seen.
    numbers = {number for found in tracked.values() for number in found.tracker_id.tolist()}
    assert len(numbers) == len(drawn.masks)
    assert all(found.tracker_id.tolist() == [names["number"]] for found in followed.values())
    truth = drawn.masks[names["largest"]]
    overlaps = [
        (found.mask[0] & mask).sum() / (found.mask[0] | mask).sum()
        for found, mask in zip(followed.values(), truth, strict=True)
    ]
    assert np.mean(overlaps) > 0.8
    assert names["masks"].flatten(1).any(1).tolist() == [True] * 4 + [False] * 6
    sheets = [picture for picture in pictures if isinstance(picture, Image.Image)]
    assert [np.asarray(picture).std() > 10 for picture in sheets] == [True, True]
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["clip.mp4"]
