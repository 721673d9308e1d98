"""Work that is begun before the results of earlier work are waited for, in one thread."""

from __future__ import annotations

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
    return _from(next(remaining, _END), remaining)


_END = object()


def _from(value: T | object, remaining: Iterator[T]) -> Iterator[T]:
    while value is not _END:
        following = next(remaining, _END)
        yield value  # type: ignore[misc]  # what is not the end is a value
        value = following
