"""Meta's video model on the CPU, narrow and of small images, and clips for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autodistill_sam3.benchmark.random_sam3 import fill_with_blobs, write_random_sam3
from autodistill_sam3.video.clip import Frame, SkippedFrame
from autodistill_sam3.video.official_engine import OfficialVideoEngine

from . import narrow

# Without it, random weights say of nearly every frame that an object is not there.
_IS_THERE = 10.0
_BLOCK = 20


def narrowed_video() -> contextlib.AbstractContextManager[None]:
    """What the official builder builds inside is as narrow as video allows."""
    return narrow.narrowed_builder(narrow.VIDEO_WIDTH, narrow.VIDEO_IMAGE_SIZE)


def write_narrow_video(path: Path, seed: int = 0) -> None:
    """A random `sam3.pt` in which there is always something."""

    def fill(model: Any) -> None:
        torch.manual_seed(seed)
        fill_with_blobs(model)
        with torch.no_grad():
            model.tracker.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.add_(_IS_THERE)

    with narrowed_video():
        write_random_sam3(path, narrow.clip_vocabulary(), fill)


def narrow_engine(path: Path, *, device: str = "cpu", part_frames: int = 64, overlap: int = 3) -> OfficialVideoEngine:
    """The engine on such a file, without the rules that remove what random weights track."""
    with narrowed_video():
        engine = OfficialVideoEngine(
            path,
            narrow.clip_vocabulary(),
            device=device,
            precision="fp32",
            part_frames=part_frames,
            overlap=overlap,
        )
    only_first_objects(engine.predictor.model)
    return engine


def only_first_objects(model: Any) -> None:
    """Objects begin in the first frame alone, and none is removed."""
    model.hotstart_delay = 0
    model.new_det_thresh = 2.0


class ListClip:
    """A `Clip` of frames that are there."""

    def __init__(self, images: list[narrow.Array], missing: tuple[int, ...] = ()) -> None:
        self.name = "drawn"
        self.hw = images[0].shape[0], images[0].shape[1]
        self.num_frames: int | None = len(images)
        self.frame_rate: float | None = None
        self.skipped: list[SkippedFrame] = []
        self._images, self._missing = images, missing

    def frames(self, start: int = 0, stop: int | None = None, *, backward: bool = False) -> Iterator[Frame]:
        places = [index for index in range(len(self._images))[start:stop] if index not in self._missing]
        for index in reversed(places) if backward else places:
            yield Frame(index, self._images[index])

    def close(self) -> None:
        pass

    def __enter__(self) -> ListClip:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def drawn_clip(count: int, hw: tuple[int, int] = (120, 200), seed: int = 0) -> list[narrow.Array]:
    """Two rectangles that move towards each other over coloured blocks."""
    height, width = hw
    blocks = np.random.default_rng(seed).integers(
        0, 256, (height // _BLOCK + 1, width // _BLOCK + 1, 3), dtype=np.uint8
    )
    background = blocks.repeat(_BLOCK, axis=0).repeat(_BLOCK, axis=1)[:height, :width]
    images = []
    for index in range(count):
        image = background.copy()
        x = width // 20 + index * max(1, width // (2 * count))
        image[height // 6 : height // 2, x : x + width // 5] = (255, 0, 0)
        image[height // 2 : height - height // 12, width - x - width // 5 : width - x] = (0, 0, 255)
        images.append(image)
    return images
