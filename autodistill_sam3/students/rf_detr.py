"""RF-DETR's segmentation models as students. Source: Robinson et al., RF-DETR, 2025; the package rfdetr."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import supervision as sv

from autodistill_sam3.devices import select_device
from autodistill_sam3.errors import CheckpointError
from autodistill_sam3.images import load_image
from autodistill_sam3.students.data import TrainingData
from autodistill_sam3.students.packages import quiet_export, require
from autodistill_sam3.students.student import DEFAULT_EPOCHS, DEFAULT_SEED, Student, Trained

EXTRA = "rfdetr"
_CLASSES = {
    "nano": "RFDETRSegNano", "small": "RFDETRSegSmall", "medium": "RFDETRSegMedium", "large": "RFDETRSegLarge",
    "xlarge": "RFDETRSegXLarge", "2xlarge": "RFDETRSeg2XLarge",
}  # fmt: skip
_BATCH_SIZE = 4
# Of what its training leaves.
_RUN, _BEST, _RESULTS = "rfdetr", "checkpoint_best_total.pth", "metrics.csv"


class RFDETRStudent(Student):
    """RF-DETR with masks, such as "rf-detr-seg-nano"; Apache-2.0, best on a GPU.

    Args:
        name: "rf-detr-seg-" and the size.
        weights: A `.pth` of RF-DETR; it is unpickled by rfdetr: only files that you trust.
        device: Such as "cuda:1" or "cpu".
    """

    def __init__(self, name: str, weights: Path | None = None, *, device: str | None = None) -> None:
        super().__init__(name, weights, device=device)
        require("rfdetr", EXTRA)
        if weights is not None and not weights.is_file():
            raise CheckpointError(f"Expected weights of {name}, received {weights}, which is no file")
        self._make = _maker(name)
        self._device = str(select_device(device))
        # What it learns and how large its images are is known when it is trained, or from weights.
        self._weights = weights
        self._model: Any = None if weights is None else self._built()

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
        """See `Student.train`; rfdetr's own files are in `output/rfdetr`. Its own image size suits its weights."""
        data = TrainingData(Path(dataset_yaml).parent, needs_masks=True)
        place = Path(output).resolve()
        self._model = self._built(**({} if image_size is None else {"resolution": image_size}))
        self._model.train(
            dataset_dir=str(data.folder), epochs=epochs, batch_size=batch_size or _BATCH_SIZE, seed=seed,
            output_dir=str(place / _RUN), tensorboard=False, progress_bar="tqdm" if progress else None,
            class_names=list(data.classes),
        )  # fmt: skip
        best = place / "best.pth"
        shutil.copyfile(place / _RUN / _BEST, best)
        self._weights, self._model = best, None
        self._model = self._built()
        return Trained(best, _history(place / _RUN / _RESULTS))

    def predict(self, input: Any, confidence: float = 0.5) -> sv.Detections:
        """See `Student.predict`."""
        if self._model is None:
            raise CheckpointError(f"Expected a trained {self.name}, received one without weights. Train it first.")
        found: sv.Detections = self._model.predict(load_image(input), threshold=confidence, include_source_image=False)
        names = np.array(self._model.class_names, dtype=np.str_)
        assert found.class_id is not None
        # Behind the classes there is one for the background.
        kept: sv.Detections = found[found.class_id < len(names)]  # type: ignore[assignment]  # not a column
        return sv.Detections(
            xyxy=kept.xyxy,
            mask=kept.mask,
            confidence=kept.confidence,
            class_id=kept.class_id,
            data={"class_name": names[kept.class_id]},
        )

    def export_onnx(self, path: Path) -> None:
        """See `Student.export_onnx`."""
        with quiet_export():
            written = Path(self._model.export(output_dir=str(path.parent / _RUN), format="onnx", verbose=False))
        shutil.move(written, path)

    def _built(self, **keywords: Any) -> Any:
        try:
            # Without this keyword it would fetch weights.
            return self._make(
                pretrain_weights=None if self._weights is None else str(self._weights), device=self._device, **keywords
            )
        # It raises whatever its readers raise.
        except Exception as error:
            place = self._weights or self.name
            raise CheckpointError(f"Expected a model that rfdetr can build, received {place}: {error}") from error


def _maker(name: str) -> Any:
    import rfdetr  # type: ignore[import-not-found]  # in environments of its own

    return getattr(rfdetr, _CLASSES[name.rpartition("-")[2]])


def _history(results: Path) -> tuple[dict[str, float], ...]:
    """The lines of Lightning's metrics.csv, several an epoch, as one each."""
    epochs: dict[int, dict[str, float]] = {}
    with results.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            values = {name: float(value) for name, value in row.items() if value}
            if "epoch" in values:
                epoch = int(values.pop("epoch")) + 1
                epochs.setdefault(epoch, {"epoch": float(epoch)}).update(values)
    return tuple(epochs[epoch] for epoch in sorted(epochs))
