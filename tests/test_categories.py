"""Categories: those of the package, those of users' files, and what the commands make of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autodistill_sam3 import SettingError
from autodistill_sam3.categories import find_category, read_categories
from autodistill_sam3.cli import main
from autodistill_sam3.recipe import Recipe

BALLS = {"description": "Balls.", "prompts": {"red circle": "ball"}}


def written(folder, content, suffix=".json"):
    path = folder / f"own{suffix}"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_the_package_brings_objects_attributes_and_parts():
    categories = read_categories()
    assert {"shapes", "person", "clothing", "hands"} <= set(categories)
    assert categories["shapes"].prompts["red circle"] == "ball"
    assert categories["shapes"].images == REPOSITORY / "examples" / "images"
    assert categories["person"].images == Path("data/person/images")
    assert categories["person"].output == Path("output/person")


def test_every_category_of_the_package_says_how_it_is_prepared():
    recipes = {name: category.recipe for name, category in read_categories().items()}
    assert recipes["cut-out"].items == "cutouts"
    assert recipes["shapes"] == Recipe(size=192, drop_duplicates=True)
    assert all(recipes.values())


def test_a_file_adds_and_replaces(tmp_path):
    path = written(tmp_path, {"person": BALLS, "mine": BALLS | {"images": "photos", "confidence": 0.25}})
    categories = read_categories(path)
    assert categories["person"].prompts == {"red circle": "ball"}
    assert categories["mine"].images == tmp_path / "photos"
    assert categories["mine"].settings == {"confidence": 0.25}
    assert categories["mine"].output == Path("output/mine")
    (tmp_path / "weights").mkdir()
    paths = {"output": "results", "checkpoint": "weights"}
    named = read_categories(written(tmp_path, {"mine": BALLS | paths}))["mine"]
    assert (named.output, named.settings["checkpoint"]) == (tmp_path / "results", str(tmp_path / "weights"))
    assert "hands" in categories


# Control characters and ends of lines are no text to YAML unless they are escaped.
texts = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])).map(str.strip).filter(bool)
shares = st.floats(0, 1, allow_subnormal=False)


recipes = st.fixed_dictionaries(
    {"size": st.integers(1, 20_000)},
    optional={
        "items": st.sampled_from(["images", "crops", "cutouts"]),
        "margin": st.floats(0, 10, allow_subnormal=False),
        "ground": st.sampled_from(["alpha", "#12aBef", "#000000"]),
        "fit": st.sampled_from(["letterbox", "stretch", "within"]),
        "min_side": st.integers(1, 20_000),
        "min_sharpness": st.floats(0, 1e30, allow_subnormal=False),
        "drop_duplicates": st.booleans(),
        "max_per_class": st.integers(1, 10**12),
        "seed": st.integers(-(10**12), 10**12),
    },
)


@st.composite
def contents(draw):
    prompts = draw(st.dictionaries(texts, texts, min_size=1, max_size=4))
    classes = st.sampled_from(sorted(prompts.values()))
    optional = {
        "checkpoint": st.sampled_from(["shapes", "models", "weights/sam3.pt"]),
        "prompting": st.sampled_from(["text", "boxes", "both"]),
        "confidence": shares,
        "box_confidence": shares,
        "thresholds": st.dictionaries(classes, shares),
        "preprocess": recipes,
    }
    return {"description": draw(texts), "prompts": prompts, **draw(st.fixed_dictionaries({}, optional=optional))}


@settings(deadline=None)
@given(contents(), st.booleans(), st.booleans())
@example({"description": "d", "prompts": {"a": "b"}, "confidence": 1e-05, "thresholds": {"b": 0.1}}, True, True)
def test_whatever_is_written_is_read(tmp_path_factory, content, as_json, is_ascii):
    dumped = (
        json.dumps({"own": content}, ensure_ascii=is_ascii, indent="\t")
        if as_json
        else yaml.safe_dump({"own": content}, allow_unicode=not is_ascii, sort_keys=False)
    )
    path = tmp_path_factory.mktemp("categories") / "own.json"
    path.write_bytes(dumped.encode())
    category = read_categories(path)["own"]
    expected = dict(content)
    assert category.description == expected.pop("description")
    assert list(category.prompts.items()) == list(expected.pop("prompts").items())
    recipe = expected.pop("preprocess", None)
    assert category.recipe == (recipe and Recipe.from_mapping(recipe))
    assert category.settings == expected


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        ('{"mine": {"description": "d",\n"promts": {"a": "a"}}}', 2, "'promts'"),
        ('{"mine": {"description": "d",\n"prompts": {"a": 1}}}', 2, "'1'"),
        ('{"mine": {"description": "d",\n"prompts": {}}}', 2, "at least one prompt"),
        ('{"mine": {"description": "d",\n"prompts": ["a"]}}', 2, "a list"),
        ('{"mine": {"description": "d"}}', 1, "'prompts'"),
        ("\n- mine", 2, "a list"),
        ('{"mine": {"description": "d",\n"prompts": {"a": "b"},\n"confidence": "high"}}', 3, "'high'"),
        ('{"mine": {"description": "d",\n"prompts": {"a": "b"},\n"confidence": 1.5}}', 3, "between 0 and 1"),
        ('{"mine": {"description": "d",\n"prompts": {"a": "b"},\n"thresholds": {"c": 0.5}}}', 3, "['c']"),
        ('{"mine": {"description": "d",\n"prompts": {"a": "b"},\n"prompting": "guess"}}', 3, "'guess'"),
        ('{"mine": {"description": "d",\n"prompts": {"a": "b",\n"a": "c"}}}', 3, "twice"),
        ('{"mine": {"description": "d",\n"prompts": {"a": "b"},\n"background": "b"}}', 3, "leave `background` out"),
        ('{"my/own": {"description": "d"}}', 1, "'my/own'"),
        ('{"mine": {"description": "d",\n"prompts": {"a": "b"}\n"images": "x"}}', 3, ""),
        ("mine:\n  description: d\n  prompts:\n    dog: no", 4, "quote it"),
        *[
            (f"mine:\n  description: d\n  prompts:\n    dog: a\n  confidence: {number}", 5, "confidence")
            for number in ("0x1", "0:30", "!!int ''", ".nan", ".inf", "-.5", "9" * 400, "'0.5'", "[1]")
        ],
        ("mine:\n  description: d\n  prompts:\n    dog: ' '", 4, "at least one character"),
        ("mine:\n  description: d\n  prompts:\n    dog: a\n  promting: text", 5, "Did you mean 'prompting'"),
        ("mine:\n  description: d\n prompts: x", 3, ""),
        *[
            (f"mine:\n  description: d\n  prompts:\n    dog: a\n  preprocess:\n    size: 9\n    {entry}", 7, said)
            for entry, said in (
                ("sise: 3", "Did you mean 'size'"),
                ("items: crop", "images, crops, cutouts"),
                ("min_side: 1.5", "a whole number"),
                ("min_side: 0", "at least 1"),
                ("margin: -0.1", "at least 0"),
                ("margin: .nan", "a number"),
                ("drop_duplicates: yes", "true or false"),
                ("ground: #808080", "quote it"),
                ("ground: gray", "'#808080'"),
                ("seed: 0x1", "a whole number"),
                ("size: 3", "twice"),
            )
        ],
        ("mine:\n  description: d\n  prompts:\n    dog: a\n  preprocess:\n    fit: stretch", 6, "at least one step"),
        ("mine:\n  description: d\n  prompts:\n    dog: a\n  preprocess: crops", 5, "by name"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, content, line, said):
    path = written(tmp_path, content)
    with pytest.raises(SettingError) as raised:
        read_categories(path)
    assert f"{path}, line {line}:" in str(raised.value)
    assert said in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'{"mine": {"description": "\\ud800"}}', b"a: *b"])
def test_what_is_no_file_of_categories_is_said(tmp_path, content):
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingError, match=r"own\.yaml"):
        read_categories(path)
    with pytest.raises(SettingError, match="nothing"):
        read_categories(tmp_path / "nothing.json")


def test_unknown_names_are_guessed():
    with pytest.raises(SettingError, match=r"vehicles.*Did you mean 'person'"):
        find_category("persn", read_categories())
    with pytest.raises(SettingError, match="Did you mean 'person'"):
        find_category("PERSON", read_categories())


def test_a_file_without_end_is_not_read_to_its_end():
    with pytest.raises(SettingError, match="at most"):
        read_categories(Path("/dev/zero"))


def test_the_file_in_the_documentation_is_one(tmp_path):
    page = (REPOSITORY / "docs" / "categories.md").read_text(encoding="utf-8")
    block = page.split("```yaml\n")[1].split("```")[0]
    bottles = read_categories(written(tmp_path, block, ".yaml"))["bottles"]
    assert (bottles.images, bottles.output) == (tmp_path / "belt" / "photos", tmp_path / "belt" / "labels")
    assert bottles.settings["thresholds"] == {"cap": 0.3}
    assert bottles.recipe == Recipe(items="crops", margin=0.2, size=256, drop_duplicates=True)


def test_tabs_in_yaml_texts_stay(tmp_path):
    path = written(tmp_path, 'mine:\n  description: "a\tb"\n  prompts:\n    dog: dog\n', ".yaml")
    assert read_categories(path)["mine"].description == "a\tb"


def test_the_command_lists_them(tmp_path, capsys):
    assert main(["categories", "--category-file", str(written(tmp_path, {"mine": BALLS}))]) == 0
    out = capsys.readouterr().out
    assert "mine: Balls.\n    red circle -> ball\n    images in data/mine/images, dataset in output/mine\n" in out
    assert "    left hand\n" in out
    assert "    with background background\n" in out


def test_a_category_is_labelled_where_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["label", "--category", "shapes", "--limit", "1", "--prompting", "text", "--quiet"]) == 0
    settings = json.loads(Path("output/shapes/run.json").read_text())["settings"]
    assert [prompt for prompt, _ in settings["prompts"]] == list(read_categories()["shapes"].prompts)
    assert settings["source"] == str(REPOSITORY / "examples" / "images")


def test_flags_replace_what_a_category_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = BALLS | {"checkpoint": "shapes", "prompting": "text", "confidence": 0.9, "thresholds": {"ball": 0.3}}
    path = written(tmp_path, {"mine": own})
    image = REPOSITORY / "examples" / "images" / "scene_00.jpg"
    command = ["label", str(image), "--category", "mine", "--category-file", str(path), "--quiet"]
    assert main([*command, "--output", "as-it-is"]) == 0
    assert main([*command, "--output", "changed", "--confidence", "0.4", "--threshold", "ball=0.6"]) == 0
    runs = [json.loads(Path(name, "run.json").read_text())["settings"] for name in ("as-it-is", "changed")]
    assert [run["thresholds"]["confidence"] for run in runs] == [0.9, 0.4]
    assert [run["thresholds"]["per_class"] for run in runs] == [{"ball": 0.3}, {"ball": 0.6}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["label", "--category", "shapse"], "Did you mean 'shapes'"),
        (["label", "--class", "star"], "Expected IMAGES"),
        (["label", "x", "--class", "star", "--category-file", "own.json"], "Expected --category"),
    ],
)
def test_bad_commands_say_what_to_do(arguments, said, capsys):
    assert main(arguments) == 1
    assert said in capsys.readouterr().err


def test_a_category_that_needs_weights_says_so_where_there_are_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("autodistill_sam3.bundled._CHECKOUT", tmp_path)
    assert main(["label", "--category", "person"]) == 1
    assert "download sam3" in capsys.readouterr().err
