"""The benchmark's references on a narrow random `sam3.pt`: asked the same as this package, they say the same."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from autodistill_sam3.benchmark import Settings, random_sam3
from autodistill_sam3.benchmark.engines.florence2_card import Florence2Card, fixed_boxes
from autodistill_sam3.benchmark.engines.sam3_package import SAM3Package
from autodistill_sam3.benchmark.pictures import draw_scene, vary
from autodistill_sam3.benchmark.random_florence2 import florence2_config, write_random_florence2
from autodistill_sam3.benchmark.random_sam3 import fill_with_blobs, write_random_sam3
from autodistill_sam3.benchmark.settings import FLORENCE2_TOKENS, Work
from autodistill_sam3.grounding import florence2
from autodistill_sam3.grounding.answers import Answer
from autodistill_sam3.grounding.florence2 import Florence2Grounder
from autodistill_sam3.instances import Boxes
from autodistill_sam3.segmentation import load_segmenter

from . import narrow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("narrow")
    vocabulary = narrow.clip_vocabulary()
    names: list[str] = []

    def fill(model: torch.nn.Module) -> None:
        names.extend(name for name, _ in model.named_parameters())
        # Runs through, with the biases of the model as it is named; its scales are for the full size.
        fill_with_blobs(model)
        narrow.randomise(model)

    with narrow.narrowed_builder():
        write_random_sam3(folder / "sam3.pt", vocabulary, fill)
    unused = [pattern for pattern, _ in random_sam3.SCALES if not any(re.fullmatch(pattern, name) for name in names)]
    assert not unused
    return Settings(folder / "out", folder / "sam3.pt", None, str(folder / "sam3.pt"), None, vocabulary, "cpu")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    scene = cv2.resize(vary(draw_scene(), 0), (320, 240), interpolation=cv2.INTER_AREA)
    return Image.fromarray(scene)


@pytest.mark.slow
def test_the_package_and_this_one_find_the_same(settings: Settings, picture: Image.Image) -> None:
    pixels = np.asarray(picture).copy()
    segmenter = load_segmenter(settings.sam3_file or Path(), bpe_path=settings.bpe_path, device="cpu")
    features = segmenter.encode([pixels])
    work = Work(1, "both", 0.0)
    # A threshold in the middle of a gap: rounding decides about nothing.
    [everything] = segmenter.segment_text(features, work.prompts, [0.0])
    ordered = np.sort(everything.instances.scores)[::-1][:12]
    gap = int(np.argmax(ordered[:-1] - ordered[1:]))
    work = replace(work, threshold=float(ordered[gap : gap + 2].mean()))
    texts = everything.instances.select(everything.instances.scores > work.threshold).masks.to_dense()
    boxes = fixed_boxes(pixels.shape[:2])
    ones, zeros = np.ones(len(boxes), np.float32), np.zeros(len(boxes), np.int64)
    [from_boxes] = segmenter.segment_boxes(features, [Boxes(boxes, ones, zeros)])

    with narrow.narrowed_builder():
        package = SAM3Package(settings, "both", "cpu")
        # It would fill small holes, and this package does not.
        package._model.inst_interactive_predictor._transforms.max_hole_area = 0
        found = package.segment(picture, work)
    by_text, by_box = found.masks[:-10], found.masks[-10:]
    # Queries without a pixel are instances there.
    by_text = by_text[by_text.any(axis=(1, 2))]
    assert len(by_text) == len(texts) > 0
    assert min(iou(texts, mask[None]).max() for mask in by_text) > 0.999
    assert iou(from_boxes.masks.to_dense(), by_box).min() > 0.999


def iou(first: narrow.Array, second: narrow.Array) -> narrow.Array:
    return np.asarray((first & second).sum(axis=(1, 2)) / (first | second).sum(axis=(1, 2)))


def test_weights_are_scaled_so_that_convolutions_smooth() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3), torch.nn.ConvTranspose2d(16, 8, 2, 2))
    # What has no bias by that name is left as it is.
    with pytest.raises(KeyError):
        fill_with_blobs(model)
    plain, transposed = (layer.weight.detach() for layer in model)
    assert plain.std(dim=(2, 3)).mean() < 0.5 * plain.abs().mean()
    assert (transposed == transposed[:, :, :1, :1]).all()


def test_random_florence2_never_ends_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_random_florence2(tmp_path / "florence2", florence2_config(width=64, layers=1, depths=(1, 1, 1, 1)))
    image = Image.fromarray(draw_scene()[:320, :320])
    lengths = []

    card = Florence2Card(tmp_path / "florence2", "cpu")
    generate = card._model.generate

    def record_card(**keywords: object) -> object:
        output = generate(**keywords)
        lengths.append(output.shape[1] - 1)
        return output

    monkeypatch.setattr(card._model, "generate", record_card)
    card.ask(image, ["red circle"])
    grounder = Florence2Grounder.load(tmp_path / "florence2", device="cpu", max_new_tokens=FLORENCE2_TOKENS)
    read = florence2.parse_answer

    def record_ours(ids: narrow.Array, *arguments: Any) -> Answer:
        lengths.append(len(ids))
        return read(ids, *arguments)

    monkeypatch.setattr(florence2, "parse_answer", record_ours)
    grounder.ground([np.asarray(image).copy()], ["red circle"])
    assert lengths == [FLORENCE2_TOKENS] * 2
