"""Our models inside autodistill's own helpers: composed models, slices, comparisons and plots.

`label()` of a composed model is not among them: autodistill 0.1.29 gives it arrays, and it opens paths only.
"""

from __future__ import annotations

import cv2
import matplotlib as mpl
import numpy as np
import pytest
import supervision as sv
from autodistill.classification import ClassificationBaseModel
from autodistill.core.composed_detection_model import ComposedDetectionModel
from autodistill.detection import CaptionOntology
from autodistill.utils import compare, plot
from conftest import REPOSITORY

from autodistill_sam3 import Florence2, GroundedSAM3, SegmentAnything3
from autodistill_sam3.evaluation import load_truth

SCENE = REPOSITORY / "examples" / "images" / "scene_04.jpg"
ONTOLOGY = CaptionOntology({"red circle": "ball", "a yellow star": "star", "green triangle": "sign"})


class Size(ClassificationBaseModel):
    """Large or small, by the sides of a picture."""

    def __init__(self):
        self.ontology = CaptionOntology({"a small thing": "small", "a large thing": "large"})

    def predict(self, input):
        height, width = cv2.imread(input).shape[:2]
        return sv.Classifications(class_id=np.array([int(height * width > 20_000)]), confidence=np.ones(1))


@pytest.fixture(scope="module")
def model():
    return SegmentAnything3(ONTOLOGY, checkpoint="shapes", device="cpu")


@pytest.fixture
def plots(monkeypatch):
    mpl.use("Agg")
    shown = []
    monkeypatch.setattr(sv, "plot_images_grid", lambda images, **keywords: shown.append((images, keywords)))
    monkeypatch.setattr(sv, "plot_image", lambda image, **keywords: shown.append(([image], keywords)))
    return shown


def test_a_classifier_names_what_ours_finds(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone = model.predict(str(SCENE))
    composed = ComposedDetectionModel(detection_model=model, classification_model=Size())
    found = composed.predict(str(SCENE))
    np.testing.assert_array_equal(found.mask, alone.mask)
    sides = found.xyxy[:, 2:] - found.xyxy[:, :2]
    assert len(found) >= 2
    assert found.class_id.tolist() == [int(width * height > 20_000) for width, height in sides]


def test_slices_find_what_a_large_image_shows(model):
    large = cv2.resize(cv2.imread(str(SCENE)), None, fx=2.5, fy=2.5, interpolation=cv2.INTER_CUBIC)
    found = model.sahi_predict(large)
    classes, truth = load_truth(REPOSITORY / "examples" / "ground_truth.coco.json", REPOSITORY / "examples")
    [drawn] = [objects for name, objects in truth.items() if name.endswith(SCENE.name)]
    star = drawn.xyxy[drawn.class_id == classes.index("star")] * 2.5
    assert sv.box_iou_batch(star, found.xyxy[found.class_id == 1]).max() > 0.8
    assert found.mask.shape == (len(found), *large.shape[:2])


def test_comparing_draws_each_model_on_each_image(model, plots):
    both = GroundedSAM3(ONTOLOGY, checkpoint="shapes", device="cpu")
    boxes = Florence2(ONTOLOGY, checkpoint="shapes", device="cpu")
    compare([model, both, boxes], [str(SCENE)])
    [(images, keywords)] = plots
    assert keywords["titles"] == ["SegmentAnything3", "GroundedSAM3", "Florence2"]
    picture = cv2.imread(str(SCENE))
    assert all(image.shape == picture.shape and (image != picture).mean() > 0.02 for image in images)


def test_a_plot_has_the_names_of_classes(model, plots):
    found = model.predict(str(SCENE))
    plot(cv2.imread(str(SCENE)), found, classes=model.ontology.classes())
    [([image], _)] = plots
    assert (image != cv2.imread(str(SCENE))).mean() > 0.02
