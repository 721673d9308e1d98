"""Florence-2: answers are read right, and batches change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scenes import held_out_scenes
from transformers import AutoProcessor

from autodistill_sam3.grounding import florence2
from autodistill_sam3.grounding.answers import parse_answer
from autodistill_sam3.weights import FLORENCE2, find_checkpoint

BEGIN, END, WORD, OTHER_WORD, LOC = 0, 2, 7, 8, 100


def read(*tokens, probabilities=None):
    ids = np.array(tokens, np.int64)
    values = np.zeros(len(ids), np.float32) if probabilities is None else np.log(np.array(probabilities, np.float32))
    return parse_answer(ids, values, LOC)


def loc(*bins):
    return [LOC + value for value in bins]


def test_several_boxes_of_one_phrase():
    answer = read(BEGIN, WORD, WORD, *loc(0, 0, 499, 999), *loc(500, 100, 999, 199), END)
    np.testing.assert_allclose(answer.xyxy, [[0.0005, 0.0005, 0.4995, 0.9995], [0.5005, 0.1005, 0.9995, 0.1995]])


def test_score_is_the_geometric_mean_of_the_locations_alone():
    answer = read(WORD, *loc(1, 2, 30, 40), END, probabilities=[0.1, 0.9, 0.4, 0.9, 0.4, 0.2])
    assert answer.scores.tolist() == pytest.approx([0.6])


def test_only_the_first_phrase_counts():
    answer = read(BEGIN, WORD, *loc(0, 0, 10, 10), OTHER_WORD, *loc(20, 20, 40, 40), END)
    assert len(answer.xyxy) == 1
    answer = read(BEGIN, WORD, OTHER_WORD, *loc(0, 0, 10, 10), *loc(20, 20, 40, 40), END)
    assert len(answer.xyxy) == 2


@pytest.mark.parametrize(
    "tokens",
    [
        (),
        (BEGIN, END),
        (BEGIN, WORD, END),
        (WORD, *loc(1, 2, 3)),
        (WORD, *loc(9, 9, 9, 20)),
        (WORD, *loc(9, 9, 20, 3)),
    ],
)
def test_no_boxes(tokens):
    answer = read(*tokens)
    assert answer.xyxy.shape == (0, 4)
    assert answer.scores.shape == (0,)


def test_repeated_and_cut_boxes_are_dropped():
    answer = read(WORD, *loc(1, 2, 30, 40), *loc(1, 2, 30, 40), *loc(5, 5, 50))
    assert len(answer.xyxy) == 1


@given(st.lists(st.integers(0, LOC + 1100), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_tokens_are_read(tokens):
    answer = read(*tokens)
    assert len(answer.xyxy) == len(answer.scores)
    assert (answer.xyxy[:, 2:] > answer.xyxy[:, :2]).all()
    assert ((answer.xyxy > 0) & (answer.xyxy < 1)).all()


PROMPTS = ["red circle", "star", "blue shape", "zebra"]


@pytest.fixture(scope="module")
def images():
    return [scene.image for scene in held_out_scenes()[:4]]


def assert_same(first, second):
    np.testing.assert_allclose(first.xyxy, second.xyxy, atol=1e-3)
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-4)


def test_batched_equals_single(shapes_grounder, images, monkeypatch):
    together = shapes_grounder.ground(images, PROMPTS)
    monkeypatch.setattr(florence2, "SEQUENCES_PER_PASS", 3)
    for one, two in zip(together, shapes_grounder.ground(images, PROMPTS), strict=True):
        assert_same(one, two)
    for image, boxes in zip(images, together, strict=True):
        for index, prompt in enumerate(PROMPTS):
            [alone] = shapes_grounder.ground([image], [prompt])
            own = boxes.prompt_index == index
            np.testing.assert_allclose(alone.xyxy, boxes.xyxy[own], atol=1e-3)
            np.testing.assert_allclose(alone.scores, boxes.scores[own], atol=1e-4)


def test_padding_changes_nothing(shapes_grounder, images, monkeypatch):
    sizes = []
    encoder = shapes_grounder._model.model.language_model.encoder
    handle = encoder.register_forward_pre_hook(
        lambda _, __, keywords: sizes.append(len(keywords["inputs_embeds"])), with_kwargs=True
    )
    wanted = [[0, 1], [], [2], [1]]
    try:
        plain = shapes_grounder.ground(images, PROMPTS, wanted)
        monkeypatch.setattr(shapes_grounder, "_step", florence2.SEQUENCES_STEP)
        padded = shapes_grounder.ground(images, PROMPTS, wanted)
    finally:
        handle.remove()
    assert sizes == [4, florence2.SEQUENCES_STEP]
    for one, other in zip(plain, padded, strict=True):
        assert_same(one, other)
        assert one.prompt_index.tolist() == other.prompt_index.tolist()


def test_one_vision_pass_per_batch_of_images(shapes_grounder, images):
    seen = []
    tower = shapes_grounder._model.model.vision_tower
    handle = tower.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    try:
        shapes_grounder.ground(images, PROMPTS)
    finally:
        handle.remove()
    assert seen == [len(images)]


def test_wanted_prompts_only(shapes_grounder, images):
    everything = shapes_grounder.ground(images, PROMPTS)
    wanted = [[0, 1], [], [2], [1]]
    some = shapes_grounder.ground(images, PROMPTS, wanted)
    for boxes, full, asked in zip(some, everything, wanted, strict=True):
        assert set(boxes.prompt_index.tolist()) <= set(asked)
        np.testing.assert_allclose(boxes.xyxy, full.xyxy[np.isin(full.prompt_index, asked)], atol=1e-3)
    assert [len(boxes) for boxes in shapes_grounder.ground(images, PROMPTS, [[]] * 4)] == [0] * 4


def test_boxes_and_confidence_equal_transformers_own_processor(shapes_grounder, images):
    """The processor's prompt, one image and prompt at a time; probabilities from one forward pass over the answer."""
    model, folder = shapes_grounder._model, find_checkpoint(FLORENCE2, "shapes")
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    first = processor.tokenizer.convert_tokens_to_ids("<loc_0>")
    checked = 0
    for image, scene in zip(images, held_out_scenes(), strict=False):
        height, width = image.shape[:2]
        for prompt in scene.prompts:
            text = f"<CAPTION_TO_PHRASE_GROUNDING>{prompt}"
            inputs = processor(text=text, images=Image.fromarray(image), return_tensors="pt")
            with torch.inference_mode():
                answer = model.generate(**inputs, max_new_tokens=256, do_sample=False, num_beams=1)
                logits = model(**inputs, decoder_input_ids=answer[:, :-1]).logits[0].float()
            log_probabilities = logits.log_softmax(-1).gather(1, answer[0, 1:, None])[:, 0].numpy()
            expected = parse_answer(answer[0, 1:].numpy(), log_probabilities, first)
            [boxes] = shapes_grounder.ground([image], [prompt])
            np.testing.assert_allclose(boxes.xyxy, expected.xyxy * [width, height, width, height], atol=1e-3)
            np.testing.assert_allclose(boxes.scores, expected.scores, atol=1e-4)
            checked += len(boxes)
    assert checked


def test_long_prompt_is_cut_with_a_warning(shapes_grounder, images, caplog):
    shapes_grounder.ground(images[:1], ["red circle " * 3000])
    [record] = caplog.records
    assert "64 tokens" in record.message
    assert len(record.message) < 300


@pytest.mark.parametrize("prompt", ["Ünïcödé 星", "the image", "objects", "it", "<loc_1>", "", "zebra " * 30])
def test_any_text_is_a_prompt(shapes_grounder, images, prompt):
    [boxes] = shapes_grounder.ground(images[:1], [prompt])
    assert set(boxes.prompt_index.tolist()) <= {0}
