"""What shows how a student did: curves, a sheet of labels and answers, and a report."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import supervision as sv

from autodistill_sam3.evaluation import Evaluation
from autodistill_sam3.exchange.dataset import DatasetImage, DatasetObject
from autodistill_sam3.images import RGBImage, load_image
from autodistill_sam3.labeling.records import ImageRecord, detections_of
from autodistill_sam3.labeling.review import draw_sheet, save_png
from autodistill_sam3.rle import rle_to_mask
from autodistill_sam3.students.data import TrainingData
from autodistill_sam3.students.judging import Judged
from autodistill_sam3.students.settings import DistillSettings
from autodistill_sam3.whole_files import replacing

CURVES_CSV, CURVES_PNG = "curves.csv", "curves.png"
SHEET, REPORT, REPORT_JSON = "sheet.png", "report.md", "report.json"
RESULT_FILES = (CURVES_CSV, CURVES_PNG, SHEET, REPORT, REPORT_JSON)
# Images on the sheet, each twice.
_SHEET_IMAGES = 8
# What is drawn of the answers; average precision counts the others, too.
_DRAWN_CONFIDENCE = 0.5
_SHOWN = ("AP", "AP50", "AP75")


@dataclass(frozen=True, eq=False)
class Results:
    """How a student did.

    Attributes:
        settings: What was asked for.
        data: What it learned from.
        history: Per epoch what was measured.
        judged: Its answers on the held-out split, against the labels.
        student_ms: Milliseconds of an image, one at a time.
        teacher_ms: The same of the teacher; None if it could not be asked.
        true_evaluation: Its answers against the truth, if that was given.
        labels_evaluation: The labels of these images against the truth: what the teacher reached.
    """

    settings: DistillSettings
    data: TrainingData
    history: tuple[Mapping[str, float], ...]
    judged: Judged
    student_ms: float
    teacher_ms: float | None
    true_evaluation: Evaluation | None = None
    labels_evaluation: Evaluation | None = None

    def as_json(self) -> dict[str, Any]:
        """Numbers alone."""
        data = self.data
        return {
            "student": self.settings.student,
            "classes": list(data.classes),
            "images": {split: images for split, (images, _) in data.counts.items()},
            "objects": {split: objects for split, (_, objects) in data.counts.items()},
            "held_out": data.held_out,
            "against_labels": _precision(self.judged.evaluation),
            "against_truth": None if self.true_evaluation is None else _precision(self.true_evaluation),
            "labels_against_truth": None if self.labels_evaluation is None else _precision(self.labels_evaluation),
            "student_ms": self.student_ms,
            "teacher_ms": self.teacher_ms,
        }


def write_results(output: Path, results: Results) -> list[Path]:
    """Write curves, sheet and report.

    Returns:
        The files.
    """
    contents: dict[str, bytes] = {REPORT: format_results(results).encode(), REPORT_JSON: _json(results.as_json())}
    if results.history:
        contents |= {CURVES_CSV: _curves_csv(results.history), CURVES_PNG: _curves_png(results.history)}
    for name, content in contents.items():
        with replacing(output / name, "wb") as file:
            file.write(content)
    save_png(_sheet(results), output / SHEET)
    return [output / name for name in (*contents, SHEET)]


def format_results(results: Results) -> str:
    """The report in Markdown."""
    content, data = results.as_json(), results.data
    against = {
        "student, against the labels": content["against_labels"],
        "student, against the truth": content["against_truth"],
        "labels, against the truth": content["labels_against_truth"],
    }
    kind = content["against_labels"]["kind"]
    lines = [
        f"# {content['student']} from {data.folder.resolve().name}",
        "",
        f"{data.counts['train'][0]} images and {data.counts['train'][1]} objects to learn from, "
        f"{data.counts[data.held_out][0]} images of the {data.held_out} split to be judged by.",
        "",
        f"| {kind} mAP | {' | '.join(_SHOWN)} |",
        f"|---|{'---|' * len(_SHOWN)}",
        *(_row(name, [values[shown] for shown in _SHOWN]) for name, values in against.items() if values is not None),
        "",
        f"| class, against {'the truth' if content['against_truth'] else 'the labels'} | AP | AP50 |",
        "|---|---|---|",
        *(_row(name, list(values)) for name, values in _classes(results)),
        "",
        "| one image at a time | ms |",
        "|---|---|",
        f"| student | {content['student_ms']:.1f} |",
        f"| teacher | {'not timed' if results.teacher_ms is None else f'{results.teacher_ms:.1f}'} |",
        "",
    ]
    return "\n".join(lines)


def _classes(results: Results) -> list[tuple[str, tuple[float, float]]]:
    evaluation = results.true_evaluation or results.judged.evaluation
    per_class = evaluation.best.class_average_precision
    return [(name, (own["AP"], own["AP50"])) for name, own in zip(evaluation.classes, per_class, strict=True)]


def _row(name: str, values: Sequence[float | None]) -> str:
    shown = ["-" if value is None or math.isnan(value) else f"{value:.3f}" for value in values]
    return f"| {name.replace('|', '/')} | {' | '.join(shown)} |"


def _precision(evaluation: Evaluation) -> dict[str, Any]:
    values = evaluation.best.average_precision
    numbers = {name: None if math.isnan(value) else value for name, value in values.items()}
    return {"kind": evaluation.best.kind, **numbers}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _curves_csv(history: Sequence[Mapping[str, float]]) -> bytes:
    names = list(dict.fromkeys(name for row in history for name in row))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return file.getvalue().encode()


def _curves_png(history: Sequence[Mapping[str, float]]) -> bytes:
    """Losses above, measures on the valid split below."""
    # Not pyplot, whose figures and back end belong to the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.4), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    names = list(dict.fromkeys(name for row in history for name in row))
    for axes, chosen, label in (
        (upper, [name for name in names if "loss" in name.lower()], "loss"),
        (lower, [name for name in names if "map" in name.lower() or " ap" in name.lower()], "average precision"),
    ):
        for name in chosen:
            points = [(row.get("epoch", index), row[name]) for index, row in enumerate(history, 1) if name in row]
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.5)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if chosen:
            axes.legend(fontsize=8)
    lower.set_ylim(0, 1)
    lower.set_xlabel("epoch")
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _sheet(results: Results) -> RGBImage:
    """Held-out images spread over the split, labels left of answers."""
    data, records = results.data, {record["file"]: record for record in results.judged.records}
    labelled = list(data.objects(data.held_out))
    chosen = np.unique(np.linspace(0, len(labelled) - 1, _SHEET_IMAGES).round().astype(int))
    cells: list[tuple[RGBImage, sv.Detections, str]] = []
    for image, objects in (labelled[index] for index in chosen):
        pixels = load_image(data.path(image))
        cells.append((pixels, _labels(image, objects, data.classes), f"label  {image.file}"))
        cells.append((pixels, _answers(records[image.file], data.classes), f"student  {image.file}"))
    return draw_sheet(cells)


def _answers(record: ImageRecord, classes: Sequence[str]) -> sv.Detections:
    found = detections_of(record, list(classes))
    assert found.confidence is not None
    sure: sv.Detections = found[found.confidence >= _DRAWN_CONFIDENCE]  # type: ignore[assignment]  # not a column
    return sure


def _labels(image: DatasetImage, objects: Sequence[DatasetObject], classes: Sequence[str]) -> sv.Detections:
    xywh = np.array([item.bbox for item in objects], dtype=np.float32).reshape(-1, 4)
    masks = [rle_to_mask(item.segmentation) for item in objects if item.segmentation is not None]
    class_id = np.array([item.class_id for item in objects], dtype=np.int64)
    return sv.Detections(
        xyxy=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
        mask=np.array(masks) if len(masks) == len(objects) and masks else None,
        confidence=np.array([item.confidence for item in objects], dtype=np.float32),
        class_id=class_id,
        data={"class_name": np.array(classes, dtype=np.str_)[class_id]},
    )
