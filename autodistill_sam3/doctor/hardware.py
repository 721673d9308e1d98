"""The driver, the GPUs, and the device and precision that a run would take."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from autodistill_sam3.devices import autocast_dtype, select_device
from autodistill_sam3.doctor.report import Finding
from autodistill_sam3.doctor.settings import RunSettings, first_line, gigabytes
from autodistill_sam3.errors import DeviceError

if TYPE_CHECKING:
    import torch

    from autodistill_sam3.devices import Precision

_finding = partial(Finding, "Device")

NEEDED_GB, RECOMMENDED_GB = 16, 24
# Below it, the weights of SAM 3 and Florence-2-large in float32, 6.5 GB, leave too little for a batch of one.
_BOTH_MODELS_GB = 10
_BF16_CAPABILITY = (8, 0)
# The oldest driver that runs programs built for a major version of CUDA (NVIDIA's CUDA compatibility guide).
_OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}

_PROC_DRIVER = Path("/proc/driver/nvidia/version")
_INSTALL_TORCH = "https://pytorch.org/get-started/locally/"


def check_hardware(run: RunSettings) -> Iterator[Finding]:
    """Driver, what torch is built for, every GPU, and what a run would take of them."""
    driver = _driver_version()
    yield _finding("NVIDIA driver", driver or "none found", "ok" if driver else "info")
    yield _finding("torch built for", _built_for())
    count, said = _device_count()
    try:
        device = select_device(run.device)
    except DeviceError as error:
        yield from (_gpu(index, None, run) for index in range(count))
        wants_gpu = (run.device or "").startswith("cuda") and not count
        why = f"{_why_no_gpu(driver, said)} " if wants_gpu else ""
        yield _finding("device", str(error), "problem", f"{why}Without --device the best one there is gets taken.")
        return
    chosen = (device.index or 0) if device.type == "cuda" else None
    yield from (_gpu(index, chosen, run) for index in range(count))
    yield _device(device, run, driver, said, count)
    yield _precision(device, run)


def _driver_version() -> str | None:
    """The version of NVIDIA's kernel driver, from its own tool or from the kernel."""
    if (tool := shutil.which("nvidia-smi")) is not None:
        query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.SubprocessError):
            done = None
        if done is not None and (match := re.match(r"[\d.]+", done.stdout)):
            return match[0]
    try:
        match = re.search(r"Module.*?\s(\d+\.[\d.]+)", _PROC_DRIVER.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return match[1] if match else None


def _built_for() -> str:
    import torch

    version: Any = torch.version
    if version.cuda is not None:
        return f"CUDA {version.cuda}"
    return f"ROCm {version.hip}" if version.hip is not None else "the CPU"


def _device_count() -> tuple[int, str]:
    """How many GPUs torch can use, and what it says while it looks, such as that the driver is too old."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return count, "; ".join(first_line(Warning(str(warning.message))) for warning in said)


def _why_no_gpu(driver: str | None, said: str) -> str:
    """What to do when torch sees no GPU."""
    import torch

    cuda = torch.version.cuda
    if driver is None:
        return (
            f"With an NVIDIA GPU ({RECOMMENDED_GB} GB of memory recommended) install its driver, and start containers "
            "with --gpus all."
        )
    if cuda is None:
        return f"This torch is built without CUDA: install one with it, see {_INSTALL_TORCH}"
    oldest = _OLDEST_DRIVER.get(int(cuda.split(".")[0]), 0)
    if int(driver.split(".")[0]) < oldest:
        return (
            f"Driver {driver} is too old for CUDA {cuda}: install driver {oldest} or newer, or a torch built for an "
            f"older CUDA, see {_INSTALL_TORCH}"
        )
    hidden = " is set and" if "CUDA_VISIBLE_DEVICES" in os.environ else ""
    return (
        f"A driver is here and torch sees no GPU{f' ({said})' if said else ''}: CUDA_VISIBLE_DEVICES{hidden} may hide "
        "it, a container needs --gpus all, and after an update of the driver the machine needs a restart."
    )


def _gpu(index: int, chosen: int | None, run: RunSettings) -> Finding:
    """One GPU; only for the one that would be taken is there anything to mend."""
    import torch

    title = f"GPU {index}"
    properties: Any = torch.cuda.get_device_properties(index)
    capability = torch.cuda.get_device_capability(index)
    value = f"{properties.name}, capability {capability[0]}.{capability[1]}, {gigabytes(properties.total_memory)}"
    if index != chosen:
        return _finding(title, value, "info")
    if not _has_kernels(capability):
        cure = f"Install a torch that is built for it, see {_INSTALL_TORCH}, or take --device cpu."
        return _finding(title, f"{value}; this torch has no kernels for it", "problem", cure)
    try:
        free, _ = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        cure = "Another program may hold it alone: look at nvidia-smi, or choose another one with --device."
        return _finding(title, f"{value}; cannot be used: {first_line(error)}", "problem", cure)
    return _memory(title, f"{value}, {gigabytes(free)} of it free", properties.total_memory, free, run)


def _has_kernels(capability: tuple[int, int]) -> bool:
    """Whether torch was built for a GPU, or for an older one in a form that this one translates."""
    import torch

    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name) for name in torch.cuda.get_arch_list()]
    for match in filter(None, built):
        target = int(match[2]), int(match[3])
        if target <= capability and (match[1] == "compute" or target[0] == capability[0]):
            return True
    # ROCm's names are others.
    return not any(built)


def _memory(title: str, value: str, total: int, free: int, run: RunSettings) -> Finding:
    # Cards are sold by decimal sizes, and report a little less or more.
    if run.small:
        return _finding(title, value)
    if round(total / 1e9) < NEEDED_GB:
        settings = "--batch-size 1" if run.precision != "fp32" else "--batch-size 1 and no --precision fp32"
        if total / 1e9 < _BOTH_MODELS_GB and run.with_boxes:
            settings += " --prompting text, which leaves out Florence-2"
        cure = f"Label with {settings}. {RECOMMENDED_GB} GB are recommended."
        return _finding(title, f"{value}; under {NEEDED_GB} GB", "warning", cure)
    if round(free / 1e9) < min(NEEDED_GB, 0.75 * total / 1e9):
        cure = "Other programs hold the rest: end them (see nvidia-smi), choose another GPU with --device, or label "
        return _finding(title, value, "warning", f"{cure}with --batch-size 1.")
    if round(total / 1e9) < RECOMMENDED_GB:
        return _finding(title, f"{value}; {RECOMMENDED_GB} GB are recommended", "info")
    return _finding(title, value)


def _device(device: torch.device, run: RunSettings, driver: str | None, said: str, count: int) -> Finding:
    if device.type == "cuda" or run.small:
        return _finding("device", str(device))
    if device.type == "mps":
        return _finding("device", "mps, in float32; a CUDA GPU is faster", "info")
    cure = _why_no_gpu(driver, said) if not count else "Leave out --device cpu."
    value = "cpu: slow, tens of seconds an image with full-size SAM 3; a GPU takes well under one"
    return _finding("device", value, "warning", cure)


def _precision(device: torch.device, run: RunSettings) -> Finding:
    import torch

    dtype = autocast_dtype(cast("Precision", run.precision), device)
    value = str(dtype if dtype is not None else torch.float32).removeprefix("torch.")
    if device.type != "cuda":
        return _finding("precision", value)
    if dtype is None:
        return _finding("precision", f"{value}: slow on a GPU", "warning", "Leave out --precision fp32.")
    if torch.cuda.get_device_capability(device) < _BF16_CAPABILITY:
        if dtype is torch.bfloat16:
            cure = "Leave out --precision bf16, or take --precision fp16."
            return _finding("precision", f"{value}: slow on this GPU, which does not compute in it", "warning", cure)
        return _finding("precision", f"{value}, since this GPU does not compute in bfloat16", "info")
    return _finding("precision", value)
