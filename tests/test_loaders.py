"""A labelled folder in the COCO loaders that RF-DETR and SAM 3 are trained with."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import supervision as sv
from PIL import Image
from pycocotools import mask as coco_mask

from autodistill_sam3.instances import compact_masks, tight_xyxy
from autodistill_sam3.labeling import LabelingPlan, SplitRule, label_images

# pycocotools leaves its file open and has not followed numpy's copy keyword.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

# RF-DETR takes a class without objects for a group if it has the name of another's supercategory.
CLASSES = ("ball", "object", "never there")
HW = (60, 96)
NAMES = [f"photo {index} & ü.png" for index in range(8)]
# What the names come to.
SPLITS = {"train": [0, 2, 3, 4, 5, 7], "valid": [1], "test": [6]}
EMPTY = 3


def objects_in(index):
    """Masks and class ids: a disc with a hole, an object of two parts and, but for the train split, an "object"."""
    if index == EMPTY:
        return []
    rows, columns = np.mgrid[: HW[0], : HW[1]]
    distance = np.hypot(rows - 25, columns - 20 - 3 * index)
    parts = np.zeros(HW, dtype=bool)
    parts[50:60, 5:20] = parts[40:44, 60:96] = True
    found = [((distance < 18) & (distance > 6), 0), (parts, 0)]
    return found if index in SPLITS["train"] else [*found, (np.roll(parts, -9, axis=0), 1)]


def drawn_model(images):
    """What each image shows, told by its brightness."""
    found = []
    for image in images:
        objects = objects_in(int(image[0, 0, 0]))
        masks = compact_masks([(mask, 0, 0) for mask, _ in objects], HW)
        found.append(
            sv.Detections(
                xyxy=tight_xyxy(masks),
                mask=masks,
                confidence=np.full(len(objects), 0.75, dtype=np.float32),
                class_id=np.array([class_id for _, class_id in objects], dtype=np.int64),
                data={key: np.array([key] * len(objects), dtype=np.str_) for key in ("prompt", "source")},
            )
        )
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    photos, output = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("out") / "set"
    for index, name in enumerate(NAMES):
        Image.fromarray(np.full((*HW, 3), index, dtype=np.uint8)).save(photos / name)
    split = SplitRule(valid_share=0.05, test_share=0.13)
    label_images(LabelingPlan(photos, output, CLASSES, {"model": "drawn"}, split=split, progress=False), drawn_model)
    for name, indices in SPLITS.items():
        assert sorted(path.name for path in (output / name / "images").iterdir()) == [NAMES[index] for index in indices]
    return output


def boxes_of(objects):
    boxes = [sv.mask_to_xyxy(mask[None])[0] + (0, 0, 1, 1) for mask, _ in objects]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def rfdetr_settings(folder):
    return SimpleNamespace(
        dataset_file="roboflow", dataset_dir=str(folder), square_resize_div_64=True, segmentation_head=True,
        multi_scale=False, expanded_scales=False, patch_size=12, num_windows=2, aug_config={}, scale_jitter=False,
    )  # fmt: skip


@pytest.mark.parametrize("split", SPLITS)
def test_rfdetr_reads_the_same_masks(folder, split):
    coco = pytest.importorskip("rfdetr.datasets.coco")
    path = folder / split / "_annotations.coco.json"
    labels = coco._train_split_cat2label(folder)
    dataset = coco.CocoDetection(
        folder / split, path, transforms=None, include_masks=True, remap_category_ids=True, cat2label=labels
    )
    assert labels == {1: 0, 2: 1, 3: 2}
    assert len(dataset) == len(SPLITS[split])
    for (image, target), index in zip(dataset, SPLITS[split], strict=True):
        objects = objects_in(index)
        assert image.size == HW[::-1] and np.asarray(image)[0, 0, 0] == index
        assert target["labels"].tolist() == [class_id for _, class_id in objects]
        assert target["iscrowd"].tolist() == [0] * len(objects)
        assert np.allclose(target["boxes"].numpy(), boxes_of(objects))
        expected = np.array([mask for mask, _ in objects], dtype=bool).reshape(-1, *HW)
        assert (target["masks"].numpy().astype(bool) == expected).all()


def test_rfdetr_builds_its_datasets(folder):
    datasets = pytest.importorskip("rfdetr.datasets")
    assert datasets.detect_roboflow_format(folder) == "coco"
    for name, split in (("train", "train"), ("val", "valid"), ("test", "test")):
        dataset = datasets.build_dataset(name, rfdetr_settings(folder), 312)
        assert len(dataset) == len(SPLITS[split])
        for (image, target), index in zip(dataset, SPLITS[split], strict=True):
            assert image.shape == (3, 312, 312)
            assert target["masks"].shape == (len(objects_in(index)), 312, 312)


@pytest.mark.parametrize("split", SPLITS)
def test_sam3_reads_the_same_masks(folder, split):
    dataset_module = pytest.importorskip("sam3.train.data.sam3_image_dataset")
    segmentation = pytest.importorskip("sam3.train.transforms.segmentation")
    dataset = dataset_module.Sam3ImageDataset(
        img_folder=str(folder / split),
        ann_file=str(folder / split / "_annotations.coco.json"),
        transforms=[segmentation.DecodeRle()],
        max_ann_per_img=100,
        multiplier=1,
        training=False,
        load_segmentation=True,
    )
    assert len(dataset) == len(SPLITS[split])
    for point, index in zip((dataset[at] for at in range(len(dataset))), SPLITS[split], strict=True):
        objects, (image,) = objects_in(index), point.images
        assert image.data.size == HW[::-1] and np.asarray(image.data)[0, 0, 0] == index
        # Meta's loader groups objects by class.
        assert [query.query_text for query in point.find_queries] == list(CLASSES)
        answers = [[objects[at] for at in range(len(objects)) if objects[at][1] == k] for k in range(len(CLASSES))]
        for query, answer in zip(point.find_queries, answers, strict=True):
            found = [image.objects[number] for number in query.object_ids_output]
            assert len(found) == len(answer)
            for item, (mask, box) in zip(
                found, zip([mask for mask, _ in answer], boxes_of(answer), strict=True), strict=True
            ):
                assert (item.segment.numpy().astype(bool) == mask).all()
                assert np.allclose(item.bbox.numpy(), box, atol=1e-3)
                assert item.is_crowd == 0


def test_file_names_are_relative_to_the_file(folder):
    for split, indices in SPLITS.items():
        content = json.loads((folder / split / "_annotations.coco.json").read_text())
        assert [image["file_name"] for image in content["images"]] == [f"images/{NAMES[index]}" for index in indices]
        for annotation in content["annotations"]:
            assert coco_mask.area(annotation["segmentation"]) == annotation["area"] > 0
