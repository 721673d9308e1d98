"""Records become files that independent loaders read back as the same objects."""

from __future__ import annotations

import io
import itertools
import json
import tracemalloc
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import supervision as sv
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from autodistill_sam3.errors import SettingError
from autodistill_sam3.instances import compact_masks, tight_xyxy
from autodistill_sam3.labeling.formats import (
    DEFAULT_FORMATS,
    FORMATS,
    check_formats,
    coco,
    image_files,
    image_paths,
    write_coco,
)
from autodistill_sam3.labeling.polygons import crop_to_yolo
from autodistill_sam3.labeling.records import ImageRecord, annotations_of

# pycocotools has not followed numpy's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CLASSES = ("ball", "star", "cap of a bottle", "dog & <cat>")
HD, ODD = (1080, 1920), (333, 517)


def detections(masks, image_hw, class_ids=None, confidences=None):
    compact = compact_masks([(mask, 0, 0) for mask in masks], image_hw)
    count = len(masks)
    return sv.Detections(
        xyxy=tight_xyxy(compact),
        mask=compact,
        confidence=np.linspace(0.9, 0.5, count, dtype=np.float32) if confidences is None else np.array(confidences),
        class_id=np.arange(count) % len(CLASSES) if class_ids is None else np.array(class_ids),
        data={"prompt": np.array(["a prompt"] * count), "source": np.array(["text"] * count)},
    )


def box_detections(xyxy):
    xyxy = np.array(xyxy, dtype=np.float32).reshape(-1, 4)
    count = len(xyxy)
    return sv.Detections(
        xyxy=xyxy, confidence=np.linspace(0.9, 0.5, count, dtype=np.float32), class_id=np.arange(count) % len(CLASSES)
    )


def record_of(found, image_hw, file="photo.png"):
    height, width = image_hw
    return ImageRecord(
        source=file, file=file, split="train", width=width, height=height, annotations=annotations_of(found, image_hw)
    )


def write_split(folder, records, formats, classes=CLASSES, record_confidence=False):
    """What a labelling run leaves of one split."""
    for record in records:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (record["width"], record["height"])).save(folder / "images" / record["file"], compress_level=1)
        files = image_files(record, classes, formats, record_confidence=record_confidence)
        for path, content in files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(content)
    if "coco" in formats:
        with (folder / "_annotations.coco.json").open("w", encoding="utf-8") as file:
            write_coco(file, iter(records), classes)
    (folder / "data.yaml").write_text(yaml.safe_dump({"nc": len(classes), "names": list(classes)}))


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


# Drawn truth.


def blob(rng, image_hw, centre, radius):
    """A smooth shape of about this radius."""
    angle = np.linspace(0, 2 * np.pi, 400)
    waves = sum(rng.uniform(0, 0.15) * np.cos(k * angle + rng.uniform(0, 6)) for k in range(2, 6))
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius * (1 + waves)[:, None] + centre
    return cv2.fillPoly(np.zeros(image_hw, np.uint8), [np.round(points).astype(np.int32)], 1).astype(bool)


def single(rng, image_hw):
    return blob(rng, image_hw, rng.uniform(0.3, 0.7, 2) * image_hw[::-1], rng.uniform(4, 0.25 * min(image_hw)))


def small(rng, image_hw):
    return blob(rng, image_hw, rng.uniform(0.2, 0.8, 2) * image_hw[::-1], rng.uniform(2, 9))


def at_the_edge(rng, image_hw):
    corner = rng.integers(0, 2, 2) * (np.array(image_hw[::-1]) - 1)
    return blob(rng, image_hw, corner * (1, rng.uniform(0.2, 1)), rng.uniform(5, 0.3 * min(image_hw)))


def thin_line(rng, image_hw):
    ends = rng.integers(0, image_hw[::-1], (2, 2)).tolist()
    if rng.random() < 0.3:  # rising diagonals are what ultralytics' resampling spoils
        length = int(rng.integers(5, min(image_hw) // 2))
        ends = [[3, length + 3], [length + 3, 3]]
    return cv2.line(np.zeros(image_hw, np.uint8), *ends, 1, int(rng.integers(1, 4))).astype(bool)


def with_holes(rng, image_hw):
    """Holes of 12 pixels radius and more."""
    radius = rng.uniform(60, 0.35 * min(image_hw))
    centre = rng.uniform(0.45, 0.55, 2) * image_hw[::-1]
    mask = blob(rng, image_hw, centre, radius).astype(np.uint8)
    for _ in range(rng.integers(1, 4)):
        place = np.round(centre + rng.uniform(-0.5, 0.5, 2) * radius).astype(int).tolist()
        cv2.circle(mask, place, int(rng.uniform(12, max(13, 0.2 * radius))), 0, -1)
    return mask.astype(bool)


def parts(rng, image_hw, count):
    """Parts of one size that lie side by side, as behind poles, with up to a radius between them."""
    while True:
        radius = rng.uniform(10, 0.1 * min(image_hw))
        place = np.array([2.5 * radius, rng.uniform(0.3, 0.7) * image_hw[0]])
        mask = np.zeros(image_hw, bool)
        for _ in range(count):
            mask |= blob(rng, image_hw, place, radius)
            place += (radius * rng.uniform(2.1, 3), radius * rng.uniform(-1, 1))
        if cv2.connectedComponents(mask.astype(np.uint8))[0] == count + 1:
            return mask


def two_parts(rng, image_hw):
    return parts(rng, image_hw, 2)


def four_parts(rng, image_hw):
    return parts(rng, image_hw, int(rng.integers(3, 5)))


def pixel_or_frame(rng, image_hw):
    mask = np.full(image_hw, rng.random() < 0.3)
    mask[tuple(rng.integers(0, image_hw))] = True
    return mask


# Loaders of others.


@pytest.fixture(scope="module")
def ultralytics(tmp_path_factory):
    threads = cv2.getNumThreads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
        patch.setenv("YOLO_OFFLINE", "true")
        yield pytest.importorskip("ultralytics.data")
    cv2.setNumThreads(threads)


def open_yolo(ultralytics, folder, task):
    """ultralytics' own dataset, at full resolution."""
    from ultralytics.cfg import get_cfg

    data = yaml.safe_load((folder / "data.yaml").read_text())
    longest = max(max(cv2.imread(str(path)).shape) for path in (folder / "images").iterdir())
    overrides = get_cfg(overrides={"mask_ratio": 1, "overlap_mask": False})
    return ultralytics.YOLODataset(
        img_path=str(folder / "images"), imgsz=longest, augment=False, hyp=overrides, data=data, task=task
    )


def read_yolo(ultralytics, folder, task="segment"):
    """File name -> class ids, boxes in shares, and masks without the letterbox's margins."""
    dataset, found = open_yolo(ultralytics, folder, task), {}
    for index in range(len(dataset)):
        label = dataset.get_image_and_label(index)
        assert label["resized_shape"] == label["ori_shape"]
        label = dataset.transforms.transforms[-1](label)
        masks = label["masks"].numpy().astype(bool) if task == "segment" else None
        found[Path(label["im_file"]).name] = label["cls"].numpy().ravel().astype(int), label["bboxes"].numpy(), masks
    return found


def open_coco(folder):
    api = COCO()
    api.dataset = json.loads((folder / "_annotations.coco.json").read_text())
    api.createIndex()
    return api


# Settings.


@pytest.mark.parametrize(
    ("formats", "words"),
    [
        ([], "received none"),
        (["yolo", "yaml"], "'yaml'"),
        (["coco", "coco"], "once"),
        (["yolo", "yolo-detection"], "labels/"),
        ("yolo", r"\['yolo'\]"),
    ],
)
def test_formats_that_cannot_be_are_refused(formats, words):
    with pytest.raises(SettingError, match=words):
        check_formats(formats)


def test_formats_are_put_in_order():
    assert check_formats(DEFAULT_FORMATS) == ("yolo", "coco")
    for choice in itertools.permutations(("masks", "coco", "yolo-detection", "voc")):
        assert check_formats(choice) == ("yolo-detection", "coco", "voc", "masks")


@pytest.mark.parametrize("formats", [[name] for name in FORMATS] + [["yolo", "coco", "voc", "masks"]])
@pytest.mark.parametrize("record_confidence", [False, True])
def test_paths_are_known_without_the_record(formats, record_confidence):
    mask = np.ones((12, 20), bool)
    record = record_of(detections([mask], mask.shape), mask.shape, "two.dots & ü.jpeg")
    files = image_files(record, CLASSES, formats, record_confidence=record_confidence)
    assert list(files) == image_paths(record["file"], formats, record_confidence=record_confidence)
    assert all(Path(path).stem.endswith("two.dots & ü") for path in files)
    assert len(files) == len(set(formats) - {"coco"}) + (
        record_confidence and bool({"yolo", "yolo-detection"} & {*formats})
    )


# Masks through files.


@pytest.mark.parametrize(
    ("draw", "least"),
    [
        (single, 0.999),
        (small, 0.995),
        (at_the_edge, 0.999),
        (thin_line, 0.995),
        (with_holes, 0.999),
        (two_parts, 0.98),
        (four_parts, 0.97),
        (pixel_or_frame, 1),
    ],
)
def test_masks_through_files(draw, least, ultralytics, tmp_path):
    rng = np.random.default_rng(list(draw.__name__.encode()))
    records, truth = [], {}
    for index, image_hw in enumerate((HD, ODD, ODD)):
        file = f"photo {index}.png"
        truth[file] = [draw(rng, image_hw) for _ in range(4)]
        records.append(record_of(detections(truth[file], image_hw), image_hw, file))
        write_split(tmp_path / str(index), records[-1:], ("yolo", "coco"))
    ious = []
    for index, (file, masks) in enumerate(truth.items()):
        folder = tmp_path / str(index)
        class_ids, _, found = read_yolo(ultralytics, folder)[file]
        assert class_ids.tolist() == [0, 1, 2, 3]
        ious += [iou(one, other) for one, other in zip(found, masks, strict=True)]
        expected = [annotation["polygon_iou"] for annotation in records[index]["annotations"]]
        assert ious[-4:] == pytest.approx(expected, abs=0.05 if draw is thin_line else 0.004)
        api = open_coco(folder)
        for annotation, mask in zip(api.loadAnns(api.getAnnIds()), masks, strict=True):
            np.testing.assert_array_equal(api.annToMask(annotation), mask)
    assert np.mean(ious) >= least


@given(st.integers(0, 2**32 - 1), st.integers(10, 60), st.integers(10, 60), st.sampled_from([0, 1612, 3000]))
@settings(max_examples=60, deadline=None)
def test_added_points_do_not_matter(ultralytics, seed, height, width, longest):
    """ultralytics adds points to each polygon until all have as many as the image's longest, and no less than 1000."""
    from ultralytics.data.utils import polygon2mask
    from ultralytics.utils.ops import resample_segments

    rng = np.random.default_rng(seed)
    mask = cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), rng.uniform(1, 5)) > 0
    _, labels = cv2.connectedComponents(mask.astype(np.uint8))
    for label in range(1, labels.max() + 1):
        truth = labels == label
        segment = np.array(crop_to_yolo(truth, 0, 0, truth.shape).split(), dtype=np.float32).reshape(-1, 2)
        (resampled,) = resample_segments([segment], n=max(1000, longest, len(segment) + 1))
        read = polygon2mask(truth.shape, [(resampled * truth.shape[::-1]).reshape(-1)])
        # A pixel here and there, for which it does not pay to write more points.
        assert (read != truth).sum() <= max(2, 0.002 * truth.sum())


@pytest.mark.parametrize("longest", [1000, 1001, 1612, 2222, 4321])
@pytest.mark.parametrize("length", [2, 57, 58, 291])
@pytest.mark.parametrize("image_hw", [HD, ODD])
def test_added_points_do_not_thicken_rising_diagonals(ultralytics, longest, length, image_hw):
    from ultralytics.data.utils import polygon2mask
    from ultralytics.utils.ops import resample_segments

    line = np.eye(length, dtype=bool)[::-1]
    segment = np.array(crop_to_yolo(line, 10, 12, image_hw).split(), dtype=np.float32).reshape(-1, 2)
    (resampled,) = resample_segments([segment], n=longest)
    read = polygon2mask(image_hw, [(resampled * np.array(image_hw[::-1], np.float32)).reshape(-1)])
    assert read[12 : 12 + length, 10 : 10 + length][line].all()
    assert read.sum() - length <= max(1, 0.03 * length)


def test_a_whole_folder_through_ultralytics(ultralytics, tmp_path):
    """The pipeline that trains, letterbox and all, with labels of images that have many objects and none."""
    rng = np.random.default_rng(0)
    truth = {f"photo {index}.png": [single(rng, ODD) for _ in range(5 * index)] for index in range(3)}
    records = [record_of(detections(masks, ODD), ODD, file) for file, masks in truth.items()]
    write_split(tmp_path, records, ("yolo",), record_confidence=True)
    dataset = open_yolo(ultralytics, tmp_path, "segment")
    assert len(dataset) == 3
    margin = (ODD[1] - ODD[0]) // 2
    for item in (dataset[index] for index in range(3)):
        masks = truth[Path(item["im_file"]).name]
        assert item["cls"].flatten().tolist() == [index % len(CLASSES) for index in range(len(masks))]
        read = item["masks"].numpy().astype(bool)[:, margin : margin + ODD[0]]
        assert all(iou(one, other) > 0.999 for one, other in zip(read, masks, strict=False))


@pytest.mark.parametrize("formats", [("yolo",), ("yolo-detection",)])
def test_detectors_read_the_boxes(formats, ultralytics, tmp_path):
    rng = np.random.default_rng(1)
    masks = [single(rng, ODD), two_parts(rng, ODD), at_the_edge(rng, ODD), pixel_or_frame(rng, ODD)]
    write_split(tmp_path, [record_of(detections(masks, ODD), ODD)], formats)
    class_ids, boxes, _ = read_yolo(ultralytics, tmp_path, "detect")["photo.png"]
    assert class_ids.tolist() == [0, 1, 2, 3]
    pixels = boxes * np.tile(ODD[::-1], 2)
    read = np.concatenate([pixels[:, :2] - pixels[:, 2:] / 2, pixels[:, :2] + pixels[:, 2:] / 2], axis=1)
    # A polygon runs through the centres of the outermost pixels.
    inset = 0 if formats == ("yolo-detection",) else 0.5 * np.array([1, 1, -1, -1])
    expected = tight_xyxy(compact_masks([(mask, 0, 0) for mask in masks], ODD)) + inset
    np.testing.assert_allclose(read, expected, atol=0.01 if formats == ("yolo-detection",) else 0.6)


def test_boxes_alone_through_ultralytics(ultralytics, tmp_path):
    found = box_detections([[10.25, 20.5, 100.75, 90], [0, 0, ODD[1], ODD[0]]])
    write_split(tmp_path, [record_of(found, ODD)], ("yolo",))
    class_ids, boxes, _ = read_yolo(ultralytics, tmp_path, "detect")["photo.png"]
    assert class_ids.tolist() == [0, 1]
    np.testing.assert_allclose(boxes[0] * np.tile(ODD[::-1], 2), [55.5, 55.25, 90.5, 69.5], atol=1e-3)
    np.testing.assert_allclose(boxes[1], [0.5, 0.5, 1, 1], atol=1e-6)


def test_boxes_and_polygons_are_not_mixed(ultralytics, tmp_path):
    record = record_of(detections([np.ones((40, 30), bool)], (40, 30)), (40, 30))
    record["annotations"] += annotations_of(box_detections([[4, 5, 14, 25]]), (40, 30))
    write_split(tmp_path, [record], ("yolo",))
    class_ids, _, masks = read_yolo(ultralytics, tmp_path)["photo.png"]
    assert class_ids.tolist() == [0, 0]
    expected = np.zeros((40, 30), bool)
    expected[5:25, 4:14] = True
    np.testing.assert_array_equal(masks[1], expected)


def test_masks_through_supervision(tmp_path):
    rng = np.random.default_rng(2)
    truth = {f"photo {index}.png": [two_parts(rng, ODD), with_holes(rng, ODD), thin_line(rng, ODD)] for index in (0, 1)}
    records = [record_of(detections(masks, ODD), ODD, file) for file, masks in truth.items()]
    write_split(tmp_path, records, ("yolo", "coco"))
    images = str(tmp_path / "images")
    yolo = sv.DetectionDataset.from_yolo(images, str(tmp_path / "labels"), str(tmp_path / "data.yaml"))
    lossless = sv.DetectionDataset.from_coco(str(tmp_path), str(tmp_path / "_annotations.coco.json"))
    for dataset, least in ((yolo, 0.98), (lossless, 1)):
        assert dataset.classes == list(CLASSES)
        for path, _, found in dataset:
            assert found.class_id.tolist() == [0, 1, 2]
            ious = [iou(one, other) for one, other in zip(found.mask, truth[Path(path).name], strict=True)]
            assert ious[1:] == [1, 1]
            assert ious[0] >= least


# COCO.


def coco_text(records, classes=CLASSES):
    file = io.StringIO()
    write_coco(file, records, classes)
    return file.getvalue()


def many_records(count):
    """With 0, 1 and 2 objects in turn, of long descriptions."""
    annotations = annotations_of(detections([np.ones(ODD, bool)] * 2, ODD), ODD)
    for annotation in annotations:
        annotation["data"]["prompt"] = "p" * 15_000
    for index in range(count):
        yield ImageRecord(
            source=f"{index}.jpg", file=f"{index}.jpg", split="train", width=ODD[1], height=ODD[0],
            annotations=annotations[: index % 3],
        )  # fmt: skip


def test_coco_holds_all_that_is_known():
    record = record_of(detections([np.ones((12, 20), bool)], (12, 20)), (12, 20), 'a "quoted" ü & <b>.jpg')
    text = coco_text([record, *many_records(3)])
    assert sum(line.startswith('{"id":') for line in text.splitlines()) == 8
    content = json.loads(text)
    assert content["categories"][1] == {"id": 2, "name": "star", "supercategory": "none"}
    assert content["images"][0] == {"id": 1, "file_name": f"images/{record['file']}", "width": 20, "height": 12}
    assert content["annotations"][0] == {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 12], "area": 240, "iscrowd": 0,
        "segmentation": {"size": [12, 20], "counts": "0`7"}, "score": 0.9, "prompt": "a prompt", "source": "text",
    }  # fmt: skip
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4]
    assert [(item["id"], item["image_id"]) for item in content["annotations"]] == [(1, 1), (2, 3), (3, 4), (4, 4)]


def test_coco_of_nothing_is_valid(tmp_path):
    assert json.loads(coco_text([])) | {"info": None} == {
        "info": None, "images": [], "annotations": [],
        "categories": [{"id": i, "name": name, "supercategory": "none"} for i, name in enumerate(CLASSES, 1)],
    }  # fmt: skip


def test_coco_is_written_in_one_pass_without_growing(tmp_path, monkeypatch):
    expected = coco_text(list(many_records(400)))
    assert len(expected) > 5e6
    monkeypatch.setattr(coco, "_KEPT_IN_MEMORY", 100_000)
    path = tmp_path / "_annotations.coco.json"
    tracemalloc.start()
    with path.open("w", encoding="utf-8") as file:
        write_coco(file, many_records(400), CLASSES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.read_text() == expected
    assert peak < 3e6
    assert list(tmp_path.iterdir()) == [path]


def test_boxes_alone_through_coco(tmp_path):
    boxes = [[10.25, 20.5, 100.75, 90], [0, 0, ODD[1], ODD[0]]]
    records = [record_of(box_detections(boxes), ODD), record_of(box_detections([]), ODD, "empty.png")]
    write_split(tmp_path, records, ("coco",))
    api = open_coco(tmp_path)
    evaluation = COCOeval(api, api.loadRes(api.loadAnns(api.getAnnIds())), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
    dataset = sv.DetectionDataset.from_coco(str(tmp_path), str(tmp_path / "_annotations.coco.json"))
    found = {Path(path).name: annotations for path, _, annotations in dataset}
    np.testing.assert_allclose(found["photo.png"].xyxy, boxes)
    assert found["photo.png"].mask is None
    assert len(found["empty.png"]) == 0


# VOC.


def test_voc_through_other_readers(tmp_path):
    torchvision = pytest.importorskip("torchvision.datasets")
    masks = np.zeros((3, *ODD), bool)
    masks[0, 30:50, 10:40] = masks[1, 0, 0] = masks[2, 100:, 200:300] = True
    classes = ('a "b" & <c>', "it's größer", "中文 🐟")
    record = record_of(detections(masks, ODD, [0, 1, 2]), ODD, "x & <y> 'ü' 🐟.png")
    write_split(tmp_path, [record], ("voc",), classes)
    found = sv.DetectionDataset.from_pascal_voc(str(tmp_path / "images"), str(tmp_path / "voc"))
    (_, _, read), *rest = list(found)
    assert not rest and found.classes == list(classes)
    np.testing.assert_array_equal(read.xyxy, tight_xyxy(compact_masks([(mask, 0, 0) for mask in masks], ODD)))
    root = ElementTree.parse(tmp_path / "voc" / f"{Path(record['file']).stem}.xml").getroot()
    content = torchvision.VOCDetection.parse_voc_xml(root)["annotation"]
    assert content["folder"] == "images" and content["filename"] == record["file"]
    assert content["size"] == {"width": "517", "height": "333", "depth": "3"}
    assert content["segmented"] == "0"
    assert [item["name"] for item in content["object"]] == list(classes)
    assert [item["truncated"] for item in content["object"]] == ["0", "1", "1"]
    assert {(item["pose"], item["difficult"]) for item in content["object"]} == {("Unspecified", "0")}
    # Counted from 1, and the last pixel belongs to the box.
    assert content["object"][0]["bndbox"] == {"xmin": "11", "ymin": "31", "xmax": "40", "ymax": "50"}
    assert content["object"][1]["bndbox"] == {"xmin": "1", "ymin": "1", "xmax": "1", "ymax": "1"}


@pytest.mark.parametrize("text", ["\x00\x1b", "\ud83d", "\ufffe"])
def test_voc_of_names_that_xml_cannot_hold(text):
    record = record_of(box_detections([[1, 2, 3, 4]]), (20, 20), f"a{text}.png")
    (content,) = image_files(record, (f"b{text}",), ("voc",), record_confidence=False).values()
    root = ElementTree.fromstring(content.decode())
    assert root.findtext("filename") == f"a{'�' * len(text)}.png"
    assert root.findtext("object/name") == f"b{'�' * len(text)}"


@given(
    st.tuples(st.floats(-3, 40), st.floats(-3, 40), st.floats(0, 45), st.floats(0, 45)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
@settings(max_examples=100, deadline=None)
def test_voc_boxes_lie_in_the_image(box, image_hw):
    x, y, width, height = box
    record = record_of(box_detections([[x, y, x + width, y + height]]), image_hw)
    (content,) = image_files(record, CLASSES, ("voc",), record_confidence=False).values()
    found = ElementTree.fromstring(content).find("object/bndbox")
    xmin, ymin, xmax, ymax = (int(found.findtext(tag)) for tag in ("xmin", "ymin", "xmax", "ymax"))
    assert 1 <= xmin <= xmax <= image_hw[1] and 1 <= ymin <= ymax <= image_hw[0]
    # No side lies further than half a pixel from where it was, unless the box has to keep a pixel in the image.
    for first, last, start, end, side in (
        (xmin, xmax, x, x + width, image_hw[1]),
        (ymin, ymax, y, y + height, image_hw[0]),
    ):
        assert abs(first - 1 - min(max(start, 0), side - 1)) <= 0.5 + 1e-4
        assert last == first or abs(last - min(end, side)) <= 0.5 + 1e-4


# Masks.


def read_png(content):
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        return image.mode, np.array(image)


def test_masks_show_the_most_confident_object():
    masks = np.zeros((4, *ODD), bool)
    masks[0, 50:200, 50:200] = masks[1, 100:300, 100:300] = masks[2, 150:, 150:] = masks[3, 150:, 150:] = True
    record = record_of(detections(masks, ODD, [0, 1, 2, 3], [0.5, 0.9, 0.4, 0.4]), ODD)
    files = image_files(record, CLASSES, ("voc", "masks"), record_confidence=False)
    mode, pixels = read_png(files["masks/photo.png"])
    assert mode == "L"
    expected = np.select([masks[1], masks[0], masks[2]], [2, 1, 3], 0)
    np.testing.assert_array_equal(pixels, expected)
    assert files == image_files(record, CLASSES, ("voc", "masks"), record_confidence=False)
    assert ElementTree.fromstring(files["voc/photo.xml"]).findtext("segmented") == "1"


@pytest.mark.parametrize(("count", "mode"), [(254, "L"), (255, "I;16"), (1000, "I;16")])
def test_masks_of_many_classes(count, mode):
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:20] = True
    record = record_of(detections([mask], mask.shape, [count - 1]), mask.shape)
    (content,) = image_files(
        record, [str(index) for index in range(count)], ("masks",), record_confidence=False
    ).values()
    found_mode, pixels = read_png(content)
    assert found_mode == mode
    np.testing.assert_array_equal(pixels, mask * count)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED), pixels)


def test_masks_of_boxes_alone_are_refused():
    record = record_of(box_detections([[1, 2, 3, 4]]), (20, 20))
    with pytest.raises(SettingError, match="no masks"):
        image_files(record, CLASSES, ("masks",), record_confidence=False)
    empty = record_of(box_detections([]), (20, 20))
    (content,) = image_files(empty, CLASSES, ("masks",), record_confidence=False).values()
    assert not read_png(content)[1].any()


# Records.


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("formats", [("yolo",), ("yolo-detection",)])
def test_confidences_align_with_lines_when_masks_are_empty(formats, compact):
    masks = np.zeros((4, *ODD), bool)
    masks[1, 5:9, 5:9] = masks[3, 50:90, 70:90] = True
    found = sv.Detections(
        xyxy=np.array([[0, 0, 9, 9]] * 4, dtype=np.float32),
        mask=sv.CompactMask.from_dense(masks, np.array([[0, 0, 200, 200]] * 4), ODD) if compact else masks,
        confidence=np.array([0.9, 0.8, 0.7, 0.6], dtype=np.float32),
        class_id=np.arange(4),
    )
    record = record_of(found, ODD)
    assert [annotation["class_id"] for annotation in record["annotations"]] == [1, 3]
    assert [annotation["bbox"] for annotation in record["annotations"]] == [[5, 5, 4, 4], [70, 50, 20, 40]]
    assert [annotation["area"] for annotation in record["annotations"]] == [16, 800]
    labels, confidences = image_files(record, CLASSES, formats, record_confidence=True).values()
    assert [line.split()[0] for line in labels.decode().splitlines()] == ["1", "3"]
    assert confidences == b"0.8\n0.6\n"


def test_polygon_iou_tells_what_the_polygon_loses():
    mask = np.zeros(ODD, bool)
    mask[100:110, 100:110] = mask[100:110, 115:125] = True
    (annotation,) = annotations_of(detections([mask], ODD), ODD)
    assert annotation["polygon_iou"] == round(200 / 205, 4)
    (annotation,) = annotations_of(box_detections([[1, 2, 3, 4]]), ODD)
    assert annotation["polygon_iou"] is None
