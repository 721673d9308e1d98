"""`backend="sam3"`: Meta's own code behind the package's interface."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autodistill_sam3 import CheckpointError, GroundedSAM3, SegmentAnything3, SettingError
from autodistill_sam3.instances import Boxes, Instances
from autodistill_sam3.ontology import PromptPairs
from autodistill_sam3.segmentation import load_segmenter, official_segmenter
from autodistill_sam3.segmentation.official_model import build_official_model, move_official
from autodistill_sam3.segmentation.official_package import import_official
from autodistill_sam3.segmentation.official_segmenter import OfficialFeatures, OfficialSegmenter

from . import narrow
from .conftest import PROMPTS, Case
from .leaks import nothing_leaks
from .test_files import as_sam3_1, as_trainer

TOLERANCE = 1e-5
THRESHOLDS = [narrow.SCORE_THRESHOLD] * len(PROMPTS)


def load(official: narrow.NarrowOfficial, **settings: Any) -> OfficialSegmenter:
    """Load the narrow checkpoint as a user loads sam3.pt."""
    with narrow.narrowed_builder():
        loaded = OfficialSegmenter.load(
            official.checkpoint(), narrow.clip_vocabulary(), **{"device": "cpu", "precision": "fp32", **settings}
        )
    return loaded


def build(tensors: dict[str, torch.Tensor], **settings: Any) -> torch.nn.Module:
    with narrow.narrowed_builder():
        return build_official_model(tensors, narrow.clip_vocabulary(), **settings)


@pytest.fixture(scope="module")
def backend(official: narrow.NarrowOfficial) -> OfficialSegmenter:
    return load(official)


@pytest.fixture(scope="module")
def features(backend: OfficialSegmenter, cases: tuple[Case, ...]) -> OfficialFeatures:
    return backend.encode([case.image for case in cases])


@pytest.fixture(scope="module")
def first(features: OfficialFeatures) -> OfficialFeatures:
    """Of the first image alone."""
    return OfficialFeatures(features.backbone[:1], features.image_hw[:1])


def boxes_of(case: Case, *, score: float = 1.0) -> Boxes:
    count = len(case.boxes_xyxy)
    return Boxes(case.boxes_xyxy, np.full(count, score, np.float32), np.arange(count))


def assert_same_masks(received: Instances, expected: narrow.Array) -> None:
    """Equal but for pixels whose logit is so near 0 that rounding decides; empty masks are no instances."""
    expected = expected[expected.any(axis=(1, 2))]
    dense = received.masks.to_dense()
    assert dense.shape == expected.shape
    assert not len(expected) or (dense != expected).mean() < 10 * TOLERANCE


# The official answers.


def test_texts_equal_the_official_processor(
    backend: OfficialSegmenter, features: OfficialFeatures, cases: tuple[Case, ...]
) -> None:
    results = backend.segment_text(features, PROMPTS, THRESHOLDS)
    counts = []
    for result, case in zip(results, cases, strict=True):
        presence = [1 / (1 + np.exp(-text.presence_logit)) for text in case.texts]
        np.testing.assert_allclose(result.presence, presence, rtol=TOLERANCE)
        assert result.presence.dtype == result.instances.scores.dtype == np.float32
        assert result.instances.source == "text"
        for prompt, text in enumerate(case.texts):
            found = result.instances.select(result.instances.prompt_index == prompt)
            visible = text.masks.any(axis=(1, 2))
            np.testing.assert_allclose(found.scores, text.scores[visible], rtol=TOLERANCE)
            assert_same_masks(found, text.masks)
            counts.append(len(found))
    assert any(counts)


def test_boxes_equal_predict_inst(
    backend: OfficialSegmenter, features: OfficialFeatures, cases: tuple[Case, ...]
) -> None:
    results = backend.segment_boxes(features, [boxes_of(case, score=0.5) for case in cases])
    for index, (found, case) in enumerate(zip(results, cases, strict=True)):
        logits, iou = backend._predict_boxes(features.backbone[index], features.image_hw[index], case.boxes_xyxy)
        np.testing.assert_allclose(logits.numpy(), case.boxes.mask_logits, atol=TOLERANCE * 32)
        np.testing.assert_allclose(iou.numpy(), case.boxes.iou, rtol=TOLERANCE)
        visible = case.boxes.masks.any(axis=(1, 2))
        np.testing.assert_allclose(found.scores, case.boxes.iou[visible] / 2, rtol=TOLERANCE)
        np.testing.assert_array_equal(found.prompt_index, np.flatnonzero(visible))
        assert found.source == "boxes"
        assert_same_masks(found, case.boxes.masks)


@pytest.mark.parametrize("boxes_per_pass", [1, 2])
def test_boxes_in_passes_equal_boxes_at_once(
    backend: OfficialSegmenter,
    features: OfficialFeatures,
    cases: tuple[Case, ...],
    monkeypatch: pytest.MonkeyPatch,
    boxes_per_pass: int,
) -> None:
    boxes = [boxes_of(case) for case in cases]
    at_once = backend.segment_boxes(features, boxes)
    monkeypatch.setattr(official_segmenter, "BOXES_PER_PASS", boxes_per_pass)
    for passes, expected in zip(backend.segment_boxes(features, boxes), at_once, strict=True):
        np.testing.assert_allclose(passes.scores, expected.scores, rtol=TOLERANCE)
        np.testing.assert_array_equal(passes.prompt_index, expected.prompt_index)
        assert_same_masks(passes, expected.masks.to_dense())


# The protocol.


def test_each_image_and_each_prompt_is_encoded_once(
    backend: OfficialSegmenter, cases: tuple[Case, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_texts", {})
    backbone = backend._model.backbone
    calls = []
    for module in (backbone.vision_backbone.trunk, backbone.language_backbone):
        forward = module.forward
        monkeypatch.setattr(
            module,
            "forward",
            lambda *args, forward=forward, **named: (calls.append(forward), forward(*args, **named))[1],
        )
    encoded = backend.encode([case.image for case in cases[:2]])
    backend.segment_text(encoded, ["cat", "cat"], [0.5] * 2)
    backend.segment_boxes(encoded, [boxes_of(case) for case in cases[:2]])
    assert len(calls) == 2 + 1


def test_nothing_asked_gives_empty_values_of_the_image_size(
    backend: OfficialSegmenter, features: OfficialFeatures, first: OfficialFeatures, cases: tuple[Case, ...]
) -> None:
    for result, (height, width) in zip(backend.segment_text(features, [], []), features.image_hw, strict=True):
        assert result.presence.shape == (0,)
        assert result.instances.masks.shape == (0, height, width)
    [nothing] = backend.segment_text(first, PROMPTS, [1.0] * 3)
    assert nothing.presence.shape == (3,)
    assert nothing.instances.masks.shape == (0, *cases[0].image.shape[:2])
    some = [boxes_of(cases[0]), Boxes.empty(), boxes_of(cases[2])]
    full, empty, last = backend.segment_boxes(features, some)
    assert len(full) and len(last)
    assert empty.masks.shape == (0, *cases[1].image.shape[:2])
    assert backend.encode([]).image_hw == ()


def test_a_prompt_longer_than_the_model_reads_is_reported_once(
    backend: OfficialSegmenter,
    first: OfficialFeatures,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(backend, "_texts", {})
    backend.segment_text(first, ["cat", "word " * 40], [0.5, 0.5])
    backend.segment_text(first, ["word " * 40], [0.5])
    [record] = caplog.records
    assert "32 tokens" in record.message and "has 42" in record.message


def test_bf16_is_an_autocast_around_the_calls(official: narrow.NarrowOfficial, cases: tuple[Case, ...]) -> None:
    half = load(official, precision="bf16")
    encoded = half.encode([cases[0].image])
    assert encoded.backbone[0]["backbone_fpn"][-1].dtype == torch.bfloat16
    [result] = half.segment_text(encoded, PROMPTS[:1], THRESHOLDS[:1])
    assert 0 < result.presence[0] < 1
    [found] = half.segment_boxes(encoded, [boxes_of(cases[0])])
    assert found.scores.dtype == np.float32
    assert all(parameter.dtype == torch.float32 for parameter in half._model.parameters())


def test_a_wrong_setting_is_refused_before_anything_is_built() -> None:
    with pytest.raises(SettingError, match="precision"):
        OfficialSegmenter.load({}, Path("nowhere"), precision="half")  # type: ignore[arg-type]


# Weights.


def test_the_detector_alone_takes_text_and_says_where_the_rest_is(
    official: narrow.NarrowOfficial, cases: tuple[Case, ...]
) -> None:
    detector = load(official, with_boxes=False)
    encoded = detector.encode([cases[0].image])
    [result] = detector.segment_text(encoded, PROMPTS[:1], THRESHOLDS[:1])
    np.testing.assert_allclose(result.instances.scores, cases[0].texts[0].scores, rtol=TOLERANCE)
    with pytest.raises(CheckpointError, match=r"sam3\.pt.*facebook/sam3"):
        detector.segment_boxes(encoded, [Boxes.empty()])


def test_a_checkpoint_without_the_tracker_serves_text_only(official: narrow.NarrowOfficial) -> None:
    detector = {name: tensor for name, tensor in official.checkpoint().items() if name.startswith("detector.")}
    assert build(detector, with_boxes=False).inst_interactive_predictor is None
    with pytest.raises(CheckpointError, match=r"missing: tracker\..*sam3\.pt.*facebook/sam3"):
        build(detector)


def test_missing_unexpected_and_misshapen_tensors_are_refused(official: narrow.NarrowOfficial) -> None:
    tensors = official.checkpoint()
    names = {
        "missing": "tracker.maskmem_tpos_enc",
        "of another shape": "detector.transformer.decoder.query_embed.weight",
    }
    missing = {name: tensor for name, tensor in tensors.items() if name != names["missing"]}
    misshapen = {**tensors, names["of another shape"]: torch.zeros(3)}
    for problem, wrong in (("missing", missing), ("of another shape", misshapen)):
        with pytest.raises(CheckpointError, match=f"{problem}: {names[problem]}"):
            build(wrong)
    with pytest.raises(CheckpointError, match=r"unexpected: backbone\.a, detector\.a, tracker\.a and 1 more"):
        build({**tensors, **dict.fromkeys(("detector.a", "tracker.a", "tracker.b", "backbone.a"), torch.zeros(1))})
    build({**tensors, "tracker.transformer.encoder.layers.0.self_attn.freqs_cis": torch.zeros(1)})


def test_weights_are_taken_over_and_set_in_the_model_s_type(official: narrow.NarrowOfficial) -> None:
    name = "detector.transformer.decoder.query_embed.weight"
    tensors = official.checkpoint()
    halved = {**tensors, name: tensors[name].half()}
    model: Any = build(halved)
    assert model.transformer.decoder.query_embed.weight.dtype == torch.float32
    kept = model.transformer.decoder.norm.weight
    assert kept.data_ptr() == tensors["detector.transformer.decoder.norm.weight"].data_ptr()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_tables_outside_of_buffers_move_with_the_model(
    official: narrow.NarrowOfficial, cases: tuple[Case, ...]
) -> None:
    used = load(official)
    encoded = used.encode([cases[0].image])
    used.segment_text(encoded, ["cat"], [0.5])
    model = used._model
    held = [tensor for module in model.modules() for tensor in tensors_in(vars(module))]
    assert len(held) > len(model.state_dict()), "there are such tables, or this test is of no use"
    move_official(model, torch.device("meta"))
    devices = {tensor.device.type for module in model.modules() for tensor in tensors_in(vars(module))}
    assert devices == {"meta"}
    assert {getattr(module, "_device", None) for module in model.modules()} == {None}


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)


# What stays as it was.


def test_building_and_running_change_nothing(official: narrow.NarrowOfficial, cases: tuple[Case, ...]) -> None:
    with nothing_leaks():
        used = load(official)
    with nothing_leaks():
        encoded = used.encode([cases[0].image])
    with nothing_leaks():
        used.segment_text(encoded, PROMPTS[:1], THRESHOLDS[:1])
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        with nothing_leaks():
            used.segment_boxes(encoded, [boxes_of(cases[0])])
    finally:
        torch.backends.cuda.enable_flash_sdp(True)


class Interrupted(Exception):
    """Not of the package's own types."""


def interrupt(*_: object, **__: object) -> None:
    raise Interrupted


def test_an_interrupted_build_changes_nothing(official: narrow.NarrowOfficial, monkeypatch: pytest.MonkeyPatch) -> None:
    # By then the tracker has entered its autocast.
    monkeypatch.setattr(import_official(), "SAM3InteractiveImagePredictor", interrupt)
    with nothing_leaks(), pytest.raises(Interrupted):
        build(official.checkpoint())


def test_an_interrupted_call_changes_nothing_and_keeps_nothing(
    backend: OfficialSegmenter, features: OfficialFeatures, cases: tuple[Case, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = backend._model
    with monkeypatch.context() as patch:
        patch.setattr(model.backbone.vision_backbone.trunk, "forward", interrupt)
        with nothing_leaks(), pytest.raises(Interrupted):
            backend.encode([cases[0].image])
    with monkeypatch.context() as patch:
        patch.setattr(model.segmentation_head, "forward", interrupt)
        with nothing_leaks(), pytest.raises(Interrupted):
            backend.segment_text(features, ["cat"], [0.5])
    with monkeypatch.context() as patch:
        patch.setattr(model.inst_interactive_predictor.model.sam_mask_decoder.transformer, "forward", interrupt)
        with nothing_leaks(), pytest.raises(Interrupted):
            backend.segment_boxes(features, [boxes_of(case) for case in cases])
    assert model.inst_interactive_predictor._features is None
    assert len(backend.segment_boxes(features, [boxes_of(case) for case in cases])) == len(cases)


def test_the_caller_s_default_device_and_modes_are_not_used(
    official: narrow.NarrowOfficial, cases: tuple[Case, ...]
) -> None:
    with torch.device("meta"), torch.inference_mode():
        used = load(official)
        encoded = used.encode([cases[0].image])
        [text] = used.segment_text(encoded, PROMPTS[:1], THRESHOLDS[:1])
        [found] = used.segment_boxes(encoded, [boxes_of(cases[0])])
    np.testing.assert_allclose(text.instances.scores, cases[0].texts[0].scores, rtol=TOLERANCE)
    np.testing.assert_allclose(found.scores, cases[0].boxes.iou, rtol=TOLERANCE)
    assert not any(parameter.is_inference() for parameter in used._model.parameters())


# On a GPU.


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", [f"cuda:{index}" for index in range(max(1, torch.cuda.device_count()))])
def test_a_gpu_says_the_same_and_nothing_leaks(
    device: str, official: narrow.NarrowOfficial, cases: tuple[Case, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with nothing_leaks():
        used = load(official, device=device)
        encoded = used.encode([case.image for case in cases])
        texts = used.segment_text(encoded, PROMPTS, THRESHOLDS)
        found = used.segment_boxes(encoded, [boxes_of(case) for case in cases])
    for text, boxes, case in zip(texts, found, cases, strict=True):
        # Meta's processor resizes on the GPU, where 8-bit values are rounded otherwise.
        expected = 1 / (1 + np.exp([-answer.presence_logit for answer in case.texts]))
        np.testing.assert_allclose(text.presence, expected, rtol=0.05)
        np.testing.assert_allclose(boxes.scores, case.boxes.iou, rtol=0.05)
    held = {tensor.device for module in used._model.modules() for tensor in tensors_in(vars(module))}
    assert held == {torch.device(device)}


def test_the_backend_through_the_public_models(
    official_file: Path, cases: tuple[Case, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ontology = PromptPairs(tuple((prompt, f"class {index}") for index, prompt in enumerate(PROMPTS)))
    keywords: Any = {"checkpoint": official_file, "bpe_path": narrow.clip_vocabulary(), "device": "cpu"}
    image = cases[0].image[:, :, ::-1]
    with narrow.narrowed_builder(), caplog.at_level(logging.INFO, "autodistill_sam3"):
        ours, metas = (
            SegmentAnything3(ontology, backend=backend, confidence=narrow.SCORE_THRESHOLD, **keywords)
            for backend in ("transformers", "sam3")
        )
        both = GroundedSAM3(
            ontology, backend="sam3", prompting="boxes", florence2_checkpoint="shapes", box_confidence=0.0, **keywords
        )
    assert "Running the official SAM 3 code in" in caplog.text
    expected, received = ours.predict(image), metas.predict(image)
    assert len(received) == len(expected) > 0
    np.testing.assert_allclose(received.confidence, expected.confidence, rtol=1e-4)
    assert (received.mask != expected.mask).mean() < 1e-4
    assert isinstance(both.segmenter, OfficialSegmenter)
    assert both.predict(image).mask is not None


@pytest.mark.parametrize("content", ["SAM 3.1", "trainer"])
def test_files_that_the_backend_cannot_serve(official_file: Path, tmp_path: Path, content: str) -> None:
    tensors = dict(torch.load(official_file, weights_only=True))
    path = tmp_path / "sam3.pt"
    torch.save(as_sam3_1(tensors) if content == "SAM 3.1" else as_trainer(tensors), path)
    message = "backend='transformers' reads it" if content == "SAM 3.1" else r"sam3\.pt and model\.safetensors"
    with narrow.narrowed_builder(), pytest.raises(CheckpointError, match=message):
        load_segmenter(path, backend="sam3", bpe_path=narrow.clip_vocabulary(), device="cpu")


def test_the_backend_serves_text_from_a_trainer_checkpoint(official_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(as_trainer(dict(torch.load(official_file, weights_only=True))), path)
    with narrow.narrowed_builder():
        model = SegmentAnything3(
            PromptPairs((("hat", "hat"),)),
            backend="sam3",
            checkpoint=path,
            bpe_path=narrow.clip_vocabulary(),
            device="cpu",
        )
    assert model.predict(np.zeros((30, 40, 3), np.uint8)).mask is not None


def test_unknown_backend() -> None:
    with pytest.raises(SettingError, match=r"transformers.*received 'sam4'"):
        SegmentAnything3(PromptPairs((("hat", "hat"),)), backend="sam4", checkpoint="shapes")  # type: ignore[arg-type]


def test_the_backend_needs_metas_vocabulary(official_file: Path, converted_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"bpe_simple_vocab.*received .*tokenizer\.json"):
        load_segmenter(official_file, backend="sam3", bpe_path=converted_folder / "tokenizer.json", device="cpu")
