"""Our greedy answers are those of transformers' `generate`, token by token, and so are their probabilities."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from autodistill.detection import CaptionOntology
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scenes import held_out_scenes
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoProcessor
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

from autodistill_sam3 import GroundedSAM3
from autodistill_sam3.benchmark.random_florence2 import florence2_config, write_random_florence2
from autodistill_sam3.errors import CheckpointError, OutOfMemoryError, SettingError
from autodistill_sam3.grounding.florence2 import Florence2Grounder
from autodistill_sam3.grounding.graphs import StepGraphs, run_and_undo
from autodistill_sam3.grounding.token_rules import without_repeats
from autodistill_sam3.weights import FLORENCE2, find_checkpoint

PROMPTS = ["star", "red circle", "the large blue triangle on the left, and whatever is beside it"]
RULES = {"no_repeat_ngram_size": 3, "forced_bos_token_id": 0, "forced_eos_token_id": 2}


@pytest.fixture(scope="module")
def shapes_folder():
    return find_checkpoint(FLORENCE2, "shapes")


@pytest.fixture(scope="module")
def endless_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endless") / "florence2"
    write_random_florence2(folder, florence2_config(width=64, layers=2, depths=(1, 1, 1, 1)))
    return folder


@pytest.fixture(scope="module")
def images():
    return [scene.image for scene in held_out_scenes()[:3]]


def with_generation(folder, target, **changes):
    shutil.copytree(folder, target)
    path = target / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


def decoded(grounder, images, prompts):
    """Tokens and logarithms of probabilities of the one batch that is asked for."""
    batches = []
    decode = grounder._decoder.decode

    def record(*arguments):
        batches.append(decode(*arguments))
        return batches[-1]

    grounder._decoder.decode = record
    try:
        grounder.ground(images, prompts)
    finally:
        del grounder._decoder.decode
    [batch] = batches
    return batch


def generated(folder, grounder, images, prompts):
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    inputs = processor(
        text=[f"<CAPTION_TO_PHRASE_GROUNDING>{prompt}" for _ in images for prompt in prompts],
        images=[Image.fromarray(image) for image in images for _ in prompts],
        padding=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        output = grounder._model.generate(
            **inputs, num_beams=1, do_sample=False, max_new_tokens=grounder.max_new_tokens,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    tokens = output.sequences[:, 1:]
    logs = torch.stack(output.logits, dim=1).float().log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    return tokens.numpy(), logs.numpy()


def assert_generated(folder, images, prompts, max_new_tokens):
    grounder = Florence2Grounder.load(folder, device="cpu", max_new_tokens=max_new_tokens)
    tokens, logs = decoded(grounder, images, prompts)
    expected_tokens, expected_logs = generated(folder, grounder, images, prompts)
    np.testing.assert_array_equal(tokens, expected_tokens)
    np.testing.assert_allclose(logs, expected_logs, atol=1e-4)
    return tokens


@pytest.mark.parametrize("rules", [{}, RULES, {"eos_token_id": [2, 7], "pad_token_id": 0}, {"no_repeat_ngram_size": 2}])
@pytest.mark.parametrize("max_new_tokens", [3, 100])
def test_answers_that_end_are_those_of_generate(shapes_folder, images, tmp_path, rules, max_new_tokens):
    folder = with_generation(shapes_folder, tmp_path / "florence2", **rules)
    tokens = assert_generated(folder, images, PROMPTS, max_new_tokens)
    assert tokens.shape[1] == 3 or (tokens[:, 3:] == 2).any()


@pytest.mark.parametrize("max_new_tokens", [1, 64, 65, 140])
def test_endless_answers_are_those_of_generate(endless_folder, images, tmp_path, max_new_tokens):
    folder = with_generation(endless_folder, tmp_path / "florence2", **RULES)
    tokens = assert_generated(folder, images[:1], PROMPTS, max_new_tokens)
    assert tokens.shape[1] == max_new_tokens
    assert (tokens[:, -1] == 2).all()
    if max_new_tokens == 140:
        free = with_generation(endless_folder, tmp_path / "free", no_repeat_ngram_size=0)
        repeated, _ = decoded(Florence2Grounder.load(free, device="cpu", max_new_tokens=140), images[:1], PROMPTS)
        assert len({tuple(row[start : start + 3]) for row in repeated for start in range(100)}) < 100


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 1.2),
        ("min_length", 5),
        ("suppress_tokens", [7]),
        ("guidance_scale", 2.0),
        ("encoder_no_repeat_ngram_size", 2),
        ("decoder_start_token_id", [2, 3]),
    ],
)
def test_settings_that_are_not_applied_are_refused(shapes_folder, tmp_path, name, value):
    folder = with_generation(shapes_folder, tmp_path / "florence2", **{name: value})
    with pytest.raises(CheckpointError, match=f"{folder}.*{name}"):
        Florence2Grounder.load(folder, device="cpu")


def test_answers_stay_when_others_are_decoded(shapes_folder, images):
    grounder = Florence2Grounder.load(shapes_folder, device="cpu")
    answers = decoded(grounder, images[:1], PROMPTS)
    kept = [array.copy() for array in answers]
    decoded(grounder, images[1:2], PROMPTS[::-1])
    for array, copy in zip(answers, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_an_answer_has_tokens(shapes_folder):
    with pytest.raises(SettingError, match="at least 1, received 0"):
        Florence2Grounder.load(shapes_folder, device="cpu", max_new_tokens=0)


@given(st.data(), st.integers(1, 5), st.integers(1, 12), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_repeats_are_banned_as_by_transformers(data, size, given_tokens, vocabulary):
    row = st.lists(st.integers(0, vocabulary - 1), min_size=16, max_size=16)
    tokens = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=3)))
    scores = torch.randn(len(tokens), vocabulary, generator=torch.Generator().manual_seed(0))
    expected = NoRepeatNGramLogitsProcessor(size)(tokens[:, :given_tokens], scores.clone())
    found = without_repeats(scores, tokens, torch.tensor([given_tokens - 1]), size)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Again:
    """A graph that is not one."""

    def __init__(self, function):
        self.replay = function


def test_steps_are_replayed_for_later_batches(endless_folder, images, tmp_path, monkeypatch):
    """What a graph keeps of the batch that it was captured with must not show."""
    folder = with_generation(endless_folder, tmp_path / "florence2", **RULES)
    asked = [(images[:1], PROMPTS), (images[1:2], PROMPTS), (images[1:], PROMPTS), (images[:1], PROMPTS[:2])]
    expected = [decoded(Florence2Grounder.load(folder, device="cpu", max_new_tokens=65), *ask) for ask in asked]
    captured = []

    def capture(_, function, state):
        run_and_undo(function, state)
        captured.append(function)
        return Again(function)

    monkeypatch.setattr(StepGraphs, "_captured", capture)
    grounder = Florence2Grounder.load(folder, device="cpu", max_new_tokens=65)
    grounder._decoder._graphs._device = torch.device("cuda:0")
    for ask, (tokens, logs) in zip(asked, expected, strict=True):
        found, found_logs = decoded(grounder, *ask)
        np.testing.assert_array_equal(found, tokens)
        np.testing.assert_allclose(found_logs, logs, atol=1e-5)
    # Three shapes of two lengths; the second batch had that of the first.
    assert len(captured) == 6


def test_nothing_is_left_of_earlier_batches(shapes_folder, images):
    """Attention weighs what is hidden by 0, which makes no number of what is none."""
    grounder = Florence2Grounder.load(shapes_folder, device="cpu")
    tokens, logs = decoded(grounder, images, PROMPTS[:2])
    assert np.isfinite(logs).all()
    with torch.inference_mode():
        for layer in grounder._decoder._buffers.layers:
            for kept in (*layer._own, *layer._seen):
                kept.fill_(torch.nan)
    again, again_logs = decoded(grounder, images, PROMPTS[:2])
    np.testing.assert_array_equal(again, tokens)
    np.testing.assert_array_equal(again_logs, logs)


def test_what_is_kept_is_released_when_memory_ends(images, monkeypatch):
    """Buffers of a large batch would be in the way of all smaller ones."""
    model = GroundedSAM3(CaptionOntology({"star": "star"}), checkpoint="shapes", device="cpu")
    expected = model.predict(images[0])
    decoder, encode = model.grounder._decoder, model.segmenter.encode
    assert decoder._buffers is not None

    def fail(images):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model.segmenter, "encode", fail)
    with pytest.raises(OutOfMemoryError):
        model.predict(images[0])
    assert decoder._buffers is None
    monkeypatch.setattr(model.segmenter, "encode", encode)
    assert np.array_equal(model.predict(images[0]).xyxy, expected.xyxy)


def test_few_graphs_are_kept(monkeypatch):
    captured, run = [], []

    def capture(_, function, state):
        captured.append(state)
        return Again(function)

    monkeypatch.setattr(StepGraphs, "_captured", capture)
    graphs = StepGraphs(torch.device("cuda:0"), kept=2)
    for key in "abacab":
        graphs.run(key, lambda key=key: run.append(key), key)
    assert list(graphs._graphs) == ["a", "b"]
    assert "".join(captured) == "abcb"
    assert "".join(run) == "abacab"


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing(endless_folder, images, tmp_path, monkeypatch):
    """Such operations need a number from the GPU, and cannot be captured."""
    operations, run = Operations(), StepGraphs.run

    def watched(self, key, function, state):
        with operations:
            run(self, key, function, state)

    monkeypatch.setattr(StepGraphs, "run", watched)
    folder = with_generation(endless_folder, tmp_path / "florence2", **RULES)
    decoded(Florence2Grounder.load(folder, device="cpu", max_new_tokens=6), images[:1], PROMPTS)
    assert "argmax" in operations.names
    assert not operations.names & {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "lift_fresh"}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_replayed_equals_launched_on_a_gpu(endless_folder, images, tmp_path, monkeypatch, precision):
    folder = with_generation(endless_folder, tmp_path / "florence2", **RULES)

    def load():
        return Florence2Grounder.load(folder, device="cuda", precision=precision, max_new_tokens=140)

    grounder = load()
    asked = [(images[:1], PROMPTS), (images[1:2], PROMPTS), (images, PROMPTS), (images[:1], PROMPTS)]
    replayed = [decoded(grounder, *ask) for ask in asked]
    assert grounder._decoder._graphs._graphs
    for again in (grounder, load()):
        for ask, (tokens, logs) in zip(asked, replayed, strict=True):
            found, found_logs = decoded(again, *ask)
            np.testing.assert_array_equal(found, tokens)
            # In fp16, one of the third batch's was another by its last bit.
            np.testing.assert_allclose(found_logs, logs, rtol=1e-6 if precision == "fp16" else 0)
    monkeypatch.setattr(StepGraphs, "run", lambda _, __, function, ___: function())
    for ask, (tokens, logs) in zip(asked, replayed, strict=True):
        found, found_logs = decoded(load(), *ask)
        np.testing.assert_array_equal(found, tokens)
        np.testing.assert_allclose(found_logs, logs, rtol=1e-6)
