"""The lines of docs/video.md run as they stand there, with the small checkpoints in `models/`."""

from __future__ import annotations

import re
import shutil

import clips
from conftest import REPOSITORY

BLOCKS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "video.md").read_text(encoding="utf-8"), re.DOTALL)


def test_lines_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPOSITORY / "models" / "shapes", tmp_path / "models")
    clips.write_mp4(tmp_path / "clip.mp4", 2)
    names = {}
    # Of what the small checkpoints know.
    lines = "\n".join(BLOCKS).replace("red car", "red circle")
    exec(compile(lines, "video.md", "exec"), names)
    assert len(BLOCKS) == 6
    assert capsys.readouterr().out.startswith("0 [0] ['car']\n1 [0] ['car']\n0 ")
    assert (names["masks"].dtype, names["car"]) == (bool, 0)
    assert len(list((tmp_path / "masks").iterdir())) == 1
