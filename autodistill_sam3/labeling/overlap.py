"""Work that is begun before the results of earlier work are waited for."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_SWITCH_S = 0.0005


def in_order(begin: Callable[[T], Callable[[], R]], values: Iterable[T], *, at_once: int) -> Generator[R, None, None]:
    """What becomes of each value.

    Args:
        begin: Begins with a value, and gives a function that waits for its result.
        values: Each is asked for when there is room for it.
        at_once: How many values are begun and not waited for.

    Example:
        >>> list(in_order(lambda value: lambda: str(value), range(4), at_once=2))
        ['0', '1', '2', '3']
    """
    begun: deque[Callable[[], R]] = deque()
    for value in values:
        begun.append(begin(value))
        if len(begun) == at_once:
            yield begun.popleft()()
    while begun:
        yield begun.popleft()()


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
