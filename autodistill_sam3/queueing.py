"""Work that is begun before the results of earlier work are waited for."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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


def groups_ahead(values: Iterable[T], count: int) -> Generator[list[T], None, None]:
    """The values in groups, each made in a thread while the one before it is worked on.

    The thread is done when the generator is closed, so that what the values come from may be closed then.

    Example:
        >>> list(groups_ahead(range(5), 2))
        [[0, 1], [2, 3], [4]]
    """
    remaining = iter(values)

    def group() -> list[T]:
        return list(itertools.islice(remaining, count))

    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        following = pool.submit(group)
        while own := following.result():
            following = pool.submit(group)
            yield own
