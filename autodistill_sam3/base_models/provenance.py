"""Where labels come from, and where they go: the run that goes on, Roboflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autodistill_sam3.labeling import read_run


def settings_of_run(output: Path) -> dict[str, Any]:
    """Those of the run that goes on, since what was computed may depend on them in its last bits."""
    earlier = read_run(output)
    if earlier is None or earlier.get("is_being_removed"):
        return {}
    settings = earlier.get("settings")
    return settings if isinstance(settings, dict) else {}


def upload_to_roboflow(output: Path, project: str | None) -> None:
    import roboflow

    roboflow.login()
    roboflow.Roboflow().workspace().upload_dataset(str(output), project_name=project)
