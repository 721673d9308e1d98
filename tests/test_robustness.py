"""The awkward folders of `docs/robustness.md`: this project's `label()` gets them right, and the judge can tell."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
# Some of each kind: formats, damage, names, objects, runs.
SHORT_FORM = (
    "PNG, turned by EXIF",
    "PNG, 16-bit gray",
    "JPEG of which pixels are missing before its end",
    "HTML named .jpg",
    "link to itself",
    "same names in sub-folders",
    "name that is not UTF-8",
    "1 x 1 pixel",
    "the same with holes",
    "object in two parts",
    "two prompts for one class",
    "`record_confidence=True`",
)


def load_script():
    spec = importlib.util.spec_from_file_location("robustness", REPOSITORY / "examples" / "robustness.py")
    script = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules["robustness"] = script
    spec.loader.exec_module(script)
    return script


robustness = load_script()
CASES = {case.name: case for case in robustness.all_cases()}


@pytest.mark.parametrize("name", SHORT_FORM)
def test_awkward_input(name):
    outcome = robustness.outcome_of(CASES[name], robustness.ProjectModel)
    assert outcome.verdict == "done", outcome.what


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CASES) - set(SHORT_FORM)))
def test_every_other_awkward_input(name):
    outcome = robustness.outcome_of(CASES[name], robustness.ProjectModel)
    assert outcome.verdict == "done", outcome.what


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("PNG, turned by EXIF", "wrong"),
        ("HTML named .jpg", "lost"),
        ("`x..jpg`", "lost"),
        ("object in two parts", "wrong"),
        ("two prompts for one class", "wrong"),
    ],
)
def test_the_same_judge_finds_fault_with_autodistills_own(name, verdict):
    assert robustness.outcome_of(CASES[name], robustness.AutodistillModel).verdict == verdict


@pytest.fixture
def labelled(tmp_path):
    (tmp_path / "images").mkdir()
    truth = [robustness.save(robustness.photo(index), tmp_path / "images" / f"{index}.png") for index in range(4)]
    attempt = robustness.Attempt(
        robustness.ProjectModel, CASES["JPEG"], tmp_path / "images", tmp_path / "output", truth
    )
    attempt.label()
    return attempt


def judge(attempt):
    return robustness.judge(attempt.output, attempt.truth, attempt.case.classes).verdict


def test_the_judge_takes_what_is_right(labelled):
    assert judge(labelled) == "done"
    assert robustness.check_pixels(labelled) is None


@pytest.mark.parametrize(
    ("spoil", "verdict"),
    [
        (lambda lines: lines[1:], "lost"),
        (lambda lines: [*lines, lines[0]], "wrong"),
        (lambda lines: [f"{1 - int(line[0])}{line[1:]}" for line in lines], "wrong"),
        (lambda lines: [" ".join([line[0], *line.split()[1:12]]) for line in lines], "wrong"),
    ],
    ids=["an object less", "one twice", "other classes", "parts of outlines"],
)
def test_the_judge_sees_labels_that_are_not_right(labelled, spoil, verdict):
    labels = next(labelled.output.glob("*/labels/*.txt"))
    labels.write_text("\n".join(spoil(labels.read_text().splitlines())))
    assert judge(labelled) == verdict


def test_the_judge_sees_images_that_are_missing_or_twice(labelled):
    image = next(labelled.output.glob("*/images/*"))
    content = image.read_bytes()
    image.unlink()
    assert judge(labelled) == "lost"
    for name in ("one.png", "two.png"):
        (image.parent / name).write_bytes(content)
    assert judge(labelled) == "wrong"


def test_the_page_has_every_case():
    page = (REPOSITORY / "docs" / "robustness.md").read_text()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if "**" in line and line[0] == "|"]
    assert rows == list(CASES)
    assert page.count("| **done**:") >= len(CASES)
