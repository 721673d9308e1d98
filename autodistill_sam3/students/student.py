"""What every student is: a target model of autodistill that says where its weights are and how its training went."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import supervision as sv
from autodistill.detection import DetectionTargetModel

from autodistill_sam3.students.data import TrainingData

DEFAULT_EPOCHS = 100
DEFAULT_SEED = 0


@dataclass(frozen=True)
class Trained:
    """What a training left.

    Attributes:
        weights: The best ones; None if the student does not say where they are.
        history: Per epoch what was measured, name -> number.
    """

    weights: Path | None
    history: tuple[Mapping[str, float], ...] = ()


class Student(DetectionTargetModel):  # type: ignore[misc]  # autodistill is untyped
    """A small model, from scratch or from weights.

    Args:
        name: Which model of its family.
        weights: What to begin with: a file that training wrote, or a pretrained one of its family. None begins with
            random weights, which takes far more images and epochs on photographs.
        device: Such as "cuda:1" or "cpu"; by default the best there is.

    Attributes:
        learns_masks: Whether boxes alone are not enough for it.
        exports: Whether it can be exported.

    Raises:
        MissingPackageError: The family's package is not installed.
        CheckpointError: The weights cannot be read, or are of another model.
        DeviceError: The device is not there.
    """

    learns_masks: ClassVar[bool] = True
    exports: ClassVar[bool] = True

    def __init__(self, name: str, weights: Path | None = None, *, device: str | None = None) -> None:
        self.name = name

    def check(self, data: TrainingData, image_size: int | None) -> None:
        """Find out before anything is written whether it can learn this.

        Raises:
            LabelingError: The folder lacks what it reads.
            CheckpointError: Its weights are for other classes or another size.
        """

    @abstractmethod
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
        """Learn the train split of a labelled folder; the valid split decides which weights are the best.

        The student has these weights afterwards.

        Args:
            dataset_yaml: The folder's `data.yaml`.
            epochs: Passes over the images.
            output: Where weights go.
            image_size: Side in pixels of what the student sees; by default the family's, or that of its weights.
            batch_size: Images per step; by default the family's.
            seed: Of what is random.
            progress: Show a progress bar.
        """

    @abstractmethod
    def predict(self, input: Any, confidence: float = 0.5) -> sv.Detections:
        """Detect the classes it was trained on in one image.

        Args:
            input: A path, or an array in autodistill's channel order, BGR.
            confidence: Detections below it are left out.

        Returns:
            `xyxy` in pixels, `mask` (N, H, W) ``bool``, `confidence`, `class_id`, and `data` with "class_name".
        """

    @abstractmethod
    def export_onnx(self, path: Path) -> None:
        """Write the network as ONNX, for images of the size that it was trained on.

        Raises:
            MissingPackageError: A package that this takes is not installed.
        """
