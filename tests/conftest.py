"""Shared by all tests: the bundled checkpoints, loaded once, and images to use them on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The tests of a file run in one process, and so do all in `official`, whose models take long to make."""
    for item in items:
        folder = item.path.parent
        together = folder if folder.name == "official" else item.path
        item.add_marker(pytest.mark.xdist_group(together.relative_to(REPOSITORY).as_posix()))


@pytest.fixture(scope="session")
def shapes_segmenter():
    from autodistill_sam3.segmentation.transformers_segmenter import TransformersSegmenter
    from autodistill_sam3.weights import SAM3, find_checkpoint

    return TransformersSegmenter.load(find_checkpoint(SAM3, "shapes"), device="cpu")


@pytest.fixture(scope="session")
def shapes_grounder():
    from autodistill_sam3.grounding.florence2 import Florence2Grounder
    from autodistill_sam3.weights import FLORENCE2, find_checkpoint

    return Florence2Grounder.load(find_checkpoint(FLORENCE2, "shapes"), device="cpu")


@pytest.fixture
def photo_folder(tmp_path):
    """Five small noisy images of three suffixes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, suffix in enumerate((".jpg", ".png", ".JPG", ".jpeg", ".webp")):
        pixels = rng.integers(0, 256, (40 + 8 * index, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photo {index}{suffix}")
    return folder
