"""`torch.compile` for the functions that take the time; each is compiled once for each shape that it gets."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autodistill_sam3.devices import MAKING_CODE
from autodistill_sam3.errors import SettingError

# Of a function, before torch runs it as it is, with other last bits. Its own limit is 8.
_SIZES = 128


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` works here: it needs a C compiler and, for a GPU, Triton."""
    has_compiler = any(shutil.which(name) for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name)
    has_triton = importlib.util.find_spec("triton") is not None
    return has_compiler and (device.type == "cpu" or (device.type == "cuda" and has_triton))


def checked_compile(wanted: bool | None, device: torch.device) -> bool | None:
    """Raise SettingError if compiling is asked for where it cannot be done."""
    if wanted and not can_compile(device):
        raise SettingError(
            f"Expected a C compiler and Triton for compile=True on {device}, received a machine without one of them. "
            "Install gcc and triton, or leave compile out."
        )
    return wanted


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled when it is first called.

    What is compiled is kept in `TORCHINDUCTOR_CACHE_DIR`, by default `~/.cache/autodistill/compiled`, so that the next
    process need not do it again.
    """
    with contextlib.suppress(RuntimeError):  # There is no home.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "autodistill" / "compiled"))
    # Seconds, for what most runs do not use.
    import torch._dynamo

    fast = torch.compile(function, dynamic=False, options=_options())

    @functools.wraps(function)
    def one_at_a_time(*arguments: Any) -> Any:
        # Called recompile_limit as well, but not in torch 2.6.
        with MAKING_CODE, torch._dynamo.config.patch(cache_size_limit=_SIZES):
            return fast(*arguments)

    return one_at_a_time


def _options() -> Any:
    """No reduction is chosen by timing, where torch offers that: another choice would give other last bits."""
    import torch._inductor.config

    return {"deterministic": True} if hasattr(torch._inductor.config, "deterministic") else {}
