"""Large JSON files, one item of their lists in memory at a time.

`json` reads a file whole. A COCO file of a million images would take gigabytes, of which one image is needed at a time.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_CHUNK = 2**20
# Nothing that this package reads comes near; it keeps a hostile file from filling the memory.
_MAX_ITEM = 2**28
_SPACE = " \t\r\n"
_BOM = "\u00ef\u00bb\u00bf"
_NUMBER_TAIL = 2
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a list in the object.

    Attributes:
        key: The name of the list.
        offset: Byte in the file where the item begins.
        length: Its bytes.
        value: The item.
    """

    key: str
    offset: int
    length: int
    value: Any


def list_items(path: Path, keys: Collection[str], seen: set[str] | None = None) -> Iterator[Item]:
    """The items of the lists that a JSON object has under some keys, in the order of the file.

    Args:
        path: A UTF-8 file with one JSON object.
        keys: Which lists; everything else in the object is passed over.
        seen: Takes in which of the keys are there, also those of empty lists.

    Raises:
        ValueError: The file is not a JSON object, is cut short, has something other than a list under a key, or an
            item of more than 256 MiB.
        OSError: The file cannot be read.
    """
    # In Latin-1 a character is a byte, so that positions in the text are positions in the file.
    with path.open(encoding="latin-1", newline="") as file:
        scanner = _Scanner(file)
        scanner.skip(_BOM)
        scanner.expect("{")
        while scanner.peek() != "}":
            key = scanner.value()[2]
            if not isinstance(key, str):
                raise ValueError(f"expected a name, found {key!r}")
            scanner.expect(":")
            if key in keys:
                if seen is not None:
                    seen.add(key)
                yield from _items(scanner, key)
            else:
                scanner.value()
            scanner.separator("}")
        scanner.expect("}")
        if rest := scanner.peek():
            raise ValueError(f"{rest!r} after the end of the object")


def array_items(path: Path) -> Iterator[Any]:
    """The items of a JSON file that holds a list, in turn.

    Raises:
        ValueError: The file is not a JSON list, is cut short, or has an item of more than 256 MiB.
        OSError: The file cannot be read.
    """
    with path.open(encoding="latin-1", newline="") as file:
        scanner = _Scanner(file)
        scanner.skip(_BOM)
        for item in _items(scanner, ""):
            yield item.value
        if rest := scanner.peek():
            raise ValueError(f"{rest!r} after the end of the list")


def read_item(file: IO[bytes], offset: int, length: int) -> Any:
    """Read one item again from where :func:`list_items` found it."""
    file.seek(offset)
    return json.loads(file.read(length))


def _items(scanner: _Scanner, key: str) -> Iterator[Item]:
    scanner.expect("[")
    while scanner.peek() != "]":
        start, end, value = scanner.value()
        yield Item(key, start, end - start, value)
        scanner.separator("]")
    scanner.expect("]")


class _Scanner:
    """A window of text that moves over the file."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text = ""
        self._position = 0
        self._base = 0
        self._ended = False

    def skip(self, prefix: str) -> None:
        self._fill(len(prefix))
        if self._text.startswith(prefix, self._position):
            self._position += len(prefix)

    def peek(self) -> str:
        """The next character that is not a space; "" at the end of the file."""
        while True:
            while self._position < len(self._text) and self._text[self._position] in _SPACE:
                self._position += 1
            if self._position < len(self._text):
                return self._text[self._position]
            if self._ended:
                return ""
            self._fill(_CHUNK)

    def expect(self, character: str) -> None:
        received = self.peek()
        if received != character:
            raise ValueError(f"expected {character!r} at byte {self._base + self._position}, found {received!r}")
        self._position += 1

    def separator(self, closing: str) -> None:
        """Pass a comma that must be followed by something, or stop before the closing character."""
        if self.peek() == closing:
            return
        self.expect(",")
        if self.peek() == closing:
            raise ValueError(f"nothing behind the comma before byte {self._base + self._position}")

    def value(self) -> tuple[int, int, Any]:
        """The next value, with the bytes where it begins and ends."""
        self.peek()
        # Doubled, so that trying a large value again costs no more than reading it.
        more = _CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except RecursionError as error:
                raise ValueError("lists in lists without end") from error
            except ValueError:
                if self._ended:
                    raise
            else:
                # A number near the end of the window may go on behind it, as 1 does in "1e-".
                if self._ended or end + _NUMBER_TAIL < len(self._text):
                    return self._take(end, value)
            if len(self._text) - self._position > _MAX_ITEM:
                raise ValueError(f"an item longer than {_MAX_ITEM} bytes at byte {self._base + self._position}")
            self._fill(more)
            more *= 2

    def _take(self, end: int, value: Any) -> tuple[int, int, Any]:
        piece = self._text[self._position : end]
        if not piece.isascii():
            value = json.loads(piece.encode("latin-1").decode("utf-8"))
        start, self._position = self._position, end
        return self._base + start, self._base + end, value

    def _fill(self, size: int) -> None:
        added = self._file.read(size)
        self._ended = not added
        self._base += self._position
        self._text = self._text[self._position :] + added
        self._position = 0
