"""Labelled folders to Label Studio and back, with pycocotools and Label Studio's SDK as oracles."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from autodistill_sam3 import InputFolderError, LabelingError, OutputFolderError, SettingError
from autodistill_sam3.cli import main
from autodistill_sam3.evaluation import evaluate_dataset
from autodistill_sam3.exchange import ExportReport, ImportReport, format_exchange, from_label_studio, to_label_studio
from autodistill_sam3.exchange.brush import brush_to_mask, mask_to_brush
from autodistill_sam3.exchange.shapes import (
    crop_to_polygons,
    ellipse_to_crop,
    polygon_to_crop,
    rectangle_to_crop,
    rectangle_to_xyxy,
    unite,
)
from autodistill_sam3.json_stream import array_items

# From pycocotools, which does not close the file it reads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

HOSTILE = ['a "quoted" & <b>tag</b>', "Größe, 大きい 🐈", "it's 5 $ each"]
PHOTOS = {"train": ["a.png", 'b & c\'s "photo" #1+50%.png', "empty.png"], "valid": ["ü 写真.png"], "test": ["t.png"]}
HW = (70, 90)


def drawn_masks(seed, image_hw=HW):
    """A disc with a hole, an object of three parts, one of them a pixel, and a line one pixel wide."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: image_hw[0], : image_hw[1]]
    distance = np.hypot(rows - 20 - rng.integers(10), columns - 20 - rng.integers(10))
    disc = (distance < 17) & (distance > 5)
    parts = np.zeros(image_hw, dtype=bool)
    parts[40:50, 5:25] = parts[45:69, 60:90] = parts[30, 80] = True
    parts[50:60, 70:75] = False
    line = np.zeros(image_hw, dtype=bool)
    line[2, 50:80] = True
    return [disc, parts, line]


def rle_of(mask):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def write_folder(folder, classes=HOSTILE, boxes=False, photos=PHOTOS):
    """A labelled folder, written by hand."""
    for split, names in photos.items():
        (folder / split / "images").mkdir(parents=True)
        images, annotations = [], []
        for image_id, name in enumerate(names, 1):
            pixels = np.full((*HW, 3), image_id * 20 % 256, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / "images" / name)
            images.append({"id": image_id, "file_name": f"images/{name}", "width": HW[1], "height": HW[0]})
            for class_id, mask in enumerate(drawn_masks(image_id) if name != "empty.png" else []):
                rle = rle_of(mask)
                annotations.append({
                    "id": len(annotations) + 1, "image_id": image_id, "category_id": class_id + 1,
                    "bbox": coco_mask.toBbox(rle).tolist(), "area": int(mask.sum()), "iscrowd": 0,
                    "segmentation": [] if boxes else rle, "score": round(0.9 - 0.1 * class_id - 0.01 * image_id, 6),
                    "prompt": f"prompt {class_id}", "source": "both",
                })  # fmt: skip
        categories = [{"id": index, "name": name} for index, name in enumerate(classes, 1)]
        content = {"categories": categories, "images": images, "annotations": annotations}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "my data set")


def exported(folder, **keywords):
    output = folder.parent / "exported"
    report = to_label_studio(folder, output, **keywords)
    return output, json.loads((output / "tasks.json").read_text()), report


def annotated(tasks, **keywords):
    """The tasks as Label Studio exports them once every prediction has been submitted as an annotation."""
    done = []
    for number, task in enumerate(tasks, 1):
        result = [{**region, "origin": "prediction"} for region in task["predictions"][0]["result"]]
        annotation = {"id": number, "was_cancelled": False, "updated_at": "2026-01-01T10:00:00.5Z", "result": result}
        done.append({"id": number, "data": task["data"], "annotations": [annotation | keywords], "predictions": []})
    return done


def returned(folder, tasks, name="back", **keywords):
    file = folder.parent / f"{name}.json"
    file.write_text(json.dumps(tasks))
    return from_label_studio(file, folder.parent / name, dataset=folder, **keywords)


def objects_of(folder):
    """(split, file) -> (class, mask, annotation) of each object, through pycocotools."""
    found = {}
    for path in sorted(folder.glob("*/_annotations.coco.json")):
        coco = COCO(str(path))
        for image in coco.imgs.values():
            annotations = coco.imgToAnns[image["id"]]
            found[path.parent.name, image["file_name"]] = [
                (
                    coco.cats[item["category_id"]]["name"],
                    item["segmentation"] and coco.annToMask(item).astype(bool),
                    item,
                )
                for item in annotations
            ]
    return found


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


# The brush's format


masks = st.tuples(st.integers(1, 40), st.integers(1, 60)).flatmap(lambda shape: arrays(bool, shape))
blobs = st.integers(0, 2**31).map(
    lambda seed: cv2.GaussianBlur(np.random.default_rng(seed).random((180, 260)), (0, 0), 9) > 0.5
)


@given(st.one_of(masks, blobs))
@settings(max_examples=60, deadline=None)
def test_brush_round_trip(mask):
    assert (brush_to_mask(mask_to_brush(mask), mask.shape) == mask).all()


@given(st.one_of(masks, blobs))
@settings(max_examples=25, deadline=None)
def test_brush_equals_the_sdk(mask):
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    rle = mask_to_brush(mask)
    assert rle == brush.mask2rle(mask.astype(np.uint8) * 255)
    assert (brush.decode_rle(rle).reshape(*mask.shape, 4)[..., 3].astype(bool) == mask).all()


def test_brush_of_long_runs():
    # Runs of more than 2^16 bytes are several; one ends exactly there.
    mask = np.zeros((400, 512), dtype=bool)
    mask[100:132] = True
    assert mask[100:132].size * 4 == 2**16
    mask[300:, 3:] = True
    assert (brush_to_mask(mask_to_brush(mask), mask.shape) == mask).all()
    assert (brush_to_mask(mask_to_brush(~mask), mask.shape) == ~mask).all()


def packed(alpha, sizes=(3, 4, 8, 16)):
    """RGBA bytes packed as the editor does it: with pieces of unequal values among the repeated ones."""
    data = np.repeat(alpha.ravel(), 4)
    bits = f"{len(data):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    at = 0
    while at < len(data):
        length = min(2 ** sizes[2], len(data) - at)
        piece = data[at : at + length]
        if (piece == piece[0]).all():
            bits += f"1{2:02b}{length - 1:0{sizes[2]}b}{piece[0]:08b}"
        else:
            bits += f"0{2:02b}{length - 1:0{sizes[2]}b}" + "".join(f"{value:08b}" for value in piece)
        at += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


@pytest.mark.parametrize("sizes", [(3, 4, 8, 16), (1, 2, 5, 9)])
def test_brush_of_the_editor(sizes):
    alpha = (np.random.default_rng(0).random((30, 40)) * 256).astype(np.uint8)
    alpha[10:] = 255
    # Soft edges: what is covered half belongs to the mask.
    assert (brush_to_mask(packed(alpha, sizes), alpha.shape) == (alpha >= 128)).all()


# A disc with a hole and a stroke that was drawn beside it, as Label Studio 1.23.2's editor wrote them.
BY_THE_EDITOR = bytes.fromhex(
    "00006270391bff0b8f00c57ffc04cc031dffe4f008c6e320d960192fff238047751fd474b191ebf00ca7ff90c023238e6e3f68ff23aa8ca7"
    "5780663ffc8601187c7211fec7f31be4637a9c0331ffe4b008c8a38a8fa63a5d46019afff2780461118fe9f00ce7ffbcc0339ffeef00cf7f"
    "fbac033dffee700c7fff18063fffdc6018cfff0d80633ffdc6018bfff118062fffdc6018bfff118062fffdc6018bfff118062fffdc6018af"
    "ff158062bffdc6018bfff118062fffdc6018bfff118062fffdc6018bfff118062fffdc6018cfff0d80633ffdc6018fffe300c7fffb9c033d"
    "ffeeb00cf7ffbbc0339ffef300ce7ffbdc0335ffeff00cc7ffc040c0331fff010b00ca7ffc045c0325fff012300c77ffc04cc0315fff29b3"
    "00"
)


def test_brush_drawn_in_the_editor():
    mask, disc = brush_to_mask(list(BY_THE_EDITOR), HW), drawn_masks(1)[0]
    stroke = mask & ~disc
    assert mask[disc].all() and stroke.sum() == 13 and stroke[10:14, 53:61].sum() == 13
    assert cv2.connectedComponents(stroke.astype(np.uint8), connectivity=8)[0] == 2


@pytest.mark.parametrize("damage", [
    lambda rle: rle[: len(rle) // 2],
    lambda rle: [],
    lambda rle: None,
    lambda rle: 10**15,
    lambda rle: "ab",
    lambda rle: [300, *rle[1:]],
    lambda rle: ["a"] * 9,
    lambda rle: [255, 255, 255, 255, *rle[4:]],
    lambda rle: [*rle[:4], 0xFF, *rle[5:]],
    lambda rle: {"0": 1},
])  # fmt: skip
def test_damaged_brush(damage):
    rle = mask_to_brush(drawn_masks(0)[0])
    with pytest.raises(LabelingError, match="Expected"):
        brush_to_mask(damage(rle), HW)


def test_brush_that_claims_another_size():
    with pytest.raises(LabelingError, match="25200 bytes"):
        brush_to_mask(mask_to_brush(np.ones((3, 3), dtype=bool)), HW)


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_as_brush(data):
    header = (5 * 6 * 4).to_bytes(4, "big")
    with contextlib.suppress(LabelingError):
        assert brush_to_mask(list(header + data), (5, 6)).shape == (5, 6)


# Shapes


@given(st.one_of(masks, blobs).filter(np.any))
@settings(max_examples=60, deadline=None)
def test_polygons_give_the_mask_again(mask):
    polygons = crop_to_polygons(mask, 0, 0, mask.shape)
    assert len(polygons) == cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
    assert all(len(points) >= 3 for points in polygons)
    crop, x, y = unite([polygon_to_crop(np.array(points), mask.shape) for points in polygons])
    again = np.zeros_like(mask)
    again[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    assert iou(again, mask) == 1


def whole(found, image_hw=HW):
    crop, x, y = found
    mask = np.zeros(image_hw, dtype=bool)
    mask[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    return mask


def test_polygon_outside_the_image_is_cut():
    mask = whole(polygon_to_crop(np.array([[-50, 50], [150, 50], [150, 1e9], [-50, 200]]), (10, 20)), (10, 20))
    assert mask.sum() == 5 * 20 and mask[5:].all()


@pytest.mark.parametrize("angle", [0, 30, 90, 215])
def test_turned_rectangle(angle):
    value = {"x": 50, "y": 40, "width": 20, "height": 30, "rotation": angle}
    size = np.array([0.2 * 200, 0.3 * 100])
    turn = np.deg2rad(angle)
    along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    corners = np.array([[0, 0], [size[0], 0], size, [0, size[1]]]) @ np.array([along, across]) + (100, 40)
    truth = cv2.fillConvexPoly(np.zeros((100, 200), np.uint8), ((corners - 0.5) * 256).round().astype(int), 1, shift=8)
    assert iou(whole(rectangle_to_crop(value, (100, 200)), (100, 200)), truth.astype(bool)) > 0.9
    box = rectangle_to_xyxy(value, (100, 200))
    assert np.allclose(box, [*corners.min(axis=0).clip(0), *corners.max(axis=0).clip(0, (200, 100))])


def test_straight_rectangle_is_exact():
    mask = whole(rectangle_to_crop({"x": 10, "y": 20, "width": 30, "height": 40}, (50, 100)), (50, 100))
    assert mask.sum() == 30 * 20 and mask[10:30, 10:40].all()


def test_ellipse():
    value = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10, "rotation": 25}
    truth = cv2.ellipse(np.zeros((100, 200), np.uint8), (100, 50), (40, 10), 25, 0, 360, 1, -1)
    assert iou(whole(ellipse_to_crop(value, (100, 200)), (100, 200)), truth.astype(bool)) > 0.9


# Long lists


@given(st.lists(st.recursive(st.none() | st.booleans() | st.text(), st.lists, max_leaves=4)))
@settings(max_examples=40, deadline=None)
def test_lists_are_read_item_by_item(tmp_path_factory, items):
    path = tmp_path_factory.mktemp("list") / "list.json"
    items = [{"item": item, "filling": "é" * 40_000} for item in items]
    path.write_text(json.dumps(items, indent=1, ensure_ascii=False), encoding="utf-8")
    assert list(array_items(path)) == items


@pytest.mark.parametrize(
    "text", ["", "{}", "[1 2]", "[1,]", "[{'a': 1}]", "[{}", '["' + "a" * 70_000, "[" * 100_000, "[\x00]"]
)
def test_lists_that_are_none(tmp_path, text):
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(ValueError):
        list(array_items(path))


# To Label Studio


def test_tasks(folder):
    output, tasks, report = exported(folder)
    assert {path.name for path in output.iterdir()} == {"tasks.json", "labels.xml", "README.md"}
    assert (report.images, report.objects, report.regions) == (5, 12, 12)
    assert report == ExportReport(images=5, objects=12, regions=12, files=["tasks.json"])
    assert "tasks.json" in format_exchange(report)
    names = [f"{split}/images/{name}" for split, group in PHOTOS.items() for name in group]
    assert [task["data"]["file"] for task in tasks] == names
    for task in tasks:
        address = urlsplit(task["data"]["image"])
        assert address.path == "/data/local-files/" and not address.fragment
        assert (
            (folder.parent / parse_qs(address.query, strict_parsing=True)["d"][0]).read_bytes().startswith(b"\x89PNG")
        )
    ids = [region["id"] for task in tasks for region in task["predictions"][0]["result"]]
    assert len(set(ids)) == 12
    first = tasks[0]["predictions"][0]
    assert [region["score"] for region in first["result"]] == [0.89, 0.79, 0.69] and first["score"] == 0.69
    meta = first["result"][0]["meta"]
    assert meta == {"text": ["confidence 0.89, prompt prompt 0, source both"], "confidence": 0.89,
                    "prompt": "prompt 0", "source": "both"}  # fmt: skip
    assert first["model_version"] == "autodistill_sam3"
    # Found nothing: there is something to submit all the same, and no score.
    assert tasks[2]["predictions"] == [{"model_version": "autodistill_sam3", "result": []}]


@pytest.mark.parametrize("shape", ["brush", "polygon"])
def test_the_sdk_takes_the_tasks(folder, shape):
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    output, tasks, _ = exported(folder, shape=shape)
    config = interface((output / "labels.xml").read_text(encoding="utf-8"))
    config.validate()
    control = config.get_control(shape)
    assert list(control.labels) == HOSTILE
    truth = objects_of(folder)
    for task in tasks:
        prediction = task["predictions"][0]
        assert config.validate_prediction(prediction, return_errors=True) == []
        split, _, name = task["data"]["file"].partition("/")
        if shape == "brush":
            for region, (class_name, mask, _) in zip(prediction["result"], truth[split, name], strict=True):
                alpha = brush.decode_rle(region["value"]["rle"]).reshape(*HW, 4)[..., 3]
                assert region["value"]["brushlabels"] == [class_name] and (alpha.astype(bool) == mask).all()
    # And it would say so.
    wrong = json.loads(json.dumps(tasks[0]["predictions"][0]))
    wrong["result"][0]["value"][f"{shape}labels"] = ["no such class"]
    assert config.validate_prediction(wrong, return_errors=True)


def test_interface(folder):
    output, _, _ = exported(folder)
    view = ET.parse(output / "labels.xml").getroot()
    assert [label.get("value") for label in view.iter("Label")] == HOSTILE
    assert len({label.get("background") for label in view.iter("Label")}) == 3
    assert [control.tag for control in view] == ["Image", "BrushLabels"]


def test_readme_says_how(folder):
    output, _, _ = exported(folder)
    text = (output / "README.md").read_text(encoding="utf-8")
    assert f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={folder.parent}\n" in text
    assert f"   {folder}\n" in text and f"export '{folder}' --from" in text
    for word in ("LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true", "tasks.json", "labels.xml", "--from label-studio"):
        assert word in text


def test_addresses(folder, tmp_path):
    _, tasks, _ = exported(folder, image_root=tmp_path.parent, url_prefix="https://files.example/x?path=")
    path = f"{tmp_path.name}/my%20data%20set/train/images/b%20%26%20c%27s%20%22photo%22%20%231%2B50%25.png"
    assert tasks[1]["data"]["image"] == f"https://files.example/x?path={path}"


def test_polygons_in_parts(folder):
    _, tasks, report = exported(folder, shape="polygon")
    # Three parts, one of which has a hole, in each of four images.
    assert (report.objects, report.regions, report.objects_in_parts) == (12, 20, 4)
    assert (report.objects_changed, report.min_iou, report.mean_iou) == (0, 1, 1)
    parts = [region["meta"] for region in tasks[0]["predictions"][0]["result"] if "object" in region["meta"]]
    assert [(meta["object"], meta["part"]) for meta in parts] == [(2, 0), (2, 1), (2, 2)]


def test_deterministic(folder, tmp_path):
    to_label_studio(folder, tmp_path / "one")
    to_label_studio(folder, tmp_path / "two")
    for name in ("tasks.json", "labels.xml", "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_large_exports_are_several_files(folder, monkeypatch):
    monkeypatch.setattr("autodistill_sam3.exchange.label_studio_export._MAX_FILE_BYTES", 4000)
    output = folder.parent / "exported"
    report = to_label_studio(folder, output)
    assert report.files[:2] == ["tasks.json", "tasks_2.json"]
    tasks = [task for name in report.files for task in json.loads((output / name).read_text())]
    assert len(tasks) == 5


@pytest.mark.parametrize(("name", "why"), [("$price", "dollar|\\$"), ("", "XML"), ("a\x00b", "XML"), ("\ud800", "XML")])
def test_class_names_that_label_studio_cannot_have(tmp_path, name, why):
    folder = write_folder(tmp_path / "set", classes=["a", name, "c"])
    with pytest.raises(LabelingError, match=why):
        to_label_studio(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refused_exports(folder, tmp_path):
    with pytest.raises(SettingError, match="brush, polygon"):
        to_label_studio(folder, tmp_path / "out", shape="circle")
    with pytest.raises(SettingError, match="around the dataset"):
        to_label_studio(folder, tmp_path / "out", image_root=tmp_path / "other")
    with pytest.raises(InputFolderError, match=re.escape("_annotations.coco.json")):
        to_label_studio(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputFolderError, match="does not exist yet"):
        to_label_studio(folder, tmp_path / "there")


@pytest.mark.parametrize("damage", [
    lambda coco: coco["images"][0].update(file_name="images/../../secret.png"),
    lambda coco: coco["images"][0].update(file_name="/etc/passwd"),
    lambda coco: coco["images"][0].pop("width"),
    lambda coco: coco["annotations"][0].update(segmentation={"size": [9, 9], "counts": "a"}),
    lambda coco: coco["annotations"][0]["segmentation"].update(counts="a"),
    lambda coco: coco["annotations"][0].update(category_id=77),
    lambda coco: coco["annotations"][0].update(bbox=None, segmentation=[]),
    lambda coco: coco["annotations"][0].update(bbox=[0, 0, float("nan"), 1], segmentation=[]),
    lambda coco: coco["annotations"][0].update(bbox="abcd", segmentation=[]),
    lambda coco: coco["annotations"][0]["segmentation"].update(counts=[1, 2, 3]),
    lambda coco: coco["annotations"][0]["segmentation"].update(counts=[-1, HW[0] * HW[1] + 1]),
    lambda coco: coco["annotations"][0]["segmentation"].update(counts=[HW[0] * HW[1]]),
    lambda coco: coco["annotations"][0]["segmentation"].update(counts=[[1], 2]),
    lambda coco: coco["annotations"][0]["segmentation"].update(counts=5),
    lambda coco: coco["annotations"][0]["segmentation"].pop("counts"),
    lambda coco: coco["annotations"][0].update(segmentation="abc"),
    lambda coco: coco["annotations"][0].update(segmentation=["abc"]),
    lambda coco: coco["annotations"][0].update(segmentation=[{}]),
    lambda coco: coco["annotations"].reverse(),
    lambda coco: coco["categories"][0].update(name="another"),
])  # fmt: skip
def test_damaged_folder(folder, damage):
    path = folder / "train" / "_annotations.coco.json"
    coco = json.loads(path.read_text())
    damage(coco)
    path.write_text(json.dumps(coco))
    with pytest.raises(LabelingError, match="Expected"):
        to_label_studio(folder, folder.parent / "out")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["my data set"]


def runs_of(mask):
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff([0, *edges, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


@pytest.mark.parametrize("shape", ["brush", "polygon"])
@pytest.mark.parametrize("change", [
    lambda item, mask: item.update(bbox=[*item["bbox"][:2], item["bbox"][2] / 2, item["bbox"][3] / 2]),
    lambda item, mask: item.update(bbox=[-5, -5, 30, 30]),
    lambda item, mask: item.update(bbox=[1000, 0, 1000, 1000]),
    lambda item, mask: item.pop("bbox"),
    lambda item, mask: item.update(segmentation={"size": [*HW], "counts": runs_of(mask)}),
])  # fmt: skip
def test_masks_count_and_not_what_is_said_of_them(folder, change, shape):
    for path in folder.glob("*/_annotations.coco.json"):
        coco = json.loads(path.read_text())
        for item in coco["annotations"]:
            change(item, drawn_masks(item["image_id"])[item["category_id"] - 1])
        path.write_text(json.dumps(coco))
    _, tasks, _ = exported(folder, shape=shape)
    returned(folder, annotated(tasks))
    for (split, name), objects in objects_of(folder.parent / "back").items():
        number = PHOTOS[split].index(name.removeprefix("images/")) + 1
        assert len(objects) == (0 if "empty" in name else 3)
        for (_, mask, _), expected in zip(objects, drawn_masks(number), strict=False):
            assert (mask == expected).all()


def test_outlines_in_a_coco_file(folder):
    path = folder / "train/_annotations.coco.json"
    coco = json.loads(path.read_text())
    outline = [10, 10, 40, 10, 40, 30, 10, 30]
    coco["annotations"][0]["segmentation"] = [outline]
    path.write_text(json.dumps(coco))
    _, tasks, _ = exported(folder)
    rle = tasks[0]["predictions"][0]["result"][0]["value"]["rle"]
    (expected,) = coco_mask.decode(coco_mask.frPyObjects([outline], *HW)).transpose(2, 0, 1)
    assert (brush_to_mask(rle, HW) == expected.astype(bool)).all()


# And back


@pytest.mark.parametrize("shape", ["brush", "polygon"])
def test_round_trip(folder, shape):
    _, tasks, _ = exported(folder, shape=shape)
    report = returned(folder, annotated(tasks))
    back, truth = objects_of(folder.parent / "back"), objects_of(folder)
    assert (report.images, report.objects, report.not_reviewed, report.new_classes) == (5, 12, 0, [])
    assert (report.as_predicted, report.changed, report.drawn) == (20 if shape == "polygon" else 12, 0, 0)
    assert back.keys() == truth.keys()
    for name, objects in truth.items():
        assert [item[0] for item in back[name]] == [item[0] for item in objects]
        for (_, mask, annotation), (_, expected, earlier) in zip(back[name], objects, strict=True):
            assert (mask == expected).all()
            assert annotation["bbox"] == earlier["bbox"] and annotation["iscrowd"] == 0
            assert (annotation["score"], annotation["source"]) == (1, "annotator")
            assert annotation["prompt"] == earlier["prompt"]


def test_layout_of_what_comes_back(folder):
    _, tasks, _ = exported(folder)
    returned(folder, annotated(tasks))
    back = folder.parent / "back"
    assert {path.name for path in back.iterdir()} == {"data.yaml", "train", "valid", "test"}
    assert yaml.safe_load((back / "data.yaml").read_text(encoding="utf-8")) == {
        "train": "train/images", "val": "valid/images", "test": "test/images", "nc": 3, "names": HOSTILE,
    }  # fmt: skip
    for split, names in PHOTOS.items():
        assert sorted(path.name for path in (back / split / "images").iterdir()) == sorted(names)
        for name in names:
            assert (back / split / "images" / name).read_bytes() == (folder / split / "images" / name).read_bytes()
            labels = (back / split / "labels" / name).with_suffix(".txt").read_text()
            assert labels.count("\n") == (0 if name == "empty.png" else 3)


def test_a_dataset_that_came_back_goes_out_again(folder, tmp_path):
    _, tasks, _ = exported(folder)
    returned(folder, annotated(tasks))
    report = to_label_studio(tmp_path / "back", tmp_path / "again")
    assert (report.images, report.objects) == (5, 12)


def test_order_of_tasks_does_not_matter(folder):
    _, tasks, _ = exported(folder)
    returned(folder, annotated(tasks), "one")
    returned(folder, annotated(tasks)[::-1], "two")
    files = sorted(path.relative_to(folder.parent / "one") for path in (folder.parent / "one").rglob("*.*"))
    assert len(files) == 1 + 3 + 2 * 5
    for file in files:
        assert (folder.parent / "one" / file).read_bytes() == (folder.parent / "two" / file).read_bytes()


def test_corrections(folder):
    _, tasks, _ = exported(folder)
    done = annotated(tasks)
    result = done[0]["annotations"][0]["result"]
    frame = {"original_width": HW[1], "original_height": HW[0], "image_rotation": 0, "to_name": "image"}
    result[0]["value"]["brushlabels"] = [HOSTILE[1]]
    result[0]["origin"] = "prediction-changed"
    del result[1:]
    box = {"x": 10, "y": 10, "width": 20, "height": 50, "rectanglelabels": ["a new class"]}
    result.append({"id": "n", "type": "rectanglelabels", "origin": "manual", "value": box, **frame})
    round_one = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "ellipselabels": [HOSTILE[0]]}
    result.append({"id": "e", "type": "ellipselabels", "origin": "manual", "value": round_one, **frame})
    result.append({"id": "c", "type": "choices", "value": {"choices": ["good"]}})
    result.append({"id": "u", "type": "brushlabels", "value": {"format": "rle", "rle": []}, **frame})
    nothing = mask_to_brush(np.zeros(HW, dtype=bool))
    result.append(
        {
            "id": "z",
            "type": "brushlabels",
            "origin": "manual",
            "value": {"rle": nothing, "brushlabels": [HOSTILE[0]]},
            **frame,
        }
    )
    report = returned(folder, done)
    assert (report.changed, report.drawn, report.as_predicted) == (1, 3, 9)
    assert (report.not_regions, report.without_class, report.empty) == (1, 1, 1)
    assert report.new_classes == ["a new class"]
    found = objects_of(folder.parent / "back")["train", "images/a.png"]
    assert [item[0] for item in found] == [HOSTILE[1], "a new class", HOSTILE[0]]
    assert (found[0][1] == drawn_masks(1)[0]).all()
    expected = np.zeros(HW, dtype=bool)
    expected[7:42, 9:27] = True
    assert (found[1][1] == expected).all()
    assert yaml.safe_load((folder.parent / "back/data.yaml").read_text(encoding="utf-8"))["nc"] == 4


def test_copied_part_is_an_object_of_its_own(folder):
    _, tasks, _ = exported(folder, shape="polygon")
    done = annotated(tasks)
    result = done[0]["annotations"][0]["result"]
    part = next(region for region in result if region["meta"].get("object") == 2)
    result.append(json.loads(json.dumps(part)) | {"id": "copy"})
    assert returned(folder, done).objects == 13


def test_which_annotation_counts(folder):
    _, tasks, _ = exported(folder)
    done = annotated(tasks)
    latest = {**done[0]["annotations"][0], "id": 9, "updated_at": "2026-03-01T00:00:00+02:00", "result": []}
    cancelled = {**latest, "id": 10, "updated_at": "2026-05-01T00:00:00Z", "was_cancelled": True}
    done[0]["annotations"] += [latest, cancelled, {**done[0]["annotations"][0], "id": 12, "updated_at": None}]
    done[1]["annotations"][0]["was_cancelled"] = True
    done[3]["annotations"] = []
    del done[4]["annotations"]
    report = returned(folder, done)
    assert (report.several_annotations, report.skipped, report.not_reviewed, report.images) == (1, 1, 2, 2)
    found = objects_of(folder.parent / "back")
    assert found == {("train", "images/a.png"): [], ("train", "images/empty.png"): []}


def test_not_reviewed_images_may_be_kept(folder):
    _, tasks, _ = exported(folder)
    done = annotated(tasks)[:1]
    report = returned(folder, done, keep_not_reviewed=True)
    assert (report.not_reviewed, report.images, report.objects) == (4, 5, 12)
    back, truth = objects_of(folder.parent / "back"), objects_of(folder)
    kept = back["valid", "images/ü 写真.png"]
    for (_, mask, annotation), (_, expected, earlier) in zip(kept, truth["valid", "images/ü 写真.png"], strict=True):
        assert (mask == expected).all() and annotation["score"] == pytest.approx(earlier["score"], abs=1e-6)
        assert annotation["source"] == "both"


def test_evaluate_takes_what_comes_back(folder):
    _, tasks, _ = exported(folder)
    done = annotated(tasks)
    del done[0]["annotations"][0]["result"][1]
    done[1]["annotations"] = []
    returned(folder, done)
    evaluation = evaluate_dataset(folder, folder.parent / "back")
    assert (evaluation.images, evaluation.images_left_out, evaluation.without_mask) == (4, 1, (0, 0))
    overall = evaluation.mask.scores[-1]
    assert (overall.objects, overall.detections, overall.matched, overall.mean_iou) == (8, 9, 8, 1)


def test_names_that_labelling_gave_are_found_in_the_truth_again(folder, tmp_path):
    """Two cameras have an a.jpg each, and the truth calls them by their folders."""
    sources = {("train", "a.png"): "cam1/x.png", ("valid", "ü 写真.png"): "cam2/x.png", ("test", "t.png"): "t.png"}
    lines = [{"source": source, "split": split, "file": file} for (split, file), source in sources.items()]
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    truth = json.loads((folder / "train/_annotations.coco.json").read_text())
    truth["images"] = [{**truth["images"][0], "file_name": "cam1/x.png"}]
    truth["annotations"] = [item for item in truth["annotations"] if item["image_id"] == 1]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    _, tasks, _ = exported(folder)
    returned(folder, annotated(tasks))
    returned(folder, annotated(tasks)[::-1], "other")
    back = tmp_path / "back"
    assert (back / "journal.jsonl").read_bytes() == (tmp_path / "other/journal.jsonl").read_bytes()
    for dataset in (back, back / "data.yaml"):
        evaluation = evaluate_dataset(dataset, tmp_path / "truth.json")
        assert (evaluation.images, evaluation.mask.scores[-1].matched) == (1, 3)
    # Where nothing but the journal is left, it has the labels too.
    for path in (*back.glob("*/_annotations.coco.json"), *back.glob("*/labels/*.txt")):
        path.unlink()
    evaluation = evaluate_dataset(back, tmp_path / "truth.json")
    assert (evaluation.images, evaluation.mask.scores[-1].mean_iou) == (1, 1)


def test_predictions_that_the_server_made_annotations_of(folder):
    _, tasks, _ = exported(folder)
    done = annotated(tasks)
    for task in done:
        for region in task["annotations"][0]["result"]:
            del region["origin"]
    assert returned(folder, done).as_predicted == 12


def test_boxes(tmp_path):
    folder = write_folder(tmp_path / "set", boxes=True)
    output, tasks, report = exported(folder)
    assert [control.tag for control in ET.parse(output / "labels.xml").getroot()] == ["Image", "RectangleLabels"]
    assert report.regions == 12
    returned(folder, annotated(tasks))
    back, truth = objects_of(tmp_path / "back"), objects_of(folder)
    for name, objects in truth.items():
        for (_, _, annotation), (_, _, earlier) in zip(back[name], objects, strict=True):
            assert annotation["bbox"] == pytest.approx(earlier["bbox"], abs=1e-4) and not annotation["segmentation"]
    lines = (tmp_path / "back/train/labels/a.txt").read_text().splitlines()
    assert [len(line.split()) for line in lines] == [5, 5, 5]


def test_linked_images(folder):
    _, tasks, _ = exported(folder)
    returned(folder, annotated(tasks), link_images=True)
    assert (folder.parent / "back/train/images/a.png").samefile(folder / "train/images/a.png")


def test_address_alone_names_the_image(folder):
    _, tasks, _ = exported(folder)
    done = annotated(tasks)
    for task in done:
        del task["data"]["file"]
    assert returned(folder, done).images == 5


def test_unknown_tasks(folder, caplog):
    _, tasks, _ = exported(folder)
    done = annotated(tasks)
    for index, name in enumerate(["../../etc/passwd", "train/images/../images/a.png", "/etc/passwd", "other.png"]):
        done[index]["data"] = {"file": name, "image": f"/data/local-files/?d={name}"}
    report = returned(folder, done)
    assert (report.unknown_tasks, report.images) == (4, 1)
    assert "4 tasks show images that are not in the labelled folder" in caplog.text
    with pytest.raises(LabelingError, match="4 of other images"):
        returned(folder, done[:4], "other")
    assert not (folder.parent / "other").exists()


def change(key, value):
    return lambda task: task["annotations"][0]["result"][0].update({key: value})


@pytest.mark.parametrize(("damage", "why"), [
    (change("original_width", 91), "height and width"),
    (change("original_height", None), "height and width"),
    (change("image_rotation", 90), "not turned"),
    (change("value", None), "value"),
    (change("type", "bitmasklabels"), "bitmasklabels"),
    (change("type", "brush"), "'brush'"),
    (change("value", {"rle": [1, 2], "brushlabels": ["a"]}), r"cut short.*task 1, train/images/a.png"),
    (change("value", {"rle": [1, 2], "brushlabels": ["a", "b"]}), "one class"),
    (change("value", {"rle": [1, 2], "brushlabels": "ab"}), "one class"),
    (lambda task: task["annotations"][0].update(result="x"), "list as the result"),
    (lambda task: task.update(annotations=[3]), "list of annotations"),
    (lambda task: task.update(annotations="ab"), "list of annotations"),
    (lambda task: task.pop("data"), "JSON-MIN"),
])  # fmt: skip
def test_damaged_annotations(folder, damage, why):
    _, tasks, _ = exported(folder)
    done = annotated(tasks)
    damage(done[0])
    with pytest.raises(LabelingError, match=why):
        returned(folder, done)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["back.json", "exported", "my data set"]


@pytest.mark.parametrize(
    "points",
    [None, "ab", [[1, 2, 3]], 5, [1, 2], [[1e300, 1]], [[[1, 2]]], [[float("nan"), 1]], [[10**400, 1]], [["a", "b"]]],
)
def test_damaged_polygons(folder, points):
    _, tasks, _ = exported(folder, shape="polygon")
    done = annotated(tasks)
    done[0]["annotations"][0]["result"][0]["value"]["points"] = points
    with pytest.raises(LabelingError, match="Expected"):
        returned(folder, done)


@pytest.mark.parametrize(
    "value", [{"x": 1}, {"width": -4}, {"x": "1e999"}, {"rotation": "x"}, {"rotation": float("inf")}]
)
def test_damaged_rectangles(value):
    good = {"x": 1, "y": 1, "width": 1, "height": 1, "rotation": 0}
    with pytest.raises(LabelingError, match="Expected"):
        rectangle_to_crop(value if value == {"x": 1} else good | value, HW)


def test_refused_imports(folder, tmp_path):
    _, tasks, _ = exported(folder)
    done = annotated(tasks)
    with pytest.raises(SettingError, match="nothing there"):
        from_label_studio(tmp_path / "none.json", tmp_path / "out", dataset=folder)
    with pytest.raises(LabelingError, match=r"second for train/images/a\.png"):
        returned(folder, [done[0], *done])
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputFolderError, match="does not exist yet"):
        returned(folder, done, "there")
    (folder / "train/images/a.png").unlink()
    with pytest.raises(LabelingError, match="copied"):
        returned(folder, done, "lost")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".part")]


# The command


def test_flags_of_the_other_direction(folder, tmp_path, capsys):
    way = ["export", str(folder), "--output", str(tmp_path / "out")]
    for wrong, flag in (
        (["--to", "label-studio", "--file", "x.json"], "--file"),
        (["--to", "label-studio", "--keep-not-reviewed"], "--keep-not-reviewed"),
        (["--to", "label-studio", "--link-images"], "--link-images"),
        (["--from", "label-studio", "--file", "x.json", "--shape", "brush"], "--shape"),
        (["--from", "label-studio", "--file", "x.json", "--image-root", "."], "--image-root"),
        (["--from", "label-studio", "--file", "x.json", "--url-prefix", "u"], "--url-prefix"),
    ):
        assert main([*way, *wrong]) == 1
        assert f"received {flag}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*way, "--to", "label-studio", "--shape", "polygon", "--quiet"]) == 0


def test_a_closed_pipe_is_no_error_message(folder, tmp_path):
    command = [sys.executable, "-m", "autodistill_sam3", "export", str(folder), "--to", "label-studio"]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [*command, "--output", str(tmp_path / "out")], stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("report", [ExportReport(), ImportReport()])
def test_numbers_of_a_report_stand_in_one_column(report):
    lines = format_exchange(report).splitlines()
    width = max(len(field.name) for field in dataclasses.fields(report))
    assert all(line[width] == " " and line[width + 1] != " " for line in lines)
