"""A student's answers on images that it was not trained on, as files and as measures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import supervision as sv
from tqdm import tqdm

from autodistill_sam3.evaluation import Evaluation, evaluate_dataset
from autodistill_sam3.exchange.dataset import DatasetImage
from autodistill_sam3.labeling.formats import write_coco
from autodistill_sam3.labeling.records import ImageRecord, Split, annotations_of
from autodistill_sam3.layout import COCO
from autodistill_sam3.students.data import TrainingData
from autodistill_sam3.whole_files import replacing

Predict: TypeAlias = Callable[[Path, float], sv.Detections]

# Average precision counts finds of any confidence; below this they are many and change nothing.
LEAST_CONFIDENCE = 0.01
_WARM_UP, _TIMED = 3, 10


@dataclass(frozen=True, eq=False)
class Judged:
    """How a student did.

    Attributes:
        evaluation: Against the labels.
        records: What it found in each image.
    """

    evaluation: Evaluation
    records: list[ImageRecord]


def judge(predict: Predict, data: TrainingData, split: Split, answers: Path, *, progress: bool = True) -> Judged:
    """Ask a student for every image of a split and compare with its labels.

    Args:
        predict: A path and a confidence -> detections.
        data: The dataset.
        split: Which images.
        answers: The COCO file that its answers are written to.
        progress: Show a progress bar.

    Raises:
        LabelingError: Answers and labels cannot be compared.
    """
    images = tqdm(data.images(split), desc="Judging", unit="image", disable=not progress)
    records = [_record(image, predict(data.path(image), LEAST_CONFIDENCE)) for image in images]
    with replacing(answers, "w") as file:
        write_coco(file, records, data.classes)
    return Judged(evaluate_dataset(answers, data.folder / split / COCO), records)


def milliseconds(predict: Callable[[Path], object], paths: Sequence[Path]) -> float:
    """Median time of an image, one at a time, from the file to the detections; some are asked for untimed before."""
    seconds = []
    for path in (paths[index % len(paths)] for index in range(_WARM_UP + _TIMED)):
        begun = time.perf_counter()
        predict(path)
        seconds.append(time.perf_counter() - begun)
    return 1000 * float(np.median(seconds[_WARM_UP:]))


def _record(image: DatasetImage, detections: sv.Detections) -> ImageRecord:
    return {
        "source": image.file, "file": image.file, "split": image.split, "width": image.width, "height": image.height,
        "annotations": annotations_of(detections, image.image_hw),
    }  # fmt: skip
