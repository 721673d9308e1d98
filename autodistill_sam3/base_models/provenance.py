"""Where labels come from, and where they go: versions of packages, the run that goes on, Roboflow."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autodistill_sam3.labeling import read_run
from autodistill_sam3.labeling.versions import installed_versions

PACKAGES = ("autodistill-grounded-sam3", "torch", "torchvision", "transformers", "supervision", "numpy")
# Those of which another version may give other labels.
DECIDING_PACKAGES = ("autodistill-grounded-sam3", "torch", "transformers")


def settings_of_run(output: Path) -> dict[str, Any]:
    """Those of the run that goes on, since what was computed may depend on them in its last bits."""
    earlier = read_run(output)
    if earlier is None or earlier.get("is_being_removed"):
        return {}
    settings = earlier.get("settings")
    return settings if isinstance(settings, dict) else {}


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    versions = {"python": platform.python_version()} if packages is PACKAGES else {}
    return versions | installed_versions(packages)


def upload_to_roboflow(output: Path, project: str | None) -> None:
    import roboflow

    roboflow.login()
    roboflow.Roboflow().workspace().upload_dataset(str(output), project_name=project)
