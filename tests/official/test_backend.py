"""`backend="sam3"`: Meta's own code behind the package's interface."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scenes import held_out_scenes

from autodistill_sam3 import CheckpointError, DeviceError, GroundedSAM3, SegmentAnything3, SettingError
from autodistill_sam3.instances import Boxes, Instances
from autodistill_sam3.ontology import PromptPairs
from autodistill_sam3.segmentation import Segmenter, load_segmenter, official_segmenter
from autodistill_sam3.segmentation.official_model import build_official_model, move_official
from autodistill_sam3.segmentation.official_package import import_official
from autodistill_sam3.segmentation.official_segmenter import OfficialFeatures, OfficialSegmenter
from autodistill_sam3.segmentation.transformers_segmenter import TransformersSegmenter

from . import narrow
from .conftest import PROMPTS, Case
from .leaks import nothing_leaks
from .test_files import as_sam3_1, as_trainer

TOLERANCE = 1e-5
THRESHOLDS = [narrow.SCORE_THRESHOLD] * len(PROMPTS)
# The prompt that has instances in the first image.
FOUND = 1


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
    # The first image and the last: each pair of image and prompt takes seconds.
    cases = cases[::2]
    results = backend.segment_text(
        OfficialFeatures(features.backbone[::2], features.image_hw[::2]), PROMPTS, THRESHOLDS
    )
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
    backend.segment_text(OfficialFeatures(encoded.backbone[:1], encoded.image_hw[:1]), ["cat", "cat"], [0.5] * 2)
    backend.segment_boxes(encoded, [boxes_of(case) for case in cases[:2]])
    assert len(calls) == 2 + 1


Loaded = tuple[Segmenter[Any], Any]


@pytest.fixture(scope="module")
def features_of_ours(segmenter: TransformersSegmenter, cases: tuple[Case, ...]) -> Any:
    return segmenter.encode([case.image for case in cases])


@pytest.fixture(scope="module", params=["transformers", "sam3"])
def either(request: pytest.FixtureRequest) -> Loaded:
    """Each back end with its features of all images."""
    ours = request.param == "transformers"
    names = ("segmenter", "features_of_ours") if ours else ("backend", "features")
    loaded, encoded = (request.getfixturevalue(name) for name in names)
    return loaded, encoded


def test_nothing_asked_gives_empty_values_of_the_image_size(either: Loaded, cases: tuple[Case, ...]) -> None:
    loaded, encoded = either
    sizes = [case.image.shape[:2] for case in cases]
    for prompts, thresholds in (([], []), (PROMPTS[:1], [1.0])):
        results = loaded.segment_text(encoded, prompts, thresholds)
        assert [result.presence.shape for result in results] == [(len(prompts),)] * len(cases)
        assert all(result.presence.dtype == np.float32 for result in results)
        assert [result.instances.masks.shape for result in results] == [(0, *size) for size in sizes]
    nothing = loaded.segment_boxes(encoded, [Boxes.empty()] * len(cases))
    assert [part.masks.shape for part in nothing] == [(0, *size) for size in sizes]
    full, empty, last = loaded.segment_boxes(encoded, [boxes_of(cases[0]), Boxes.empty(), boxes_of(cases[2])])
    assert len(full) and len(last)
    assert empty.masks.shape == (0, *sizes[1])


def test_no_images_give_no_results(either: Loaded) -> None:
    loaded, _ = either
    none = loaded.encode([])
    assert loaded.segment_text(none, PROMPTS, THRESHOLDS) == []
    assert loaded.segment_text(none, [], []) == []
    assert loaded.segment_boxes(none, []) == []


@pytest.mark.parametrize(("prompts", "thresholds"), [(2, 1), (2, 3), (1, 0), (0, 1)], ids=str)
def test_prompts_and_thresholds_of_different_lengths_are_refused(either: Loaded, prompts: int, thresholds: int) -> None:
    loaded, encoded = either
    for asked in (encoded, loaded.encode([])):
        with pytest.raises(SettingError, match=rf"min_scores.*{prompts} prompts.*received {thresholds}"):
            loaded.segment_text(asked, PROMPTS[:prompts], [0.5] * thresholds)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_boxes_of_another_number_of_images_are_refused(either: Loaded, count: int) -> None:
    loaded, encoded = either
    with pytest.raises(SettingError, match=rf"boxes.*3 images.*received {count}"):
        loaded.segment_boxes(encoded, [Boxes.empty()] * count)
    with pytest.raises(SettingError, match=r"boxes.*0 images.*received 1"):
        loaded.segment_boxes(loaded.encode([]), [Boxes.empty()])


# A part of the model in each back end's terms, and which prompts read it.
PARTS = {
    "presence": ("detector_model.detr_decoder.presence_head", "transformer.decoder.presence_token_head", "text"),
    "scores": ("detector_model.dot_product_scoring.query_proj", "dot_prod_scoring.hs_proj", "text"),
    "masks of texts": (
        "detector_model.mask_decoder.mask_embedder",
        "segmentation_head.instance_seg_head",
        "text",
    ),
    "IoU": (
        "tracker_model.mask_decoder.iou_prediction_head",
        "inst_interactive_predictor.model.sam_mask_decoder.iou_prediction_head",
        "boxes",
    ),
    "masks of boxes": (
        "tracker_model.mask_decoder.upscale_conv2",
        "inst_interactive_predictor.model.sam_mask_decoder.output_upscaling.3",
        "boxes",
    ),
}
NOT_FINITE = r"not finite.*precision='fp32'.*again"


@pytest.fixture(scope="module")
def one_image(either: Loaded, cases: tuple[Case, ...]) -> Any:
    """Its features: each pair of image and prompt takes seconds."""
    return either[0].encode([cases[0].image])


@pytest.mark.parametrize("part", PARTS)
def test_what_is_not_finite_is_no_empty_result(
    either: Loaded, part: str, one_image: Any, cases: tuple[Case, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, encoded = either[0], one_image
    model: Any = loaded._model  # type: ignore[attr-defined]
    *names, prompting = PARTS[part]
    module = model.get_submodule(names[isinstance(loaded, OfficialSegmenter)])
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda *args, **named: forward(*args, **named) * torch.nan)
    with pytest.raises(CheckpointError, match=NOT_FINITE):
        if prompting == "text":
            loaded.segment_text(encoded, [PROMPTS[FOUND]], THRESHOLDS[:1])
        else:
            loaded.segment_boxes(encoded, [boxes_of(cases[0])])


@pytest.mark.parametrize("which", ["transformers", "sam3"])
def test_a_checkpoint_of_nothing_but_nan_is_said(
    which: Any, official: narrow.NarrowOfficial, cases: tuple[Case, ...], tmp_path: Path
) -> None:
    path = tmp_path / "sam3.pt"
    nan = {name: torch.full_like(tensor, torch.nan) for name, tensor in official.checkpoint().items()}
    tables = {name: tensor for name, tensor in official.checkpoint().items() if tensor.is_complex()}
    torch.save({**nan, **tables}, path)
    with narrow.narrowed_builder():
        loaded = load_segmenter(path, backend=which, bpe_path=narrow.clip_vocabulary(), device="cpu")
    encoded = loaded.encode([cases[0].image])
    with pytest.raises(CheckpointError, match=NOT_FINITE):
        loaded.segment_text(encoded, PROMPTS[:1], [0.5])
    with pytest.raises(CheckpointError, match=NOT_FINITE):
        loaded.segment_boxes(encoded, [boxes_of(cases[0])])


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param("<|endoftext|> red", marks=pytest.mark.slow),
        pytest.param("<|startoftext|>", marks=pytest.mark.slow),
        "a<|endoftext|>b",
        "<|endoftext|> " * 9,
    ],
)
def test_the_names_of_special_tokens_are_read_as_text(
    segmenter: TransformersSegmenter,
    official: narrow.NarrowOfficial,
    cases: tuple[Case, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    prompt: str,
) -> None:
    monkeypatch.setattr(segmenter, "_texts", {})
    seen: list[torch.Tensor] = []
    hook = segmenter._model.detector_model.text_encoder.register_forward_pre_hook(
        lambda _, __, named: seen.append(named["input_ids"][named["attention_mask"].bool()]), with_kwargs=True
    )
    try:
        segmenter.segment_text(segmenter.encode([cases[0].image]), [prompt], [0.5])
    finally:
        hook.remove()
    assert [ids.tolist() for ids in seen] == official.token_ids([prompt])
    assert len(caplog.records) == (len(prompt) > 100)


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


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"precision": "half"}, SettingError), ({"device": "cuda:63"}, DeviceError), ({"device": "gpu"}, DeviceError)],
)
def test_a_wrong_setting_is_refused_before_a_file_is_touched(settings: Any, error: type[Exception]) -> None:
    absent = Path("nowhere", "sam3.pt")
    received = next(iter(settings.values()))
    for load_it in (
        lambda: OfficialSegmenter.load({}, absent, **settings),
        lambda: TransformersSegmenter.load(absent, **settings),
        lambda: load_segmenter(absent, backend="transformers", **settings),
        lambda: load_segmenter(absent, backend="sam3", **settings),
    ):
        with pytest.raises(error, match=received):
            load_it()


# Weights.


def test_the_detector_alone_takes_text_and_says_where_the_rest_is(
    official: narrow.NarrowOfficial, cases: tuple[Case, ...]
) -> None:
    detector = load(official, with_boxes=False)
    encoded = detector.encode([cases[0].image])
    [result] = detector.segment_text(encoded, [PROMPTS[FOUND]], THRESHOLDS[:1])
    assert len(result.instances)
    np.testing.assert_allclose(result.instances.scores, cases[0].texts[FOUND].scores, rtol=TOLERANCE)
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
        [text] = used.segment_text(encoded, [PROMPTS[FOUND]], THRESHOLDS[:1])
        [found] = used.segment_boxes(encoded, [boxes_of(cases[0])])
    assert len(text.instances)
    np.testing.assert_allclose(text.instances.scores, cases[0].texts[FOUND].scores, rtol=TOLERANCE)
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


@pytest.mark.slow
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
    assert "Running the official SAM 3 code in" in caplog.text
    expected, received = ours.predict(image), metas.predict(image)
    assert len(received) == len(expected) > 0
    np.testing.assert_allclose(received.confidence, expected.confidence, rtol=1e-4)
    assert (received.mask != expected.mask).mean() < 1e-4


@pytest.mark.slow
def test_the_boxes_of_florence2_through_the_public_model(official_file: Path) -> None:
    ours, metas = (grounded(official_file, backend) for backend in ("transformers", "sam3"))
    assert isinstance(metas.segmenter, OfficialSegmenter)
    image = held_out_scenes()[0].image[:, :, ::-1]
    expected, received = ours.predict(image), metas.predict(image)
    assert len(received) == len(expected) > 0
    assert set(received.data["source"]) == {"boxes"}
    np.testing.assert_allclose(received.confidence, expected.confidence, rtol=1e-3)
    np.testing.assert_array_equal(received.class_id, expected.class_id)
    assert (received.mask != expected.mask).mean() < 1e-3


def grounded(official_file: Path, backend: Any) -> GroundedSAM3:
    ontology = PromptPairs(tuple((prompt, prompt) for prompt in ("red circle", "star", "blue shape")))
    with narrow.narrowed_builder():
        model = GroundedSAM3(
            ontology,
            backend=backend,
            prompting="boxes",
            checkpoint=official_file,
            bpe_path=narrow.clip_vocabulary(),
            florence2_checkpoint="shapes",
            box_confidence=0.0,
            device="cpu",
        )
    return model


@pytest.mark.parametrize("content", ["SAM 3.1", "trainer"])
def test_files_that_the_backend_cannot_serve(official_file: Path, tmp_path: Path, content: str) -> None:
    tensors = dict(torch.load(official_file, weights_only=True))
    path = tmp_path / "sam3.pt"
    torch.save(as_sam3_1(tensors) if content == "SAM 3.1" else as_trainer(tensors), path)
    message = "backend='transformers' reads it" if content == "SAM 3.1" else r"sam3\.pt and model\.safetensors"
    with narrow.narrowed_builder(), pytest.raises(CheckpointError, match=message):
        load_segmenter(path, backend="sam3", bpe_path=narrow.clip_vocabulary(), device="cpu")


def test_the_backend_serves_text_from_a_trainer_checkpoint(
    official_file: Path, cases: tuple[Case, ...], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(as_trainer(dict(torch.load(official_file, weights_only=True))), path)
    with narrow.narrowed_builder():
        model = SegmentAnything3(
            PromptPairs(((PROMPTS[FOUND], "hat"),)),
            backend="sam3",
            checkpoint=path,
            bpe_path=narrow.clip_vocabulary(),
            confidence=narrow.SCORE_THRESHOLD,
            device="cpu",
        )
    received, text = model.predict(cases[0].image[:, :, ::-1]), cases[0].texts[FOUND]
    # Others with the same mask are its duplicates.
    best = int(text.scores.argmax())
    assert text.masks[best].any()
    np.testing.assert_allclose(received.confidence[0], text.scores[best], rtol=TOLERANCE)
    assert (received.mask[0] != text.masks[best]).mean() < 10 * TOLERANCE


def test_unknown_backend() -> None:
    with pytest.raises(SettingError, match=r"transformers.*received 'sam4'"):
        SegmentAnything3(PromptPairs((("hat", "hat"),)), backend="sam4", checkpoint="shapes")  # type: ignore[arg-type]


def test_the_backend_needs_metas_vocabulary(official_file: Path, converted_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"bpe_simple_vocab.*received .*tokenizer\.json"):
        load_segmenter(official_file, backend="sam3", bpe_path=converted_folder / "tokenizer.json", device="cpu")
