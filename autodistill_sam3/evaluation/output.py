"""The files of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autodistill_sam3.errors import OutputFolderError
from autodistill_sam3.evaluation.labeled_folder import labeled_folder, named
from autodistill_sam3.evaluation.plot import calibration_png
from autodistill_sam3.evaluation.report import format_report
from autodistill_sam3.evaluation.results import FORMAT, Evaluation
from autodistill_sam3.layout import COCO
from autodistill_sam3.whole_files import PART, replacing

EVALUATION = "evaluation.json"
THRESHOLDS = "thresholds.json"
CALIBRATION = "calibration.png"
REPORT = "report.md"


def default_evaluation_folder(dataset: Path) -> Path:
    """Where the evaluation of a dataset goes if nothing is said: beside it, and never in a labelled folder.

    A split, `data.yaml` or other part of a labelled folder goes beside that folder, with both names.

    Example:
        >>> default_evaluation_folder(Path("photos_labeled/")).as_posix()
        'photos_labeled_evaluation'
    """
    place = named(dataset)
    if place.name == COCO:
        place = named(place.parent)
    name = place.stem if place.suffix in (".json", ".yaml", ".yml") else place.name
    folder = labeled_folder(dataset)
    root = place if folder is None else named(folder)
    return root.with_name(f"{name if root == place else f'{root.name}_{name}'}_evaluation")


def check_evaluation_folder(output: Path) -> None:
    """Refuse a folder that holds something other than an earlier evaluation.

    Raises:
        OutputFolderError: It does.
    """
    if output.exists() and not output.is_dir():
        raise OutputFolderError(f"Expected a folder for the evaluation, received a file: {output}")
    if output.is_dir() and any(path.name != PART for path in output.iterdir()) and not _is_ours(output):
        raise OutputFolderError(
            f"Expected a new or empty folder or an earlier evaluation, received one with something else: {output}. "
            "Choose another; nothing was written."
        )


def write_evaluation(evaluation: Evaluation, output: Path) -> list[Path]:
    """Write `evaluation.json`, `thresholds.json`, `calibration.png` and `report.md`, over those of an earlier one.

    Returns:
        The files.

    Raises:
        OutputFolderError: The folder holds something else, or cannot be written to.
    """
    check_evaluation_folder(output)
    # First of all files: a folder without it is taken for somebody else's.
    contents = {
        EVALUATION: _json(evaluation.to_dict()),
        THRESHOLDS: _json(evaluation.thresholds),
        CALIBRATION: calibration_png(evaluation.best.calibration),
        REPORT: f"{format_report(evaluation)}\n![calibration]({CALIBRATION})\n".encode(),
    }
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with replacing(output / name, "wb") as file:
                file.write(content)
    except OSError as error:
        raise OutputFolderError(f"Expected a folder that can be written to, received {output}: {error}") from error
    return [output / name for name in contents]


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _is_ours(output: Path) -> bool:
    try:
        content = json.loads((output / EVALUATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT
