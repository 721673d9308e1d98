"""A labelled folder -> a trained student, judged on images that it did not see, with all that shows how it did."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import supervision as sv

from autodistill_sam3.devices import with_memory_errors
from autodistill_sam3.errors import OutOfMemoryError, OutputFolderError, SettingError
from autodistill_sam3.evaluation import evaluate_dataset
from autodistill_sam3.labeling.versions import installed_versions
from autodistill_sam3.layout import COCO, RUN
from autodistill_sam3.students.data import TrainingData
from autodistill_sam3.students.judging import judge, milliseconds
from autodistill_sam3.students.packages import require
from autodistill_sam3.students.registry import find_student
from autodistill_sam3.students.results import RESULT_FILES, Results, write_results
from autodistill_sam3.students.settings import DistillSettings
from autodistill_sam3.students.student import Student
from autodistill_sam3.whole_files import replacing

logger = logging.getLogger("autodistill_sam3")

FORMAT = "autodistill_sam3 distillation"
ANSWERS = "answers.coco.json"
# What an earlier distillation may have left besides.
_OTHER_FILES = ("best.pt", "best.pth", "best.onnx", "ultralytics", "rfdetr")
_PACKAGES = (
    "autodistill-grounded-sam3", "torch", "torchvision", "autodistill", "supervision", "numpy", "ultralytics", "rfdetr",
)  # fmt: skip

Teacher = Callable[[Path], sv.Detections]
_T = TypeVar("_T")


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
        MissingPackageError: Its package, or one that the export takes, is not installed.
        InputFolderError: The dataset has nothing to learn from, or nothing to be judged by.
        LabelingError: The dataset is damaged or has boxes alone, the truth is another dataset's, or a plugin failed.
        OutputFolderError: The output holds something else, or what is needed.
        CheckpointError: The weights to begin with cannot be read, or are for something else.
        DeviceError: The device is not there, or its memory ended.
    """
    family = find_student(settings.student)
    data = TrainingData(dataset, needs_masks=family.learns_masks)
    _check_export(family, settings)
    student = family(settings.student, settings.weights, device=settings.device)
    student.check(data, settings.image_size)
    labels = None if ground_truth is None else evaluate_dataset(dataset / data.held_out / COCO, ground_truth)
    _check_apart(output, [dataset, settings.weights, ground_truth])
    _claim(output, overwrite)
    _write_json(output / RUN, _run(data, settings, ground_truth))
    trained = _with_memory(
        lambda: student.train(
            data.yaml, settings.epochs, output=output, image_size=settings.image_size, batch_size=settings.batch_size,
            seed=settings.seed, progress=progress,
        )
    )  # fmt: skip
    judged = _with_memory(lambda: judge(student.predict, data, data.held_out, output / ANSWERS, progress=progress))
    exported = _export(student, settings, output)
    paths = [data.path(image) for image in data.images(data.held_out)]
    truth = None if ground_truth is None else evaluate_dataset(output / ANSWERS, ground_truth)
    results = Results(
        settings, data, trained.history, judged, milliseconds(student.predict, paths), _teacher_ms(teacher, paths),
        truth, labels,
    )  # fmt: skip
    written = [path for path in (trained.weights, exported, output / ANSWERS) if path is not None]
    return Distilled(student, trained.weights, results, (*written, *write_results(output, results)))


def read_distillation(path: Path) -> tuple[Path, Path | None, dict[str, Any]]:
    """What an earlier distillation was asked to do; a dataset that is another by now is said in the log.

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
    try:
        settings, dataset, truth = dict(content["settings"]), Path(content["dataset"]), content["ground_truth"]
        weights = settings["weights"]
        DistillSettings(**settings)
        labels = str(content["labels_sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise SettingError(f"Expected a whole {RUN} of a distillation, received {path}: {error}") from error
    if TrainingData(dataset, needs_masks=False).sha256 != labels:
        logger.warning("The labels in %s are not those of the earlier distillation", dataset)
    return dataset, truth and Path(truth), settings | {"weights": weights and Path(weights)}


def _check_export(family: type[Student], settings: DistillSettings) -> None:
    if settings.export is None:
        return
    if not family.exports:
        raise SettingError(f"Expected a student of this package with export, received the plugin {settings.student}")
    require(settings.export, settings.export)


def _with_memory(compute: Callable[[], _T]) -> _T:
    try:
        return with_memory_errors(compute)
    except OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{str(error).partition(' Use ')[0]} Use a smaller batch size (--batch-size) or image size (--image-size)."
        ) from error


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


def _teacher_ms(teacher: Callable[[], Teacher] | None, paths: list[Path]) -> float | None:
    """What fails here does not lose the training."""
    if teacher is None:
        return None
    try:
        return milliseconds(teacher(), paths)
    # Beside the student there may be no memory for it, or its checkpoints may be gone.
    except Exception as error:
        logger.warning("The teacher is not timed: %s: %s", type(error).__name__, error)
        return None


def _check_apart(output: Path, needed: list[Path | None]) -> None:
    place = output.resolve()
    for path in needed:
        if path is not None and place in (path.resolve(), *path.resolve().parents):
            raise OutputFolderError(f"Expected an output apart from {path}, received {output}, which holds it")


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
        _remove(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputFolderError(f"Expected a folder that can be written, received {output}: {error}") from error


def _remove(output: Path) -> None:
    """What a distillation writes, and nothing else; last what says that it was one."""
    for name in (*_OTHER_FILES, ANSWERS, *RESULT_FILES, RUN):
        path = output / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _read_run(output: Path) -> dict[str, Any] | None:
    """None if it is no distillation's folder."""
    try:
        content = json.loads((output / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def _run(data: TrainingData, settings: DistillSettings, ground_truth: Path | None) -> dict[str, Any]:
    weights = settings.weights
    return {
        "format": FORMAT,
        "dataset": str(data.folder.resolve()),
        "labels_sha256": data.sha256,
        "ground_truth": None if ground_truth is None else str(ground_truth.resolve()),
        # What a plugin takes for weights may be no file.
        "settings": asdict(settings) | {"weights": weights and str(weights.resolve() if weights.exists() else weights)},
        "classes": list(data.classes),
        "versions": installed_versions((*_PACKAGES, f"autodistill-{settings.student}")),
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
