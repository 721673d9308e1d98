"""Students learn from labelled folders, are judged by what pycocotools would say, and say early what they lack."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
import torch
from autodistill.detection import DetectionTargetModel
from PIL import Image
from pycocotools.coco import COCO as CocoFile
from pycocotools.cocoeval import COCOeval

from autodistill_sam3.cli.main import main
from autodistill_sam3.errors import (
    AutodistillSAM3Error,
    CheckpointError,
    InputFolderError,
    LabelingError,
    MissingPackageError,
    OutOfMemoryError,
    OutputFolderError,
    SettingError,
)
from autodistill_sam3.images import load_image
from autodistill_sam3.instances import compact_masks, tight_xyxy
from autodistill_sam3.labeling import LabelingPlan, SplitRule, label_images
from autodistill_sam3.students import (
    STUDENTS,
    DistillSettings,
    Student,
    Trained,
    TrainingData,
    distill,
    find_student,
    packages,
    read_distillation,
)
from autodistill_sam3.students import distillation as distillation_module
from autodistill_sam3.students.judging import LEAST_CONFIDENCE, judge
from autodistill_sam3.students.mask_rcnn import MaskRCNNStudent, _Batches

CLASSES = ("white disc", "gray square")
SIZE = 64

# pycocotools leaves its file open and has not followed numpy's copy keyword.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


def drawn(seed):
    """A white disc on the left, a gray square on the right, both at random heights, on noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 40, (SIZE, SIZE, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    disc = np.hypot(rows - rng.integers(14, 50), columns - 16) < rng.integers(8, 13)
    side = int(rng.integers(16, 24))
    top = int(rng.integers(2, SIZE - side))
    pixels[disc] = 250
    pixels[top : top + side, 38 : 38 + side] = 120
    return pixels


def seen(pixels):
    """The masks, told by brightness."""
    gray = pixels[..., 0].astype(int)
    masks = [gray > 200, (gray > 80) & (gray < 160)]
    compact = compact_masks([(mask, 0, 0) for mask in masks], gray.shape)
    return sv.Detections(
        xyxy=tight_xyxy(compact), mask=compact, confidence=np.full(2, 0.9, np.float32), class_id=np.arange(2),
        data={"prompt": np.array(CLASSES), "source": np.array(["text", "text"])},
    )  # fmt: skip


def labelled(folder, count=10, *, model=seen, classes=CLASSES, test_share=0.2, formats=("yolo", "coco")):
    images = folder / "images"
    images.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(drawn(index)).save(images / f"{index}.png")
    plan = LabelingPlan(
        source=images, output=folder / "dataset", classes=classes, settings={}, progress=False, batch_size=1,
        split=SplitRule(seed=1, valid_share=0.2, test_share=test_share), formats=formats,
    )  # fmt: skip
    label_images(plan, lambda batch: [model(pixels) for pixels in batch])
    return folder / "dataset"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return labelled(tmp_path_factory.mktemp("students"))


def tiny(**changes):
    return DistillSettings(**{"student": "mask-rcnn", "epochs": 1, "image_size": 64, "device": "cpu"} | changes)


@pytest.fixture(scope="module")
def distilled(dataset, tmp_path_factory):
    output = tmp_path_factory.mktemp("distilled") / "out"
    asked = [
        "distill",
        str(dataset),
        "--student",
        "mask-rcnn",
        "--epochs",
        "2",
        "--image-size",
        "64",
        "--batch-size",
        "2",
    ]
    assert main([*asked, "--device", "cpu", "--output", str(output), "--export", "onnx", "--quiet"]) == 0
    return output


class Oracle(Student):
    """Knows what is drawn, and needs no training."""

    def train(self, dataset_yaml, epochs=1, *, output, **_):
        weights = Path(output) / "best.pt"
        weights.touch()
        return Trained(weights, ({"epoch": 1.0, "loss": 0.5},))

    def predict(self, input, confidence=0.5):
        return seen(load_image(input))

    def export_onnx(self, path):
        raise RuntimeError("no exporter")


@pytest.fixture
def oracle(monkeypatch):
    monkeypatch.setattr(distillation_module, "find_student", lambda name: Oracle)


def test_a_perfect_student_is_perfect_and_a_blind_one_is_not(dataset, tmp_path):
    data = TrainingData(dataset, needs_masks=True)
    assert data.held_out == "test"

    def oracle(path, confidence):
        return seen(load_image(path))

    judged = judge(oracle, data, "test", tmp_path / "answers.json", progress=False)
    assert judged.evaluation.mask.average_precision["AP"] == pytest.approx(1)
    blind = judge(lambda *_: sv.Detections.empty(), data, "test", tmp_path / "none.json", progress=False)
    assert blind.evaluation.best.average_precision["AP50"] == 0


def test_answers_are_judged_as_pycocotools_does(dataset, tmp_path, capsys):
    data = TrainingData(dataset, needs_masks=True)
    rng = np.random.default_rng(0)

    def noisy(path, confidence):
        found = seen(load_image(path))
        masks = np.array([np.roll(mask, rng.integers(-6, 7), axis=0) for mask in found.mask.to_dense()])
        return sv.Detections(
            xyxy=sv.mask_to_xyxy(masks).astype(np.float32), mask=masks, class_id=rng.integers(0, 2, 2),
            confidence=rng.uniform(0.1, 1, 2).astype(np.float32),
        )  # fmt: skip

    judged = judge(noisy, data, "train", tmp_path / "answers.json", progress=False)
    truth = CocoFile(str(dataset / "train" / "_annotations.coco.json"))
    answers = json.loads((tmp_path / "answers.json").read_text())
    names = {image["file_name"]: image["id"] for image in truth.dataset["images"]}
    ids = {image["id"]: names[image["file_name"]] for image in answers["images"]}
    results = [answer | {"image_id": ids[answer["image_id"]]} for answer in answers["annotations"]]
    evaluator = COCOeval(truth, truth.loadRes(results), "segm")
    evaluator.evaluate(), evaluator.accumulate(), evaluator.summarize()
    capsys.readouterr()
    assert 0 < evaluator.stats[0] < 1
    assert judged.evaluation.mask.average_precision["AP"] == pytest.approx(evaluator.stats[0], abs=1e-9)
    assert judged.evaluation.mask.average_precision["AP50"] == pytest.approx(evaluator.stats[1], abs=1e-9)


def test_what_a_distillation_writes(distilled, dataset):
    names = {path.name for path in distilled.iterdir()}
    assert names == {
        "run.json", "best.pt", "best.onnx", "answers.coco.json", "curves.csv", "curves.png", "sheet.png", "report.md",
        "report.json",
    }  # fmt: skip
    report = json.loads((distilled / "report.json").read_text())
    assert report["held_out"] == "test"
    assert report["images"]["train"] + report["images"]["valid"] + report["images"]["test"] == 10
    assert report["student_ms"] > 0
    # It was not labelled by a model that could be loaded.
    assert report["teacher_ms"] is None
    assert "not timed" in (distilled / "report.md").read_text()
    lines = (distilled / "curves.csv").read_text().splitlines()
    assert lines[0] == "epoch,train/loss,valid/mask AP,valid/mask AP50"
    assert len(lines) == 3
    with Image.open(distilled / "sheet.png") as sheet:
        assert min(sheet.size) > 300
    run = json.loads((distilled / "run.json").read_text())
    assert run["dataset"] == str(dataset)
    assert run["versions"]["torch"]


def test_weights_are_loaded_again_and_exported(distilled, dataset):
    import onnxruntime

    student = MaskRCNNStudent(weights=distilled / "best.pt", device="cpu")
    path = sorted(dataset.glob("train/images/*"))[0]
    found = student.predict(path, confidence=LEAST_CONFIDENCE)
    assert found.mask.shape[1:] == (SIZE, SIZE)
    assert set(found.data["class_name"]) <= set(CLASSES)
    again = student.predict(load_image(path)[..., ::-1], confidence=LEAST_CONFIDENCE)
    np.testing.assert_array_equal(found.xyxy, again.xyxy)
    sure = student.predict(path, confidence=float(found.confidence[2]) - 1e-6)
    np.testing.assert_array_equal(sure.xyxy, found.xyxy[:3])
    session = onnxruntime.InferenceSession(distilled / "best.onnx")
    pixels = load_image(path).transpose(2, 0, 1).astype(np.float32) / 255
    boxes, labels, scores, masks = session.run(None, {"image": pixels})
    assert len(found) == len(boxes) > 0
    np.testing.assert_allclose(boxes, found.xyxy, atol=1e-2)
    np.testing.assert_array_equal(labels - 1, found.class_id)
    np.testing.assert_allclose(scores, found.confidence, atol=1e-4)
    assert ((masks[:, 0] > 0.5) == found.mask).mean() > 0.999


def test_batches_show_masks_where_they_are(dataset):
    batches = _Batches(TrainingData(dataset, needs_masks=True), 2, 0, torch.device("cpu"))
    mirrored = 0
    for _ in range(4):
        for images, targets in batches:
            for image, target in zip(images, targets, strict=True):
                expected = seen((image * 255).round().byte().permute(1, 2, 0).numpy())
                np.testing.assert_array_equal(target["masks"].numpy().astype(bool), expected.mask.to_dense())
                np.testing.assert_array_equal(target["labels"], [1, 2])
                disc, square = target["boxes"].numpy()
                rows, columns = expected.mask.to_dense()[0].nonzero()
                assert disc.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                mirrored += bool(disc[0] > square[0])
    assert 0 < mirrored < 4 * len(batches) * 2


def test_the_seed_decides(dataset, tmp_path):
    trained = [
        MaskRCNNStudent(device="cpu").train(dataset / "data.yaml", 1, output=tmp_path / name, image_size=32, seed=5)
        for name in "ab"
    ]
    first, second = (torch.load(run.weights, weights_only=True)["model"] for run in trained)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert trained[0].history == trained[1].history


@pytest.mark.slow
def test_mask_rcnn_learns(tmp_path):
    dataset = labelled(tmp_path, 20)
    result = distill(dataset, tmp_path / "out", tiny(epochs=12, batch_size=4), progress=False)
    losses = [row["train/loss"] for row in result.results.history]
    assert losses[-1] < 0.5 * losses[0]


def test_ultralytics(dataset, tmp_path, capfd):
    settings = tiny(student="yolo11n-seg", export="onnx")
    result = distill(dataset, tmp_path / "out", settings, ground_truth=dataset / "test", progress=False)
    assert result.weights == tmp_path / "out" / "best.pt"
    assert (tmp_path / "out" / "best.onnx").stat().st_size > 1e6
    assert result.results.history[0]["epoch"] == 1
    assert "against_truth" in (tmp_path / "out" / "report.json").read_text()
    found = result.student.predict(sorted(dataset.glob("train/images/*"))[0], confidence=0.0)
    assert found.mask is None or found.mask.shape[1:] == (SIZE, SIZE)
    again = find_student("yolo11n-seg")("yolo11n-seg", result.weights, device="cpu")
    assert len(again.predict(sorted(dataset.glob("train/images/*"))[0], confidence=0.0)) == len(found)
    with pytest.raises(CheckpointError, match="Expected weights of yolo11s-seg, received those of yolo11n-seg"):
        find_student("yolo11s-seg")("yolo11s-seg", result.weights, device="cpu")
    # The dataset itself is as it was.
    assert {path.name for path in dataset.glob("*/*") if path.is_file()} == {"_annotations.coco.json"}


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_caches_that_came_with_a_folder_are_not_unpickled(dataset, tmp_path, monkeypatch):
    """ultralytics would load them before it looks at their version."""
    monkeypatch.chdir(tmp_path)
    copied = Path(shutil.copytree(dataset, tmp_path / "copy"))
    for split in ("train", "valid"):
        np.save(copied / split / "labels.cache.npy", np.array(Bomb(), dtype=object), allow_pickle=True)
        (copied / split / "labels.cache.npy").rename(copied / split / "labels.cache")
    distill(copied, tmp_path / "out", tiny(student="yolo11n-seg"), progress=False)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("formats", [("coco",), ("yolo-detection", "coco")])
def test_ultralytics_is_not_trained_on_nothing(tmp_path, formats):
    dataset = labelled(tmp_path, 8, test_share=0.0, formats=formats)
    with pytest.raises(LabelingError, match=r"Expected polygons, which ultralytics learns.*'yolo' among the formats"):
        distill(dataset, tmp_path / "out", tiny(student="yolo11n-seg"), progress=False)
    assert not (tmp_path / "out").exists()


def test_rf_detr(dataset, tmp_path):
    pytest.importorskip("rfdetr")
    result = distill(dataset, tmp_path / "out", tiny(student="rf-detr-seg-nano", image_size=None), progress=False)
    assert result.weights == tmp_path / "out" / "best.pth"
    assert result.results.history[0]["epoch"] == 1


def test_a_run_is_repeated(distilled, dataset, tmp_path, oracle, capsys):
    folder, truth, settings = read_distillation(distilled / "run.json")
    assert (folder, truth) == (dataset, None)
    assert DistillSettings(**settings) == tiny(epochs=2, batch_size=2, export="onnx")
    output = tmp_path / "again"
    asked = ["distill", "--from-run", str(distilled), "--output", str(output), "--epochs", "1", "--quiet"]
    assert main(asked) == 0
    assert json.loads((output / "run.json").read_text())["settings"]["batch_size"] == 2
    assert main(["distill", "--from-run", str(distilled)]) == 1
    (output / "run.json").write_text(json.dumps({"format": distillation_module.FORMAT, "settings": {"weights": None}}))
    assert main(["distill", "--from-run", str(output), "--output", str(tmp_path / "no")]) == 1
    assert "Expected a whole run.json" in capsys.readouterr().err
    assert main(["distill", "--from-run", str(dataset / "run.json"), "--output", str(output)]) == 1
    assert "of an earlier distillation" in capsys.readouterr().err


def test_the_teacher_is_timed(dataset, tmp_path, oracle, caplog):
    asked = []
    result = distill(dataset, tmp_path / "out", tiny(), teacher=lambda: asked.append, progress=False)
    assert result.results.teacher_ms >= 0
    assert len(asked) == 13

    def missing():
        raise CheckpointError("Expected a checkpoint, received none")

    result = distill(dataset, tmp_path / "other", tiny(), teacher=missing, progress=False)
    assert result.results.teacher_ms is None
    assert "not timed: CheckpointError: Expected a checkpoint" in caplog.text


def test_memory_that_ends_is_said_with_the_cure(dataset, tmp_path, oracle, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(Oracle, "train", full)
    with pytest.raises(OutOfMemoryError, match=r"2 GiB\. Use a smaller batch size \(--batch-size\)"):
        distill(dataset, tmp_path / "out", tiny(), progress=False)


def test_ctrl_c_does_not_promise_to_go_on(dataset, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(MaskRCNNStudent, "train", interrupted)
    asked = ["distill", str(dataset), "--student", "mask-rcnn", "--output", str(tmp_path / "out"), "--overwrite"]
    assert main([*asked, "--device", "cpu"]) == 130
    assert "Stopped. A training does not go on" in capsys.readouterr().err


def test_the_output_is_beside_the_dataset(dataset, tmp_path, monkeypatch, oracle):
    copied = Path(shutil.copytree(dataset, tmp_path / "labels"))
    monkeypatch.chdir(copied)
    assert main(["distill", ".", "--student", "mask-rcnn", "--quiet", "--no-teacher"]) == 0
    assert (tmp_path / "labels_mask-rcnn" / "report.md").read_text().startswith("# mask-rcnn from labels\n")


def test_a_failed_export_loses_nothing(dataset, tmp_path, oracle, caplog):
    result = distill(dataset, tmp_path / "out", tiny(export="onnx"), progress=False)
    assert result.weights.exists()
    assert "Trained, but not exported: RuntimeError: no exporter" in caplog.text


def test_the_truth_is_a_measure_of_its_own(dataset, tmp_path, oracle):
    truth = tmp_path / "truth.json"
    content = json.loads((dataset / "test" / "_annotations.coco.json").read_text())
    content["annotations"] = [item for item in content["annotations"] if item["category_id"] == 1]
    truth.write_text(json.dumps(content))
    result = distill(dataset, tmp_path / "out", tiny(), ground_truth=truth, progress=False)
    assert result.results.judged.evaluation.mask.average_precision["AP"] == pytest.approx(1)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["against_labels"]["AP"] == pytest.approx(1)
    assert report["against_truth"]["AP"] == pytest.approx(1)
    assert read_distillation(tmp_path / "out")[1] == truth
    assert report["labels_against_truth"]["AP"] == pytest.approx(1)
    assert "| gray square | - | - |" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("content", [None, "{}", '{"images": [], "annotations": [], "categories": []}'])
def test_a_wrong_truth_is_noticed_before_the_training(copied, tmp_path, content):
    truth = tmp_path / "truth.json"
    if content is not None:
        truth.write_text(content)
    with pytest.raises(LabelingError):
        distill(copied, tmp_path / "out", tiny(), ground_truth=truth, progress=False)
    assert not (tmp_path / "out").exists()


def test_what_is_needed_is_not_replaced(distilled, dataset, tmp_path, oracle):
    """The output may not hold the weights, the truth or the dataset, whatever is asked for."""
    output = Path(shutil.copytree(distilled, tmp_path / "out"))
    weights = output / "best.pt"
    with pytest.raises(OutputFolderError, match="apart from"):
        distill(dataset, output, tiny(weights=weights), overwrite=True, progress=False)
    assert weights.exists()
    (output / "thesis.txt").touch()
    distill(dataset, output, tiny(), overwrite=True, progress=False)
    assert (output / "thesis.txt").exists()


def test_an_earlier_distillation_is_replaced_when_asked(dataset, tmp_path, oracle):
    distill(dataset, tmp_path / "out", tiny(), progress=False)
    (tmp_path / "out" / "best.onnx").touch()
    with pytest.raises(OutputFolderError, match="--overwrite"):
        distill(dataset, tmp_path / "out", tiny(), progress=False)
    assert (tmp_path / "out" / "best.onnx").exists()
    distill(dataset, tmp_path / "out", tiny(), overwrite=True, progress=False)
    assert not (tmp_path / "out" / "best.onnx").exists()


def test_one_class_is_enough(tmp_path):
    def discs_alone(pixels):
        return seen(pixels)[np.array([0])]

    dataset = labelled(tmp_path, 8, model=discs_alone, classes=CLASSES[:1], test_share=0.0)
    result = distill(dataset, tmp_path / "out", tiny(), progress=False)
    assert result.results.data.held_out == "valid"
    assert result.results.judged.evaluation.classes == CLASSES[:1]


# What is refused, before anything is trained.


def never(*_, **__):
    raise AssertionError("trained")


@pytest.fixture
def copied(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(MaskRCNNStudent, "train", never)
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


def without_objects(folder, split):
    path = folder / split / "_annotations.coco.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))


def with_boxes_alone(folder):
    for path in folder.glob("*/_annotations.coco.json"):
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            annotation["segmentation"] = []
        path.write_text(json.dumps(content))


def without_images(folder, split):
    path = folder / split / "_annotations.coco.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": [], "images": []}))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda folder: without_objects(folder, "train"), InputFolderError, "objects to learn from.*without any"),
        (lambda folder: without_objects(folder, "test"), InputFolderError, "objects to be judged by"),
        (lambda folder: without_images(folder, "train"), InputFolderError, "images to learn from.*received none"),
        (lambda folder: without_images(folder, "valid"), InputFolderError, "images to choose weights by"),
        (with_boxes_alone, LabelingError, "Expected masks.*received 20 boxes"),
        (lambda folder: (folder / "shards").mkdir(), LabelingError, "shards. Merge them first"),
        (lambda folder: (folder / "data.yaml").unlink(), InputFolderError, "data.yaml.*received none"),
        (lambda folder: next(folder.glob("train/images/*")).unlink(), InputFolderError, "1 are missing"),
        (shutil.rmtree, InputFolderError, "Expected a labelled folder"),
    ],
)
def test_datasets_that_cannot_be_learned_from(copied, tmp_path, spoil, error, message):
    spoil(copied)
    with pytest.raises(error, match=message):
        distill(copied, tmp_path / "out", tiny(), progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": "mask-rnn"}, "Did you mean 'mask-rcnn'"),
        ({"student": "../evil"}, "Expected a student such as"),
        ({"student": "sam3"}, "Expected a student such as"),
        ({"epochs": 0}, "epochs to be at least 1, received 0"),
        ({"image_size": 8}, "image_size to be at least 32, received 8"),
        ({"export": "tflite"}, "Expected export to be one of"),
        ({"weights": Path("no such file.pt")}, "Expected weights of a Mask R-CNN trained here"),
        ({"student": "yolo11n-seg", "weights": Path("no such file.pt")}, "Expected weights of yolo11n-seg, a .pt of"),
        ({"student": "yolo11n-seg", "device": "cuda:77"}, "cuda:77"),
        ({"student": "yolo99n-seg"}, "Expected a model that ultralytics can build"),
        ({"device": "cuda:77"}, "cuda:77"),
    ],
)
def test_settings_that_are_refused(copied, tmp_path, changes, message):
    with pytest.raises(AutodistillSAM3Error, match=message):
        distill(copied, tmp_path / "out", tiny(**changes), progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["rf-detr-seg-nano", "yolo11n-seg"])
def test_what_is_not_installed_is_said_with_the_pip_line(copied, tmp_path, monkeypatch, name):
    def missing(module):
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr(packages.importlib, "import_module", missing)
    with pytest.raises(MissingPackageError, match=r"pip install 'autodistill-grounded-sam3\[(rfdetr|ultralytics)\]'"):
        distill(copied, tmp_path / "out", tiny(student=name), progress=False)


def test_other_weights_do_not_fit(distilled, dataset, tmp_path):
    weights = distilled / "best.pt"
    with pytest.raises(CheckpointError, match="Expected weights for images of 96 pixels, received some for 64"):
        distill(dataset, tmp_path / "out", tiny(weights=weights, image_size=96), progress=False)
    other = labelled(tmp_path, 8, classes=("disc", "square"), test_share=0.0)
    with pytest.raises(CheckpointError, match="Expected weights for the classes disc, square, received some for white"):
        distill(other, tmp_path / "out", tiny(weights=weights), progress=False)
    assert not (tmp_path / "out").exists()


def test_weights_bring_their_image_size(distilled, dataset):
    student = MaskRCNNStudent(weights=distilled / "best.pt", device="cpu")
    student.check(TrainingData(dataset, needs_masks=True), None)


def test_folders_that_are_not_ours_stay(copied, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputFolderError, match="new or empty folder"):
            distill(copied, tmp_path / "out", tiny(), overwrite=overwrite, progress=False)
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_the_command_says_what_is_missing(dataset, capsys):
    assert main(["distill"]) == 1
    assert "Expected DATASET" in capsys.readouterr().err
    assert main(["distill", str(dataset)]) == 1
    error = capsys.readouterr().err
    assert all(name in error for name in STUDENTS)


# Target models of others.


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    def install(name, source):
        folder = tmp_path / "plugins"
        folder.mkdir(exist_ok=True)
        (folder / f"autodistill_{name}.py").write_text(source)
        monkeypatch.syspath_prepend(folder)

    yield install
    for name in [name for name in sys.modules if name.startswith("autodistill_fake")]:
        del sys.modules[name]


FAKE = """
import numpy as np, supervision as sv
from autodistill.detection import DetectionTargetModel

class Fake(DetectionTargetModel):
    def __init__(self, model="none"):
        self.model = model
    def train(self, dataset_yaml, epochs=300):
        self.trained = dataset_yaml, epochs
    def predict(self, input, confidence=0.5):
        return sv.Detections(xyxy=np.array([[0, 0, 9, 9.0]]), confidence=np.array([0.5]), class_id=np.array([0]))
"""


def test_an_installed_target_model_is_a_student(dataset, tmp_path, plugin, capsys):
    plugin("fake_one", FAKE)
    settings = DistillSettings("fake-one", epochs=3, weights=Path("fake.pt"))
    result = distill(dataset, tmp_path / "out", settings, progress=False)
    assert result.student._model.trained == (str(dataset / "data.yaml"), 3)
    assert result.student._model.model == "fake.pt"
    assert result.weights is None
    assert isinstance(result.student, Student)
    assert isinstance(result.student, DetectionTargetModel)
    assert "box mAP" in (tmp_path / "out" / "report.md").read_text()
    assert not (tmp_path / "out" / "curves.png").exists()
    with pytest.raises(SettingError, match="with export, received the plugin"):
        distill(dataset, tmp_path / "no", DistillSettings("fake-one", export="onnx"), progress=False)
    with pytest.raises(SettingError, match="no device for the plugin"):
        distill(dataset, tmp_path / "no", DistillSettings("fake-one", device="cpu"), progress=False)


def test_a_target_model_may_choose_its_device_or_give_what_ultralytics_gives(dataset, tmp_path, plugin):
    source = FAKE.replace("epochs=300", 'epochs=300, device="cpu"').replace("self.trained =", "self.device = device #")
    # One box of the first class, as a tensor (1, 6).
    given = (
        "Results(np.zeros((9, 9, 3), np.uint8), 'a.jpg', {0: 'white disc'}, boxes=__import__('torch').ones(1, 6) * 0)"
    )
    imported = "from ultralytics.engine.results import Results"
    source = source.replace("return sv.Detections(", f"{imported}; return [{given}] #")
    plugin("fake_three", source)
    result = distill(dataset, tmp_path / "out", DistillSettings("fake-three", device="cuda:1"), progress=False)
    assert result.student._model.device == "cuda:1"
    assert len(result.results.judged.records[0]["annotations"]) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", "Expected autodistill_fake_two to be imported.*division"),
        ("import autodistill", "Expected one target model.*received none"),
        (FAKE + "class Second(Fake): pass\n", "Expected one target model.*received Fake, Second"),
        (FAKE.replace("self.model = model", "raise OSError('no disk')"), "to build the student.*no disk.*--weights"),
        (FAKE.replace("self.trained =", "raise RuntimeError('no GPU') #"), "failed: RuntimeError: no GPU"),
        (FAKE.replace("return sv.Detections(", "return dict("), "failed: TypeError: expected supervision's Detections"),
        (FAKE.replace("confidence=np.array([0.5]), ", ""), "Expected classes and confidences"),
    ],
)
def test_target_models_that_fail(dataset, tmp_path, plugin, source, message):
    plugin("fake_two", source)
    with pytest.raises(AutodistillSAM3Error, match=message):
        distill(dataset, tmp_path / "out", DistillSettings("fake_two"), progress=False)
