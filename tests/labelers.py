"""Callables in a model's place, for tests of what surrounds it."""

from __future__ import annotations

import os
import signal

import numpy as np
import supervision as sv

from autodistill_sam3.instances import compact_masks, tight_xyxy


def no_objects(images):
    return [sv.Detections.empty() for _ in images]


def discs_of(image, count=3):
    """Detections whose masks are discs with a hole, some cut by the border; where they lie follows from the pixels."""
    height, width = image.shape[:2]
    rng = np.random.default_rng(int(image.sum()) + height)
    y, x = np.mgrid[:height, :width]
    crops = []
    for _ in range(count):
        distance = np.hypot(y - rng.integers(0, height), x - rng.integers(0, width))
        crops.append(((distance < 12) & (distance >= 4), 0, 0))
    crops = [crop for crop in crops if crop[0].any()]
    masks = compact_masks(crops, (height, width))
    return sv.Detections(
        xyxy=tight_xyxy(masks),
        mask=masks,
        confidence=rng.uniform(0.5, 1, len(crops)).astype(np.float32),
        class_id=rng.integers(0, 2, len(crops)),
        data={"prompt": np.array(["a"] * len(crops)), "source": np.array(["text"] * len(crops))},
    )


def discs(images):
    return [discs_of(image) for image in images]


def discs_from_scratch(image):
    """As `discs_of`, for `to_detections` with the pixels themselves as what the model sees."""
    return discs_of(image)


def discs_unless_elsewhere(image, home):
    """The same, but any other process than this one dies of it, as by the system that is out of memory."""
    if os.getpid() != home:
        os.kill(os.getpid(), signal.SIGKILL)
    return discs_of(image)
