"""Segmentation models of ultralytics as students."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import supervision as sv

from autodistill_sam3.devices import select_device
from autodistill_sam3.errors import CheckpointError, LabelingError
from autodistill_sam3.labeling.formats import image_paths
from autodistill_sam3.labeling.records import Split
from autodistill_sam3.students.data import TrainingData
from autodistill_sam3.students.packages import quiet_export, require
from autodistill_sam3.students.student import DEFAULT_EPOCHS, DEFAULT_SEED, Student, Trained

EXTRA = "ultralytics"
_BATCH_SIZE, _IMAGE_SIZE = 16, 640
_RUN = "ultralytics"
# Of the files that a training leaves.
_BEST, _RESULTS = "weights/best.pt", "results.csv"
_CACHES = "*/labels.cache"
# COCO's measure counts so many of an image.
_MOST_DETECTIONS = 100
# A class and the sides of a box.
_BOX_VALUES = 5
_READ_SPLITS: tuple[Split, ...] = ("train", "valid")


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
        # Its own choice passes over Apple's GPUs, and its errors come late.
        self._device = str(select_device(device))
        self._model = _model(name, weights)

    def check(self, data: TrainingData, image_size: int | None) -> None:
        """See `Student.check`: ultralytics reads YOLO files, and takes an image without one for an empty one."""
        for split in _READ_SPLITS:
            for image, objects in data.objects(split):
                [name] = image_paths(image.file, ("yolo",), record_confidence=False)
                path = data.folder / split / name
                lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
                if objects and not any(len(line.split()) > _BOX_VALUES for line in lines):
                    raise LabelingError(
                        f"Expected polygons, which ultralytics learns, received none in {path} for {len(objects)} "
                        "objects. Label with 'yolo' among the formats."
                    )

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
        place, folder = Path(output).resolve(), Path(dataset_yaml).resolve().parent
        _remove_caches(folder)
        self._model.train(
            data=str(Path(dataset_yaml).resolve()), epochs=epochs, imgsz=image_size or _IMAGE_SIZE,
            batch=batch_size or _BATCH_SIZE, seed=seed, device=self._device, project=str(place), name=_RUN,
            exist_ok=True, plots=False, verbose=progress,
            # It would collect 64 images for a step: too few steps for the size of folders that people label.
            nbs=batch_size or _BATCH_SIZE,
            # The last epochs without mosaic are for long trainings.
            close_mosaic=min(10, epochs // 5),
        )  # fmt: skip
        _remove_caches(folder)
        best = place / "best.pt"
        shutil.copyfile(place / _RUN / _BEST, best)
        # As it will be loaded later.
        self._model = _model(self.name, best)
        return Trained(best, _history(place / _RUN / _RESULTS))

    def predict(self, input: Any, confidence: float = 0.5) -> sv.Detections:
        """See `Student.predict`."""
        [result] = self._model.predict(
            str(input) if isinstance(input, Path) else input, conf=confidence, device=self._device, retina_masks=True,
            max_det=_MOST_DETECTIONS, verbose=False,
        )  # fmt: skip
        return sv.Detections.from_ultralytics(result)

    def export_onnx(self, path: Path) -> None:
        """See `Student.export_onnx`."""
        with quiet_export():
            written = Path(self._model.export(format="onnx", simplify=False, verbose=False))
        shutil.move(written, path)


def _model(name: str, weights: Path | None) -> Any:
    """The model of a configuration with random weights, or one of its like from a file."""
    from ultralytics import YOLO  # type: ignore[attr-defined]  # exported lazily

    if weights is not None and (not weights.is_file() or weights.suffix != ".pt"):
        raise CheckpointError(f"Expected weights of {name}, a .pt of ultralytics, received {weights}")
    place = str(weights) if weights is not None else f"{name}.yaml"
    try:
        model: Any = YOLO(place, task="segment")
        source = Path(str(model.model.yaml.get("yaml_file", f"{name}.yaml"))).stem
    # It raises whatever its readers raise.
    except Exception as error:
        raise CheckpointError(f"Expected a model that ultralytics can build, received {place}: {error}") from error
    if model.task != "segment" or source != name:
        raise CheckpointError(f"Expected weights of {name}, received those of {source} ({model.task}) in {place}")
    return model


def _remove_caches(folder: Path) -> None:
    """What ultralytics keeps of labels is a pickle, which it would read: also one that came with the folder."""
    for path in folder.glob(_CACHES):
        try:
            path.unlink()
        except OSError as error:
            raise LabelingError(f"Expected to remove {path}, which ultralytics would unpickle: {error}") from error


def _history(results: Path) -> tuple[dict[str, float], ...]:
    """The lines of ultralytics' results.csv."""
    with results.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return tuple({name.strip(): float(value) for name, value in row.items()} for row in rows)
