"""The new lines of docs/migration.md run as they stand there, with the small checkpoints in `models/`."""

from __future__ import annotations

import re
import shutil

import pytest
import supervision as sv
from conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "migration.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCKS = {
    title: block
    for title, text in SECTIONS.items()
    for block in re.findall(r"\*\*After\*\*.*?```python\n(.*?)```", text, re.DOTALL)
}


def test_there_is_something_new_for_everything_old():
    assert PAGE.count("**Before**") == PAGE.count("**After**") == len(BLOCKS) == 4


@pytest.mark.parametrize("title", BLOCKS)
def test_new_lines_run(title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPOSITORY / "models" / "shapes", tmp_path / "models")
    (tmp_path / "images").mkdir()
    image = REPOSITORY / "examples" / "images" / "scene_00.jpg"
    shutil.copy(image, tmp_path / "image.jpg")
    shutil.copy(image, tmp_path / "images")
    names = {}
    exec(compile(BLOCKS[title], "migration.md", "exec"), names)
    assert isinstance(names.get("detections", names.get("found")), sv.Detections)
    if ".label(" in BLOCKS[title]:
        assert list(tmp_path.glob("images_labeled/*/labels/scene_00.txt"))
