"""Work that is begun before the results of earlier work are waited for."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_SWITCH_S = 0.0005


def in_order(begin: Callable[[T], Callable[[], R]], values: Iterable[T], *, at_once: int) -> Generator[R, None, None]:
    """What becomes of each value.

    The first value is alone, so that most of what is made once and kept, as what is compiled, is there for the others.

    Args:
        begin: Begins with a value, in this thread, and gives a function that waits for its result, which is called in
            another thread if `at_once` is more than 1, but for the first.
        values: Each is asked for when there is room for it.
        at_once: How many values are begun and not given back.

    Example:
        >>> list(in_order(lambda value: lambda: str(value), range(4), at_once=2))
        ['0', '1', '2', '3']
    """
    remaining = iter(values)
    for value in itertools.islice(remaining, 1 if at_once > 1 else None):
        yield begin(value)()
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="finish")
    try:
        for value in remaining:
            waiting.append(pool.submit(contextvars.copy_context().run, begin(value)))
            if len(waiting) == at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def quick_switches() -> Iterator[None]:
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
