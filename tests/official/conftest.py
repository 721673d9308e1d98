"""The narrow official model, the same weights as a transformers checkpoint, and what both are asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from autodistill_sam3.convert import convert

from . import narrow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Sam3VideoModel

    from autodistill_sam3.segmentation.transformers_segmenter import TransformersSegmenter

# Height and width; none is square, and the last is far from it.
_SIZES = ((300, 500), (641, 333), (90, 700))
# Of various lengths; the last is longer than the model reads.
PROMPTS = ("red circle", "a person's hat on the left", "café table, " * 20)


@dataclass(frozen=True, eq=False)
class Case:
    """One image with what the official model says of it.

    Attributes:
        image: (H, W, 3) RGB ``uint8``.
        boxes_xyxy: (N, 4) ``float32`` in pixels; N differs between images.
        texts: The official answer to each of `PROMPTS`.
        boxes: The official answer to the boxes.
    """

    image: narrow.Array
    boxes_xyxy: narrow.Array
    texts: tuple[narrow.TextOutput, ...]
    boxes: narrow.BoxOutput


@pytest.fixture(scope="session")
def official() -> narrow.NarrowOfficial:
    return narrow.NarrowOfficial(narrow.clip_vocabulary())


@pytest.fixture(scope="session")
def official_file(official: narrow.NarrowOfficial, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official weights as `sam3.pt`."""
    path = tmp_path_factory.mktemp("official") / "sam3.pt"
    torch.save(official.checkpoint(), path)
    return path


@pytest.fixture(scope="session")
def converted_folder(official_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in transformers layout."""
    folder = tmp_path_factory.mktemp("converted") / "sam3"
    convert(official_file, "transformers", folder, bpe_path=narrow.clip_vocabulary())
    return folder


@pytest.fixture(scope="session")
def tokenizer(converted_folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(converted_folder, local_files_only=True)
    return loaded


@pytest.fixture(scope="session")
def video_model(converted_folder: Path) -> Sam3VideoModel:
    """The converted weights in plain transformers, without the package's own loading."""
    from safetensors.torch import load_file
    from transformers import Sam3VideoConfig, Sam3VideoModel

    model = Sam3VideoModel(Sam3VideoConfig.from_pretrained(converted_folder))
    model.load_state_dict(load_file(converted_folder / "model.safetensors"))
    model.train(False)
    return model


@pytest.fixture(scope="session")
def segmenter(official_file: Path) -> TransformersSegmenter:
    """The package's engine on the official file."""
    from autodistill_sam3.segmentation.transformers_segmenter import TransformersSegmenter

    return TransformersSegmenter.load(official_file, bpe_path=narrow.clip_vocabulary(), device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def cases(official: narrow.NarrowOfficial) -> tuple[Case, ...]:
    """The images and the official answers, computed once."""
    return tuple(_case(official, seed, *hw) for seed, hw in enumerate(_SIZES))


def _case(official: narrow.NarrowOfficial, seed: int, height: int, width: int) -> Case:
    rng = np.random.default_rng(seed)
    image = _noise_and_rectangles(rng, height, width)
    corners = np.sort(rng.uniform(0, 1, (3 + seed, 2, 2)), axis=1).reshape(-1, 4)
    boxes = (corners * [width, height, width, height]).astype(np.float32)
    view = official.image(image)
    return Case(image, boxes, tuple(view.text(prompt) for prompt in PROMPTS), view.boxes(boxes))


def _noise_and_rectangles(rng: np.random.Generator, height: int, width: int) -> narrow.Array:
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    for _ in range(4):
        y, x = rng.integers(0, height // 2), rng.integers(0, width // 2)
        image[y : y + height // 3, x : x + width // 4] = rng.integers(0, 256, 3)
    return image
