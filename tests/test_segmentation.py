"""The SAM 3 engine on the shapes checkpoint, against transformers' own forward and against itself."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from scenes import held_out_scenes
from transformers import Sam3ImageProcessor

from autodistill_sam3.devices import autocast_dtype, select_device
from autodistill_sam3.errors import DeviceError, SettingError
from autodistill_sam3.instances import Boxes
from autodistill_sam3.segmentation import transformers_segmenter
from autodistill_sam3.segmentation.detector import position_bias
from autodistill_sam3.segmentation.transformers_segmenter import TransformersSegmenter

PROMPTS = ["red circle", "star", "blue shape", "cross"]
EVERYTHING = [0.0] * 4


@pytest.fixture(scope="module")
def images():
    return [scene.image for scene in held_out_scenes()[:3]]


@pytest.fixture
def calls(shapes_segmenter):
    """How often the ViT, the text encoder and the mask head ran."""
    detector = shapes_segmenter._model.detector_model
    modules = {
        "vit": detector.vision_encoder.backbone.layers[0].mlp,
        "text": detector.text_encoder,
        "masks": detector.mask_decoder.pixel_decoder,
        "detector": detector.detr_decoder.layers[0],
    }
    counts = dict.fromkeys(modules, 0)

    def count(name):
        def hook(*_):
            counts[name] += 1

        return hook

    handles = [module.register_forward_hook(count(name)) for name, module in modules.items()]
    yield counts
    for handle in handles:
        handle.remove()


def boxes_of(*xyxy, scores=None):
    count = len(xyxy)
    return Boxes(
        np.array(xyxy, np.float32).reshape(-1, 4),
        np.full(count, 1.0, np.float32) if scores is None else np.array(scores, np.float32),
        np.arange(count, dtype=np.int64) % 4,
    )


def assert_same(first, second, *, atol=1e-5):
    assert len(first) == len(second)
    one, two = (np.lexsort((part.scores, part.prompt_index)) for part in (first, second))
    np.testing.assert_array_equal(first.prompt_index[one], second.prompt_index[two])
    np.testing.assert_allclose(first.scores[one], second.scores[two], atol=atol)
    for index, other in zip(one, two, strict=True):
        differing = (first.masks[int(index)] != second.masks[int(other)]).sum()
        assert differing <= 2, f"{differing} pixels differ"


def test_the_position_bias_is_the_models_own(shapes_segmenter):
    decoder = shapes_segmenter._model.detector_model.detr_decoder
    boxes = torch.rand(3, 20, 4, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    for grid_hw in ((24, 24), (12, 20)):
        with torch.inference_mode():
            bias = position_bias(decoder, boxes, grid_hw)
            assert torch.equal(bias[:, :, 1:], decoder._get_rpb_matrix(boxes, grid_hw))
            assert not bias[:, :, 0].any()  # of the presence token
            # Kernels for attention refuse any other, and torch then takes the one that is written out.
            assert bias.is_contiguous()


def test_one_vit_pass_whatever_is_asked(shapes_segmenter, images, calls):
    features = shapes_segmenter.encode(images)
    shapes_segmenter.segment_text(features, PROMPTS, EVERYTHING)
    shapes_segmenter.segment_text(features, PROMPTS[:1], [0.5])
    shapes_segmenter.segment_boxes(features, [boxes_of((0, 0, 50, 50), (9, 9, 80, 90))] * len(images))
    assert calls["vit"] == 1


def test_text_is_embedded_once(images):
    from autodistill_sam3.weights import SAM3, find_checkpoint

    segmenter = TransformersSegmenter.load(find_checkpoint(SAM3, "shapes"), device="cpu")
    seen = []
    segmenter._model.detector_model.text_encoder.register_forward_pre_hook(
        lambda _, __, keywords: seen.append(len(keywords["input_ids"])), with_kwargs=True
    )
    for _ in range(3):
        segmenter.segment_text(segmenter.encode(images), ["red circle", "star", "red circle"], [0.5] * 3)
    segmenter.segment_text(segmenter.encode(images), ["star", "cross"], [0.5] * 2)
    assert seen == [2, 1]


def test_no_mask_head_without_a_survivor(shapes_segmenter, images, calls):
    results = shapes_segmenter.segment_text(shapes_segmenter.encode(images), PROMPTS, [1.0] * 4)
    assert [len(result.instances) for result in results] == [0, 0, 0]
    assert calls["detector"] > 0
    assert calls["masks"] == 0


def test_equals_transformers_own_forward(shapes_segmenter, images):
    """`Sam3Model.forward`, given a padding box so that it has the official model's CLS token."""
    model, tokenizer = shapes_segmenter._model.detector_model, shapes_segmenter._tokenizer
    features = shapes_segmenter.encode(images[:1])
    height, width = images[0].shape[:2]
    processor = Sam3ImageProcessor(size=dict.fromkeys(("height", "width"), model.config.image_size))
    pixels = processor(images=[images[0]], return_tensors="pt")["pixel_values"]
    for prompt in PROMPTS:
        text = tokenizer([prompt], padding="max_length", max_length=32, return_tensors="pt")
        with torch.inference_mode():
            expected = model(
                vision_embeds=model.get_vision_features(pixels),
                input_ids=text["input_ids"],
                attention_mask=text["attention_mask"],
                input_boxes=torch.zeros(1, 1, 4),
                input_boxes_labels=torch.full((1, 1), -10),
            )
        scores = (expected.pred_logits.sigmoid() * expected.presence_logits.sigmoid())[0].numpy()
        masks = torch.nn.functional.interpolate(expected.pred_masks, (height, width), mode="bilinear")[0].numpy() > 0
        nonempty = masks.any(axis=(1, 2))
        [result] = shapes_segmenter.segment_text(features, [prompt], [0.0])
        np.testing.assert_allclose(result.instances.scores, scores[nonempty], atol=1e-5)
        assert (result.instances.masks.to_dense() != masks[nonempty]).mean() < 1e-5
        np.testing.assert_allclose(result.presence, expected.presence_logits.sigmoid()[0].numpy(), atol=1e-5)


def test_batched_equals_single(shapes_segmenter, images):
    together = shapes_segmenter.segment_text(shapes_segmenter.encode(images), PROMPTS, [0.1] * 4)
    for image, result in zip(images, together, strict=True):
        features = shapes_segmenter.encode([image])
        for index, prompt in enumerate(PROMPTS):
            [alone] = shapes_segmenter.segment_text(features, [prompt], [0.1])
            own = result.instances.select(result.instances.prompt_index == index)
            np.testing.assert_allclose(alone.presence[0], result.presence[index], atol=1e-5)
            assert_same(alone.instances, type(own)(own.masks, own.scores, own.prompt_index * 0, "text"))


def test_passes_of_any_size_give_the_same(shapes_segmenter, images, monkeypatch):
    features = shapes_segmenter.encode(images)
    boxes = [boxes_of(*[(x, 5, x + 60, 90) for x in range(0, 30 * count, 10)]) for count in (3, 0, 1)]
    text = shapes_segmenter.segment_text(features, PROMPTS, [0.1] * 4)
    box = shapes_segmenter.segment_boxes(features, boxes)
    monkeypatch.setattr(transformers_segmenter, "PAIRS_PER_PASS", 5)
    monkeypatch.setattr(transformers_segmenter, "BOXES_PER_PASS", 6)
    for one, two in zip(text, shapes_segmenter.segment_text(features, PROMPTS, [0.1] * 4), strict=True):
        assert_same(one.instances, two.instances)
    for one, two in zip(box, shapes_segmenter.segment_boxes(features, boxes), strict=True):
        assert_same(one, two)


def test_prompt_order_changes_nothing(shapes_segmenter, images):
    features = shapes_segmenter.encode(images)
    forward = shapes_segmenter.segment_text(features, PROMPTS, [0.1] * 4)
    backward = shapes_segmenter.segment_text(features, PROMPTS[::-1], [0.1] * 4)
    for one, two in zip(forward, backward, strict=True):
        np.testing.assert_allclose(one.presence, two.presence[::-1], atol=1e-5)
        other = two.instances
        assert_same(one.instances, type(other)(other.masks, other.scores, 3 - other.prompt_index, "text"))


def test_padded_boxes_equal_single_ones(shapes_segmenter, images):
    features = shapes_segmenter.encode(images)
    boxes = [boxes_of((10, 10, 80, 90), (50, 20, 160, 120)), boxes_of(), boxes_of((30, 30, 90, 90))]
    together = shapes_segmenter.segment_boxes(features, boxes)
    assert len(together[1]) == 0
    for image, own, result in zip(images, boxes, together, strict=True):
        parts = [
            shapes_segmenter.segment_boxes(shapes_segmenter.encode([image]), [boxes_of(box)])[0] for box in own.xyxy
        ]
        for index, part in enumerate(parts):
            assert_same(
                type(part)(part.masks, part.scores, part.prompt_index + index, "boxes"),
                result.select(result.prompt_index == index),
            )


def test_box_scores_carry_the_likelihood(shapes_segmenter, images):
    features = shapes_segmenter.encode(images[:1])
    box = next(item for items in held_out_scenes()[0].objects for item in items).box_xyxy
    sure, unsure = (
        shapes_segmenter.segment_boxes(features, [boxes_of(box, scores=[score])])[0].scores[0] for score in (1.0, 0.25)
    )
    assert 0 < sure <= 1
    assert unsure == pytest.approx(sure / 4)


def test_no_boxes_cost_nothing(shapes_segmenter, images):
    features = shapes_segmenter.encode(images)
    found = shapes_segmenter.segment_boxes(features, [Boxes.empty()] * len(images))
    assert [part.masks.shape for part in found] == [(0, *image.shape[:2]) for image in images]


@pytest.mark.parametrize("image_hw", [(1, 1), (1, 300), (3, 300), (700, 2)])
def test_extreme_sizes(shapes_segmenter, image_hw):
    image = np.random.default_rng(0).integers(0, 256, (*image_hw, 3), dtype=np.uint8)
    features = shapes_segmenter.encode([image])
    # An image of three rows is easily read as one of three channels.
    high = shapes_segmenter.encode([image.repeat(8, axis=0).repeat(8, axis=1)])
    difference = (features.vision.last_hidden_state - high.vision.last_hidden_state).abs().mean()
    assert difference < 0.5 * high.vision.last_hidden_state.std()
    [result] = shapes_segmenter.segment_text(features, PROMPTS, EVERYTHING)
    assert result.instances.masks.image_shape == image_hw
    shapes_segmenter.segment_boxes(features, [boxes_of((0, 0, image_hw[1], image_hw[0]))])


def test_long_prompt_is_cut_with_a_warning(shapes_segmenter, images, caplog):
    features = shapes_segmenter.encode(images[:1])
    prompt = "a red circle " * 20
    with caplog.at_level(logging.WARNING, logger="autodistill_sam3"):
        [result] = shapes_segmenter.segment_text(features, [prompt, "star"], [0.5, 0.5])
    assert result.presence.shape == (2,)
    [record] = caplog.records
    assert "32 tokens" in record.message
    assert "a red circle a red" in record.message


@pytest.mark.parametrize("prompt", ["zebra", "Ünïcödé 星", "🔴", "&amp;", "RED CIRCLE", "red  circle\n"])
def test_any_text_is_a_prompt(shapes_segmenter, images, prompt):
    [result] = shapes_segmenter.segment_text(shapes_segmenter.encode(images[:1]), [prompt], [0.5])
    assert np.isfinite(result.presence).all()


@pytest.mark.parametrize("prompt", ["<|endoftext|> red", "<|startoftext|>", "a<|endoftext|>b"])
def test_the_names_of_special_tokens_are_text(shapes_segmenter, images, monkeypatch, prompt):
    monkeypatch.setattr(shapes_segmenter, "_texts", {})
    seen = []
    hook = shapes_segmenter._model.detector_model.text_encoder.register_forward_pre_hook(
        lambda _, __, keywords: seen.append(keywords["input_ids"][keywords["attention_mask"].bool()]), with_kwargs=True
    )
    try:
        shapes_segmenter.segment_text(shapes_segmenter.encode(images[:1]), [prompt], [0.5])
    finally:
        hook.remove()
    [ids] = seen
    assert not set(ids[1:-1].tolist()) & set(shapes_segmenter._tokenizer.all_special_ids)


def test_full_size_on_a_cpu_is_announced(monkeypatch, caplog):
    from autodistill_sam3.weights import SAM3, find_checkpoint

    monkeypatch.setattr(transformers_segmenter, "_FULL_SIZE_PIXELS", 100)
    TransformersSegmenter.load(find_checkpoint(SAM3, "shapes"), device="cpu")
    assert [record.message[:22] for record in caplog.records] == ["Full-size SAM 3 on a C"]


def test_two_runs_agree_exactly(shapes_segmenter, images):
    first, second = (
        shapes_segmenter.segment_text(shapes_segmenter.encode(images), PROMPTS, [0.1] * 4) for _ in range(2)
    )
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.presence, two.presence)
        np.testing.assert_array_equal(one.instances.scores, two.instances.scores)


def test_bf16_autocast_stays_close_and_does_not_leak(images):
    from autodistill_sam3.weights import SAM3, find_checkpoint

    folder = find_checkpoint(SAM3, "shapes")
    presence = []
    for precision in ("fp32", "bf16"):
        segmenter = TransformersSegmenter.load(folder, device="cpu", precision=precision)
        results = segmenter.segment_text(segmenter.encode(images), PROMPTS, [0.5] * 4)
        presence.append(np.stack([result.presence for result in results]))
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_inference_mode_enabled()
    assert np.abs(presence[0] - presence[1]).max() < 0.1


def test_devices_and_precisions():
    assert autocast_dtype("auto", select_device("cpu")) is None
    assert autocast_dtype("fp16", select_device("cpu")) == torch.float16
    with pytest.raises(SettingError, match="precision"):
        autocast_dtype("int4", select_device("cpu"))
    for device in ("cuda:63", "nonsense"):
        with pytest.raises(DeviceError, match=device):
            select_device(device)
