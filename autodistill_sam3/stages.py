"""Where the time of a run goes: named stages, added up over all threads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

# Asks whether a GPU is through with something: when it began and ended, in seconds since `StageTimes.origin`, or None.
Interval = Callable[[], tuple[float, float] | None]


class StageTimes:
    """Seconds per stage, in the order in which the stages were first seen.

    Attributes:
        origin: Whatever the clock of a GPU starts from; its first stage sets it.
    """

    def __init__(self) -> None:
        self.origin: Any = None
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._pending: list[tuple[str, Interval]] = []
        self._busy: list[tuple[float, float]] = []

    def add(self, name: str, seconds: float) -> None:
        """Add time that a thread spent in a stage."""
        with self._lock:
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def add_gpu(self, name: str, interval: Interval) -> None:
        """Add time that a GPU spends in a stage; it need not be over."""
        with self._lock:
            self._seconds.setdefault(name, 0.0)
            self._pending.append((name, interval))

    @property
    def seconds(self) -> dict[str, float]:
        """Stage -> seconds, threads' and those of GPUs that are over."""
        with self._lock:
            self._collect()
            return dict(self._seconds)

    @property
    def gpu_seconds(self) -> float:
        """How long a GPU was busy with any stage; stages that overlap count once."""
        with self._lock:
            self._collect()
            return sum(end - start for start, end in self._busy)

    def _collect(self) -> None:
        pending, self._pending = self._pending, []
        for name, interval in pending:
            if (times := interval()) is None:
                self._pending.append((name, interval))
            else:
                self._seconds[name] += times[1] - times[0]
                self._busy.append(times)
        self._busy = _merged(self._busy)


def _merged(intervals: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Intervals without overlaps, sorted; those that touch become one, so that a busy GPU leaves few."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


_current: ContextVar[StageTimes | None] = ContextVar("stage_times", default=None)


@contextlib.contextmanager
def recording() -> Iterator[StageTimes]:
    """Within the context, in this thread and in those that run in a copy of its context, stages are timed.

    Example:
        >>> with recording() as times, stage("decode"):
        ...     pass
        >>> list(times.seconds)
        ['decode']
    """
    times = StageTimes()
    token = _current.set(times)
    try:
        yield times
    finally:
        _current.reset(token)


def current() -> StageTimes | None:
    """What records at the moment, if anything does."""
    return _current.get()


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Add the time of the block to a stage, if anybody records."""
    times = _current.get()
    if times is None:
        yield
        return
    start = time.perf_counter()
    try:
        yield
    finally:
        times.add(name, time.perf_counter() - start)
