"""Labelled folders, through `label_images` with a callable in the model's place, read back by other libraries."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import shutil
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision as sv
import yaml
from PIL import Image
from pycocotools.coco import COCO

from autodistill_sam3 import InputFolderError, LabelingError, OutputFolderError
from autodistill_sam3.instances import compact_masks, tight_xyxy
from autodistill_sam3.labeling import LabelingPlan, SplitRule, default_output, find_images, folder, label_images
from autodistill_sam3.labeling.journal import Journal
from autodistill_sam3.labeling.names import SourceImage

CLASSES = ("ball", "box")
# With it the five photos fall into both splits.
SEED = 1


def discs(image_hw, seed):
    """Three detections whose masks are discs with a hole, some cut by the border."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: image_hw[0], : image_hw[1]]
    crops = []
    for _ in range(3):
        distance = np.hypot(y - rng.integers(8, image_hw[0] - 8), x - rng.integers(8, image_hw[1] - 8))
        crops.append(((distance < 12) & (distance >= 4), 0, 0))
    masks = compact_masks(crops, image_hw)
    return sv.Detections(
        xyxy=tight_xyxy(masks),
        mask=masks,
        confidence=rng.uniform(0.5, 1, 3).astype(np.float32),
        class_id=np.array([0, 1, 0]),
        data={"prompt": np.array(["a", "b", "c"]), "source": np.array(["text", "boxes", "both"])},
    )


def fake_model(images):
    return [discs(image.shape[:2], int(image.sum())) for image in images]


@pytest.fixture
def plan(photo_folder, tmp_path):
    return LabelingPlan(
        photo_folder, tmp_path / "out", CLASSES, {"model": "fake"}, batch_size=2, split=SplitRule(SEED), progress=False
    )


def truth_of(plan):
    """Source stem -> detections, from the same callable."""
    from autodistill_sam3.images import load_image

    return {image.stem: fake_model([load_image(image.path)])[0] for image in find_images(plan.source)}


def test_layout(plan):
    dataset = label_images(plan, fake_model)
    assert len(dataset) == 5
    assert yaml.safe_load((plan.output / "data.yaml").read_text()) == {
        "train": "train/images", "val": "valid/images", "nc": 2, "names": ["ball", "box"],
    }  # fmt: skip
    files = {path.name for path in plan.output.glob("*/images/*")}
    assert files == {"photo 0.jpg", "photo 1.png", "photo 2.JPG", "photo 3.jpeg", "photo 4.webp"}
    for path in plan.output.glob("*/images/*"):
        assert path.read_bytes() == (plan.source / path.name).read_bytes()
        assert (path.parent.parent / "labels" / f"{path.stem}.txt").read_text().count("\n") == 3
        assert path.parent.parent.name == plan.split.split_of(SourceImage(path, path.name))
    assert [path.name for path in plan.output.rglob(".*")] == [".lock"]
    run = json.loads((plan.output / "run.json").read_text())
    assert run["settings"]["model"] == "fake"
    assert run["settings"]["batch_size"] == 2
    assert run["settings"]["split"]["seed"] == SEED


# pycocotools leaves its file open and has not followed numpy's copy keyword.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_loads_in_pycocotools_with_identical_masks(plan):
    label_images(plan, fake_model)
    truth = truth_of(plan)
    seen = 0
    for split in ("train", "valid"):
        coco = COCO(plan.output / split / "_annotations.coco.json")
        assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
        names = [image["file_name"] for image in coco.dataset["images"]]
        assert names == sorted(names)
        for image in coco.dataset["images"]:
            path = plan.output / split / image["file_name"]
            assert Image.open(path).size == (image["width"], image["height"])
            annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
            expected = truth[path.stem]
            seen += 1
            np.testing.assert_array_equal([coco.annToMask(item) for item in annotations], np.asarray(expected.mask))
            assert [item["category_id"] - 1 for item in annotations] == expected.class_id.tolist()
            assert [item["source"] for item in annotations] == ["text", "boxes", "both"]
            assert all(item["iscrowd"] == 0 for item in annotations)
            np.testing.assert_allclose([item["score"] for item in annotations], expected.confidence, atol=1e-6)
            np.testing.assert_array_equal([item["area"] for item in annotations], np.asarray(expected.mask).sum((1, 2)))
    assert seen == 5


def test_both_formats_load_in_supervision_with_the_same_objects(plan):
    label_images(plan, fake_model)
    truth = truth_of(plan)
    for split in ("train", "valid"):
        folder = plan.output / split
        coco = sv.DetectionDataset.from_coco(str(folder), str(folder / "_annotations.coco.json"), force_masks=True)
        yolo = sv.DetectionDataset.from_yolo(
            str(folder / "images"), str(folder / "labels"), str(plan.output / "data.yaml"), force_masks=True
        )
        assert coco.classes == yolo.classes == list(CLASSES)
        assert len(coco) == len(yolo) > 0
        for dataset, minimum in ((coco, 1.0), (yolo, 0.95)):
            for path, detections in dataset.annotations.items():
                expected = truth[path.rsplit("/", 1)[-1].rsplit(".", 1)[0]]
                assert detections.class_id.tolist() == expected.class_id.tolist()
                for mask, true in zip(detections.mask, np.asarray(expected.mask), strict=True):
                    assert (mask & true).sum() / (mask | true).sum() >= minimum


def test_returned_dataset_reads_what_was_written(plan):
    dataset = label_images(plan, fake_model)
    truth = truth_of(plan)
    for path, image, detections in dataset:
        expected = truth[path.rsplit("/", 1)[-1].rsplit(".", 1)[0]]
        assert image.shape[:2] == detections.mask.shape[1:]
        np.testing.assert_array_equal(detections.mask, np.asarray(expected.mask))
        np.testing.assert_array_equal(detections.xyxy, expected.xyxy)
        assert detections.data["class_name"].tolist() == ["ball", "box", "ball"]


def test_images_are_written_as_the_run_goes(plan):
    """While the model is at a later batch, the first one gets on disk, journal included."""
    calls = []

    def watching(images):
        calls.append(1)
        deadline = time.monotonic() + 20
        while len(calls) == 2 and finished() < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        if len(calls) == 2:
            assert finished() == len(list(plan.output.glob("*/labels/*.txt"))) == 2
        return fake_model(images)

    def finished():
        journal = plan.output / "journal.jsonl"
        return journal.read_text().count('{"source"') if journal.exists() else 0

    label_images(plan, watching)
    assert len(calls) == 3


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "times.json"
    }


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(plan, tmp_path):
    calls = []

    def failing(images):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fake_model(images)

    with pytest.raises(KeyboardInterrupt):
        label_images(plan, failing)
    with (plan.output / "journal.jsonl").open("ab") as file:
        file.write(b'{"source": "cut sh')
    label_images(plan, failing)
    # The last batch is padded.
    assert calls == [2, 2, 2, 2]
    label_images(replace(plan, output=tmp_path / "undisturbed"), fake_model)
    assert digest(plan.output) == digest(tmp_path / "undisturbed")


def test_other_settings_are_refused_and_overwrite_starts_anew(plan):
    label_images(plan, fake_model)
    before = digest(plan.output)
    other = replace(plan, settings={"model": "other"})
    with pytest.raises(OutputFolderError, match=r"'fake' there, 'other' now"):
        label_images(other, fake_model)
    assert digest(plan.output) == before
    (plan.source / "photo 0.jpg").unlink()
    assert len(label_images(replace(other, overwrite=True), fake_model)) == 4


def test_awkward_images_in_one_folder(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(source / "rotated.jpg", exif=exif)
    Image.fromarray(pixels).convert("RGBA").save(source / "alpha.png")
    Image.fromarray(pixels).convert("CMYK").save(source / "cmyk.jpg")
    Image.fromarray(pixels[..., 0]).save(source / "gray.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(source / "deep.png")
    Image.fromarray(pixels).quantize(16).save(source / "palette.png")
    Image.fromarray(pixels).save(source / "same.png")
    Image.fromarray(pixels).save(source / "same.bmp")
    Image.fromarray(pixels).save(source / "SAME.jpg")
    Image.fromarray(pixels).save(source / "two..dots.webp")
    Image.fromarray(pixels).save(source / "-leading 'quote'.tiff")
    (source / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (source / "empty.png").write_bytes(b"")
    (source / "text.png").write_text("no image")
    (source / "notes.txt").write_text("not looked at")
    plan = LabelingPlan(source, tmp_path / "out", CLASSES, {}, progress=False)
    dataset = label_images(plan, fake_model)
    assert len(dataset) == 11
    quarantine = [json.loads(line) for line in (plan.output / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(item["source"] for item in quarantine) == ["broken.jpg", "empty.png", "text.png"]
    assert all("Expected" in item["reason"] for item in quarantine)
    stems = [path.stem for path in plan.output.glob("*/labels/*.txt")]
    assert len(stems) == len({stem.lower() for stem in stems}) == 11
    for path, image, detections in dataset:
        assert image.shape[:2] == detections.mask.shape[1:], path
        raw = cv2.imread(path, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
        assert raw.dtype == np.uint8
        assert raw.shape[:2] == image.shape[:2]
    rotated = next(path for path in dataset.image_paths if "rotated" in path)
    assert rotated.endswith(".png")
    assert dataset.annotations[rotated].mask.shape[1:] == (60, 40)


def test_one_pixel_and_empty_results(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    Image.new("RGB", (1, 1)).save(source / "a.png")
    Image.new("RGB", (9, 7)).save(source / "b.png")

    def model(images):
        return [
            sv.Detections(
                xyxy=np.zeros((count, 4), np.float32), mask=np.full((count, *image.shape[:2]), True),
                confidence=np.ones(count, np.float32), class_id=np.zeros(count, int),
            )
            for image in images
            for count in [1 if image.shape[0] == 1 else 0]
        ]  # fmt: skip

    plan = LabelingPlan(source, tmp_path / "out", CLASSES, {}, progress=False)
    dataset = label_images(plan, model)
    by_name = {path.rsplit("/", 1)[-1]: detections for path, detections in dataset.annotations.items()}
    assert by_name["a.png"].xyxy.tolist() == [[0, 0, 1, 1]]
    assert by_name["b.png"].mask.shape == (0, 7, 9)
    assert next(plan.output.glob("*/labels/b.txt")).read_text() == ""


def test_confidence_files_align_with_label_lines(plan):
    label_images(replace(plan, record_confidence=True), fake_model)
    files = list(plan.output.glob("*/labels/confidence-*.txt"))
    assert len(files) == 5
    truth = truth_of(plan)
    for path in files:
        stem = path.stem.removeprefix("confidence-")
        values = [float(line) for line in path.read_text().splitlines()]
        np.testing.assert_allclose(values, truth[stem].confidence, atol=1e-6)
        assert len(values) == len((path.parent / f"{stem}.txt").read_text().splitlines())


def test_boxes_without_masks(plan):
    def model(images):
        return [
            sv.Detections(
                xyxy=np.array([[4, 8, 20, 24]], np.float32), confidence=np.array([0.5]), class_id=np.array([1])
            )
            for _ in images
        ]

    dataset = label_images(plan, model)
    line = next(plan.output.glob("*/labels/photo 0.txt")).read_text()
    assert line == "1 0.1875000 0.4000000 0.2500000 0.4000000\n"
    detections = dataset.annotations[dataset.image_paths[0]]
    assert detections.mask is None
    assert detections.xyxy.tolist() == [[4, 8, 20, 24]]


def test_review_sheet(plan):
    label_images(replace(plan, plot=True), fake_model)
    [sheet] = (plan.output / "review").glob("*.png")
    image = np.asarray(Image.open(sheet))
    assert image.shape[2] == 3
    assert image.std() > 10


def test_extension_and_limit(plan):
    assert [image.name for image in find_images(plan.source, "jpg")] == ["photo 0.jpg", "photo 2.JPG"]
    assert [image.name for image in find_images(plan.source, "*.PNG")] == ["photo 1.png"]
    assert len(label_images(replace(plan, limit=2), fake_model)) == 2
    assert len(label_images(replace(plan, limit=4), fake_model)) == 4


@pytest.mark.parametrize("extension", [None, ".gif"])
def test_folder_without_images(tmp_path, extension):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputFolderError, match="received none"):
        find_images(tmp_path, extension)


def test_missing_folder_and_file_as_folder(tmp_path, plan):
    with pytest.raises(InputFolderError, match="nothing there"):
        find_images(tmp_path / "no")
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputFolderError, match="another file"):
        find_images(tmp_path / "thesis.tex")


def test_output_folders_that_are_refused(plan, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    for output in (plan.source, plan.source / "labels", other, tmp_path / "file"):
        before = digest(tmp_path)
        with pytest.raises(OutputFolderError, match="Expected"):
            label_images(replace(plan, output=output, overwrite=True), fake_model)
        assert digest(tmp_path) == before


LINE = b'{"source":"%s","split":"train","file":"x","phash":"00","size":1,"mtime_ns":1,"annotations":[]}\n'


def test_journal_drops_a_cut_line_and_reports_a_damaged_one(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(LINE % b"a" + LINE % b"b" + b'{"source":')
    assert [name for name, _ in Journal(path).entries()] == ["a", "b"]
    assert path.read_bytes() == LINE % b"a" + LINE % b"b"
    for damaged in (b"{}\n", b"no json\n", b"[]\n"):
        path.write_bytes(LINE % b"a" + damaged + LINE % b"b")
        with pytest.raises(LabelingError, match="line 2"):
            Journal(path)


def test_overwrite_never_deletes_the_input(plan):
    label_images(plan, fake_model)
    images = plan.output / "train" / "images"
    before = digest(plan.output)
    with pytest.raises(OutputFolderError, match="around them"):
        label_images(replace(plan, source=images, overwrite=True), fake_model)
    assert digest(plan.output) == before


def test_another_input_folder_is_another_dataset(plan, tmp_path):
    label_images(plan, fake_model)
    shutil.copytree(plan.source, tmp_path / "other")
    with pytest.raises(OutputFolderError, match="source"):
        label_images(replace(plan, source=tmp_path / "other"), fake_model)


def test_runs_over_different_suffixes_keep_labels_apart(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    Image.new("RGB", (40, 30)).save(source / "a.jpg")
    Image.new("RGB", (40, 30)).save(source / "a.png")
    plan = LabelingPlan(source, tmp_path / "out", CLASSES, {}, progress=False)
    label_images(replace(plan, extension="jpg"), fake_model)
    assert len(label_images(replace(plan, extension="png"), fake_model)) == 2
    assert len({path.stem for path in plan.output.glob("*/labels/*.txt")}) == 2
    # A newcomer that takes the stem of an image that is gone.
    (source / "a.jpg").unlink()
    (source / "a.png").unlink()
    Image.new("RGB", (40, 30)).save(source / "a.bmp")
    Image.new("RGB", (40, 30)).save(source / "a_jpg.bmp")
    assert len(label_images(plan, fake_model)) == 4
    assert len({path.stem for path in plan.output.glob("*/labels/*.txt")}) == 4


def test_an_image_named_like_a_confidence_file(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a.jpg", "confidence-a.jpg"):
        Image.new("RGB", (40, 30)).save(source / name)
    plan = LabelingPlan(source, tmp_path / "out", CLASSES, {}, record_confidence=True, progress=False)
    label_images(plan, fake_model)
    assert len(list(plan.output.glob("*/labels/*.txt"))) == 4


def test_what_is_missing_is_made_again(plan):
    label_images(plan, fake_model)
    before = digest(plan.output)
    for path in plan.output.glob("*/labels/*.txt"):
        path.unlink()
    next(plan.output.glob("*/images/photo 1*")).unlink()
    label_images(plan, fake_model)
    after = digest(plan.output)
    assert {**before, "journal.jsonl": 0} == {**after, "journal.jsonl": 0}
    label_images(replace(plan, record_confidence=True), fake_model)
    assert len(list(plan.output.glob("*/labels/confidence-*.txt"))) == 5


def test_files_that_cannot_be_read_go_to_quarantine(plan):
    (plan.source / "dangling.png").symlink_to(plan.source / "nothing")
    (plan.source / "folder.png").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        read_bytes = Path.read_bytes

        def refuse(path):
            if path.name == "photo 0.jpg":
                raise PermissionError(13, "Permission denied")
            return read_bytes(path)

        patch.setattr(Path, "read_bytes", refuse)
        dataset = label_images(plan, fake_model)
    reasons = {item["source"]: item["reason"] for item in folder.read_quarantine(plan.output)}
    assert reasons.keys() == {"photo 0.jpg", "dangling.png"}
    assert "Permission denied" in reasons["photo 0.jpg"]
    assert len(dataset) == 4


def test_names_that_the_output_cannot_hold_go_to_quarantine(plan, monkeypatch):
    """As on drives of cameras, which know no colons."""
    real = folder.write_files

    def refuse(place, contents, part):
        if any("photo 1" in name for name in contents):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(place, contents, part)

    monkeypatch.setattr(folder, "write_files", refuse)
    assert len(label_images(plan, fake_model)) == 4
    [item] = folder.read_quarantine(plan.output)
    assert "name" in item["reason"]
    # Nothing of it stays behind: an image without labels would be trained on as background.
    assert not list(plan.output.rglob("photo 1*"))


def test_newcomers_do_not_take_each_others_names(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    Image.new("RGB", (40, 30)).save(source / "a.jpg")
    plan = LabelingPlan(source, tmp_path / "out", CLASSES, {}, progress=False)
    label_images(plan, fake_model)
    (source / "a.jpg").unlink()
    for name in ("a.png", "a_2.png"):
        Image.new("RGB", (40, 30)).save(source / name)
    assert len(label_images(plan, fake_model)) == 3
    assert len({path.stem for path in plan.output.glob("*/labels/*.txt")}) == 3


def test_disk_full_is_a_clear_error_and_the_rerun_completes(plan, monkeypatch):
    real, calls = folder.write_files, []

    def full(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **keywords)

    monkeypatch.setattr(folder, "write_files", full)
    with pytest.raises(LabelingError, match="No space left"):
        label_images(plan, fake_model)
    assert len(Journal(plan.output / "journal.jsonl")) == 2
    assert len(label_images(plan, fake_model)) == 5


def test_dataset_survives_a_change_of_folder_and_pickling(plan, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    dataset = label_images(replace(plan, source=Path("photos"), output=Path("out")), fake_model)
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(dataset))
    assert len(list(again)) == len(list(dataset)) == 5


def test_a_folder_that_cannot_be_written(plan):
    with pytest.raises(OutputFolderError, match="written"):
        label_images(replace(plan, output=Path("/proc/nothing/here")), fake_model)


@pytest.mark.parametrize(("given", "expected"), [("photos", "photos_labeled"), ("a/photos/", "a/photos_labeled")])
def test_default_output(given, expected):
    assert default_output(Path(given)) == Path(expected)


def test_default_output_of_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert default_output(Path()) == tmp_path.with_name(f"{tmp_path.name}_labeled")
