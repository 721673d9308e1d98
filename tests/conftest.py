"""Shared by all tests: the bundled checkpoints, loaded once, and images to use them on."""

from __future__ import annotations

import gc
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported stays: the garbage collector need not look at it, now or in any test."""
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadfile`, all in `official` run in one process, too: their models take long to make.

    pytest-xdist's own way, a mark for `--dist loadgroup`, is silently ignored from pytest 9.2 on.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = PurePosixPath(nodeid.partition("::")[0])
            return str(file.parent if file.parent.name == "official" else file)

    return ByFile(config, log)


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
