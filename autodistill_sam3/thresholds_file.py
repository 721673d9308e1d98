"""Confidence thresholds per class, as a file."""

from __future__ import annotations

import json
import math
from pathlib import Path

from autodistill_sam3.errors import SettingError


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
