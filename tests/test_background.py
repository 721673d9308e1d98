"""Background: what no object covers, as a class that no model is asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import supervision as sv
from autodistill.detection import CaptionOntology
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from autodistill_sam3 import GroundedSAM3, OntologyError, SegmentAnything3
from autodistill_sam3.background import Background
from autodistill_sam3.cli import main
from autodistill_sam3.conflicts import add_removed, removed_counts
from autodistill_sam3.instances import compact_masks, tight_xyxy

SCENES = [REPOSITORY / "examples" / "images" / name for name in ("scene_04.jpg", "scene_10.jpg")]


def model(kind=SegmentAnything3, **keywords):
    ontology = CaptionOntology({"red circle": "ball", "a yellow star": "star"})
    return kind(ontology, checkpoint="shapes", device="cpu", background="ground", **keywords)


@given(st.integers(0, 4), st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_it_is_exactly_what_is_left(count, height, width, seed):
    rng = np.random.default_rng(seed)
    dense = rng.random((count, height, width)) < rng.random()
    dense = dense[dense.any(axis=(1, 2))]
    masks = compact_masks([(mask, 0, 0) for mask in dense], (height, width))
    words = np.array(["it"] * len(dense), dtype=np.str_)
    found = sv.Detections(
        tight_xyxy(masks), mask=masks, confidence=np.full(len(dense), 0.5, np.float32),
        class_id=np.zeros(len(dense), np.int64), data={"class_name": words, "prompt": words, "source": words},
    )  # fmt: skip
    add_removed(found, "nms", 2)
    added = Background("ground", 1).added_to(found)
    left = ~dense.any(axis=0)
    assert len(added) == len(dense) + bool(left.any())
    assert removed_counts(added) == {"nms": 2}
    np.testing.assert_array_equal(added.mask.to_dense()[: len(dense)], dense)
    if left.any():
        np.testing.assert_array_equal(added.mask.to_dense()[-1], left)
        assert added.class_id[-1] == 1
        assert added.confidence.dtype == np.float32
        assert added.data["class_name"][-1] == "ground"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("keywords", [{}, {"tile": 320}])
def test_a_dataset_has_one_in_each_image(tmp_path, keywords):
    Image.new("RGB", (90, 60), "gray").save(tmp_path / "empty.png")
    dataset = model().label(
        [*SCENES, tmp_path / "empty.png"], output_folder=tmp_path / "out", progress=False, **keywords
    )
    assert dataset.classes == ["ball", "star", "ground"]
    seen = set()
    for path in tmp_path.glob("out/*/_annotations.coco.json"):
        coco = json.loads(path.read_text())
        names = {category["id"]: category["name"] for category in coco["categories"]}
        for image in coco["images"]:
            own = [item for item in coco["annotations"] if item["image_id"] == image["id"]]
            decoded = {"ground": [], "object": []}
            for item in own:
                kind = "ground" if names[item["category_id"]] == "ground" else "object"
                decoded[kind].append(coco_mask.decode(item["segmentation"]).astype(bool))
            [ground] = decoded["ground"]
            objects = np.array(decoded["object"], bool).reshape(-1, *ground.shape)
            np.testing.assert_array_equal(ground, ~objects.any(axis=0))
            seen.add((len(objects) > 0, ground.shape == (60, 90)))
    assert seen == {(True, False), (False, True)}


@pytest.mark.slow
def test_workers_find_the_same(tmp_path):
    """In short, test_distributed.py compares the settings of models that workers build."""
    model().label(SCENES, output_folder=tmp_path / "one", progress=False)
    model().label(SCENES, output_folder=tmp_path / "worker", progress=False, gpus=["cpu"])
    one, worker = (sorted((tmp_path / name).rglob("*.txt")) for name in ("one", "worker"))
    assert one
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in worker]


def test_predict_says_where_it_comes_from():
    found = model(GroundedSAM3, prompting="text").predict(SCENES[0])
    assert len(found) == 3
    assert found.data["source"].tolist() == ["text"] * (len(found) - 1) + ["background"]
    assert found.class_id[-1] == 2
    assert found.mask.sum() >= found.mask[0].size


def test_slices_have_that_of_the_whole_image():
    large = np.kron(np.asarray(Image.open(SCENES[0]))[..., ::-1], np.ones((2, 2, 1), np.uint8))
    found = model().sahi_predict(large)
    assert found.data["source"].tolist().count("background") == 1
    np.testing.assert_array_equal(found.mask[-1], ~found.mask[:-1].any(axis=0))


def test_an_image_in_which_nothing_was_found_still_counts_as_empty(tmp_path):
    Image.new("RGB", (90, 60), "gray").save(tmp_path / "empty.png")
    model().label([*SCENES, tmp_path / "empty.png"], output_folder=tmp_path / "out", progress=False)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sum(report["images_without_objects"].values()) == 1


def test_it_is_no_class_of_a_prompt():
    with pytest.raises(OntologyError, match="leave `background` out"):
        SegmentAnything3(CaptionOntology({"grass": "ground"}), checkpoint="shapes", device="cpu", background="ground")


def test_a_category_and_a_flag_have_it(tmp_path, capsys):
    own = {"description": "d", "prompts": {"red circle": "ball"}, "checkpoint": "shapes", "prompting": "text"}
    (tmp_path / "own.json").write_text(json.dumps({"mine": own | {"background": "rest"}}))
    command = ["predict", str(SCENES[0]), "--category", "mine", "--category-file", str(tmp_path / "own.json")]
    assert main(command) == 0
    assert "rest" in capsys.readouterr().out
    assert main([*command, "--background", "other"]) == 0
    assert "other" in capsys.readouterr().out
