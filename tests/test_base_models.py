"""The base models as autodistill's users call them."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import autodistill.detection.detection_base_model as autodistill_base
import numpy as np
import pytest
import supervision as sv
from autodistill.detection import CaptionOntology, DetectionBaseModel
from conftest import REPOSITORY
from PIL import Image
from scenes import held_out_scenes

from autodistill_sam3 import (
    CheckpointNotFoundError,
    DeviceError,
    Florence2,
    GroundedSAM3,
    ImageError,
    OntologyError,
    OutOfMemoryError,
    OutputFolderError,
    SegmentAnything3,
    SettingError,
)
from autodistill_sam3.devices import with_memory_errors

EXAMPLES = REPOSITORY / "examples" / "images"
ONTOLOGY = CaptionOntology({"red circle": "ball", "star": "star", "red disc": "ball", "cross": "plus"})


@pytest.fixture(scope="module")
def grounded():
    return GroundedSAM3(ONTOLOGY, checkpoint="shapes", device="cpu")


@pytest.fixture(scope="module")
def text_only():
    return SegmentAnything3(ontology=ONTOLOGY, checkpoint="shapes", device="cpu")


@pytest.fixture(scope="module")
def example():
    return sorted(EXAMPLES.iterdir())[0]


def assert_equal(first, second):
    np.testing.assert_allclose(first.xyxy, second.xyxy)
    np.testing.assert_array_equal(first.mask, second.mask)
    np.testing.assert_allclose(first.confidence, second.confidence, atol=1e-5)
    np.testing.assert_array_equal(first.class_id, second.class_id)


def test_predict_takes_every_kind_of_input(grounded, example):
    found = grounded.predict(str(example))
    assert len(found)
    with Image.open(example) as image:
        rgb = np.asarray(image.convert("RGB"))
        for source in (example, image, np.ascontiguousarray(rgb[..., ::-1])):
            assert_equal(grounded.predict(source), found)
    assert found.mask.dtype == bool
    assert found.mask.shape == (len(found), *rgb.shape[:2])
    assert found.class_id.max() < 3
    for name, class_id in zip(found.data["class_name"], found.class_id, strict=True):
        assert name == ("ball", "star", "plus")[class_id]
    np.testing.assert_array_equal(sv.mask_to_xyxy(found.mask) + [0, 0, 1, 1], found.xyxy)
    assert (np.diff(found.confidence) <= 0).all()


def test_predict_batch_equals_predict(grounded):
    paths = sorted(EXAMPLES.iterdir())[:3]
    for path, found in zip(paths, grounded.predict_batch(paths), strict=True):
        alone = grounded.predict(path)
        assert len(alone) == len(found)
        np.testing.assert_allclose(alone.confidence, found.confidence, atol=1e-4)
    assert grounded.predict_batch([]) == []


def test_two_prompts_of_one_class_do_not_double_its_objects(text_only):
    single = SegmentAnything3(CaptionOntology({"red circle": "ball"}), checkpoint="shapes", device="cpu")
    seen = 0
    for scene in held_out_scenes():
        if any(item.colour == "red" and item.shape == "circle" for items in scene.objects for item in items):
            bgr = scene.image[..., ::-1]
            one, two = single.predict(bgr), text_only.predict(bgr)
            seen += len(one)
            balls = two[two.class_id == 0]
            iou = sv.mask_iou_batch(balls.mask, balls.mask)
            assert (iou[~np.eye(len(balls), dtype=bool)] < 0.5).all()
            assert len(balls) >= len(one)
    assert seen


def test_nothing_found_is_a_normal_result(grounded, text_only):
    gray = np.full((30, 50, 3), 128, np.uint8)
    ontology = CaptionOntology({"zebra": "animal"})
    for model in (grounded, text_only):
        model.set_ontology(ontology)
        try:
            found = model.predict(gray)
        finally:
            model.set_ontology(ONTOLOGY)
        assert len(found) == 0
        assert found.mask.shape == (0, 30, 50)
        assert found.xyxy.shape == (0, 4)
        sv.Detections.merge([found, found])


@pytest.mark.parametrize("prompting", ["text", "boxes", "both"])
def test_sources_follow_the_prompting(prompting):
    model = GroundedSAM3(CaptionOntology({"star": "star", "cross": "plus"}), checkpoint="shapes", prompting=prompting,
                         device="cpu")  # fmt: skip
    sources = {
        str(source) for found in model.predict_batch(sorted(EXAMPLES.iterdir())[:3]) for source in found.data["source"]
    }
    allowed = {"text": {"text"}, "boxes": {"boxes"}, "both": {"text", "boxes", "both"}}[prompting]
    assert sources
    assert sources <= allowed
    if prompting == "both":
        assert "both" in sources
    if prompting == "text":
        assert model.grounder is None


def test_one_vit_pass_serves_text_and_boxes(grounded):
    calls = []
    backbone = grounded.segmenter._model.detector_model.vision_encoder.backbone.layers[0].mlp
    handle = backbone.register_forward_hook(lambda _, inputs, __: calls.append(1))
    try:
        grounded.predict(sorted(EXAMPLES.iterdir())[0])
    finally:
        handle.remove()
    assert len(calls) == 1


def test_presence_gate_spares_florence():
    asked = []
    gated = GroundedSAM3(CaptionOntology({"star": "star", "zebra": "animal"}), checkpoint="shapes", presence_gate=0.05,
                         device="cpu")  # fmt: skip
    ground = gated.grounder.ground

    def watched(images, prompts, wanted=None):
        asked.append(wanted)
        return ground(images, prompts, wanted)

    gated.grounder.ground = watched
    gated.predict_batch(sorted(EXAMPLES.iterdir())[:6])
    assert any(1 not in prompts for [*images] in asked for prompts in images)
    assert any(0 in prompts for [*images] in asked for prompts in images)


def test_confidence_of_one_call(text_only, example):
    default = text_only.predict(example)
    assert len(text_only.predict(example, confidence=0.0)) > len(default)
    assert len(text_only.predict(example, 1.0)) == 0
    assert_equal(text_only.predict(example, 0.5), default)
    with pytest.raises(SettingError, match="confidence"):
        text_only.predict(example, 1.5)
    assert_equal(text_only.predict(example), default)


def test_florence_alone_gives_boxes():
    model = Florence2(ONTOLOGY, checkpoint="shapes", device="cpu")
    found = [model.predict(path) for path in sorted(EXAMPLES.iterdir())[:4]]
    assert sum(len(detections) for detections in found)
    assert all(detections.mask is None for detections in found)
    assert all(((detections.confidence >= 0.35) & (detections.confidence <= 1)).all() for detections in found)


def test_label_has_autodistills_signature():
    for model in (GroundedSAM3, SegmentAnything3, Florence2):
        assert issubclass(model, DetectionBaseModel)
        ours = list(inspect.signature(model.label).parameters)
        theirs = list(inspect.signature(DetectionBaseModel.label).parameters)
        assert ours[: len(theirs)] == theirs


def test_label_writes_and_returns_a_dataset(grounded, tmp_path):
    dataset = grounded.label(
        str(EXAMPLES), ".png", str(tmp_path / "out"), nms_settings="class_agnostic", progress=False
    )
    assert isinstance(dataset, sv.DetectionDataset)
    assert dataset.classes == ["ball", "star", "plus"]
    assert len(dataset) == len(list(EXAMPLES.glob("*.png")))
    for path, _, detections in dataset:
        [alone] = grounded.predict_batch([EXAMPLES / Path(path).name])
        assert len(detections) == len(alone.with_nms(class_agnostic=True))
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["settings"]["prompts"] == [["red circle", 0], ["star", 1], ["red disc", 0], ["cross", 2]]
    assert run["provenance"]["versions"]["transformers"]


def test_boxes_cannot_become_class_maps(tmp_path):
    model = Florence2(ONTOLOGY, checkpoint="shapes", device="cpu")
    with pytest.raises(SettingError, match="masks"):
        model.label(EXAMPLES, output_folder=tmp_path / "out", formats=["coco", "masks"], progress=False)
    assert not (tmp_path / "out").exists()


def test_label_refuses_other_prompts_on_the_same_output(grounded, tmp_path):
    grounded.label(EXAMPLES, output_folder=tmp_path / "out", limit=1, progress=False)
    grounded.set_ontology(CaptionOntology({"star": "star"}))
    try:
        with pytest.raises(OutputFolderError, match="prompts"):
            grounded.label(EXAMPLES, output_folder=tmp_path / "out", limit=1, progress=False)
    finally:
        grounded.set_ontology(ONTOLOGY)


def test_tiles_keep_frames_right_and_find_more(text_only, tmp_path):
    scene = np.full((960, 960, 3), 128, np.uint8)
    for index, x in enumerate((60, 480)):
        tile = held_out_scenes()[index].image
        scene[100 : 100 + tile.shape[0], x : x + tile.shape[1]] = tile
    (tmp_path / "in").mkdir()
    Image.fromarray(scene).save(tmp_path / "in" / "a.png")

    def label(name, **keywords):
        output = tmp_path / name
        [found] = text_only.label(
            tmp_path / "in", output_folder=output, progress=False, **keywords
        ).annotations.values()
        return found, json.loads((output / "run.json").read_text())["settings"]["tile"]

    whole, side = label("whole")
    assert side is None
    tiled, side = label("tiled", tile=400)
    assert side == 400
    assert tiled.mask.shape[1:] == (960, 960)
    assert len(tiled) >= len(whole)
    # An image no larger than a tile is as it was.
    sahi, side = label("sahi", sahi=True)
    assert side == 1008
    assert_equal(sahi, whole)


def test_one_object_under_two_classes_goes_to_the_better(example):
    ontology = CaptionOntology({"yellow star": "yellow", "star": "star"})
    found = {}
    for choice in ("best", "keep"):
        model = SegmentAnything3(ontology, checkpoint="shapes", device="cpu", overlapping_classes=choice)
        found[choice] = [model.predict(path) for path in sorted(EXAMPLES.iterdir())[3:5]]
    for best, keep in zip(found["best"], found["keep"], strict=True):
        assert len(keep) >= len(best)
        iou = sv.mask_iou_batch(best.mask, best.mask) - np.eye(len(best))
        assert iou.max(initial=0) < 0.8
    assert sum(map(len, found["best"])) < sum(map(len, found["keep"]))
    assert len(sv.Detections.merge(found["best"])) == sum(map(len, found["best"]))
    with pytest.raises(SettingError, match="overlapping_classes"):
        SegmentAnything3(ontology, checkpoint="shapes", device="cpu", overlapping_classes="both")


def test_thresholds_of_a_run(text_only, tmp_path):
    path = tmp_path / "thresholds.json"
    path.write_text('{"ball": 0.999, "star": 0.2}')
    before = text_only.thresholds
    keywords = {"limit": 3, "progress": False}
    high = text_only.label(EXAMPLES, output_folder=tmp_path / "high", thresholds=path, **keywords)
    assert text_only.thresholds == before
    names = [name for found in high.annotations.values() for name in found.data["class_name"]]
    assert "ball" not in names
    same = text_only.label(
        EXAMPLES, output_folder=tmp_path / "high", thresholds={"ball": 0.999, "star": 0.2}, **keywords
    )
    assert len(same) == 3
    with pytest.raises(OutputFolderError, match=r"thresholds\.per_class\.ball: 0\.999 there, nothing now"):
        text_only.label(EXAMPLES, output_folder=tmp_path / "high", **keywords)
    with pytest.raises(SettingError, match="bowl"):
        text_only.label(EXAMPLES, output_folder=tmp_path / "other", thresholds={"bowl": 0.5}, **keywords)


def test_a_checkpoint_is_known_by_its_content(text_only, tmp_path):
    """It may lie elsewhere the next time; another one in the same place is refused."""
    copy = tmp_path / "sam3"
    shutil.copytree(text_only.checkpoint, copy)
    keywords = {"output_folder": tmp_path / "out", "limit": 1, "progress": False}
    text_only.label(EXAMPLES, **keywords)
    moved = SegmentAnything3(ONTOLOGY, checkpoint=copy, device="cpu")
    assert len(moved.label(EXAMPLES, **keywords)) == 1
    tokenizer = copy / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    other = SegmentAnything3(ONTOLOGY, checkpoint=copy, device="cpu")
    with pytest.raises(OutputFolderError, match=r"identity\.checkpoint_sha256"):
        other.label(EXAMPLES, **keywords)


def test_memory_that_ends_is_said_in_our_words():
    import torch

    def end_with(error):
        raise error

    for error in (
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
    ):
        with pytest.raises(OutOfMemoryError, match="batch_size"):
            with_memory_errors(lambda error=error: end_with(error))
    with pytest.raises(RuntimeError, match="shape"):
        with_memory_errors(lambda: end_with(RuntimeError("shape mismatch")))
    assert with_memory_errors(lambda: 3) == 3


def test_upload_to_roboflow_when_asked(grounded, tmp_path, monkeypatch):
    """What autodistill does: log in, then upload the folder to the project. The service itself cannot be had here."""
    import roboflow

    calls = []

    class Workspace:
        def upload_dataset(self, folder, project_name):
            calls.append((folder, project_name))

    class Roboflow:
        def workspace(self):
            return Workspace()

    monkeypatch.setattr(roboflow, "login", lambda: calls.append("login"))
    monkeypatch.setattr(roboflow, "Roboflow", Roboflow)
    grounded.label(EXAMPLES, output_folder=tmp_path / "out", limit=1, human_in_the_loop=True, roboflow_project="mine",
                   progress=False)  # fmt: skip
    assert calls == ["login", (str(tmp_path / "out"), "mine")]


def test_autodistills_own_label_loop_takes_our_predict(text_only, tmp_path):
    """Code that calls the base class still works: predictions have what its writers need."""
    (tmp_path / "in").mkdir()
    for path in sorted(EXAMPLES.glob("*.jpg"))[:2]:
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    autodistill_base.DetectionBaseModel.label(text_only, str(tmp_path / "in"), ".jpg", str(tmp_path / "out"))
    assert (tmp_path / "out" / "data.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "Grounding DINO"}, SettingError, "'Grounding DINO'"),
        ({"prompting": "clicks"}, SettingError, "'clicks'"),
        ({"presence_gate": 2}, SettingError, "presence_gate"),
        ({"confidence": -1}, SettingError, "confidence"),
        ({"thresholds": {"spoon": 0.5}}, SettingError, "spoon"),
        ({"precision": "fp8"}, SettingError, "fp8"),
        ({"device": "cuda:77"}, DeviceError, "cuda:77"),
        ({"checkpoint": "sam-9"}, CheckpointNotFoundError, "sam-9"),
        ({"florence2_checkpoint": "florence-9"}, CheckpointNotFoundError, "florence-9"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        GroundedSAM3(ONTOLOGY, **({"checkpoint": "shapes"} | arguments))


def test_grounding_model_of_the_sibling_is_accepted():
    GroundedSAM3(ONTOLOGY, model="Florence 2", checkpoint="shapes", device="cpu")


def test_empty_ontology():
    class Empty:
        def prompts(self):
            return []

        def classes(self):
            return []

    with pytest.raises(OntologyError, match="empty"):
        GroundedSAM3(Empty(), checkpoint="shapes")


def test_what_is_no_image(grounded):
    with pytest.raises(ImageError):
        grounded.predict("missing.jpg")


@pytest.mark.parametrize("keywords", [{"limit": 0}, {"batch_size": 0}, {"nms_settings": "sometimes"}])
def test_label_settings_out_of_range(grounded, tmp_path, keywords):
    with pytest.raises(SettingError, match=next(iter(keywords))):
        grounded.label(EXAMPLES, output_folder=tmp_path / "out", **keywords)
    assert not (tmp_path / "out").exists()
