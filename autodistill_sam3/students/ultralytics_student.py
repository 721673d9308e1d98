"""Segmentation models of ultralytics as students."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import supervision as sv

from autodistill_sam3.errors import CheckpointError
from autodistill_sam3.students.packages import quiet_export, require
from autodistill_sam3.students.student import (
    DEFAULT_EPOCHS,
    DEFAULT_SEED,
    Student,
    Trained,
)

EXTRA = "ultralytics"
_BATCH_SIZE, _IMAGE_SIZE = 16, 640
_RUN = "ultralytics"
# Of the files that a training leaves.
_BEST, _RESULTS = "weights/best.pt", "results.csv"


class UltralyticsStudent(Student):
    """A YOLO with masks, such as "yolo11n-seg" or "yolo26s-seg".

    ultralytics is under AGPL-3.0, and so are weights that it publishes; see its licence before a product has them.

    Args:
        name: The name of ultralytics' configuration file, without its suffix.
        weights: A `.pt` of ultralytics. It is unpickled by ultralytics: only files that you trust.
        device: Such as "cuda:1" or "cpu".
    """

    def __init__(self, name: str, weights: Path | None = None, *, device: str | None = None) -> None:
        super().__init__(name, weights, device=device)
        require("ultralytics", EXTRA)
        from ultralytics import YOLO  # type: ignore[attr-defined]  # exported lazily

        if weights is not None and not weights.is_file():
            raise CheckpointError(f"Expected weights of {name}, received {weights}, which is no file")
        try:
            self._model: Any = YOLO(str(weights) if weights is not None else f"{name}.yaml", task="segment")
        # It raises whatever its readers raise.
        except Exception as error:
            place = weights or f"{name}.yaml"
            raise CheckpointError(f"Expected a model that ultralytics can build, received {place}: {error}") from error

    def train(
        self,
        dataset_yaml: str | Path,
        epochs: int = DEFAULT_EPOCHS,
        *,
        output: str | Path = "student",
        image_size: int | None = None,
        batch_size: int | None = None,
        seed: int = DEFAULT_SEED,
        progress: bool = True,
    ) -> Trained:
        """See `Student.train`; ultralytics' own files are in `output/ultralytics`."""
        place = Path(output).resolve()
        self._model.train(
            data=str(Path(dataset_yaml).resolve()), epochs=epochs, imgsz=image_size or _IMAGE_SIZE,
            batch=batch_size or _BATCH_SIZE, seed=seed, device=self.device, project=str(place), name=_RUN,
            exist_ok=True, plots=False, verbose=progress,
            # The last epochs without mosaic are for long trainings.
            close_mosaic=min(10, epochs // 5),
        )  # fmt: skip
        best = place / "best.pt"
        shutil.copyfile(place / _RUN / _BEST, best)
        self.__init__(self.name, best, device=self.device)  # type: ignore[misc]  # as it will be loaded later
        return Trained(best, _history(place / _RUN / _RESULTS))

    def predict(self, input: Any, confidence: float = 0.5) -> sv.Detections:
        """See `Student.predict`."""
        [result] = self._model.predict(
            str(input) if isinstance(input, Path) else input, conf=confidence, device=self.device, retina_masks=True,
            verbose=False,
        )  # fmt: skip
        return sv.Detections.from_ultralytics(result)

    def export_onnx(self, path: Path) -> None:
        """See `Student.export_onnx`."""
        require("onnx", "onnx")
        with quiet_export():
            written = Path(self._model.export(format="onnx", simplify=False, verbose=False))
        shutil.move(written, path)


def _history(results: Path) -> tuple[dict[str, float], ...]:
    """The lines of ultralytics' results.csv."""
    with results.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return tuple({name.strip(): float(value) for name, value in row.items()} for row in rows)
