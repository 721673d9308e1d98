"""What users point a run at, and the names that images get in the dataset."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelers import no_objects
from PIL import Image

from autodistill_sam3 import InputFolderError, OutputFolderError, SettingError
from autodistill_sam3.labeling import LabelingPlan, default_output, find_images, label_images
from autodistill_sam3.labeling.folder import read_quarantine
from autodistill_sam3.labeling.names import CONFIDENCE_PREFIX, SourceImage, key_of, stem_of, with_stems


def names(*arguments, **keywords):
    return [image.name for image in find_images(*arguments, **keywords)]


@pytest.fixture
def tree(tmp_path):
    """Images of one name in several folders, and what is none."""
    root = tmp_path / "in"
    for name in ("a.jpg", "b/a.jpg", "b/c/a.png", ".hidden/a.jpg", "b/._a.jpg", "notes.txt"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def test_folder(tree):
    assert names(tree) == names(str(tree)) == names(f"{tree}/") == ["a.jpg"]
    assert names(tree, recursive=True) == ["a.jpg", "b/a.jpg", "b/c/a.png"]
    assert names(tree, "png", recursive=True) == ["b/c/a.png"]
    with pytest.raises(InputFolderError, match="recursive=True"):
        find_images(tree, "png")


def test_links_to_folders_do_not_loop(tree):
    (tree / "b" / "loop").symlink_to(tree)
    assert names(tree, recursive=True) == ["a.jpg", "b/a.jpg", "b/c/a.png"]


def test_globs_do_not_follow_links_to_folders_either(tree):
    (tree / "b" / "loop").symlink_to(tree)
    assert names(f"{tree}/**/*.*") == ["a.jpg", "b/a.jpg", "b/c/a.png"]


def test_glob(tree, monkeypatch):
    assert names(f"{tree}/*.jpg") == names(tree / "*.jpg") == ["a.jpg"]
    assert names(f"{tree}/**/*.*") == ["a.jpg", "b/a.jpg", "b/c/a.png"]
    monkeypatch.chdir(tree)
    assert names("b/*") == ["a.jpg"]
    assert names("*.jpg") == ["a.jpg"]
    with pytest.raises(InputFolderError, match="received none"):
        find_images("*.webp")


def test_a_folder_named_like_a_glob_is_a_folder(tmp_path):
    folder = tmp_path / "set [1]*"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"")
    assert names(folder) == ["a.jpg"]
    assert default_output(folder) == tmp_path / "set [1]*_labeled"


def test_text_manifest(tree, monkeypatch):
    manifest = tree / "list.txt"
    manifest.write_bytes(f"\ufeffb/a.jpg\r\n\n./a.jpg\n{tree / 'b/c/a.png'}\nb/../a.jpg\n missing one.jpg\n".encode())
    monkeypatch.chdir("/")
    found = {image.name: image.path for image in find_images(manifest)}
    assert sorted(found) == [" missing one.jpg", (tree / "b/c/a.png").as_posix(), "a.jpg", "b/a.jpg"]
    assert all(path.exists() for name, path in found.items() if "missing" not in name)


def test_json_manifest(tree):
    manifest = tree / "list.jsonl"
    manifest.write_text('"a.jpg"\n{"image": "b/a.jpg", "group": "clip 1", "more": 1}\n')
    assert [(image.name, image.group) for image in find_images(manifest)] == [("a.jpg", None), ("b/a.jpg", "clip 1")]
    for damaged in ("{", "1", '{"path": "a.jpg"}', '{"image": 3}', '{"image": "a.jpg", "group": 3}', "[" * 9999):
        manifest.write_text(f'"a.jpg"\n{damaged}\n')
        with pytest.raises(InputFolderError, match="line 2"):
            find_images(manifest)


def test_list_and_single_image(tree):
    assert names([tree / "a.jpg", str(tree / "b/a.jpg"), tree / "a.jpg"]) == sorted(
        path.as_posix() for path in (tree / "a.jpg", tree / "b/a.jpg")
    )
    assert names(tree / "a.jpg") == ["a.jpg"]
    with pytest.raises(InputFolderError, match="a list of 0 paths"):
        find_images([])
    with pytest.raises(SettingError, match="output_folder"):
        default_output([tree / "a.jpg"])


def test_output_among_the_images_of_a_list_is_refused(tree):
    plan = LabelingPlan([tree / "b/a.jpg"], tree / "b", ("ball",), {}, progress=False)
    with pytest.raises(OutputFolderError, match="apart from the images"):
        label_images(plan, no_objects)


@pytest.mark.parametrize(
    ("source", "expected"),
    [("photos", "photos_labeled"), ("a/photos/", "a/photos_labeled"), ("clips/*/x_*.jpg", "clips_labeled")],
)
def test_default_output(source, expected):
    assert default_output(source) == default_output(Path(source)) == Path(expected)


def test_default_output_of_a_file_and_of_the_current_folder(monkeypatch, tmp_path):
    (tmp_path / "list.v2.txt").write_text("")
    assert default_output(tmp_path / "list.v2.txt") == tmp_path / "list.v2_labeled"
    monkeypatch.chdir(tmp_path)
    assert default_output(Path()) == tmp_path.with_name(f"{tmp_path.name}_labeled")


NAMES = st.lists(
    st.text(st.characters(blacklist_characters="/\0", blacklist_categories=()), min_size=1, max_size=300).filter(
        lambda text: text not in (".", "..")
    ),
    min_size=1,
    max_size=3,
).map("/".join)


@given(st.lists(st.tuples(NAMES, st.sampled_from([".jpg", ".JPG", ".png", ".x y"])), max_size=12, unique=True))
@settings(max_examples=60, deadline=None)
def test_stems_are_unique_and_can_be_written_anywhere(listed):
    images = [SourceImage(Path("in", name + suffix), name + suffix) for name, suffix in listed]
    stems = [image.stem for image in with_stems(images)]
    keys = [key_of(stem) for stem in stems]
    # No label file has the name of another's confidence file either.
    assert len({*keys, *(CONFIDENCE_PREFIX + key for key in keys)}) == 2 * len(keys)
    for stem in stems:
        file = f"{CONFIDENCE_PREFIX}{stem}.jpeg"
        assert len(file.encode()) < 250
        assert "/" not in file
        assert file.isprintable() or not any(ord(letter) < 32 for letter in file)
    assert stems == [image.stem for image in with_stems(images)]


def test_no_label_file_is_anothers_confidence_file(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    plan = LabelingPlan(source, tmp_path / "out", ("ball",), {}, record_confidence=True, progress=False)
    for group in (["a.jpg", "a.png", "confidence-a_jpg.png"], ["confidence-b.png"], ["b.png"]):
        for name in group:
            Image.new("RGB", (9, 7)).save(source / name)
        label_images(plan, no_objects)
    labels = [path.name for path in plan.output.glob("*/labels/*.txt")]
    assert len({key_of(name) for name in labels}) == 2 * 5


def test_plain_names_stay():
    for name in ("a b.jpg", "x..jpg", "-dash.png", 'it\'s "quoted".webp', "Käse 奶.bmp", "two.dots.tif"):
        assert stem_of(name) == Path(name).stem


def test_awkward_names_end_to_end(tmp_path):
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    odd = [b"not utf-8 \xff.png", b"new\nline.png", b"-dash.png", b"'quote\" & <b>.png", b"%s.png" % (b"x" * 250),
           "Käse 奶.png".encode(), b"a.png", b"A.png", b"a.jpg", b"sub/a.png", b"sub_a.png"]  # fmt: skip
    for name in odd:
        Image.new("RGB", (9, 7)).save(source / os.fsdecode(name))
    plan = LabelingPlan(source, tmp_path / "out", ("ball",), {}, recursive=True, record_confidence=True, progress=False)
    assert len(label_images(plan, no_objects)) == len(odd)
    assert not (plan.output / "quarantine.jsonl").exists()
    labels = [path.name for path in plan.output.glob("*/labels/*.txt")]
    assert len({key_of(name) for name in labels}) == 2 * len(odd)
    files = [
        image["file_name"]
        for split in ("train", "valid")
        for image in json.loads((plan.output / split / "_annotations.coco.json").read_text(encoding="utf-8"))["images"]
    ]
    assert sorted(files) == sorted(f"images/{path.name}" for path in plan.output.glob("*/images/*"))
    assert len(files) == len(odd)


def test_names_that_no_file_can_have_go_to_quarantine(tmp_path):
    manifest = tmp_path / "list.jsonl"
    Image.new("RGB", (9, 7)).save(tmp_path / "a.png")
    manifest.write_text(
        r'"a.png"'
        "\n"
        r'"\ud800.png"'
        "\n"
        r'"b\u0000.png"'
        "\n"
        '""'
        "\n"
        '".."'
        "\n"
        r'"https://example.com/c.png"'
        "\n"
    )
    plan = LabelingPlan(manifest, tmp_path / "out", ("ball",), {}, progress=False)
    assert len(label_images(plan, no_objects)) == 1
    assert len(read_quarantine(plan.output)) == 5
