"""Target models of autodistill that are installed, as students."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import supervision as sv
from autodistill.detection import DetectionTargetModel

from autodistill_sam3.errors import LabelingError, MissingPackageError, SettingError
from autodistill_sam3.students.student import DEFAULT_EPOCHS, DEFAULT_SEED, Student, Trained

_NAME = re.compile(r"[a-z0-9]+([-_][a-z0-9]+)*")


class Plugin(Student):
    """An installed target model, such as "yolov8" of the package `autodistill_yolov8`.

    It is given the data set, the number of epochs and, where it takes one, the device: what it reads, where it writes
    and what it needs are its own.

    Args:
        name: The package's name behind `autodistill_`.
        weights: What its constructor takes first, such as "yolov8n.pt".
        device: For its training; refused where that takes none.
    """

    learns_masks = False
    exports = False

    def __init__(self, name: str, weights: Path | None = None, *, device: str | None = None) -> None:
        super().__init__(name, weights, device=device)
        module = find_plugin(name)
        if module is None:
            raise MissingPackageError(f"Expected the package autodistill_{name}. pip install autodistill-{name}")
        target = target_model_of(module)
        if device is not None and "device" not in inspect.signature(target.train).parameters:
            raise SettingError(f"Expected no device for the plugin {name}, which chooses its own, received {device!r}")
        self._keywords = {} if device is None else {"device": device}
        arguments = [] if weights is None else [str(weights)]
        try:
            self._model: Any = target(*arguments)
        # Whatever a stranger's constructor raises.
        except Exception as error:
            raise SettingError(
                f"Expected {target.__name__}({', '.join(arguments)}) to build the student {name}: {error}. "
                "Pass --weights with what its constructor takes first."
            ) from error

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
        """Have the plugin train; where its weights are, it keeps to itself."""
        try:
            self._model.train(str(dataset_yaml), epochs=epochs, **self._keywords)
        # Whatever a stranger's training raises.
        except Exception as error:
            raise LabelingError(f"The target model {self.name} failed: {type(error).__name__}: {error}") from error
        return Trained(None)

    def predict(self, input: Any, confidence: float = 0.5) -> sv.Detections:
        """See `Student.predict`; masks are there if the plugin gives them."""
        asked = str(input) if isinstance(input, Path) else input
        try:
            found = _as_detections(self._model.predict(asked, confidence=confidence))
        # Whatever a stranger's model raises.
        except Exception as error:
            raise LabelingError(f"The target model {self.name} failed: {type(error).__name__}: {error}") from error
        if len(found) and (found.class_id is None or found.confidence is None):
            raise LabelingError(f"Expected classes and confidences of the target model {self.name}, received none")
        return found

    def export_onnx(self, path: Path) -> None:
        """Plugins have no common way to export.

        Raises:
            SettingError: Always.
        """
        raise SettingError(f"Expected a student of this package to export, received the plugin {self.name}")


def _as_detections(found: Any) -> sv.Detections:
    """Some plugins give what ultralytics does: a list with a result for each image."""
    if isinstance(found, list) and len(found) == 1 and hasattr(found[0], "boxes"):
        detections: sv.Detections = sv.Detections.from_ultralytics(found[0])
        return detections
    if not isinstance(found, sv.Detections):
        raise TypeError(f"expected supervision's Detections, received {type(found).__name__}")
    return found


def find_plugin(name: str) -> ModuleType | None:
    """The module `autodistill_NAME`, if it is installed and can be one."""
    if not _NAME.fullmatch(name):
        return None
    full = f"autodistill_{name.replace('-', '_')}"
    # This package's own name begins so, too.
    if full == __name__.partition(".")[0] or importlib.util.find_spec(full) is None:
        return None
    try:
        return importlib.import_module(full)
    # Whatever a stranger's import raises.
    except Exception as error:
        raise MissingPackageError(f"Expected {full} to be imported as a student, but that failed: {error}") from error


def target_model_of(module: ModuleType) -> type[DetectionTargetModel]:
    """The one target model for detection that a plugin has.

    Raises:
        SettingError: It has none, or several.
    """
    found = {
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, DetectionTargetModel) and value is not DetectionTargetModel
    }
    if len(found) != 1:
        names = ", ".join(sorted(value.__name__ for value in found)) or "none"
        raise SettingError(f"Expected one target model for detection in {module.__name__}, received {names}")
    return found.pop()
