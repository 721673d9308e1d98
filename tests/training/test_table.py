"""The table counts what it says it counts, and one command measures it through the public API."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from autodistill_sam3 import GroundedSAM3, SettingError
from autodistill_sam3.ontology import PromptPairs
from autodistill_sam3.training import table
from autodistill_sam3.training.__main__ import main
from autodistill_sam3.training.asking import ask, jittered_boxes, matches_of, prompt_with_boxes
from autodistill_sam3.training.drawing import SceneObject
from autodistill_sam3.training.held_out import HeldOutScene, SceneKey, held_out_scene, held_out_scenes
from autodistill_sam3.training.matching import (
    alarm_rate,
    box_overlaps,
    calibrate,
    mask_overlaps,
    match_scene,
    share_found_only_by,
)
from autodistill_sam3.training.pictures import MAX_BYTES, draw_pictures
from autodistill_sam3.training.prompts import Prompt, parse_text
from autodistill_sam3.training.scenes import MIN_VISIBLE
from autodistill_sam3.training.table import CURVE, measure, score, share_found_by, to_markdown
from autodistill_sam3.training.world import Concept, is_held_out

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

RED_STAR, ABSENT = 0, 1


# Each measures checkpoints through the whole pipeline.
pytestmark = pytest.mark.slow


def block(x, width=10):
    mask = np.zeros((20, 100), dtype=bool)
    mask[:, x : x + width] = True
    return mask


def hand_made_scene():
    """Two red stars that count at 0 and 20, and one that hardly shows at 40."""
    objects = [SceneObject("red", "star", block(x), visible) for x, visible in ((0, 1.0), (20, 0.35), (40, 0.3))]
    prompts = tuple(Prompt(f"{colour} star", Concept(colour, "star")) for colour in ("red", "blue"))
    return HeldOutScene(SceneKey(0), np.zeros((20, 100, 3), np.uint8), prompts, tuple(objects))


def matches(*detections):
    """Matches of (mask, prompt, confidence) with the hand-made scene."""
    scene = hand_made_scene()
    masks = np.array([mask for mask, _, _ in detections], dtype=bool).reshape(-1, 20, 100)
    prompt = np.array([prompt for _, prompt, _ in detections], dtype=np.int64)
    scores = np.array([value for *_, value in detections])
    return match_scene(scene, scores, prompt, *mask_overlaps(masks, scene.masks))


PERFECT = (block(0), RED_STAR, 0.9), (block(20), RED_STAR, 0.8)


def test_perfect_predictions_score_one():
    found = matches(*PERFECT)
    total = score("", found)
    assert (total.f1, total.precision, total.recall, total.mean_iou) == (1.0, 1.0, 1.0, 1.0)
    assert alarm_rate(found) == 0


def test_nothing_found_scores_zero():
    total = score("", matches())
    assert (total.objects, total.detections, total.f1) == (2, 0, 0.0)


@pytest.mark.parametrize("hidden", [block(40), block(40, 14), block(43, 3)], ids=["same", "larger", "inside"])
def test_ignored_objects_neither_help_nor_hurt(hidden):
    [red, _] = found = matches(*PERFECT, (hidden, RED_STAR, 0.7))
    assert red.ignored.tolist() == [False, False, True]
    assert score("", found) == score("", matches(*PERFECT))


def test_a_detection_mostly_beside_an_ignored_object_is_wrong():
    assert score("", matches(*PERFECT, (block(46, 20), RED_STAR, 0.7))).detections == 3


def test_an_ignored_object_excuses_only_the_prompt_that_asks_for_it():
    found = matches(*PERFECT, (block(40), ABSENT, 0.7))
    assert alarm_rate(found) == 1
    assert score("", found).detections == 3


def test_duplicates_count_once():
    [red, _] = found = matches((block(0), RED_STAR, 0.6), (block(0, 9), RED_STAR, 0.9), PERFECT[1])
    assert red.right.tolist() == [True, True, False]
    assert red.detection.tolist() == [1, 2, 0]
    total = score("", found)
    assert (total.matched, total.detections, total.objects) == (2, 3, 2)
    assert total.mean_iou == pytest.approx(0.95)


def test_masks_below_half_overlap_find_nothing():
    assert score("", matches((block(0, 4), RED_STAR, 0.9))).matched == 0
    assert score("", matches((block(0, 5), RED_STAR, 0.9))).matched == 1


def test_a_threshold_cuts_the_tail_off():
    found = matches(*PERFECT, (block(0, 9), RED_STAR, 0.3))
    assert score("", [match.above(0.85) for match in found]).recall == 0.5
    assert score("", [match.above(0.5) for match in found]).f1 == 1.0


def test_the_absent_rate_counts_prompts_and_not_detections():
    answered = matches((block(60), ABSENT, 0.6), (block(80), ABSENT, 0.4))
    assert alarm_rate([*answered, *matches()]) == 0.5
    assert alarm_rate([*answered, *matches()], threshold=0.7) == 0
    assert np.isnan(alarm_rate([matches()[RED_STAR]]))


def test_shares_found_by_one_alone():
    first, second = matches(PERFECT[0]), matches(*PERFECT)
    assert share_found_only_by(second, first) == 0.5
    assert share_found_only_by(first, second) == 0


def test_calibration_error_of_a_known_set():
    # Bin 0.8 to 0.9: confidence 0.85, half of them right; bin 0.6 to 0.7: 0.65, none right; one ignored.
    found = matches(
        (block(0), RED_STAR, 0.85), (block(60), RED_STAR, 0.85), (block(80), ABSENT, 0.65), (block(40), RED_STAR, 0.1)
    )
    result = calibrate(found)
    assert result.count.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 2, 0]
    assert result.error == pytest.approx((2 * 0.35 + 0.65) / 3)
    assert calibrate(matches((block(0), RED_STAR, 1.0))).error == 0
    assert np.isnan(calibrate([]).error)


def test_box_overlaps_count_exclusive_edges():
    iou, share = box_overlaps(np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 0, 15, 10], [20, 20, 30, 30]]))
    np.testing.assert_allclose(iou, [[1 / 3, 0]])
    np.testing.assert_allclose(share, [[0.5, 0]])


@pytest.fixture(scope="module", params=[False, True], ids=["ordinary", "never seen"])
def scenes(request):
    return list(held_out_scenes(12, unseen_pairs=request.param))


def test_half_of_the_prompts_are_absent_and_all_are_distinct(scenes):
    for scene in scenes:
        assert [len(scene.wanted(prompt)) > 0 for prompt in range(4)] == [True, True, False, False]
        assert len({prompt.concept for prompt in scene.prompts}) == len(set(scene.texts)) == 4
        assert all(parse_text(prompt.text) == prompt.concept for prompt in scene.prompts)


def test_absent_prompts_share_a_colour_or_a_shape_with_something_that_shows(scenes):
    for scene in scenes:
        clear = [scene.objects[index] for index in scene.clear]
        for concept in (prompt.concept for prompt in scene.prompts[2:]):
            assert concept.known
            assert not is_held_out(concept.colour, concept.shape)
            assert any(item.colour == concept.colour or item.shape == concept.shape for item in clear)
            assert not any(concept.matches(item.colour, item.shape) for item in scene.objects)


def test_truth_is_what_shows(scenes):
    for scene in scenes:
        for prompt in range(4):
            assert not {*scene.wanted(prompt).tolist()} & {*scene.ignored(prompt).tolist()}
            assert all(scene.objects[index].visible >= MIN_VISIBLE for index in scene.wanted(prompt))
            assert all(scene.objects[index].visible < MIN_VISIBLE for index in scene.ignored(prompt))
        assert scene.masks[scene.clear].any(axis=(1, 2)).all()


def test_images_have_the_sizes_of_a_users(scenes):
    for scene in scenes:
        height, width = scene.image.shape[:2]
        assert max(height, width) <= 512
        assert min(height, width) >= 240
        assert max(height, width) <= 2 * min(height, width)
    assert len({scene.image.shape for scene in scenes}) > len(scenes) // 2


def test_the_same_scenes_come_again(scenes):
    for scene in scenes[:3]:
        again = held_out_scene(scene.key)
        np.testing.assert_array_equal(again.image, scene.image)
        assert again.prompts == scene.prompts
    first = next(held_out_scenes(1, unseen_pairs=scenes[0].key.unseen_pairs))
    np.testing.assert_array_equal(first.image, scenes[0].image)


def test_only_the_scenes_meant_for_it_draw_and_ask_for_pairs_that_training_leaves_out(scenes):
    for scene in scenes:
        drawn = any(is_held_out(item.colour, item.shape) for item in scene.objects)
        asked = [is_held_out(prompt.concept.colour, prompt.concept.shape) for prompt in scene.prompts]
        assert drawn == scene.key.unseen_pairs
        assert asked == [scene.key.unseen_pairs] * 2 + [False] * 2


def test_boxes_are_jittered_by_at_most_a_twentieth():
    for scene in held_out_scenes(3):
        boxes, exact = jittered_boxes(scene), scene.boxes_xyxy[scene.clear]
        size = np.tile(exact[:, 2:] - exact[:, :2], 2)
        moved = np.abs(boxes.xyxy - exact) / size
        assert 0 < moved.max() <= 0.05 + 1e-6
        assert boxes.prompt_index.tolist() == scene.clear.tolist()


def test_an_empty_box_counts_as_nothing_found(shapes_segmenter):
    class Silent:
        class segmenter:
            encode = staticmethod(shapes_segmenter.encode)

            @staticmethod
            def segment_boxes(features, boxes):
                return [shapes_segmenter.segment_boxes(features, boxes)[0].select([])]

    answer = prompt_with_boxes(Silent, next(held_out_scenes(1)))
    assert answer.iou.tolist() == [0.0] * len(answer.boxes)
    assert np.isnan(answer.predicted_iou).all()


def test_filtering_by_score_equals_running_at_the_threshold():
    ontology = PromptPairs((("star", "star"),))
    low, default = (
        GroundedSAM3(
            ontology, checkpoint="shapes", prompting="text", confidence=value, overlapping_classes="keep", device="cpu"
        )
        for value in (CURVE[0], 0.5)
    )
    for scene in held_out_scenes(3):
        for filtered, run in zip(matches_of([ask(low, scene)], 0.5), ask(default, scene).matches, strict=True):
            np.testing.assert_array_equal(filtered.scores, run.scores)
            np.testing.assert_array_equal(filtered.found, run.found)
            np.testing.assert_array_equal(filtered.iou, run.iou)


@pytest.fixture(scope="module", autouse=True)
def few_timed_images():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "_TIMED_IMAGES", 2)
        yield


@pytest.fixture(scope="module")
def measurement():
    threads = torch.get_num_threads()
    result = measure("shapes", scenes=4, progress=False)
    assert torch.get_num_threads() == threads
    return result


def test_one_command_measures_everything(measurement):
    numbers = measurement.numbers
    assert (numbers.scenes, numbers.unseen_scenes) == (4, 1)
    assert {name: len(answers) for name, answers in measurement.answers.items()} == {
        "text": 4, "boxes": 4, "both": 4, "florence2": 4, "unseen": 1,
    }  # fmt: skip
    assert numbers.text == numbers.text_curve[0.5]
    asked = {numbers.text.objects, numbers.boxes.objects, numbers.both.objects, numbers.florence2.objects}
    assert len(asked) == 1
    assert numbers.both.f1 > 0.3
    assert 0.5 < numbers.box_iou <= 1
    for share in (numbers.absent_answered, numbers.florence2_absent_answered, numbers.only_boxes, numbers.only_text):
        assert 0 <= share <= 1
    assert set(numbers.milliseconds) == {"text", "boxes", "both"}
    assert all(size > 1 for size in numbers.megabytes.values())
    assert json.loads(json.dumps(numbers.as_dict()))["scenes"] == 4


def test_the_table_has_every_row(measurement):
    lines = to_markdown(measurement.numbers).splitlines()
    first, second = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert all(line.count("|") == 3 for line in first)
    assert all(line.count("|") == len(CURVE) + 2 for line in second)
    assert f"{measurement.numbers.text.f1:.3f}" in first[2]


def test_every_row_has_a_picture(measurement, tmp_path):
    paths = draw_pictures(measurement, tmp_path / "new")
    assert {path.stem for path in paths} == {
        "text", "absent", "never_seen_pairs", "box_prompts", "florence2", "boxes", "both", "calibration",
    }  # fmt: skip
    for path in paths:
        assert path.stat().st_size <= MAX_BYTES
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert min(image.size) > 300


def test_the_command_prints_the_table_and_writes_numbers_and_pictures(tmp_path, capsys):
    numbers, pictures = tmp_path / "deep" / "numbers.json", tmp_path / "pictures"
    options = ["--scenes", "1", "--hiding", "0.3", "--json", str(numbers), "--pictures", str(pictures)]
    assert main(["evaluate", "shapes", *options]) == 0
    assert capsys.readouterr().out.startswith("|")
    assert json.loads(numbers.read_text())["scenes"] == 1
    assert (pictures / "text.jpg").is_file()


def test_what_only_boxes_or_only_text_found_is_told_apart(measurement):
    answers = measurement.answers["both"]
    shares = [share_found_by(answers, source) for source in ("text", "boxes", "both")]
    assert sum(shares) == pytest.approx(measurement.numbers.both.recall)
    assert share_found_by([], "text") != share_found_by([], "text")  # NaN


def test_no_scenes_are_refused():
    with pytest.raises(SettingError, match="at least 1, received 0"):
        measure("shapes", scenes=0)


@pytest.mark.parametrize("hiding", [-0.1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(hiding):
    with pytest.raises(SettingError, match="hiding between 0 and 1"):
        measure("shapes", scenes=1, hiding=hiding)
