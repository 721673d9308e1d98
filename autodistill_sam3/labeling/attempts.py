"""What a worker is about to try, on disk, so that whoever sees it die knows which image may have killed it.

A supervisor that finds a worker dead calls :func:`note_death`. Every image that was in flight becomes a suspect; the
next worker tries suspects one by one. An image that a worker died at twice is not tried again. Nobody counts deaths
where nobody supervises: a run that its user kills puts nothing into quarantine.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from autodistill_sam3.labeling.folder import read_quarantine
from autodistill_sam3.layout import JOURNAL
from autodistill_sam3.whole_files import replacing

# A death may be somebody else's fault, such as a machine without memory; two at the same image are not.
MAX_DEATHS = 2

_NOTE = "trying.jsonl"
_DEATHS = "deaths.json"


class Attempts:
    """Notes what is tried in a folder, and knows what workers died at there.

    Args:
        folder: The labelled folder that the worker writes.
    """

    def __init__(self, folder: Path) -> None:
        self._note = folder / _NOTE
        self._deaths = _read_deaths(folder)
        self._note.unlink(missing_ok=True)

    def begin(self, names: Sequence[str]) -> None:
        """Note images before they are read. What a killed process has written stays, so nothing waits for the disk."""
        with self._note.open("a", encoding="utf-8") as file:
            file.write(json.dumps(list(names)) + "\n")

    def is_suspect(self, name: str) -> bool:
        """Whether a worker died while it had this image in hand."""
        return 0 < self._deaths_at(name) < MAX_DEATHS

    def reason_against(self, name: str) -> str | None:
        """Why an image must not be tried again; None if it may be."""
        if self._deaths_at(name) < MAX_DEATHS:
            return None
        return f"its worker died {self._deaths_at(name)} times while it had this image in hand: {self._deaths[name][1]}"

    def _deaths_at(self, name: str) -> int:
        return int(self._deaths[name][0]) if name in self._deaths else 0


def note_death(folder: Path, how: str) -> list[str]:
    """Count a worker's death against the images that it had in hand.

    Args:
        folder: The labelled folder that it wrote.
        how: What killed it, to be read by people.

    Returns:
        Those images; none if it died before it tried any.
    """
    finished = _finished(folder)
    suspects = [name for name in dict.fromkeys(_noted(folder)) if name not in finished]
    deaths = _read_deaths(folder)
    for name in suspects:
        deaths[name] = [deaths.get(name, [0])[0] + 1, how]
    if suspects:
        with replacing(folder / _DEATHS, "w") as file:
            json.dump(deaths, file)
    (folder / _NOTE).unlink(missing_ok=True)
    return suspects


def _noted(folder: Path) -> Iterable[str]:
    for names in _lines(folder / _NOTE):
        yield from names


def _finished(folder: Path) -> set[str]:
    journal = {line["source"] for line in _lines(folder / JOURNAL) if "event" not in line}
    return journal | {item["source"] for item in read_quarantine(folder)}


def _lines(path: Path) -> Iterable[Any]:
    """The lines that are complete."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)


def _read_deaths(folder: Path) -> dict[str, list[Any]]:
    path = folder / _DEATHS
    deaths: dict[str, list[Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return deaths
