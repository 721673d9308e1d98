"""What official code, or containing it, could change in the process."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch


def readable(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:
        return "unreadable"


def process_state() -> dict[str, Any]:
    """Everything that official code or its containment is known to touch."""
    nesting = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    backends: Any = torch.backends
    cuda = backends.cuda
    return {
        "autocast": [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")
        ],
        "autocast nesting": nesting,
        "autocast cache": torch.is_autocast_cache_enabled(),
        "tf32": [readable(lambda owner=owner: owner.allow_tf32) for owner in (cuda.matmul, backends.cudnn)],
        "matmul precision": readable(torch.get_float32_matmul_precision),
        "kernels": [cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled()],
        "default": (torch.get_default_dtype(), torch.get_default_device()),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "random": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "warnings": list(warnings.filters),
        "log handlers": list(logging.root.handlers),
        "patched": (torch.Tensor.pin_memory, torch.cuda.is_available, torch.cuda.get_device_properties),
    }


@contextlib.contextmanager
def nothing_leaks() -> Iterator[None]:
    before = process_state()
    try:
        yield
    finally:
        after = process_state()
        assert {name: value for name, value in after.items() if value != before[name]} == {}
