"""Work that is begun before the results of earlier work are waited for, in one thread."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def one_ahead(values: Iterable[T]) -> Iterator[T]:
    """The same values, each asked for before the one in front of it is given; the first one at once.

    Example:
        >>> def numbers():
        ...     for number in range(2):
        ...         print("asked for", number)
        ...         yield number
        >>> ahead = one_ahead(numbers())
        asked for 0
        >>> next(ahead)
        asked for 1
        0
    """
    remaining = iter(values)
    return _behind(list(itertools.islice(remaining, 1)), remaining)


def _behind(waiting: list[T], remaining: Iterator[T]) -> Iterator[T]:
    for following in remaining:
        yield waiting.pop()
        waiting.append(following)
    yield from waiting
