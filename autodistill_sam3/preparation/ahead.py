"""One image after the other in threads, as many at a time as memory has room for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Of images that are worked on at a time; a larger one is worked on alone.
PIXELS_AT_ONCE = 2**26
_MAX_THREADS = 8


def in_threads(
    function: Callable[[T], R], values: Iterable[T], pixels_of: Callable[[T], int]
) -> Generator[R, None, None]:
    """What a function gives for each value, in their order.

    Args:
        function: Called in any thread.
        values: Each is asked for when there is room for it.
        pixels_of: How many pixels a value is worked on with.

    Example:
        >>> list(in_threads(str, range(3), lambda value: 1))
        ['0', '1', '2']
    """
    count = min(_MAX_THREADS, os.cpu_count() or 1)
    waiting: deque[tuple[Future[R], int]] = deque()
    pool = ThreadPoolExecutor(count, thread_name_prefix="prepare")
    try:
        for value in values:
            pixels = pixels_of(value)
            while waiting and (len(waiting) > count or sum(own for _, own in waiting) + pixels > PIXELS_AT_ONCE):
                yield waiting.popleft()[0].result()
            waiting.append((pool.submit(function, value), pixels))
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
