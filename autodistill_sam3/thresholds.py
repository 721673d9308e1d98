"""Which detections are kept, overall and by class, and the file that says so by class."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path

from autodistill_sam3.errors import SettingError


@dataclass(frozen=True)
class Thresholds:
    """Which detections are kept.

    Attributes:
        confidence: For instances found by text, and by text and box together.
        box_confidence: For instances that boxes alone found.
        per_class: By class name, a value that replaces both for that class. It is for the confidence of the detection,
            so a text and a box instance that reach it only together are kept.
    """

    confidence: float = 0.5
    box_confidence: float = 0.35
    per_class: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = {"confidence": self.confidence, "box_confidence": self.box_confidence}
        values |= {f"thresholds[{name!r}]": value for name, value in self.per_class.items()}
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
                raise SettingError(f"Expected {name} between 0 and 1, received {value!r}")

    def replaced_for(self, values: Mapping[str, float]) -> Thresholds:
        """These thresholds with other values for some classes."""
        return replace(self, per_class={**self.per_class, **values})

    def check_classes(self, classes: tuple[str, ...]) -> None:
        """Raise a `SettingError` if a threshold names a class that is not there."""
        if unknown := sorted(set(self.per_class) - set(classes)):
            raise SettingError(f"Expected thresholds for classes among {list(classes)}, received {unknown}")

    def for_text(self, class_name: str) -> float:
        """What a detection that text, or text and box together, found must reach."""
        return float(self.per_class.get(class_name, self.confidence))

    def for_boxes(self, class_name: str) -> float:
        """What a detection that boxes alone found must reach."""
        return float(self.per_class.get(class_name, self.box_confidence))

    def before_pairing(self, class_name: str) -> tuple[float, float]:
        """What text, and what boxes, are held to while text and boxes of one object are still to be brought together.

        A value for the class lowers them and never raises them: each half alone may lie below it.

        Example:
            >>> Thresholds(0.5, 0.35, {"ball": 0.4, "cup": 0.9}).before_pairing("ball")
            (0.4, 0.35)
            >>> Thresholds(0.5, 0.35, {"ball": 0.4, "cup": 0.9}).before_pairing("cup")
            (0.5, 0.35)
        """
        text, boxes = self.for_text(class_name), self.for_boxes(class_name)
        return min(float(self.confidence), text), min(float(self.box_confidence), boxes)


def read_thresholds(path: Path) -> dict[str, float]:
    """Read what an evaluation wrote as `thresholds.json`: class name -> confidence threshold.

    Args:
        path: A JSON file like `{"bottle": 0.42, "cap": 0.35}`.

    Raises:
        SettingError: It is missing, damaged, or holds something else.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "thresholds.json"
        >>> _ = path.write_text('{"bottle": 0.42}')
        >>> read_thresholds(path)
        {'bottle': 0.42}
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SettingError(f"Expected a file of thresholds, received nothing there: {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SettingError(f"Expected thresholds as JSON, received {path}: {error}") from error
    if not isinstance(content, dict):
        raise SettingError(f"Expected thresholds by class name in {path}, received {type(content).__name__}")
    for name, value in content.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not (is_number and 0 <= value <= 1):
            raise SettingError(f"Expected a threshold between 0 and 1 for {name!r} in {path}, received {value!r}")
    return {name: float(value) for name, value in content.items()}
