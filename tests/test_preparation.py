"""Training-ready data of drawn datasets, with numpy, OpenCV, pycocotools and ultralytics as oracles."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from autodistill_sam3 import InputFolderError, LabelingError, OutputFolderError, SettingError
from autodistill_sam3.cli import build_parser, main
from autodistill_sam3.evaluation import evaluate_dataset
from autodistill_sam3.exchange import to_label_studio
from autodistill_sam3.preparation import prepare_dataset
from autodistill_sam3.preparation.choose import choose
from autodistill_sam3.preparation.write import write
from autodistill_sam3.recipe import Recipe

# From pycocotools, which does not close the file it reads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

CLASSES = ["ball", "box"]
# What says how a dataset came about, rather than what is in it.
ABOUT_THE_RUN = {"journal.jsonl", "run.json", ".lock"}


def disc(hw, x, y, radius):
    rows, columns = np.mgrid[: hw[0], : hw[1]]
    return np.hypot(rows - y, columns - x) < radius


def square(hw, x, y, width, height):
    mask = np.zeros(hw, dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


def noise(seed, hw=(80, 120)):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return cv2.resize(coarse, hw[::-1], interpolation=cv2.INTER_CUBIC)


def rle_of(mask):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def write_dataset(folder, images, classes=CLASSES):
    """A labelled folder, written by hand.

    `images` holds split -> name -> (pixels, objects); an object is (class id, mask or xywh) and maybe its source.
    """
    for split, named in images.items():
        (folder / split / "images").mkdir(parents=True, exist_ok=True)
        listed, annotations = [], []
        for image_id, (name, (pixels, objects)) in enumerate(named.items(), 1):
            Image.fromarray(pixels).save(folder / split / "images" / name)
            height, width = pixels.shape[:2]
            listed.append({"id": image_id, "file_name": f"images/{name}", "width": width, "height": height})
            for number, (class_id, shape, *source) in enumerate(objects):
                has_mask = isinstance(shape, np.ndarray)
                rle = rle_of(shape) if has_mask else []
                annotations.append({
                    "id": len(annotations) + 1, "image_id": image_id, "category_id": class_id + 1, "iscrowd": 0,
                    "bbox": coco_mask.toBbox(rle).tolist() if has_mask else list(shape), "segmentation": rle,
                    "area": int(shape.sum()) if has_mask else shape[2] * shape[3],
                    "score": round(0.9 - 0.01 * number, 6), "prompt": f"prompt {number}",
                    "source": source[0] if source else "both",
                })  # fmt: skip
        categories = [{"id": index, "name": name} for index, name in enumerate(classes, 1)]
        content = {"categories": categories, "images": listed, "annotations": annotations}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


def drawn(count=6, splits=("train", "valid"), hw=(80, 120)):
    """Noise with a ball and a box that reach into each other's crops, and a far ball."""
    images = {split: {} for split in splits}
    for index in range(count):
        objects = [
            (0, disc(hw, 30 + index % 20, 30, 12)),
            (1, square(hw, 44, 24 + index % 20, 20, 16)),
            (0, disc(hw, 100, 60, 8)),
        ]
        images[splits[index % len(splits)]][f"a{index}.png"] = noise(index, hw), objects
    return images


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "set", drawn())


def prepared(dataset, name="out", **values):
    output = dataset.parent / name
    return prepare_dataset(dataset, output, Recipe(**values), progress=False), output


def pixels_of(path):
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)


def read(output):
    """Path of an image -> its pixels (OpenCV's order) and (annotation, class, mask) of each object."""
    found = {}
    for path in sorted(output.glob("*/_annotations.coco.json")):
        coco = COCO(str(path))
        for image in coco.imgs.values():
            place = path.parent / image["file_name"]
            pixels = pixels_of(place)
            assert pixels.shape[:2] == (image["height"], image["width"])
            found[place.relative_to(output).as_posix()] = (
                pixels,
                [
                    (item, coco.cats[item["category_id"]]["name"], item["segmentation"] and coco.annToMask(item) > 0)
                    for item in coco.imgToAnns[image["id"]]
                ],
            )
    return found


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def dropped_by(output):
    return {line["source"]: (line["reason"], line["value"]) for line in lines_of(output / "dropped.jsonl")}


def digest(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ABOUT_THE_RUN
    }


# Pixels and masks.


@st.composite
def scenes(draw):
    hw = draw(st.integers(4, 60)), draw(st.integers(4, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    coarse = rng.random((draw(st.integers(1, 12)), draw(st.integers(1, 12)))).astype(np.float32)
    mask = cv2.resize(coarse, hw[::-1], interpolation=draw(st.sampled_from([0, 1]))) > 0.5
    mask[rng.integers(hw[0]), rng.integers(hw[1])] = True
    recipe = {
        "items": draw(st.sampled_from(["images", "crops"])),
        "margin": draw(st.sampled_from([0, 0.1, 0.33, 1.0])),
        "size": draw(st.integers(1, 90)),
        "fit": draw(st.sampled_from(["letterbox", "stretch", "within"])),
    }
    return mask, recipe


@settings(deadline=None, max_examples=40)
@given(scenes())
def test_masks_follow_the_pixels_exactly(tmp_path_factory, scene):
    """The image is its mask: resized with it, it is white where the written mask is."""
    mask, recipe = scene
    folder = tmp_path_factory.mktemp("scene") / "set"
    white = np.repeat(mask[..., None], 3, axis=2).view(np.uint8) * np.uint8(255)
    write_dataset(folder, {"train": {"a.png": (white, [(0, mask)])}})
    report, output = prepared(folder, **recipe)
    items = read(output)
    if not items:
        assert list(report.dropped) == ["without_a_pixel"]
    for pixels, objects in items.values():
        covered = pixels[..., 0] >= 128
        shown = objects[0][2] if objects else np.zeros_like(covered)
        assert (shown == covered).all()
        assert bool(objects) == covered.any()
        if recipe["fit"] != "within":
            assert pixels.shape[:2] == (recipe["size"],) * 2
        else:
            assert max(pixels.shape[:2]) <= recipe["size"]
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize("fit", ["letterbox", "stretch", "within"])
@pytest.mark.parametrize("size", [40, 300])
def test_whole_images_are_resized_as_opencv_resizes_them(dataset, fit, size):
    _, output = prepared(dataset, size=size, fit=fit)
    filter_of = cv2.INTER_AREA if size < 80 else cv2.INTER_LINEAR
    for path, (pixels, objects) in read(output).items():
        source = pixels_of(dataset / path)
        if fit == "stretch":
            expected = cv2.resize(source, (size, size), interpolation=filter_of)
        elif fit == "within":
            expected = cv2.resize(source, (40, 27), interpolation=filter_of) if size == 40 else source
        else:
            content = cv2.resize(source, (size, round(size * 80 / 120)), interpolation=filter_of)
            expected = np.full((size, size, 3), 114, np.uint8)
            top = (size - len(content)) // 2
            expected[top : top + len(content)] = content
        np.testing.assert_array_equal(pixels, expected)
        assert [item["prompt"] for item, _, _ in objects] == ["prompt 0", "prompt 1", "prompt 2"]
        assert [item["score"] for item, _, _ in objects] == [0.9, 0.89, 0.88]
        assert {item["source"] for item, _, _ in objects} == {"both"}


def test_a_tall_image_stands_in_the_middle(tmp_path):
    left = np.zeros((100, 40), dtype=bool)
    left[:, :20] = True
    dataset = write_dataset(tmp_path / "set", {"train": {"a.png": (noise(0, (100, 40)), [(0, left)])}})
    _, output = prepared(dataset, size=55)
    [(pixels, [(item, _, mask)])] = read(output).values()
    # 22 columns, with 16 before them and 17 behind.
    expected = cv2.resize(pixels_of(dataset / "train/images/a.png"), (22, 55), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(pixels[:, 16:38], expected)
    assert (pixels[:, :16] == 114).all() and (pixels[:, 38:] == 114).all()
    assert item["bbox"] == [16, 0, 11, 55]
    assert (mask == square((55, 55), 16, 0, 11, 55)).all()


def test_images_that_keep_their_pixels_are_copied(tmp_path):
    images = {"train": {"a.jpg": (noise(0), [(0, disc((80, 120), 40, 40, 9))]), "b.png": (noise(1), [])}}
    dataset = write_dataset(tmp_path / "set", images)
    _, output = prepared(dataset, size=120, fit="within", drop_duplicates=True)
    for name in ("a.jpg", "b.png"):
        path = Path("train/images", name)
        assert (output / path).read_bytes() == (dataset / path).read_bytes()
    assert read(output)["train/images/a.jpg"][1][0][2].sum() == disc((80, 120), 40, 40, 9).sum()
    # Another size leaves no JPEG: what is computed is not to be lost again.
    _, smaller = prepared(dataset, "smaller", size=60, fit="within")
    assert sorted(read(smaller)) == ["train/images/a.png", "train/images/b.png"]


@pytest.mark.parametrize("margin", [0, 0.25, 2.0])
def test_crops_are_windows_with_all_that_reaches_into_them(dataset, margin):
    report, output = prepared(dataset, items="crops", margin=margin)
    # What does not reach into a crop is not counted as removed from it.
    assert report.removed == {}
    found = read(output)
    assert len(found) == 18
    for split, named in drawn().items():
        for name, (pixels, objects) in named.items():
            for number, (class_id, mask) in enumerate(objects, 1):
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
                # From the box outwards to whole pixels, and no further than the image.
                above, beside = margin * (bottom - top), margin * (right - left)
                y1, x1 = max(int(np.floor(top - above)), 0), max(int(np.floor(left - beside)), 0)
                window = slice(y1, int(np.ceil(bottom + above))), slice(x1, int(np.ceil(right + beside)))
                crop, shown = found[f"{split}/images/{name[:-4]}_{number:03d}_{CLASSES[class_id]}.png"]
                np.testing.assert_array_equal(crop[..., ::-1], pixels[window])
                expected = [(own, other[window]) for own, other in objects if other[window].any()]
                assert [label for _, label, _ in shown] == [CLASSES[own] for own, _ in expected]
                for (_, _, written), (_, part) in zip(shown, expected, strict=True):
                    np.testing.assert_array_equal(written, part)


@pytest.mark.parametrize("ground", ["alpha", "#12aBef"])
@pytest.mark.parametrize("size", [None, 33])
def test_cutouts_are_the_object_and_nothing_else(dataset, ground, size):
    _, output = prepared(dataset, items="cutouts", ground=ground, margin=0.2, size=size)
    found = read(output)
    assert len(found) == 18
    for path, (pixels, shown) in found.items():
        [(_, label, mask)] = shown
        assert label in path
        if ground == "alpha":
            np.testing.assert_array_equal(pixels[..., 3], mask * np.uint8(255))
            assert (pixels[~mask][:, :3] == 114).all()
        else:
            assert (pixels[~mask] == (0xEF, 0xAB, 0x12)).all()
        if size is None:
            number = int(path.split("_")[-2])
            split, _, name = path.split("/")
            source, objects = drawn()[split][f"{name[:2]}.png"]
            own = objects[number - 1][1]
            np.testing.assert_array_equal(pixels[mask][:, 2::-1], source[own])
        else:
            assert pixels.shape[:2] == (33, 33)


def test_small_objects_are_removed_and_counted(tmp_path):
    hw = (200, 300)
    objects = [(0, disc(hw, 100, 100, 40)), (1, square(hw, 10, 10, 60, 1)), (1, square(hw, 200, 50, 24, 60))]
    dataset = write_dataset(tmp_path / "set", {"train": {"a.png": (noise(0, hw), objects)}})
    report, output = prepared(dataset, size=60, min_side=6)
    [(_, shown)] = read(output).values()
    assert [label for _, label, _ in shown] == ["ball"]
    # Of the line nothing is left, and the box is 5 pixels wide.
    assert report.removed == {"below_min_side": 1, "without_a_pixel": 1}
    report, _ = prepared(dataset, "crops", items="crops", size=20, margin=0)
    # A line of 60 x 1 becomes one of 20 x 1, whose pixels it covers.
    assert (report.dropped, report.items) == ({}, {"train": 3})


def test_a_background_is_shown_and_gets_no_item(tmp_path):
    ball = disc((80, 120), 50, 40, 20)
    objects = [(0, ball), (1, ~ball, "background")]
    dataset = write_dataset(tmp_path / "set", {"train": {"a.png": (noise(0), objects)}})
    _, output = prepared(dataset, items="crops", margin=0.1)
    [(_, shown)] = read(output).values()
    assert [item["source"] for item, _, _ in shown] == ["both", "background"]
    assert (shown[0][2] ^ shown[1][2]).all()
    _, cut = prepared(dataset, "cut", items="cutouts", margin=0.1)
    assert [[label for _, label, _ in shown] for _, shown in read(cut).values()] == [["ball"]]
    # It is no object that could be too small.
    wide = square((80, 120), 0, 0, 115, 80)
    dataset = write_dataset(tmp_path / "thin", {"train": {"a.png": (noise(0), [(0, wide), (1, ~wide, "background")])}})
    report, _ = prepared(dataset, "whole", min_side=20)
    assert report.objects == {"ball": {"train": 1}, "box": {"train": 1}}


def test_boxes_are_clipped_and_scaled(tmp_path):
    boxes = [(0, (20.0, 20.0, 40.0, 30.0)), (1, (56.5, 30.0, 20.0, 20.0))]
    dataset = write_dataset(tmp_path / "set", {"train": {"a.png": (noise(0), boxes)}})
    _, output = prepared(dataset, items="crops", margin=0.1, size=96)
    found = read(output)
    # The window is 48 x 36 from (16, 17), which is doubled and has 12 rows above it.
    pixels, shown = found["train/images/a_001_ball.png"]
    assert pixels.shape == (96, 96, 3)
    assert [item["bbox"] for item, _, _ in shown] == [[8, 18, 80, 60], [81, 38, 15, 40]]
    labels = (output / "train/labels/a_001_ball.txt").read_text().split("\n")
    np.testing.assert_allclose(
        [float(value) for value in labels[0].split()], [0, 0.5, 0.5, 80 / 96, 60 / 96], atol=1e-6
    )
    with pytest.raises(SettingError, match=r"boxes alone.*Ask for crops"):
        prepared(dataset, "cut", items="cutouts")
    assert not (tmp_path / "cut").exists()
    _, whole = prepared(dataset, "whole", size=60, fit="stretch")
    assert [item["bbox"] for item, _, _ in read(whole)["train/images/a.png"][1]] == [
        [10, 15, 20, 22.5],
        [28.25, 22.5, 10, 15],
    ]


def test_a_cutout_without_a_mask_among_others_is_dropped(tmp_path):
    objects = [(0, (20.0, 20.0, 40.0, 30.0)), (1, square((80, 120), 5, 5, 30, 30))]
    dataset = write_dataset(tmp_path / "set", {"train": {"a.png": (noise(0), objects)}})
    report, output = prepared(dataset, items="cutouts")
    assert report.items == {"train": 1}
    assert dropped_by(output) == {"train/images/a.png#001": ("without_a_mask", None)}


# What is left out.


def oracle_sharpness(bgr):
    gray = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    longest = max(gray.shape)
    if longest > 512:
        size = tuple(max(1, round(side * 512 / longest)) for side in gray.shape[::-1])
        gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    return cv2.Laplacian(gray, cv2.CV_64F).var()


@pytest.mark.parametrize("hw", [(80, 120), (700, 300)])
def test_what_is_blurred_is_dropped_with_its_sharpness(tmp_path, hw):
    images = {}
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (*hw, 3), dtype=np.uint8)
        images[f"{index}.png"] = cv2.GaussianBlur(pixels, (0, 0), 0.5 + index), [(0, disc(hw, 40, 40, 15))]
    dataset = write_dataset(tmp_path / "set", {"train": images})
    expected = {name: oracle_sharpness(pixels[..., ::-1].copy()) for name, (pixels, _) in images.items()}
    limit = float(np.median(list(expected.values()))) * 1.01
    report, output = prepared(dataset, min_sharpness=limit)
    dropped = dropped_by(output)
    assert set(dropped) == {f"train/images/{name}" for name, value in expected.items() if value < limit}
    assert report.dropped == {"blurred": {"train": 3}}
    for source, (reason, value) in dropped.items():
        assert (reason, value) == ("blurred", pytest.approx(expected[Path(source).name], abs=1e-5))
    _, crops = prepared(dataset, "crops", items="crops", margin=0.5, size=20)
    measured = {line["path"]: line for line in lines_of(crops / "measured.jsonl")}
    for name, (pixels, _) in images.items():
        [item] = measured[f"train/images/{name}"]["items"]
        # The disc's box is 29 pixels wide.
        assert item["sharpness"] == pytest.approx(oracle_sharpness(pixels[11:70, 11:70, ::-1].copy()), abs=1e-5)


def test_the_sharpness_of_a_cutout_is_that_of_its_object(tmp_path):
    hw = (80, 120)
    pixels = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)
    soft, sharp = disc(hw, 30, 40, 15), disc(hw, 90, 40, 15)
    pixels[:, :60] = cv2.GaussianBlur(pixels, (0, 0), 5)[:, :60]
    dataset = write_dataset(tmp_path / "set", {"train": {"a.png": (pixels, [(0, soft), (0, sharp)])}})
    _, output = prepared(dataset, items="cutouts", min_sharpness=500, margin=0)
    [(source, (reason, value))] = dropped_by(output).items()
    assert (source, reason) == ("train/images/a.png#001", "blurred")
    gray = cv2.cvtColor(pixels[26:55, 16:45, ::-1].copy(), cv2.COLOR_BGR2GRAY)
    assert value == pytest.approx(cv2.Laplacian(gray, cv2.CV_64F)[soft[26:55, 16:45]].var(), abs=1e-5)


def test_what_is_tiny_is_dropped_with_its_side(tmp_path):
    images = {
        "a.png": (noise(0), [(0, disc((80, 120), 40, 40, 20)), (1, square((80, 120), 90, 10, 7, 30))]),
        "b.png": (noise(1, (12, 90)), [(1, square((12, 90), 10, 2, 9, 9))]),
    }
    dataset = write_dataset(tmp_path / "set", {"train": images})
    _, crops = prepared(dataset, "crops", items="crops", min_side=9)
    assert dropped_by(crops) == {"train/images/a.png#002": ("tiny", 7.0)}
    report, whole = prepared(dataset, "whole", min_side=20)
    assert dropped_by(whole) == {"train/images/b.png": ("tiny", 12)}
    assert report.removed == {"below_min_side": 1}
    assert report.objects == {"ball": {"train": 1}, "box": {}}


def test_duplicates_of_any_split_are_dropped_with_the_name_of_the_first(tmp_path):
    objects = [(0, disc((80, 120), 60, 40, 20))]
    brighter = np.clip(noise(1).astype(int) + 9, 0, 255).astype(np.uint8)
    images = {
        "valid": {"c.png": (noise(1), objects), "d.png": (noise(2), objects)},
        # By name, not as they are listed.
        "train": {"b.png": (brighter, objects), "z.png": (noise(3), objects), "a.png": (noise(3), objects)},
    }
    dataset = write_dataset(tmp_path / "set", images)
    report, output = prepared(dataset, drop_duplicates=True)
    assert dropped_by(output) == {
        "train/images/z.png": ("duplicate", "train/images/a.png"),
        "valid/images/c.png": ("duplicate", "train/images/b.png"),
    }
    assert report.dropped == {"duplicate": {"train": 1, "valid": 1}}
    # An object of another class at the same place is another object.
    two = write_dataset(tmp_path / "two", {"train": {"a.png": (noise(1), [objects[0], (1, objects[0][1])])}})
    report, _ = prepared(two, "crops", items="crops", drop_duplicates=True)
    assert report.items == {"train": 2}


def test_the_cap_holds_for_each_class_of_the_train_split(tmp_path):
    dataset = write_dataset(tmp_path / "set", drawn(20))
    report, output = prepared(dataset, items="crops", max_per_class=6, margin=0)
    assert report.items_before == {"train": 30, "valid": 30}
    assert report.items == {"train": 12, "valid": 30}
    names = sorted(path.name for path in (output / "train" / "images").iterdir())
    assert sum("ball" in name for name in names) == sum("box" in name for name in names) == 6
    assert set(dropped_by(output).values()) == {("over_the_cap", 6)}
    assert report.items_by_class == {"ball": {"train": 6, "valid": 20}, "box": {"train": 6, "valid": 10}}
    first_six = sorted(f"a{index}_002_box.png" for index in range(0, 12, 2))
    assert sorted(name for name in names if "box" in name) != first_six
    _, other = prepared(dataset, "other", items="crops", max_per_class=6, margin=0, seed=1)
    assert sorted(path.name for path in (other / "train" / "images").iterdir()) != names
    assert sorted((other / "valid" / "images").iterdir()) != []


def test_an_image_is_kept_for_a_class_that_is_still_rare(tmp_path):
    hw = (80, 120)
    images = {f"{index}.png": (noise(index), [(0, disc(hw, 40, 40, 20))]) for index in range(8)}
    images["rare.png"] = noise(8), [(0, disc(hw, 40, 40, 20)), (1, square(hw, 90, 10, 20, 20))]
    images["empty.png"] = noise(9), []
    dataset = write_dataset(tmp_path / "set", {"train": images})
    for seed in range(4):
        report, output = prepared(dataset, f"seed {seed}", max_per_class=2, seed=seed)
        kept = {path.name for path in (output / "train" / "images").iterdir()}
        assert {"rare.png", "empty.png"} <= kept
        assert report.objects["box"] == {"train": 1}
        assert report.objects["ball"]["train"] in (2, 3)
        assert len(kept) == report.objects["ball"]["train"] + 1


# Runs.


@pytest.fixture
def many(tmp_path):
    images = drawn(6)
    images["train"]["a0 again.png"] = images["train"]["a0.png"]
    return write_dataset(tmp_path / "set", images)


VALUES = {"items": "crops", "size": 48, "drop_duplicates": True, "min_side": 16, "max_per_class": 2}


def test_the_same_bytes_each_time(many):
    for name in ("first", "second"):
        prepare_dataset(many, many.parent / name, Recipe(**VALUES), plot=True, progress=False)
    first, second = (many.parent / name for name in ("first", "second"))
    pages = {"review/index.html"}  # Has the folder's name as its title.
    assert {key: value for key, value in digest(first).items() if key not in pages} == {
        key: value for key, value in digest(second).items() if key not in pages
    }
    before = digest(first)
    prepare_dataset(many, first, Recipe(**VALUES), progress=False)
    assert digest(first) == before
    # With review/before_after_1.png: 8 pairs on the first sheet.
    assert pixels_of(first / "review" / "before_after_1.png").shape == (4 * 386, 4 * 360, 3)
    for line in lines_of(first / "dropped.jsonl"):
        assert set(line) == {"source", "reason", "value"}
    report = json.loads((first / "report.json").read_text())
    assert sum(report["images"].values()) + sum(sum(own.values()) for own in report["dropped"].values()) == 21
    assert set(report["dropped"]) == {"tiny", "duplicate", "over_the_cap"}


def test_other_settings_are_refused_with_the_difference(dataset):
    _, output = prepared(dataset, size=40)
    before = digest(output)
    with pytest.raises(OutputFolderError, match=r"recipe.size: 40 there, 50 now[\s\S]*--overwrite"):
        prepared(dataset, size=50)
    with pytest.raises(OutputFolderError, match="something else"):
        prepare_dataset(output, dataset, Recipe(size=40), progress=False)
    assert digest(output) == before
    prepare_dataset(dataset, output, Recipe(items="cutouts"), overwrite=True, progress=False)
    assert len(read(output)) == 18


def test_what_changed_is_prepared_again(dataset):
    _, output = prepared(dataset, items="crops", size=40, drop_duplicates=True)
    images = drawn(8)
    images["train"]["a0.png"] = noise(100), images["train"]["a0.png"][1][:1]
    del images["valid"]["a3.png"]
    shutil.rmtree(dataset)
    write_dataset(dataset, images)
    journal = (output / "journal.jsonl").read_text().count('{"source"')
    prepared(dataset, items="crops", size=40, drop_duplicates=True)
    assert (output / "journal.jsonl").read_text().count('{"source"') < journal + 3 * 8
    _, fresh = prepared(dataset, "fresh", items="crops", size=40, drop_duplicates=True)
    changed, expected = digest(output), digest(fresh)
    # Lines of images that changed stay in it.
    del changed["measured.jsonl"], expected["measured.jsonl"]
    assert changed == expected


def test_lines_that_are_torn_or_damaged_are_measured_again(dataset):
    _, output = prepared(dataset, items="crops", size=40)
    before, measured = digest(output), output / "measured.jsonl"
    lines = measured.read_bytes().splitlines(keepends=True)
    measured.write_bytes(b"".join(lines[:-1]) + lines[-1][:50])
    prepared(dataset, items="crops", size=40)
    assert digest(output) == before
    measured.write_bytes(b'{"path": 3}\n\0\0\n' + b"".join(lines[1:]))
    prepared(dataset, items="crops", size=40)
    assert measured.read_bytes().endswith(lines[-1] + lines[0])
    assert {key: value for key, value in digest(output).items() if key != "measured.jsonl"} == {
        key: value for key, value in before.items() if key != "measured.jsonl"
    }


def test_other_labels_of_the_same_image_are_noticed(dataset):
    _, output = prepared(dataset, items="crops", size=40)
    path = dataset / "train/_annotations.coco.json"
    content = json.loads(path.read_text())
    del content["annotations"][1]
    path.write_text(json.dumps(content))
    report, _ = prepared(dataset, items="crops", size=40)
    assert report.items == {"train": 8, "valid": 9}
    _, fresh = prepared(dataset, "fresh", items="crops", size=40)
    changed, expected = digest(output), digest(fresh)
    assert changed.pop("measured.jsonl") != expected.pop("measured.jsonl")
    assert changed == expected


def test_what_somebody_edited_or_took_away(dataset):
    _, output = prepared(dataset, size=40)
    before = digest(output)
    label, image = output / "train/labels/a0.txt", output / "train/images/a2.png"
    image.unlink()
    (output / "train/labels/a4.txt").unlink()
    prepared(dataset, size=40)
    assert digest(output) == before
    label.write_text("0 0.5 0.5 0.1 0.1 0.2 0.2\n")
    prepared(dataset, size=40)
    assert label.read_text().startswith("0 0.5 0.5")
    Image.fromarray(noise(77)).save(dataset / "train/images/a0.png")
    with pytest.raises(OutputFolderError, match=r"a0\.txt was changed.*--overwrite"):
        prepared(dataset, size=40)
    coco = output / "train/_annotations.coco.json"
    coco.write_text(coco.read_text() + " ")
    with pytest.raises(OutputFolderError, match="was changed"):
        prepared(dataset, size=40)


def test_damaged_and_missing_images_are_left_out(dataset, caplog):
    (dataset / "train/images/a0.png").unlink()
    (dataset / "train/images/a2.png").write_bytes((dataset / "train/images/a2.png").read_bytes()[:300])
    Image.fromarray(noise(1, (10, 10))).save(dataset / "valid/images/a1.png")
    report, output = prepared(dataset, items="crops", size=20)
    assert report.quarantined == 3
    reasons = {line["source"]: line["reason"] for line in lines_of(output / "quarantine.jsonl")}
    assert "does not exist" in reasons["train/images/a0.png"]
    assert "cannot be decoded" in reasons["train/images/a2.png"]
    assert "Expected 120 x 80 pixels" in reasons["valid/images/a1.png"]
    assert len(read(output)) == 9
    assert "3 images are left out" in caplog.text
    # Mended, they are there as if nothing had been.
    for split, named in drawn().items():
        for name, (pixels, _) in named.items():
            Image.fromarray(pixels).save(dataset / split / "images" / name)
    prepared(dataset, items="crops", size=20)
    _, fresh = prepared(dataset, "fresh", items="crops", size=20)
    mended, expected = digest(output), digest(fresh)
    assert mended.pop("measured.jsonl") != expected.pop("measured.jsonl")
    assert mended == expected


def test_an_image_that_changes_meanwhile_is_left_out_until_the_next_run(dataset, monkeypatch):
    def choose_late(items, recipe):
        Image.fromarray(noise(99)).save(dataset / "train/images/a2.png")
        return choose(items, recipe)

    monkeypatch.setattr("autodistill_sam3.preparation.run.choose", choose_late)
    report, output = prepared(dataset, items="crops", size=20)
    assert (report.quarantined, report.items) == (1, {"train": 6, "valid": 9})
    assert "it changed" in (output / "quarantine.jsonl").read_text()
    report, _ = prepared(dataset, items="crops", size=20)
    assert (report.quarantined, report.items) == (0, {"train": 9, "valid": 9})


def test_ctrl_c_and_a_full_disk_cost_what_was_in_hand(dataset, monkeypatch):
    _, undisturbed = prepared(dataset, "undisturbed", items="crops", size=20)

    def press(output, journal, items):
        write(output, journal, items)
        signal.raise_signal(signal.SIGINT)

    def fill(folder, contents):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("autodistill_sam3.preparation.run.write", press)
        with pytest.raises(KeyboardInterrupt):
            prepared(dataset, items="crops", size=20)
    output = dataset.parent / "out"
    assert len(list(output.glob("*/labels/*.txt"))) == 3
    with monkeypatch.context() as patch:
        patch.setattr("autodistill_sam3.preparation.write.folder.write_files", fill)
        with pytest.raises(LabelingError, match="Free some space; then the same command goes on"):
            prepared(dataset, items="crops", size=20)
    prepared(dataset, items="crops", size=20)
    assert digest(output) == digest(undisturbed)


def test_what_a_killed_run_left_of_items_that_are_gone_is_removed(dataset, monkeypatch):
    def fail(journal, record, *, wait):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("autodistill_sam3.labeling.journal.Journal.append", fail)
        with pytest.raises(ZeroDivisionError):
            prepared(dataset, items="crops", size=20)
    output = dataset.parent / "out"
    assert len(list(output.glob("*/images/a0_*"))) == 3
    images = drawn()
    del images["train"]["a0.png"]
    write_dataset(dataset, images)
    prepared(dataset, items="crops", size=20)
    assert list(output.glob("*/*/a0_*")) == []
    (output / "train" / "images" / ".part").write_bytes(b"half")
    prepared(dataset, items="crops", size=20)
    assert list(output.glob("*/*/.part")) == []


def test_what_was_prepared_of_images_that_are_gone_stays(dataset):
    _, output = prepared(dataset, items="crops", size=20)
    before = digest(output)
    for path in dataset.glob("*/images/*"):
        path.unlink()
    prepared(dataset, items="crops", size=20)
    assert digest(output) == before


def test_inputs_that_cannot_be_prepared(tmp_path, dataset):
    for place in (dataset, dataset / "train", tmp_path):
        with pytest.raises(OutputFolderError):
            prepare_dataset(dataset, place, Recipe(size=10), progress=False)
    with pytest.raises(SettingError, match=r"at least one step.*size, min_side"):
        prepared(dataset)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputFolderError, match="Label with 'coco'"):
        prepared(tmp_path / "nothing", size=10)
    empty = write_dataset(tmp_path / "empty", {"train": {}})
    with pytest.raises(InputFolderError, match="received none"):
        prepared(empty, size=10)
    coco = dataset / "valid/_annotations.coco.json"
    coco.write_text(coco.read_text()[:-40])
    with pytest.raises(LabelingError):
        prepared(dataset, size=10)


def test_names_that_collide_or_cannot_be_files(tmp_path):
    ball = disc((80, 120), 60, 40, 20)
    images = {"a.png": (noise(0), [(0, ball)]), "A.png": (noise(1), [(0, ball)]), "ü #%.png": (noise(2), [(1, ball)])}
    classes = ["red/green ..", "x" * 300]
    dataset = write_dataset(tmp_path / "set", {"train": images}, classes)
    report, output = prepared(dataset, items="crops")
    assert report.items == {"train": 3}
    stems = [path.stem for path in (output / "train/images").iterdir()]
    assert len({stem.lower() for stem in stems}) == 3
    assert sorted(stems) == sorted(path.stem for path in (output / "train/labels").iterdir())


def test_nothing_left_to_keep(dataset):
    report, output = prepared(dataset, items="crops", min_side=1000)
    assert report.items == {}
    assert report.dropped == {"tiny": {"train": 9, "valid": 9}}
    assert (output / "data.yaml").exists()


# What others make of it.


def test_it_is_a_labelled_folder_again(dataset):
    _, output = prepared(dataset, items="crops", margin=0.3, size=64)
    evaluation = evaluate_dataset(output, output, output=output.parent / "evaluation", progress=False)
    assert evaluation.mask.scores[-1].f1 == 1
    assert evaluation.images == 18
    to_label_studio(output, output.parent / "tasks")
    report = prepare_dataset(output, output.parent / "again", Recipe(items="cutouts", size=32), progress=False)
    assert report.items_before["train"] >= 9
    # Cut-outs keep their transparency where their pixels stay.
    third = prepare_dataset(output.parent / "again", output.parent / "third", Recipe(max_per_class=4), progress=False)
    assert third.items["train"] >= 4
    for path in (output.parent / "third").glob("train/images/*"):
        assert path.read_bytes() == (output.parent / "again" / "train" / "images" / path.name).read_bytes()


@pytest.fixture
def ultralytics(tmp_path, monkeypatch):
    threads = cv2.getNumThreads()
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "ultralytics"))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    yield pytest.importorskip("ultralytics.data")
    cv2.setNumThreads(threads)


@pytest.mark.parametrize("items", ["images", "crops", "cutouts"])
def test_ultralytics_reads_it(dataset, ultralytics, items):
    from ultralytics.cfg import get_cfg

    _, output = prepared(dataset, items=items, size=64, margin=0.2)
    data = yaml.safe_load((output / "data.yaml").read_text())
    assert (data["train"], data["val"], data["names"]) == ("train/images", "valid/images", CLASSES)
    found = read(output)
    for split in ("train", "valid"):
        hyp = get_cfg(overrides={"mask_ratio": 1, "overlap_mask": False})
        loader = ultralytics.YOLODataset(
            img_path=str(output / split / "images"), imgsz=64, augment=False, hyp=hyp, data=data, task="segment"
        )
        assert len(loader) == len(list((output / split / "images").iterdir())) > 0
        for index in range(len(loader)):
            label = loader.transforms.transforms[-1](loader.get_image_and_label(index))
            _, shown = found[f"{split}/images/{Path(label['im_file']).name}"]
            assert label["cls"].numpy().ravel().tolist() == [CLASSES.index(name) for _, name, _ in shown]
            for mask, (_, _, written) in zip(label["masks"].numpy().astype(bool), shown, strict=True):
                assert (mask & written).sum() / (mask | written).sum() > 0.95


# The command.


def test_the_command(dataset, capsys):
    output = dataset.parent / "set_prepared"
    command = ["preprocess", str(dataset), "--items", "crops", "--size", "32", "--min-side", "16", "--plot"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "  tiny               3      3      6\nkept                 6      6     12\n" in out
    assert ["ball", "6", "12", "11"] in [line.split() for line in out.splitlines()]
    assert f"written to {output}" in out
    assert (output / "review" / "index.html").exists()
    assert (output / "review" / "before_after_1.png").exists()
    assert main([*command, "--margin", "0.5", "--quiet"]) == 1
    assert "recipe.margin" in capsys.readouterr().err
    assert main([*command, "--margin", "0.5", "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["preprocess", str(dataset)]) == 1
    assert "at least one step" in capsys.readouterr().err
    assert main(["preprocess", "--size", "3"]) == 1
    assert "Expected DATASET" in capsys.readouterr().err


def test_a_run_is_repeated(dataset, tmp_path, capsys):
    first, again = tmp_path / "first", tmp_path / "again"
    command = [
        "preprocess",
        str(dataset),
        "--items",
        "crops",
        "--size",
        "24",
        "--drop-duplicates",
        "--output",
        str(first),
    ]
    assert main([*command, "--quiet"]) == 0
    assert main(["preprocess", "--from-run", str(first / "run.json"), "--output", str(again), "--quiet"]) == 0
    assert digest(again) == digest(first)
    other = tmp_path / "other"
    asked = ["preprocess", "--from-run", str(first), "--size", "16", "--output", str(other), "--quiet"]
    assert main(asked) == 0
    assert json.loads((other / "run.json").read_text())["settings"]["recipe"]["items"] == "crops"
    assert json.loads((other / "run.json").read_text())["settings"]["recipe"]["size"] == 16
    capsys.readouterr()
    assert main(["preprocess", "--from-run", str(first)]) == 1
    assert "Expected --output DIR with --from-run" in capsys.readouterr().err
    assert main(["preprocess", "--from-run", str(dataset / "run.json"), "--output", str(other)]) == 1
    assert "that `preprocess` wrote" in capsys.readouterr().err


def test_every_setting_is_a_flag():
    parsed = vars(build_parser().parse_args(["preprocess", "dataset"]))
    # Without a flag the default is the recipe's.
    assert {item.name: parsed[item.name] for item in dataclasses.fields(Recipe)} == dict.fromkeys(
        item.name for item in dataclasses.fields(Recipe)
    )


def test_a_category_says_how(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = {"description": "Balls.", "prompts": {"ball": "ball"}, "preprocess": {"items": "crops", "size": 20}}
    (tmp_path / "own.json").write_text(json.dumps({"mine": own}))
    write_dataset(tmp_path / "output" / "mine", drawn())
    command = ["preprocess", "--category", "mine", "--category-file", "own.json", "--fit", "stretch", "--quiet"]
    assert main([*command, "--max-per-class", "2"]) == 0
    run = json.loads(Path("output/mine_prepared/run.json").read_text())["settings"]
    expected = Recipe(items="crops", size=20, fit="stretch", max_per_class=2).as_json()
    assert run["recipe"] == expected
    assert run["prepared_from"] == str(tmp_path / "output" / "mine")
    assert main(["categories", "--category-file", "own.json"]) == 0
    assert "    prepared with items crops, size 20\n" in capsys.readouterr().out


# Killed.


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path, kills):
    images = drawn(4 * kills)
    write_dataset(tmp_path / "set", images)
    (tmp_path / "set" / "train" / "images" / "a0.png").write_bytes(b"damaged")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILL_SCRIPT, str(tmp_path), str(kills), str(int(signal.SIGKILL))],
        capture_output=True, text=True, check=False, env=environment, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("killed after") == kills, done.stdout
    assert digest(tmp_path / "killed") == digest(tmp_path / "undisturbed")


KILL_SCRIPT = """
import os, random, sys, time
from pathlib import Path
import autodistill_sam3.preparation as preparation
from autodistill_sam3.recipe import Recipe

place, kills, SIGKILL = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
recipe = Recipe(items="crops", size=48, drop_duplicates=True, min_side=16, max_per_class=50)

def begin(name):
    child = os.fork()
    if child == 0:
        try:
            preparation.prepare_dataset(place / "set", place / name, recipe, progress=False)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child

def lines(name):
    count = 0
    for file in ("measured.jsonl", "journal.jsonl"):
        path = place / name / file
        count += path.read_bytes().count(b"\\n") if path.exists() else 0
    return count

_, status = os.waitpid(begin("undisturbed"), 0)
assert status == 0
total, chance, done = lines("undisturbed"), random.Random(0), 0
for number in range(kills):
    child = begin("killed")
    target = done + max(1, round((total - 12 - done) / (kills - number) * chance.uniform(0.3, 1)))
    while lines("killed") < target and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.01))
    os.kill(child, SIGKILL)
    os.waitpid(child, 0)
    done = lines("killed")
    print("killed after", done, "of", total)
_, status = os.waitpid(begin("killed"), 0)
assert status == 0
"""
