"""ViT and neck alone: batches and precisions, eager transformers beside this package."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch

from autodistill_sam3.benchmark.ceilings import synchronize
from autodistill_sam3.benchmark.settings import Settings
from autodistill_sam3.devices import Precision, select_device, with_memory_errors
from autodistill_sam3.errors import OutOfMemoryError
from autodistill_sam3.images import load_image
from autodistill_sam3.segmentation import Segmenter, load_segmenter
from autodistill_sam3.stages import recording
from autodistill_sam3.weights import SAM3, find_checkpoint

BATCHES = (1, 4, 8, 16)
BATCHES_CPU = (1,)
# Compiling takes half a minute for each.
COMPILED = {"bf16": (8,)}
# What a GPU uses by default comes first.
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_WARM_UP, _REPEATS = 2, 4


def measure_vision(settings: Settings) -> Iterator[dict[str, Any]]:
    """Milliseconds an image for each engine, precision and batch.

    Yields:
        "engine" ("transformers", "ours" or "ours, compiled", this one for one batch only), "precision", "batch",
        "ms_per_image" or "error"; of this package also "vit_ms_per_image", without the pictures' way to the GPU and
        their resizing.
    """
    device = select_device(settings.device)
    batches = BATCHES if device.type != "cpu" else BATCHES_CPU
    precisions = DTYPES if device.type != "cpu" else {"fp32": torch.float32}
    for precision in precisions:
        for engine, prepare in (("transformers", _eager), ("ours", _own), ("ours, compiled", _compiled)):
            is_compiled = prepare is _compiled
            encode = prepare(settings, device, precision) if not is_compiled or precision in COMPILED else None
            if encode is None:
                continue
            for batch in batches if not is_compiled else COMPILED[precision]:
                yield {"engine": engine, "precision": precision, "batch": batch, **_measure(encode, batch, device)}
            del encode
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _measure(encode: Callable[[int], object], batch: int, device: torch.device) -> dict[str, Any]:
    def run() -> dict[str, Any]:
        for _ in range(_WARM_UP):
            encode(batch)
        synchronize(device)
        start = time.perf_counter()
        with recording() as times:
            for _ in range(_REPEATS):
                encode(batch)
            synchronize(device)
        seconds = time.perf_counter() - start
        result: dict[str, Any] = {"ms_per_image": seconds * 1000 / (_REPEATS * batch)}
        if vit := times.seconds.get("ViT"):
            result["vit_ms_per_image"] = vit * 1000 / (_REPEATS * batch)
        return result

    try:
        return with_memory_errors(run)
    except OutOfMemoryError as error:
        return {"error": str(error)}


def _eager(settings: Settings, device: torch.device, precision: str) -> Callable[[int], object] | None:
    """The model of transformers with weights in that precision, given pixels that are on the device."""
    from transformers import Sam3Model

    if settings.sam3_folder is None:
        return None
    loaded: Any = Sam3Model.from_pretrained(settings.sam3_folder, dtype=DTYPES[precision])
    model = loaded.to(device)
    size = model.config.image_size

    @torch.inference_mode()
    def encode(batch: int) -> object:
        pixels = torch.zeros(batch, 3, size, size, device=device, dtype=DTYPES[precision])
        return model.get_vision_features(pixel_values=pixels)

    return encode


def _own(settings: Settings, device: torch.device, precision: str) -> Callable[[int], object]:
    """This package's `encode`, given pictures in the host's memory."""
    return _encoder(_segmenter(settings, precision), settings)


def _compiled(settings: Settings, device: torch.device, precision: str) -> Callable[[int], object] | None:
    """The same as in long runs; None where nothing can be compiled."""
    segmenter = _segmenter(settings, precision)
    compiled = segmenter.compiled()
    return None if compiled is segmenter else _encoder(compiled, settings)


def _segmenter(settings: Settings, precision: str) -> Segmenter[Any]:
    return load_segmenter(
        find_checkpoint(SAM3, settings.checkpoint),
        bpe_path=settings.bpe_path,
        boxes=False,
        device=settings.device,
        precision=cast(Precision, precision),
    )


def _encoder(segmenter: Segmenter[Any], settings: Settings) -> Callable[[int], object]:
    picture = load_image(sorted(settings.pictures.glob("*.jpg"))[0])
    return lambda batch: segmenter.encode([picture] * batch)
