"""A function over many values, several at once in threads, results in order."""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_SWITCH_S = 0.0005


def in_order(function: Callable[[T], R], values: Iterable[T], *, at_once: int) -> Generator[R, None, None]:
    """What a function makes of each value.

    The first value is alone, so that what is made once and kept, such as a compiled model, is there for the others.

    Args:
        function: Called in this thread if `at_once` is 1.
        values: Asked for one more value than results are waited for.
        at_once: How many values are worked on at a time.

    Example:
        >>> list(in_order(str, range(4), at_once=2))
        ['0', '1', '2', '3']
    """
    remaining = iter(values)
    for first in remaining:
        yield function(first)
        break
    if at_once == 1:
        yield from map(function, remaining)
        return
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="model")
    with _quick_switches():
        try:
            for value in remaining:
                waiting.append(pool.submit(contextvars.copy_context().run, function, value))
                if len(waiting) == at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _quick_switches() -> Iterator[None]:
    """Let threads take turns ten times as often as usual.

    Torch gives the interpreter's lock away at each operation that it queues on a GPU, and takes it back: from a thread
    that computes in Python, only after the switch interval.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(min(usual, _SWITCH_S))
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
