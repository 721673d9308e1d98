"""The labelled folder around a dataset, and what its `run.json` says of the labelling."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autodistill_sam3.evaluation.labels import SPLITS
from autodistill_sam3.layout import DATA_YAML, RUN


def labeled_folder(path: Path) -> Path | None:
    """The labelled folder that a path is, or lies in: the one with `data.yaml` or `run.json`.

    Args:
        path: A labelled folder, one of its splits, or a file in either.
    """
    path = named(path)
    folders = [path, path.parent] if path.name in SPLITS or path.is_file() else [path]
    if path.is_file() and named(path.parent).name in SPLITS:
        folders.append(named(path.parent).parent)
    return next((folder for folder in folders if any((folder / name).is_file() for name in (DATA_YAML, RUN))), None)


def labeling_floors(path: Path, classes: Sequence[str]) -> dict[str, float]:
    """By class, the lowest confidence that the labelling let through; empty where no `run.json` says it.

    Args:
        path: The dataset.
        classes: Class names.
    """
    folder = labeled_folder(path)
    try:
        content = json.loads((folder / RUN).read_text(encoding="utf-8")) if folder is not None else None
    # The labels can be measured without it.
    except (OSError, ValueError, RecursionError):
        return {}
    settings = _inside(content, "settings")
    thresholds = _inside(settings, "thresholds")
    values = [_share(thresholds.get(key)) for key in _thresholds_of(settings)]
    lowest = None if None in values else min(value for value in values if value is not None)
    per_class = _inside(thresholds, "per_class")
    floors = {name: _share(per_class[name]) if name in per_class else lowest for name in classes}
    return {name: floor for name, floor in floors.items() if floor is not None}


def _thresholds_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Which of the two thresholds the labelling used: one for text, one for boxes alone."""
    if settings.get("prompting") == "text" or settings.get("model") == "SegmentAnything3":
        return ("confidence",)
    if settings.get("prompting") == "boxes" or settings.get("model") == "Florence2":
        return ("box_confidence",)
    return ("confidence", "box_confidence")


def named(path: Path) -> Path:
    """The path, absolute where it ends in no name of its own, as "." and ".." do."""
    return path if path.name not in ("", "..") else path.resolve()


def _inside(content: Any, key: str) -> Mapping[str, Any]:
    value = content.get(key) if isinstance(content, dict) else None
    return value if isinstance(value, dict) else {}


def _share(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= 1 else None
