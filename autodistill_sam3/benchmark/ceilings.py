"""What the device can do at best, measured, and the least time that a row's arithmetic takes at that rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from autodistill_sam3.benchmark.settings import FLORENCE2_TOKENS, Work

if TYPE_CHECKING:
    import torch

# TFLOP of the full-size model at 1008 pixels: ViT and neck an image, heads an image and prompt, as counted by
# torch.utils.flop_counter.
VISION_TFLOP = 5.61
HEADS_TFLOP = 0.42
# Of Florence-2-large, counted likewise: its image encoder, and for each prompt the text encoder over 577 tokens of the
# image and 14 of the prompt.
FLORENCE2_VISION_TFLOP = 1.49
FLORENCE2_ENCODER_TFLOP = 0.196
# The decoder with the vocabulary's layer, and what makes keys and values of the encoder's output.
_DECODER_PARAMETERS, _VOCABULARY_PARAMETERS = 201e6, 52.5e6
_CROSS_PARAMETERS, _ENCODER_TOKENS = 25e6, 591

_REPEATS = 10
_SIDE, _COPY_BYTES = 8192, 1 << 31
_SIDE_CPU, _COPY_BYTES_CPU = 1024, 1 << 26


def measure_ceilings(device: torch.device) -> dict[str, float]:
    """The rates of a large matrix product and of a copy.

    Returns:
        "matmul_tflops", of 8192 x 8192 matrices in bf16 (on a CPU 1024 in fp32); "copy_gb_s", bytes read plus bytes
        written a second.
    """
    # The command line reads this module for its help.
    import torch

    on_gpu = device.type != "cpu"
    side, dtype = (_SIDE, torch.bfloat16) if on_gpu else (_SIDE_CPU, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    matmul = _seconds(lambda: a @ b, device)
    size = _COPY_BYTES if on_gpu else _COPY_BYTES_CPU
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = _seconds(lambda: target.copy_(source), device)
    return {"matmul_tflops": 2 * side**3 / matmul / 1e12, "copy_gb_s": 2 * size / copy / 1e9}


def floor_tflop(work: Work, *, pairs_asked: float | None = None) -> float:
    """The arithmetic of a row, in TFLOP an image, at full size.

    Of Florence-2: the image encoder once; for each prompt the text encoder, two operations a parameter and token of the
    decoder (64 tokens), and the keys and values of the encoder's output once. Box masks are left out: ten of them need
    less than a hundredth of the rest.

    Args:
        work: The row's.
        pairs_asked: Prompts an image that Florence-2 was asked for, if a gate left some out.
    """
    total = VISION_TFLOP + HEADS_TFLOP * work.classes
    if work.prompting == "both":
        asked = work.classes if pairs_asked is None else pairs_asked
        decoder = _DECODER_PARAMETERS + _VOCABULARY_PARAMETERS
        tokens = 2 * (decoder * FLORENCE2_TOKENS + _CROSS_PARAMETERS * _ENCODER_TOKENS) / 1e12
        total += FLORENCE2_VISION_TFLOP + asked * (FLORENCE2_ENCODER_TFLOP + tokens)
    return total


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _seconds(compute: Callable[[], object], device: torch.device) -> float:
    """Of one call, the mean over some after a warm-up."""
    for _ in range(3):
        compute()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(_REPEATS):
        compute()
    synchronize(device)
    return (time.perf_counter() - start) / _REPEATS
