"""A labelled folder -> a trained student, judged on images that it did not see, with all that shows how it did."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import supervision as sv

from autodistill_sam3.errors import AutodistillSAM3Error, OutputFolderError, SettingError
from autodistill_sam3.evaluation import evaluate_dataset
from autodistill_sam3.layout import RUN
from autodistill_sam3.students.data import TrainingData
from autodistill_sam3.students.judging import judge, time_teacher
from autodistill_sam3.students.plugins import Plugin
from autodistill_sam3.students.registry import find_student
from autodistill_sam3.students.results import Results, write_results
from autodistill_sam3.students.settings import DistillSettings
from autodistill_sam3.students.student import Student
from autodistill_sam3.students.versions import versions_of_student
from autodistill_sam3.whole_files import replacing

logger = logging.getLogger("autodistill_sam3")

FORMAT = "autodistill_sam3 distillation"
ANSWERS = "answers.coco.json"
# Both are timed on so many.
_TIMED_IMAGES = 10

Teacher = Callable[[Path], sv.Detections]


@dataclass(frozen=True, eq=False)
class Distilled:
    """What came of it.

    Attributes:
        student: The trained student.
        weights: Its best weights; None for plugins, which keep theirs to themselves.
        results: How it did.
        files: What was written.
    """

    student: Student
    weights: Path | None
    results: Results
    files: tuple[Path, ...]


def distill(
    dataset: Path,
    output: Path,
    settings: DistillSettings,
    *,
    teacher: Callable[[], Teacher] | None = None,
    ground_truth: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Distilled:
    """Train a student on a labelled folder and judge it.

    Writes the best weights, `curves.csv` and `curves.png`, `sheet.png` with labels and answers side by side,
    `answers.coco.json`, `report.md`, `report.json` and, first of all, `run.json` with what it was asked to do.

    Args:
        dataset: The labelled folder.
        output: A new or empty folder, or that of an earlier distillation with `overwrite`.
        settings: Which student, and how.
        teacher: Loads what labelled the folder, to time it beside the student.
        ground_truth: What is true on the held-out images, as `evaluate` takes it; without it, labels are the measure.
        overwrite: Replace an earlier distillation.
        progress: Show progress bars.

    Raises:
        SettingError: The student is unknown, or cannot be exported.
        MissingPackageError: Its package is not installed.
        InputFolderError: The dataset has nothing to learn from, or nothing to be judged by.
        LabelingError: The dataset is damaged, has boxes alone, or a plugin failed.
        OutputFolderError: The output holds something else.
        CheckpointError: The weights to begin with cannot be read.
    """
    make = find_student(settings.student)
    family: type[Student] = make.func  # type: ignore[attr-defined]  # a partial of the class
    data = TrainingData(dataset, needs_masks=family.gives_masks)
    if settings.export is not None and issubclass(family, Plugin):
        raise SettingError(f"Expected a student of this package with export, received the plugin {settings.student}")
    student = make(weights=settings.weights, device=settings.device)
    _claim(output, overwrite)
    _write_json(output / RUN, _run(data, settings, ground_truth))
    trained = student.train(
        data.yaml, settings.epochs, output=output, image_size=settings.image_size, batch_size=settings.batch_size,
        seed=settings.seed, progress=progress,
    )  # fmt: skip
    judged = judge(student.predict, data, data.held_out, output / ANSWERS, progress=progress)
    results = Results(
        settings, data, trained.history, judged, _teacher_ms(teacher, data),
        None if ground_truth is None else evaluate_dataset(output / ANSWERS, ground_truth),
    )  # fmt: skip
    exported = _export(student, settings, output)
    files = write_results(output, results)
    written = [path for path in (trained.weights, exported, output / ANSWERS, *files) if path is not None]
    return Distilled(student, trained.weights, results, tuple(written))


def read_distillation(path: Path) -> tuple[Path, Path | None, dict[str, Any]]:
    """What an earlier distillation was asked to do.

    Args:
        path: Its `run.json`, or its folder.

    Returns:
        The dataset, the ground truth if there was one, and the keywords of its `DistillSettings`.

    Raises:
        SettingError: It is no distillation's.
    """
    content = _read_run(path if path.is_dir() else path.parent)
    if content is None or (path.is_file() and path.name != RUN):
        raise SettingError(f"Expected a {RUN} of an earlier distillation, received {path}")
    settings, truth = dict(content["settings"]), content["ground_truth"]
    settings["weights"] = settings["weights"] and Path(settings["weights"])
    return Path(content["dataset"]), truth and Path(truth), settings


def _export(student: Student, settings: DistillSettings, output: Path) -> Path | None:
    """What fails here does not lose the training."""
    if settings.export is None:
        return None
    path = output / f"best.{settings.export}"
    try:
        student.export_onnx(path)
    # Exporters of others raise whatever they like.
    except Exception as error:
        logger.warning("Trained, but not exported: %s: %s", type(error).__name__, error)
        return None
    return path


def _teacher_ms(teacher: Callable[[], Teacher] | None, data: TrainingData) -> float | None:
    """What fails here does not lose the training."""
    if teacher is None:
        return None
    try:
        return time_teacher(teacher(), data, data.held_out, _TIMED_IMAGES)
    except AutodistillSAM3Error as error:
        logger.warning("The teacher is not timed: %s", error)
        return None


def _claim(output: Path, overwrite: bool) -> None:
    """Make the folder, or refuse."""
    if output.is_dir() and any(output.iterdir()):
        if _read_run(output) is None:
            raise OutputFolderError(f"Expected a new or empty folder, received {output}. Choose another.")
        if not overwrite:
            raise OutputFolderError(
                f"Expected a new folder, received an earlier distillation: {output}. Choose another, or pass "
                "overwrite=True (--overwrite)."
            )
        shutil.rmtree(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputFolderError(f"Expected a folder that can be written, received {output}: {error}") from error


def _read_run(output: Path) -> dict[str, Any] | None:
    """None if it is no distillation's folder."""
    try:
        content = json.loads((output / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def _run(data: TrainingData, settings: DistillSettings, ground_truth: Path | None) -> dict[str, Any]:
    def absolute(path: Path | None) -> str | None:
        return None if path is None else str(path.resolve())

    return {
        "format": FORMAT,
        "dataset": absolute(data.folder),
        "ground_truth": absolute(ground_truth),
        "settings": asdict(settings) | {"weights": absolute(settings.weights)},
        "classes": list(data.classes),
        "versions": versions_of_student(settings.student),
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
