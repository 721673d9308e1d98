"""Peaks of a GPU's and a machine's memory while something runs."""

from __future__ import annotations

import contextlib
import gc
import importlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_INTERVAL_S = 0.05
_GB = 1e9


@dataclass
class Peaks:
    """Filled when the context of :func:`measured_memory` ends; None where it cannot be measured.

    Attributes:
        gpu_gb: Most that tensors took at a time.
        gpu_reserved_gb: Most that torch held for them.
        host_gb: Most resident memory of this process and its children together; pages that they share count twice.
    """

    gpu_gb: float | None = None
    gpu_reserved_gb: float | None = None
    host_gb: float | None = None


@contextlib.contextmanager
def measured_memory(device: str) -> Iterator[Peaks]:
    """Within the context, peaks are watched.

    Example:
        >>> with measured_memory("cpu") as peaks:
        ...     pass
        >>> peaks.gpu_gb is None
        True
    """
    import torch

    peaks, stop = Peaks(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(peaks, stop), daemon=True)
    is_gpu = device.startswith("cuda")
    # What an earlier row leaves behind must not count.
    gc.collect()
    if is_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    watcher.start()
    try:
        yield peaks
    finally:
        stop.set()
        watcher.join()
        if is_gpu:
            peaks.gpu_gb = torch.cuda.max_memory_allocated(device) / _GB
            peaks.gpu_reserved_gb = torch.cuda.max_memory_reserved(device) / _GB


def _watch(peaks: Peaks, stop: threading.Event) -> None:
    try:
        # It has no types.
        psutil: Any = importlib.import_module("psutil")
    except ImportError:
        return
    process = psutil.Process()
    while True:
        # At the end once more, for what was shorter than the interval.
        is_last = stop.wait(_INTERVAL_S)
        peaks.host_gb = max(peaks.host_gb or 0.0, _resident(psutil, process) / _GB)
        if is_last:
            return


def _resident(psutil: Any, process: Any) -> int:
    total = 0
    for one in (process, *process.children(recursive=True)):
        # It may have ended since.
        with contextlib.suppress(psutil.Error):
            total += one.memory_info().rss
    return total
