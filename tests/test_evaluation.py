"""Measured quality: pycocotools, SA-Co's official evaluator and plain loops are the oracles."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import shutil
import tracemalloc
import warnings
from dataclasses import dataclass, field
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
from pycocotools.cocoeval import COCOeval

from autodistill_sam3 import (
    ImageError,
    InputFolderError,
    LabelingError,
    OutputFolderError,
    SettingError,
    json_stream,
)
from autodistill_sam3.evaluation import (
    AP_NAMES,
    default_evaluation_folder,
    evaluate_dataset,
    format_report,
)
from autodistill_sam3.evaluation.calibration import best_threshold, calibrate
from autodistill_sam3.evaluation.plot import wilson_interval
from autodistill_sam3.evaluation.reading import read_labels
from autodistill_sam3.evaluation.yolo_files import parse_line
from autodistill_sam3.thresholds import read_thresholds

CLASSES = ["ball", "box", "Stern ★"]
OFFICIAL_NAMES = {"pmF1": "positive_micro_F1"}


@dataclass
class Thing:
    """An object of either side: a mask, and what else the files say of it."""

    class_id: int
    mask: np.ndarray
    score: float | None = None
    crowd: bool = False

    @property
    def rle(self):
        rle = coco_mask.encode(np.asfortranarray(self.mask.astype(np.uint8)))
        return {"size": list(rle["size"]), "counts": rle["counts"].decode()}

    @property
    def xywh(self):
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        if not len(rows):
            return [0.0, 0.0, 0.0, 0.0]
        return [float(value) for value in (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)]


@dataclass
class Picture:
    name: str
    hw: tuple[int, int] = (60, 80)
    truth: list[Thing] = field(default_factory=list)
    found: list[Thing] = field(default_factory=list)


def rectangle(x, y, width, height, hw=(60, 80)):
    mask = np.zeros(hw, dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


def random_mask(rng, hw):
    """An ellipse, with a hole at times."""
    rows, columns = np.mgrid[: hw[0], : hw[1]]
    centre, radius = rng.uniform(0, 1, 2) * hw, rng.uniform(3, 0.6 * min(hw), 2)
    distance = ((rows - centre[0]) / radius[0]) ** 2 + ((columns - centre[1]) / radius[1]) ** 2
    return (distance <= 1) & (distance >= rng.choice([0, 0.3]))


def random_pictures(seed, count=12, classes=3, crowds=True):
    """Images with objects and detections: right, shifted, doubled, invented, missing; scores tie; many are empty."""
    rng = np.random.default_rng(seed)
    pictures = []
    for index in range(count):
        picture = Picture(f"{index:02}.jpg", (int(rng.integers(40, 200)), int(rng.integers(40, 260))))
        for class_id in range(classes):
            for _ in range(rng.choice([0, 0, 1, 2, 4])):
                picture.truth.append(Thing(class_id, random_mask(rng, picture.hw), crowd=crowds and rng.random() < 0.1))
        for thing in picture.truth:
            for _ in range(rng.choice([0, 1, 1, 1, 2])):
                shift = rng.integers(-4, 5, 2) * rng.choice([0, 1, 2])
                mask = np.roll(thing.mask, shift, axis=(0, 1))
                picture.found.append(Thing(thing.class_id, mask, round(float(rng.uniform(0.3, 1)), 1)))
        for _ in range(rng.choice([0, 0, 1, 2])):
            score = round(float(rng.uniform(0.1, 0.9)), 2)
            picture.found.append(Thing(int(rng.integers(classes)), random_mask(rng, picture.hw), score))
        for things in (picture.truth, picture.found):
            things[:] = [thing for thing in things if thing.mask.any()]
            rng.shuffle(things)
        pictures.append(picture)
    return pictures


def annotation_of(thing, number, image_id, masks="rle"):
    segmentation = {
        "rle": lambda: thing.rle,
        "runs": lambda: uncompressed(thing.mask),
        "none": lambda: [],
    }[masks]()
    annotation = {
        "id": number, "image_id": image_id, "category_id": 3 + 2 * thing.class_id, "bbox": thing.xywh,
        "area": float(thing.mask.sum()), "segmentation": segmentation, "iscrowd": int(thing.crowd),
    }  # fmt: skip
    return annotation | ({} if thing.score is None else {"score": thing.score})


def uncompressed(mask):
    flat = mask.T.ravel()
    runs = [len(list(run)) for _, run in itertools.groupby(flat)]
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + runs}


def coco_content(pictures, side, classes=CLASSES, masks="rle", prefix=""):
    number = itertools.count(1)
    return {
        "info": {"nested": {"images": [1, 2]}},
        "images": [
            {"id": 10 + index, "file_name": prefix + item.name, "height": item.hw[0], "width": item.hw[1]}
            for index, item in enumerate(pictures)
        ],
        "annotations": [
            annotation_of(thing, next(number), 10 + index, masks)
            for index, item in enumerate(pictures)
            for thing in getattr(item, side)
        ],
        "categories": [{"id": 3 + 2 * index, "name": name} for index, name in enumerate(classes)],
    }


def write_json(path, content, **keywords):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, **keywords), encoding="utf-8")
    return path


def both_sides(folder, pictures, **keywords):
    return [
        write_json(folder / f"{side}.json", coco_content(pictures, side, **keywords)) for side in ("found", "truth")
    ]


def evaluate(folder, pictures, **keywords):
    return evaluate_dataset(*both_sides(folder, pictures, **keywords))


def numbers(evaluation, kind="mask"):
    """All of one kind; None where they are not defined, so that they can be compared."""
    return evaluation.to_dict()[kind]


def one(truth, found, **keywords):
    """A picture with rectangles (x, y, width, height) on either side, detections with their score behind."""
    return Picture(
        "a.jpg",
        truth=[Thing(0, rectangle(*box)) for box in truth],
        found=[Thing(0, rectangle(*box[:4]), *box[4:]) for box in found],
        **keywords,
    )


# pycocotools and the official evaluator, on files of their own.


def average_precision(folder, pictures, iou_type, categories=None):
    truth = write_json(folder / "pycocotools.json", coco_content(pictures, "truth"))
    results = [
        {"image_id": 10 + index, "category_id": 3 + 2 * thing.class_id, "score": thing.score}
        | ({"segmentation": thing.rle} if iou_type == "segm" else {"bbox": thing.xywh})
        for index, item in enumerate(pictures)
        for thing in item.found
    ]
    coco = COCO(str(truth))
    evaluator = COCOeval(coco, coco.loadRes(results), iou_type)
    evaluator.params.catIds = categories or evaluator.params.catIds
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator.stats


@pytest.fixture(scope="module")
def official():
    """The official module alone: its package would load models and set flags of torch."""
    package = importlib.util.find_spec("sam3")
    if package is None:
        pytest.skip("needs the extra sam3")
    path = Path(package.submodule_search_locations[0]) / "eval/cgf1_eval.py"
    spec = importlib.util.spec_from_file_location("cgf1_eval", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def official_cgf1(official, folder, pictures, iou_type, classes=(0, 1, 2)):
    """Each pair of an image and a class is an image of its own, as SA-Co has it."""
    images, annotations, results = [], [], []
    for image_id, (item, class_id) in enumerate(itertools.product(pictures, classes), 1):
        images.append({"id": image_id, "width": item.hw[1], "height": item.hw[0], "is_instance_exhaustive": True})
        for thing in item.truth:
            if thing.class_id == class_id:
                annotations.append(
                    annotation_of(thing, len(annotations) + 1, image_id) | {"category_id": 1, "ignore": 0}
                )
        for thing in item.found:
            if thing.class_id == class_id:
                shape = {"segmentation": thing.rle} if iou_type == "segm" else {"bbox": thing.xywh}
                results.append({"image_id": image_id, "category_id": 1, "score": thing.score, **shape})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    truth = write_json(folder / "official.json", content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = official.CGF1Evaluator(str(truth), iou_type)
        return evaluator.evaluate(str(write_json(folder / "results.json", results)))


def assert_same(own, other):
    """Equal to 1e-6; what the others have as -1 is not defined."""
    for name, value in other.items():
        expected = math.nan if value == -1 else value
        assert own[name] == pytest.approx(expected, abs=1e-6, nan_ok=True), name


def check_against_oracles(official, folder, pictures):
    evaluation = evaluate(folder, pictures)
    for iou_type, result in (("segm", evaluation.mask), ("bbox", evaluation.box)):
        stats = average_precision(folder, pictures, iou_type)
        assert_same(result.average_precision, dict(zip(AP_NAMES, stats, strict=True)))
        for index, own in enumerate(result.class_average_precision):
            stats = average_precision(folder, pictures, iou_type, [3 + 2 * index])
            assert_same(own, dict(zip(AP_NAMES, stats, strict=True)))
        theirs = official_cgf1(official, folder, pictures, iou_type)
        own = {OFFICIAL_NAMES.get(name, name): value for name, value in result.concepts.items()}
        own |= {name.replace("pmF1", "positive_micro_F1"): value for name, value in result.concepts.items()}
        assert_same(own, {key.removeprefix(f"cgF1_eval_{iou_type}_"): value for key, value in theirs.items()})
        class_one = official_cgf1(official, folder, pictures, iou_type, [1])
        assert result.class_concepts[1]["cgF1"] == pytest.approx(class_one[f"cgF1_eval_{iou_type}_cgF1"], abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_precision_and_concepts_equal_their_own_evaluators(tmp_path, official, seed, capfd):
    check_against_oracles(official, tmp_path, random_pictures(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
def test_precision_and_concepts_equal_their_own_evaluators_often(tmp_path, official, seed):
    check_against_oracles(official, tmp_path, random_pictures(seed, count=40))


def test_oracles_with_an_empty_class_an_empty_image_and_many_detections(tmp_path, official):
    pictures = random_pictures(7, count=5, classes=1)
    pictures[0].truth, pictures[0].found = [], []
    rng = np.random.default_rng(7)
    crowded = [Thing(0, rectangle(int(x), int(y), 5, 5, pictures[1].hw)) for x, y in rng.integers(0, 35, (130, 2))]
    pictures[1].truth = crowded[::2]
    pictures[1].found = [Thing(0, thing.mask, round(float(rng.uniform(0.2, 1)), 2)) for thing in crowded]
    check_against_oracles(official, tmp_path, pictures)
    assert math.isnan(evaluate(tmp_path, pictures).mask.class_average_precision[2]["AP"])


def test_scores_without_negatives_or_positives_equal_the_official_ones(tmp_path, official):
    everywhere = [one([(5, 5, 20, 20)], [(5, 5, 20, 18, 0.9)]), one([(5, 5, 20, 20)], [(40, 5, 20, 18, 0.9)])]
    everywhere[1].name = "b.jpg"
    nowhere = [one([], [(5, 5, 20, 18, 0.4)])]
    for pictures in (everywhere, nowhere):
        for item in pictures:
            for things in (item.truth, item.found):
                things += [Thing(class_id, thing.mask, thing.score) for thing in things[:1] for class_id in (1, 2)]
        own = evaluate(tmp_path, pictures).mask.concepts
        theirs = official_cgf1(official, tmp_path, pictures, "segm")
        assert own["cgF1"] == pytest.approx(theirs["cgF1_eval_segm_cgF1"], abs=1e-6)
        assert own["IL_MCC"] == pytest.approx(theirs["cgF1_eval_segm_IL_MCC"], abs=1e-6)
    assert "is 0, and so is cgF1" in format_report(evaluate(tmp_path, everywhere))


# Precision, recall, F1.


def plain_counts(truth, found):
    """Right ones and their IoU, by sets of pixels and loops."""

    def pixels(box):
        return {(x, y) for x in range(box[0], box[0] + box[2]) for y in range(box[1], box[1] + box[3])}

    free, ious = [pixels(box) for box in truth], []
    for box in sorted(found, key=lambda box: -box[4]):
        overlaps = [len(pixels(box) & other) / len(pixels(box) | other) for other in free]
        if overlaps and max(overlaps) >= 0.5:
            ious.append(max(overlaps))
            del free[overlaps.index(max(overlaps))]
    return ious


BOXES = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 6), st.integers(1, 6))
SCORED = st.tuples(BOXES, st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9])).map(lambda pair: (*pair[0], pair[1]))


@settings(max_examples=40, deadline=None)
@given(truth=st.lists(BOXES, max_size=4), found=st.lists(SCORED, max_size=5, unique_by=lambda box: box[4]))
def test_counts_equal_plain_loops(tmp_path_factory, truth, found):
    folder = tmp_path_factory.mktemp("loops")
    evaluation = evaluate(folder, [one(truth, found)], classes=["ball"])
    ious = plain_counts(truth, found)
    for result in (evaluation.mask, evaluation.box):
        score = result.scores[-1]
        assert (score.objects, score.detections, score.matched) == (len(truth), len(found), len(ious))
        assert score.mean_iou == pytest.approx(np.mean(ious) if ious else math.nan, nan_ok=True)
        if truth and found:
            assert score.f1 == pytest.approx(len(ious) / (len(truth) / 2 + len(found) / 2))
            assert min(score.precision, score.recall) <= score.f1 <= max(score.precision, score.recall)
    best = evaluation.mask.thresholds[0]
    reachable = [len(plain_counts(truth, found[:0]))] + [
        2 * len(plain_counts(truth, kept)) / (len(truth) + len(kept))
        for box in found
        if (kept := [other for other in found if other[4] >= box[4]])
    ]
    if best.threshold is not None:
        kept = [box for box in found if box[4] >= best.threshold]
        assert best.f1 == pytest.approx(max(reachable))
        assert best.f1 == pytest.approx(2 * len(plain_counts(truth, kept)) / (len(truth) + len(kept)))
    elif ious:
        assert best.keeps_all
        assert best.f1 == best.f1_without == pytest.approx(max(reachable))
    else:
        assert best.f1 == 0 or not (truth or found)


def test_two_detections_of_one_object_are_one_right_and_one_wrong(tmp_path):
    score = evaluate(tmp_path, [one([(5, 5, 20, 20)], [(5, 5, 20, 20, 0.9), (5, 5, 20, 20, 0.9)])]).mask.scores[-1]
    assert (score.matched, score.precision, score.recall) == (1, 0.5, 1)


def test_crowds_are_neither_missed_nor_wrong_to_find(tmp_path):
    picture = one([(5, 5, 20, 20), (40, 10, 30, 30)], [(5, 5, 20, 20, 0.9), (45, 15, 8, 8, 0.8), (30, 50, 5, 5, 0.7)])
    picture.truth[1].crowd = True
    evaluation = evaluate(tmp_path, [picture])
    score = evaluation.mask.scores[-1]
    assert (score.objects, score.detections, score.matched) == (1, 2, 1)
    assert evaluation.crowds == 1
    assert "1 crowd" in format_report(evaluation)
    assert sum(item.count for item in evaluation.mask.calibration.bins) == 2


def test_without_scores_everything_is_certain_and_teaches_no_threshold(tmp_path):
    evaluation = evaluate(tmp_path, [one([(5, 5, 20, 20)], [(5, 5, 20, 20), (40, 5, 9, 9)])])
    assert evaluation.without_confidence == 2
    assert evaluation.mask.calibration.bins[-1].mean_confidence == 1
    assert evaluation.mask.calibration.bins[-1].right == 0.5
    assert evaluation.thresholds == {}
    assert "2 objects of the dataset have no confidence" in format_report(evaluation)


def kept_whole():
    """A class with a threshold to learn, one of which all is worth keeping, and one without confidences."""
    picture = one([(5, 5, 20, 20)], [(5, 5, 20, 20, 0.9), (40, 5, 9, 9, 0.7)])
    picture.truth += [Thing(2, rectangle(5, 30, 20, 20)), Thing(1, rectangle(40, 30, 20, 20))]
    picture.found += [Thing(2, rectangle(5, 30, 20, 20), 0.8), Thing(1, rectangle(40, 30, 20, 20))]
    return picture


@pytest.mark.parametrize(
    ("thresholds", "floor"),
    [
        ({"confidence": 0.5, "box_confidence": 0.35, "per_class": {}}, 0.35),
        ({"confidence": 0.5, "box_confidence": 0.6, "per_class": {"ball": 0.1}}, 0.5),
        ({"confidence": 0.5, "box_confidence": 0.35, "per_class": {CLASSES[2]: 0.6}}, 0.6),
        # Lower confidences than that are there: it was not what decided.
        ({"confidence": 0.85, "box_confidence": 0.85, "per_class": {}}, 0.799999),
        ({"confidence": "high"}, None),
        ([], None),
        (None, None),
    ],
)
def test_what_is_worth_keeping_whole_has_the_threshold_of_the_labelling(tmp_path, thresholds, floor):
    folder = tmp_path / "out"
    found = write_json(folder / "train/_annotations.coco.json", coco_content([kept_whole()], "found"))
    truth = both_sides(tmp_path, [kept_whole()])[1]
    if thresholds is not None:
        write_json(folder / "run.json", {"settings": {"thresholds": thresholds}})
    for path in (folder, folder / "train", found):
        evaluation = evaluate_dataset(path, truth)
        assert evaluation.thresholds == {"ball": 0.8} | ({} if floor is None else {CLASSES[2]: floor})
        assert evaluation.mask.thresholds[2].keeps_all
        assert evaluation.mask.thresholds[2].f1 == 1
    notes = format_report(evaluation).split("## Best threshold per class")[1]
    assert f"Everything found is worth keeping for: {CLASSES[2]}." in notes
    assert ("no run.json" in notes) == (floor is None)
    assert "Nothing to learn a threshold from for: box." in notes


@pytest.mark.parametrize(
    ("settings", "floor"),
    [
        ({"prompting": "text"}, 0.5),
        ({"prompting": "boxes"}, 0.35),
        ({"prompting": "both"}, 0.35),
        ({"model": "SegmentAnything3"}, 0.5),
        ({"model": "Florence2"}, 0.35),
    ],
)
def test_the_threshold_of_the_labelling_is_the_one_it_used(tmp_path, settings, floor):
    folder = tmp_path / "out"
    write_json(folder / "train/_annotations.coco.json", coco_content([kept_whole()], "found"))
    truth = both_sides(tmp_path, [kept_whole()])[1]
    thresholds = {"confidence": 0.5, "box_confidence": 0.35, "per_class": {}}
    write_json(folder / "run.json", {"settings": {"thresholds": thresholds, **settings}})
    assert evaluate_dataset(folder, truth).thresholds[CLASSES[2]] == floor


@pytest.mark.parametrize("content", ["", "[]", '{"settings": 3}', "{", "ä"])
def test_a_damaged_run_json_says_nothing(tmp_path, content):
    found, truth = both_sides(tmp_path, [kept_whole()])
    (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
    assert evaluate_dataset(found, truth).thresholds == {"ball": 0.8}


@pytest.mark.parametrize("side", ["truth", "found"])
def test_boxes_without_masks(tmp_path, side):
    pictures = random_pictures(3)
    files = both_sides(tmp_path, pictures)
    write_json(tmp_path / f"{side}.json", coco_content(pictures, side, masks="none"))
    evaluation = evaluate_dataset(*files)
    whole = evaluate(tmp_path / "whole", pictures)
    assert evaluation.mask is None
    assert numbers(evaluation, "box") == numbers(whole, "box")
    best = {item.class_name: item.threshold for item in whole.box.thresholds if item.threshold is not None}
    assert evaluation.thresholds == best
    report = format_report(evaluation)
    assert "by box IoU" in report
    assert "| mask |     - |" in report
    assert "have no mask: only boxes were compared" in report
    assert evaluation.without_mask[side == "truth"] == sum(len(getattr(item, side)) for item in pictures)


@pytest.mark.parametrize("empty", ["found", "truth", "both"])
def test_nothing_found_or_nothing_there(tmp_path, empty):
    pictures = random_pictures(5, count=4)
    for item in pictures:
        item.found = [] if empty != "truth" else item.found
        item.truth = [] if empty != "found" else item.truth
    evaluation = evaluate_dataset(*both_sides(tmp_path, pictures), output=tmp_path / "out")
    score = evaluation.mask.scores[-1]
    assert score.matched == 0
    assert math.isnan(score.precision) == (empty != "truth")
    assert math.isnan(score.recall) == (empty != "found")
    assert math.isnan(score.f1) == (empty == "both")
    ap = evaluation.mask.average_precision["AP"]
    assert ap == 0 if empty == "found" else math.isnan(ap)
    assert math.isnan(evaluation.mask.calibration.expected_error) == (empty != "truth")
    assert evaluation.thresholds == {}

    def refuse(name):
        raise AssertionError(name)

    stored = json.loads((tmp_path / "out/evaluation.json").read_text(), parse_constant=refuse)
    assert stored["mask"]["overall"]["mean_iou"] is None
    assert "nan" not in (tmp_path / "out/report.md").read_text().lower()


# Calibration and thresholds.


def test_calibration_by_hand():
    confidence = np.array([0.05, 0.1, 0.15, 0.7, 0.75, 1.0])
    right = np.array([False, False, True, True, True, True])
    result = calibrate(confidence, right)
    assert [item.count for item in result.bins] == [1, 2, 0, 0, 0, 0, 0, 2, 0, 1]
    assert result.bins[1].mean_confidence == pytest.approx(0.125)
    assert result.bins[1].right == 0.5
    assert result.expected_error == pytest.approx((1 * 0.05 + 2 * 0.375 + 2 * 0.275 + 0) / 6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=12), st.integers(0, 3), st.floats(0, 1))
def test_the_best_threshold_is_the_best_and_the_lowest_of_equals(pairs, missed, floor):
    confidence = np.array([value / 20 for value, _ in pairs])
    right = np.array([hit for _, hit in pairs], dtype=bool)
    objects = int(right.sum()) + missed
    best = best_threshold("ball", confidence, right, objects, floor)

    def f1(threshold):
        kept = confidence >= threshold
        return 2 * right[kept].sum() / (kept.sum() + objects)

    if not right.any() or confidence.min() == 1:
        assert best.threshold is None
        assert best.f1 == pytest.approx(best.f1_without, nan_ok=True)
        return
    scores = {value: f1(value) for value in confidence}
    assert best.f1 == f1(best.threshold) == max(scores.values())
    lowest = min(value for value, score in scores.items() if score == best.f1)
    assert set(confidence[confidence >= best.threshold]) == set(confidence[confidence >= lowest])
    assert best.keeps_all == (confidence >= best.threshold).all()
    unknown = best_threshold("ball", confidence, right, objects)
    assert unknown.threshold == (None if best.keeps_all else best.threshold)


def test_thresholds_survive_the_rounding_of_confidences():
    # A dataset holds 0.123457 where the model said 0.1234567.
    best = best_threshold("ball", np.array([0.123457, 0.123456]), np.array([True, False]), 1)
    assert 0.123456 < best.threshold < 0.123457
    assert best_threshold("ball", np.array([0.123457]), np.array([True]), 1, 1.0).threshold <= 0.1234565


def test_the_thresholds_file_gives_the_f1_it_says(tmp_path):
    pictures = random_pictures(11, count=20)
    write_json(tmp_path / "run.json", {"settings": {"thresholds": {"confidence": 0.05, "box_confidence": 0.05}}})
    evaluation = evaluate_dataset(*both_sides(tmp_path, pictures), output=tmp_path / "out")
    thresholds = read_thresholds(tmp_path / "out/thresholds.json")
    assert thresholds == evaluation.thresholds
    assert set(thresholds) == set(CLASSES)
    for item in pictures:
        item.found = [thing for thing in item.found if thing.score >= thresholds[CLASSES[thing.class_id]]]
    again = evaluate(tmp_path, pictures)
    for best, before, after in zip(evaluation.mask.thresholds, evaluation.mask.scores, again.mask.scores, strict=False):
        assert best.f1_without == before.f1
        assert (best.f1, best.precision, best.recall) == (after.f1, after.precision, after.recall)
        assert after.f1 >= before.f1
    assert again.mask.scores[-1].f1 > evaluation.mask.scores[-1].f1


@pytest.mark.parametrize(
    "content", ["", "[0.5]", '{"ball": 1.5}', '{"ball": "0.5"}', '{"ball": true}', '{"ball": NaN}', '{"ball": null}']
)
def test_damaged_thresholds_are_refused(tmp_path, content):
    path = tmp_path / "thresholds.json"
    path.write_text(content)
    with pytest.raises(SettingError, match=r"Expected .*thresholds\.json"):
        read_thresholds(path)


def test_missing_thresholds_are_refused(tmp_path):
    with pytest.raises(SettingError, match="nothing there"):
        read_thresholds(tmp_path / "no.json")


# Reading.


def yolo_polygon(thing, hw):
    """The corners of a rectangle, a quarter pixel inside, as the package writes them."""
    x, y, width, height = thing.xywh
    corners = [(x, y), (x, y + height - 1), (x + width - 1, y + height - 1), (x + width - 1, y)]
    return " ".join(f"{(a + 0.25) / hw[1]:.5f} {(b + 0.25) / hw[0]:.5f}" for a, b in corners)


def yolo_box(thing, hw):
    x, y, width, height = thing.xywh
    return f"{(x + width / 2) / hw[1]} {(y + height / 2) / hw[0]} {width / hw[1]} {height / hw[0]}"


def write_yolo(folder, pictures, side, *, shape=yolo_polygon, confidence="file", images=True, layout="{part}"):
    for item in pictures:
        stem = Path(item.name).stem
        places = [folder / layout.format(part=part) for part in ("images", "labels")]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        if images:
            Image.new("L", item.hw[::-1]).save(places[0] / item.name)
        things = getattr(item, side)
        lines = [f"{thing.class_id} {shape(thing, item.hw)}" for thing in things]
        if confidence == "line":
            lines = [f"{line} {thing.score}" for line, thing in zip(lines, things, strict=True)]
        (places[1] / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines))
        if confidence == "file":
            scores = "".join(f"{1.0 if thing.score is None else thing.score}\n" for thing in things)
            (places[1] / f"confidence-{stem}.txt").write_text(scores)
    return folder


def rectangles(seed=0, count=6):
    """Like the random pictures, with rectangles, which every format holds exactly."""
    pictures = random_pictures(seed, count, crowds=False)
    for item in pictures:
        for thing in item.truth + item.found:
            thing.mask = rectangle(*(int(value) for value in thing.xywh), item.hw)
    return pictures


def test_all_formats_give_the_same_numbers(tmp_path):
    pictures = rectangles()
    found, truth = both_sides(tmp_path, pictures)
    expected = evaluate_dataset(found, truth)
    runs = write_json(tmp_path / "runs.json", coco_content(pictures, "found", masks="runs"))
    yolo = {}
    for name, keywords in {
        "plain": {},
        "in line": {"confidence": "line"},
        "bare": {"images": False},
        "split": {"layout": "valid/{part}"},
        "other way round": {"layout": "{part}/train"},
    }.items():
        yolo[name] = write_yolo(tmp_path / name, pictures, "found", **keywords)
    for name, paths in {
        "plain": {"train": "images", "val": "images"},
        "bare": {"train": "../images"},
        "in line": {"path": ".", "test": ["images"]},
        "split": {"val": "valid/images"},
        "other way round": {"train": "images/train"},
    }.items():
        names = CLASSES if name == "plain" else dict(enumerate(CLASSES))
        content = {**paths, "names": names} if name != "plain" else {"val": "images", "names": names}
        (yolo[name] / "data.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    for path in [runs, *yolo.values(), yolo["plain"] / "data.yaml"]:
        evaluation = evaluate_dataset(path, truth)
        # Sums over images come in another order, but all is the same.
        for kind in ("mask", "box"):
            assert numbers(evaluation, kind) == numbers(expected, kind), path
    (yolo["bare"] / "labels/classes.txt").write_text("ball")
    assert [image.names[0] for image in read_labels(yolo["bare"]).images] == [f"train/{index:02}" for index in range(6)]
    write_yolo(tmp_path / "gt", pictures, "truth")
    (tmp_path / "gt/classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    assert numbers(evaluate_dataset(yolo["bare"], tmp_path / "gt")) == numbers(expected)


def test_yolo_boxes_are_boxes(tmp_path):
    pictures = rectangles(2)
    found, truth = both_sides(tmp_path, pictures)
    write_yolo(tmp_path / "yolo", pictures, "found", shape=yolo_box)
    (tmp_path / "yolo/classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    evaluation, expected = evaluate_dataset(tmp_path / "yolo", truth), evaluate_dataset(found, truth)
    assert evaluation.mask is None
    assert evaluation.box.scores[-1].matched == expected.box.scores[-1].matched
    assert_same(evaluation.box.average_precision, expected.box.average_precision)


def test_coco_polygons_are_filled_as_pycocotools_fills_them(tmp_path):
    content = coco_content([one([(5, 5, 20, 20)], [])], "truth", ["ball"])
    polygons = [[5.5, 5, 40, 8.5, 20, 50], [50, 5, 70, 5, 70, 20, 50, 20]]
    content["annotations"][0]["segmentation"] = polygons
    path = write_json(tmp_path / "truth.json", content)
    coco = COCO(str(path))
    own = read_labels(path).images[0].objects((60, 80))[0].rle
    assert np.array_equal(decoded(own), decoded(coco.annToRLE(coco.anns[1])))


def decoded(rle):
    with warnings.catch_warnings():
        # pycocotools 2.0.11 with NumPy 2.
        warnings.simplefilter("ignore", DeprecationWarning)
        return coco_mask.decode(rle)


SIZES = st.tuples(st.integers(1, 60), st.integers(1, 90))
OUTLINES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=9).map(
    lambda points: " ".join(f"{x:.5f} {y:.5f}" for x, y in points)
)


@settings(max_examples=40, deadline=None)
@given(hw=SIZES, outline=OUTLINES)
def test_yolo_outlines_are_filled_as_on_the_whole_image(hw, outline):
    mask = np.zeros(hw, dtype=np.uint8)
    points = np.array([float(word) for word in outline.split()]).reshape(-1, 2) * hw[::-1]
    cv2.fillPoly(mask, [points.astype(np.int32)], color=1)
    assert np.array_equal(decoded(parse_line(f"0 {outline}", None, ["ball"], hw).rle), mask)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(hw=SIZES, outline=OUTLINES)
def test_yolo_outlines_are_filled_as_ultralytics_fills_them(hw, outline):
    utils = pytest.importorskip("ultralytics.data.utils")
    points = np.array([float(word) for word in outline.split()]).reshape(-1, 2) * hw[::-1]
    mask = utils.polygon2mask(hw, [points.ravel()])
    assert np.array_equal(decoded(parse_line(f"0 {outline}", None, ["ball"], hw).rle), mask)


def labelled_folder(folder, pictures, coco=True):
    """A labelled folder as the contract of labelling has it, in two splits."""
    journal = []
    for split, part in (("train", pictures[::2]), ("valid", pictures[1::2])):
        write_yolo(folder, part, "found", layout=split + "/{part}", confidence=None, images=coco)
        if coco:
            write_json(folder / split / "_annotations.coco.json", coco_content(part, "found", prefix="images/"))
        else:
            shutil.rmtree(folder / split / "labels")
        for item in part:
            annotations = [
                {
                    "class_id": thing.class_id, "bbox": thing.xywh, "area": float(thing.mask.sum()),
                    "segmentation": thing.rle, "confidence": thing.score, "data": {"prompt": "x", "source": "text"},
                }
                for thing in item.found
            ]  # fmt: skip
            journal.append(
                {
                    "source": f"monday/{item.name}", "file": item.name, "split": split, "width": item.hw[1],
                    "height": item.hw[0], "annotations": annotations,
                }
            )  # fmt: skip
    lines = [{**journal[0], "annotations": []}, {"event": "wrote", "file": "data.yaml"}, *journal]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "journal.jsonl").write_text(text + '{"cut')
    content = {"train": "train/images", "val": "valid/images", "nc": 3, "names": CLASSES}
    (folder / "data.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return folder


@pytest.mark.parametrize("coco", [True, False])
def test_labelled_folders_whole_and_by_split(tmp_path, coco):
    pictures = rectangles(4)
    folder = labelled_folder(tmp_path / "out", pictures, coco=coco)
    truth = both_sides(tmp_path, pictures)[1]
    assert numbers(evaluate_dataset(folder, truth)) == numbers(evaluate(tmp_path / "x", pictures))
    split = evaluate_dataset(folder / "valid", truth)
    assert split.images_missed == 3
    for item in pictures[::2]:
        item.found = []
    assert numbers(split) == numbers(evaluate(tmp_path / "y", pictures))
    other_way = evaluate_dataset(truth, folder / "valid")
    assert (other_way.images, other_way.images_missed, other_way.images_left_out) == (3, 0, 3)
    assert "3 images of the dataset are not in the ground truth" in format_report(other_way)


def test_the_journal_says_where_an_image_came_from(tmp_path):
    pictures = rectangles(4, count=2)
    folder = labelled_folder(tmp_path / "out", pictures)
    content = coco_content(pictures, "truth", prefix="monday/")
    # Another image of the same name in another folder, which was not labelled.
    content["images"].append({"id": 1, "file_name": "tuesday/00.jpg", "height": 9, "width": 9})
    evaluation = evaluate_dataset(folder, write_json(tmp_path / "truth.json", content))
    assert (evaluation.images, evaluation.images_missed, evaluation.images_left_out) == (3, 1, 0)


@pytest.mark.parametrize("side", ["found", "truth"])
def test_a_split_may_be_empty(tmp_path, side):
    pictures = random_pictures(4, count=4)
    files = {name: tmp_path / name for name in ("found", "truth")}
    for name, folder in files.items():
        write_json(folder / "train/_annotations.coco.json", coco_content(pictures, name))
    empty = {"images": [], "annotations": [], "categories": coco_content([], side)["categories"]}
    coco = write_json(files[side] / "valid/_annotations.coco.json", empty)
    evaluation = evaluate_dataset(*files.values())
    assert numbers(evaluation) == numbers(evaluate(tmp_path / "x", pictures))
    write_json(files[side] / "train/_annotations.coco.json", empty)
    for path in (files[side], coco):
        with pytest.raises(LabelingError, match=rf"Expected at least one image.*{side}"):
            evaluate_dataset(
                **{"dataset": files["found"], "ground_truth": files["truth"]}
                | {("dataset" if side == "found" else "ground_truth"): path}
            )
    write_json(coco, {"annotations": [], "categories": empty["categories"]})
    with pytest.raises(LabelingError, match=r"received one with \['annotations', 'categories'\]"):
        read_labels(files[side])


def test_ids_may_be_whole_numbers_with_a_point(tmp_path):
    pictures = random_pictures(4, count=3)
    found, truth = both_sides(tmp_path, pictures)
    content = json.loads(found.read_text())
    for annotation in content["annotations"]:
        annotation["image_id"] = float(annotation["image_id"])
        annotation["category_id"] = float(annotation["category_id"])
    write_json(found, content)
    assert numbers(evaluate_dataset(found, truth)) == numbers(evaluate(tmp_path / "x", pictures))
    content["annotations"][0]["image_id"] += 0.5
    with pytest.raises(LabelingError, match="image_id"):
        evaluate_dataset(write_json(found, content), truth)


@pytest.mark.parametrize("images", [True, False])
def test_mask_images_in_a_split_are_no_images(tmp_path, images):
    pictures = rectangles(4)
    folder = labelled_folder(tmp_path / "out", pictures)
    for split, part in (("train", pictures[::2]), ("valid", pictures[1::2])):
        (folder / split / "_annotations.coco.json").unlink()
        (folder / split / "masks").mkdir()
        for item in part:
            Image.new("L", item.hw[::-1]).save(folder / split / "masks" / f"{Path(item.name).stem}.png")
            if not images:
                (folder / split / "images" / item.name).unlink()
    names = [image.names[0] for image in read_labels(folder / "train").images]
    assert names == [item.name if images else item.name.removesuffix(".jpg") for item in pictures[::2]]
    assert evaluate_dataset(folder, both_sides(tmp_path, pictures)[1]).images_left_out == 0


def renamed(folder, pictures, side, names):
    content = coco_content(pictures, side)
    for image, name in zip(content["images"], names, strict=True):
        image["file_name"] = name
    return write_json(folder / f"{side}.json", content)


@pytest.mark.parametrize(
    "names",
    [
        (["a.jpg", "b.jpg"], ["a.png", "b.jpg"]),
        (["a.jpg", "a.png"], ["a.jpg", "a.png"]),
        (["images/a.jpg", "b.jpg"], ["val2017/a.jpg", "b.bmp"]),
        (["x/a.jpg", "y/a.jpg"], ["y\\a.jpg", "./x/a.jpg"][::-1]),
        (["ä 1.2.jpg", "ä 1.3.jpg"], ["deep/er/ä 1.2.webp", "ä 1.3.webp"]),
    ],
)
def test_images_are_matched_by_name(tmp_path, names):
    pictures = random_pictures(1, count=2)
    found, truth = (renamed(tmp_path, pictures, *side) for side in zip(("found", "truth"), names, strict=True))
    evaluation = evaluate_dataset(found, truth)
    assert evaluation.images_missed == evaluation.images_left_out == 0
    assert numbers(evaluation) == numbers(evaluate(tmp_path / "plain", pictures))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((["a.jpg", "b.jpg"], ["a.png", "a.webp"]), r"Expected one image named 'a'.*'a.jpg'.*'a.png', 'a.webp'"),
        ((["x/a.jpg", "y/a.jpg"], ["a.jpg", "c.jpg"]), r"named 'a.jpg'.*'x/a.jpg', 'y/a.jpg'"),
        ((["a.jpg", "b.jpg"], ["c.jpg", "d.jpg"]), r"received none: 'a.jpg', 'b.jpg'.*'c.jpg', 'd.jpg'"),
    ],
)
def test_names_that_fit_none_or_several_are_refused(tmp_path, names, message):
    pictures = random_pictures(1, count=2)
    found, truth = (renamed(tmp_path, pictures, *side) for side in zip(("found", "truth"), names, strict=True))
    with pytest.raises(LabelingError, match=message):
        evaluate_dataset(found, truth)


def test_classes_of_one_side_are_said_and_do_not_count(tmp_path):
    pictures = random_pictures(2)
    found = write_json(tmp_path / "found.json", coco_content(pictures, "found", ["ball", "cone", "box"]))
    truth = write_json(tmp_path / "truth.json", coco_content(pictures, "truth", ["ball", "cap", "box"]))
    evaluation = evaluate_dataset(found, truth)
    assert evaluation.classes == ("ball", "box")
    assert (evaluation.classes_left_out, evaluation.classes_not_asked) == (("cone",), ("cap",))
    report = format_report(evaluation)
    assert "left out: cone" in report
    assert "left out: cap" in report
    whole = evaluate(tmp_path / "whole", pictures).mask
    assert [score.matched for score in evaluation.mask.scores[:2]] == [whole.scores[0].matched, whole.scores[2].matched]
    truth = write_json(tmp_path / "truth.json", coco_content(pictures, "truth", ["Ball", "cap", "lid"]))
    with pytest.raises(
        LabelingError, match=r"\['ball', 'cone', 'box'\].*\['Ball', 'cap', 'lid'\].*Did you mean 'Ball' .*'ball'"
    ):
        evaluate_dataset(found, truth)
    assert "did you mean" not in report
    truth = write_json(tmp_path / "truth.json", coco_content(pictures, "truth", ["Ball", "cap", "box"]))
    assert "did you mean 'Ball' of the ground truth by 'ball' of the dataset?" in format_report(
        evaluate_dataset(found, truth)
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((["x/a.jpg", "y/b.jpg"], ["z/a.jpg", "y/b.jpg"]), 1),
        ((["x/a.jpg", "y/b.jpg"], ["z/a.png", "w/b.png"]), 2),
        ((["deep/x/a.jpg", "b.jpg"], ["x/a.jpg", "y/b.jpg"]), 0),
        ((["images/a.jpg", "train/b.jpg"], ["x/a.jpg", "valid/images/b.jpg"]), 0),
    ],
)
def test_images_whose_folders_contradict_are_counted(tmp_path, names, expected):
    pictures = random_pictures(1, count=2)
    found, truth = (renamed(tmp_path, pictures, *side) for side in zip(("found", "truth"), names, strict=True))
    evaluation = evaluate_dataset(found, truth)
    assert evaluation.images_in_other_folders == expected
    said = {0: "", 1: "1 image was matched by its name alone", 2: "2 images were matched by their names alone"}
    report = format_report(evaluation)
    assert said[expected] in report
    assert ("alone" in report) == bool(expected)


def test_sources_that_contradict_are_counted(tmp_path):
    pictures = rectangles(4, count=2)
    folder = labelled_folder(tmp_path / "out", pictures)
    for day, count in (("monday", 0), ("tuesday", 2)):
        truth = write_json(tmp_path / "truth.json", coco_content(pictures, "truth", prefix=f"{day}/"))
        assert evaluate_dataset(folder, truth).images_in_other_folders == count


def test_notes_say_one_and_several(tmp_path):
    def notes(pictures, truth):
        found = write_json(tmp_path / "found.json", coco_content(pictures, "found", masks="none"))
        truth = write_json(tmp_path / "truth.json", coco_content(truth, "truth", masks="none"))
        return format_report(evaluate_dataset(found, truth))

    def pictures(first, count):
        made = []
        for name in ("a.jpg", *(f"{index}.jpg" for index in range(first, first + count))):
            item = one([(5, 5, 20, 20)], [(5, 5, 20, 20)])
            item.name = name
            made.append(item)
        made[0].truth += [Thing(0, rectangle(40, 30, 9, 9), crowd=True) for _ in range(count)]
        return made

    one_each = notes([*pictures(0, 1)], [*pictures(5, 1)])
    for line in (
        "- 1 image is not in the dataset; its objects count as missed",
        "- 1 image of the dataset is not in the ground truth and was left out",
        "- 1 crowd in the ground truth counts neither as an object nor, where found, as wrong",
        "- 1 object of the dataset has no confidence and was taken as certain",
        "- 1 object of the dataset has no mask: only boxes were compared",
    ):
        assert line in one_each
    two_each = notes(pictures(0, 2), pictures(5, 2))
    for line in (
        "- 2 images are not in the dataset; their objects count as missed",
        "- 2 images of the dataset are not in the ground truth and were left out",
        "- 2 crowds in the ground truth count neither as objects nor, where found, as wrong",
    ):
        assert line in two_each


def test_images_of_other_sizes_are_refused(tmp_path):
    pictures = random_pictures(2, count=2)
    found, _ = both_sides(tmp_path, pictures)
    content = coco_content(pictures, "truth", masks="none")
    content["images"][1] |= {"width": pictures[1].hw[0], "height": pictures[1].hw[1]}
    with pytest.raises(LabelingError, match=r"size of image '01.jpg'.*upright"):
        evaluate_dataset(found, write_json(tmp_path / "truth.json", content))


def test_sizes_come_from_the_images_where_the_labels_have_none(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (60, 80)).save(tmp_path / "a.jpg", exif=turned)
    pictures = [one([(5, 5, 20, 20)], [(5, 5, 20, 20, 0.9)])]
    files = both_sides(tmp_path, pictures)
    for file in files:
        content = json.loads(file.read_text())
        del content["images"][0]["width"]
        write_json(file, content)
    assert evaluate_dataset(*files).mask.scores[-1].matched == 1
    for pixels in (3000, 100):  # for which Pillow warns, and refuses
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
            assert evaluate_dataset(*files).mask.scores[-1].matched == 1
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a\.jpg"):
        evaluate_dataset(*files)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(LabelingError, match=r"size of image 'a.jpg'"):
        evaluate_dataset(*files)


def edited(**changes):
    def change(content):
        content["annotations"][0].update(changes)
        return content

    return change


DAMAGES = {
    "key no text": lambda content: "{1: 2, " + json.dumps(content)[1:],
    "cut short": lambda content: json.dumps(content)[:-20],
    "text behind": lambda content: json.dumps(content) + "]",
    "two commas": lambda content: json.dumps(content).replace(", ", ",, ", 1),
    "comma at the end": lambda content: json.dumps(content)[:-2] + ",]}",
    "empty": lambda content: "",
    "a list": lambda content: content["annotations"],
    "no images": lambda content: content | {"images": []},
    "images no list": lambda content: content | {"images": {}},
    "image no object": lambda content: content | {"images": [3]},
    "image twice": lambda content: content | {"images": content["images"] * 2},
    "image without name": lambda content: content | {"images": [{"id": 10}]},
    "unknown image": edited(image_id=99),
    "image id null": edited(image_id=None),
    "unknown category": edited(category_id=99),
    "box of three": edited(bbox=[1, 2, 3]),
    "box not finite": edited(bbox=[1, 2, 3, math.inf]),
    "box inside out": edited(bbox=[1, 2, -3, 4]),
    "neither": edited(bbox=None, segmentation=None),
    "score too high": edited(score=1.5),
    "score is text": edited(score="0.5"),
    "mask of other size": edited(segmentation={"size": [80, 60], "counts": "P\\"}),
    "mask too short": edited(segmentation={"size": [60, 80], "counts": "5"}),
    "mask cut": edited(segmentation={"size": [60, 80], "counts": "PPP"}),
    "mask not ASCII": edited(segmentation={"size": [60, 80], "counts": "ä"}),
    "mask negative": edited(segmentation={"size": [60, 80], "counts": [-1, 4801]}),
    "mask not whole": edited(segmentation={"size": [60, 80], "counts": [0.5, 4799.5]}),
    "mask no text": edited(segmentation={"size": [60, 80], "counts": 3}),
    "mask is text": edited(segmentation="all"),
    "polygon odd": edited(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
    "polygon far away": edited(segmentation=[[0, 0, 1e12, 0, 0, 1e12]]),
    "polygon of words": edited(segmentation=[["a", "b", "c", "d", "e", "f"]]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_coco_files_are_refused(tmp_path, damage):
    pictures = [one([(5, 5, 20, 20)], [(5, 5, 20, 20, 0.5)])]
    found, truth = both_sides(tmp_path, pictures, classes=["ball"])
    content = DAMAGES[damage](json.loads(found.read_text()))
    found.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(LabelingError, match=r"(?s)Expected .*found\.json"):
        evaluate_dataset(found, truth)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.5", "a class and a box or outline"),
        ("1 0.5 0.5 0.5 0.5", "a class among 0 to 0, received 1"),
        ("0.5 0.5 0.5 0.5 0.5", "a class among"),
        ("0 12 0.5 0.5 0.5", "coordinates between 0 and 1"),
        ("0 nan 0.5 0.5 0.5", "coordinates between 0 and 1"),
        ("0 a 0.5 0.5 0.5", "could not convert"),
        ("0 0.5 0.5 0.5 0.5 1.5", "a confidence between 0 and 1"),
    ],
)
def test_damaged_yolo_lines_are_refused(tmp_path, line, reason):
    pictures = [one([(5, 5, 20, 20)], [(5, 5, 20, 20, 0.5)])]
    _, truth = both_sides(tmp_path, pictures, classes=["ball"])
    folder = write_yolo(tmp_path / "yolo", pictures, "found", confidence=None)
    (folder / "classes.txt").write_text("ball")
    (folder / "labels/a.txt").write_text(f"0 0.5 0.5 0.5 0.5\n\n{line}\n")
    with pytest.raises(LabelingError, match=rf"a\.txt: object 2: .*{reason}"):
        evaluate_dataset(folder, truth)
    (folder / "labels/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (folder / "labels/confidence-a.txt").write_text("0.5\n0.6\n")
    with pytest.raises(LabelingError, match="as many confidences as objects, received 2 beside 1"):
        evaluate_dataset(folder, truth)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: [a", "damaged"),
        ("- a", "received list"),
        ("train: images", "list of class names"),
        ("train: images\nnames: {0: a, 2: b}", "the classes 0, 1"),
        ("train: elsewhere\nnames: [a]", "the folders that"),
        ("train: images\nnames: [a]\nkpt_shape: [17, 3]", "keypoints"),
    ],
)
def test_damaged_data_yaml_is_refused(tmp_path, content, message):
    pictures = [one([(5, 5, 20, 20)], [(5, 5, 20, 20, 0.5)])]
    folder = write_yolo(tmp_path / "yolo", pictures, "found")
    (folder / "data.yaml").write_text(content)
    with pytest.raises(LabelingError, match=rf"(?s)Expected .*{message}"):
        read_labels(folder)


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(InputFolderError, match="nothing there"):
        read_labels(tmp_path / "no")
    with pytest.raises(LabelingError, match="Expected a folder with"):
        read_labels(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(LabelingError, match="COCO file"):
        read_labels(tmp_path / "a.txt")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("")
    with pytest.raises(LabelingError, match=r"classes\.txt"):
        read_labels(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(JSON, max_size=5), other=JSON, chunk=st.integers(1, 9), ascii_only=st.booleans(), bom=st.booleans()
)
def test_lists_are_streamed_as_json_reads_them(tmp_path_factory, items, other, chunk, ascii_only, bom):
    path = tmp_path_factory.mktemp("json") / "a.json"
    content = {"before": other, "items": items, "between ü": [other], "more": [*items, 12]}
    try:
        encoded = json.dumps(content, ensure_ascii=ascii_only, indent=chunk % 3 or None).encode()
    except UnicodeEncodeError:
        return
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + encoded)
    with pytest.MonkeyPatch.context() as patch, path.open("rb") as file:
        patch.setattr(json_stream, "_CHUNK", chunk)
        read = list(json_stream.list_items(path, ["items", "more"]))
        assert [item.value for item in read] == [*items, *items, 12]
        assert [json_stream.read_item(file, item.offset, item.length) for item in read] == [*items, *items, 12]


def test_memory_does_not_hold_the_annotations(tmp_path):
    pictures = [Picture(f"{index}.jpg", truth=[Thing(0, rectangle(5, 5, 20, 20), 0.5)]) for index in range(80)]
    content = coco_content(pictures, "truth")
    for annotation in content["annotations"]:
        annotation["note"] = "x" * 150_000
    path = write_json(tmp_path / "a.json", content)
    del content
    assert path.stat().st_size > 12e6
    tracemalloc.start()
    try:
        evaluation = evaluate_dataset(path, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert evaluation.mask.scores[-1].matched == 80
    # A megabyte at a time, and what it is read into.
    assert peak < 6e6


# Files.


def test_the_files_are_the_same_each_time(tmp_path, capfd):
    files = both_sides(tmp_path, random_pictures(9))
    evaluation = evaluate_dataset(*files, output=tmp_path / "one")
    evaluate_dataset(*files, output=tmp_path / "two")
    names = {"evaluation.json", "thresholds.json", "calibration.png", "report.md"}
    assert {path.name for path in (tmp_path / "one").iterdir()} == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert capfd.readouterr() == ("", "")
    stored = json.loads((tmp_path / "one/evaluation.json").read_text(encoding="utf-8"))
    assert stored["mask"]["overall"]["concepts"]["cgF1"] == evaluation.mask.concepts["cgF1"]
    assert set(stored["mask"]["classes"]) == set(CLASSES)
    assert stored["mask"]["classes"]["ball"]["f1"] == evaluation.mask.scores[0].f1
    assert (tmp_path / "one/report.md").read_text(encoding="utf-8").startswith(format_report(evaluation))


def test_the_plot_shows_the_calibration(tmp_path):
    evaluate_dataset(*both_sides(tmp_path, random_pictures(9)), output=tmp_path / "out")
    with Image.open(tmp_path / "out/calibration.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert min(pixels.shape[:2]) >= 600
    # Bars in blue on white.
    assert ((pixels[..., 2] - pixels[..., 0]) > 25).mean() > 0.02
    assert (pixels == 255).all(axis=2).mean() > 0.5


def test_only_an_earlier_evaluation_is_replaced(tmp_path):
    pictures = random_pictures(9, count=4)
    files, out = both_sides(tmp_path, pictures), tmp_path / "out"
    out.mkdir()
    evaluate_dataset(*files, output=out)
    (out / "notes.txt").write_text("mine")
    (out / "report.md").write_text("old")
    evaluate_dataset(*files, output=out)
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "report.md").read_text(encoding="utf-8").startswith("# Evaluation")
    (out / "evaluation.json").write_text('{"format": "other"}')
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(OutputFolderError, match="something else"):
        evaluate_dataset(*files, output=out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(OutputFolderError, match="received a file"):
        evaluate_dataset(*files, output=files[0])


def test_a_refused_folder_is_refused_before_the_work(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(OutputFolderError):
        evaluate_dataset(tmp_path / "no", tmp_path / "no", output=tmp_path)


def test_the_default_folder_is_beside_the_dataset():
    assert default_evaluation_folder(Path("a/b_labeled")) == Path("a/b_labeled_evaluation")
    assert default_evaluation_folder(Path("a/found.json")) == Path("a/found_evaluation")


@pytest.mark.parametrize("mark", ["data.yaml", "run.json"])
def test_the_default_folder_is_never_in_a_labelled_folder(tmp_path, monkeypatch, mark):
    out = tmp_path / "out"
    (out / "train").mkdir(parents=True)
    (out / mark).touch()
    (out / "train/_annotations.coco.json").touch()
    expected = {
        "": "out_evaluation", "train": "out_train_evaluation", "data.yaml": "out_data_evaluation",
        "train/_annotations.coco.json": "out_train_evaluation", "found.json": "out_found_evaluation",
    }  # fmt: skip
    for name, folder in expected.items():
        (out / name).exists() or (out / name).touch()
        assert default_evaluation_folder(out / name) == tmp_path / folder
        monkeypatch.chdir(out)
        assert default_evaluation_folder(Path(name)) == tmp_path / folder
        monkeypatch.chdir(out / "train")
        assert default_evaluation_folder(".." / Path(name)).resolve() == tmp_path / folder
    assert default_evaluation_folder(Path()) == tmp_path / "out_train_evaluation"
    monkeypatch.chdir(tmp_path)
    assert default_evaluation_folder(Path("out/train")) == Path("out_train_evaluation")


def test_names_do_not_break_the_report(tmp_path):
    pictures = random_pictures(1, count=3)
    names = ["a|b", "two\nlines", "# head"]
    evaluation = evaluate_dataset(*both_sides(tmp_path, pictures, classes=names), output=tmp_path / "out")
    rows = [line for line in format_report(evaluation).splitlines() if line.startswith("| ")]
    assert any(row.startswith("| a\\|b") for row in rows)
    assert any(row.startswith("| two lines") for row in rows)
    assert "\n# " not in format_report(evaluation)


def test_a_bin_that_is_all_right_or_all_wrong_can_be_drawn():
    """Rounding put the share outside of its own interval, and nothing was written."""
    for count in range(1, 200):
        for share in (0.0, 1.0):
            low, high = wilson_interval(share, count)
            assert low <= share <= high
