"""What the three base models share: `predict`, `predict_batch` and `label` around one batch function."""

from __future__ import annotations

import platform
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import supervision as sv
from autodistill.detection import DetectionBaseModel
from autodistill.detection.detection_base_model import NmsSetting

from autodistill_sam3.devices import Precision
from autodistill_sam3.errors import SettingError
from autodistill_sam3.fusion import Thresholds
from autodistill_sam3.images import ImageInput, RGBImage, load_image
from autodistill_sam3.labeling import LabelingPlan, default_output, label_images
from autodistill_sam3.ontology import Ontology, PromptTable


class LabelingModel(DetectionBaseModel):  # type: ignore[misc]  # autodistill has no types
    """A base model of autodistill that predicts in batches and labels folders safely."""

    def __init__(self, ontology: Ontology, thresholds: Thresholds, precision: Precision) -> None:
        self.thresholds = thresholds
        self.precision = precision
        self.set_ontology(ontology)

    def set_ontology(self, ontology: Ontology) -> None:
        """Use other prompts and classes from now on.

        Raises:
            OntologyError: It is empty, holds something other than text, or gives one prompt two classes.
            SettingError: A threshold was given for a class that it does not have.
        """
        table = PromptTable.from_ontology(ontology)
        self.thresholds.check_classes(table.classes)
        self.table = table
        self.ontology = ontology

    def predict(self, input: ImageInput) -> sv.Detections:
        """Detect the ontology's classes in one image.

        Args:
            input: A path, an http(s) URL, a PIL image, or an array in autodistill's channel order, BGR.

        Returns:
            Detections sorted by falling confidence: `xyxy` in pixels of the upright image, `mask` (N, H, W) ``bool``,
            `confidence`, `class_id`, and `data` with "class_name", "prompt" and "source". Without any object, all of
            them have length 0 and `mask` has shape (0, H, W). `Florence2` gives boxes only: `mask` is None.

        Raises:
            ImageError: The input cannot be read as an image.
        """
        return self.predict_batch([input])[0]

    def predict_batch(self, inputs: Sequence[ImageInput]) -> list[sv.Detections]:
        """:meth:`predict` for many images; the model sees them in batches."""
        found: list[sv.Detections] = []
        step = LabelingPlan.batch_size
        for start in range(0, len(inputs), step):
            images = [load_image(source) for source in inputs[start : start + step]]
            found += [with_dense_masks(detections) for detections in self._detect(images)]
        return found

    def label(
        self,
        input_folder: str | Path,
        extension: str | None = None,
        output_folder: str | Path | None = None,
        human_in_the_loop: bool = False,
        roboflow_project: str | None = None,
        roboflow_tags: Sequence[str] = ("autodistill",),
        sahi: bool = False,
        record_confidence: bool = False,
        nms_settings: NmsSetting = NmsSetting.NONE,
        *,
        limit: int | None = None,
        plot: bool = LabelingPlan.plot,
        overwrite: bool = LabelingPlan.overwrite,
        batch_size: int = LabelingPlan.batch_size,
        seed: int = LabelingPlan.seed,
        progress: bool = LabelingPlan.progress,
    ) -> sv.DetectionDataset:
        """Label a folder of images; the first nine arguments are autodistill's.

        Writes autodistill's layout (`data.yaml`, `train|valid/{images,labels}`) and COCO with RLE beside it. Each
        image is on disk before the next batch starts, so a run that was stopped goes on where it was when it is
        started again. Images that cannot be read are listed in `quarantine.jsonl`.

        Args:
            input_folder: The folder of images; sub-folders are not read.
            extension: Take only files with this suffix, in any case; None takes all common ones.
            output_folder: The dataset's folder; by default the input's name with `_labeled`.
            human_in_the_loop: Upload the dataset to Roboflow afterwards.
            roboflow_project: The Roboflow project to upload to.
            roboflow_tags: Accepted for autodistill's sake; Roboflow's dataset upload takes no tags.
            sahi: Cut large images into overlapping tiles.
            record_confidence: Write `confidence-<name>.txt` beside each label file, one value per line of it.
            nms_settings: Non-maximum suppression after fusion: none, per class, or across classes.
            limit: Label only so many images, in the order of their names; what earlier runs finished stays.
            plot: Write review sheets into `review/`.
            overwrite: Replace the dataset of an earlier run; other folders are never touched.
            batch_size: Images per call of the model.
            seed: Of the split into train and valid.
            progress: Show a progress bar.

        Returns:
            The dataset. Its annotations are read from disk when they are asked for.

        Raises:
            InputFolderError: There is nothing to label.
            OutputFolderError: The output folder may not be written to.
            LabelingError: Writing failed, or an earlier run's journal is damaged.
            SettingError: A value is out of its range.
        """
        nms = _nms_setting(nms_settings)
        for name, value in (("limit", limit), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise SettingError(f"Expected {name} to be at least 1, received {value}")
        source = Path(input_folder)
        plan = LabelingPlan(
            source=source,
            output=Path(output_folder) if output_folder is not None else default_output(source),
            classes=self.table.classes,
            settings=self._settings() | {"sahi": sahi, "nms_settings": nms.value},
            versions=_versions(),
            extension=extension,
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            record_confidence=record_confidence,
            plot=plot,
            overwrite=overwrite,
            progress=progress,
        )
        dataset = label_images(plan, lambda images: [_suppress(found, nms) for found in self._detect_all(images, sahi)])
        if human_in_the_loop:
            _upload_to_roboflow(plan.output, roboflow_project)
        return dataset

    @abstractmethod
    def _detect(self, images: Sequence[RGBImage]) -> list[sv.Detections]:
        """Detections of a batch, with compact masks."""

    def _settings(self) -> dict[str, Any]:
        """What decides which labels come out, as JSON values."""
        return {
            "model": type(self).__name__,
            "prompts": dict(zip(self.table.prompts, self.table.class_of_prompt, strict=True)),
            "thresholds": asdict(self.thresholds),
            "precision": self.precision,
        }

    def _detect_all(self, images: Sequence[RGBImage], sahi: bool) -> list[sv.Detections]:
        if not sahi:
            return self._detect(images)
        slicer = sv.InferenceSlicer(callback=lambda tile: self._detect([tile])[0])
        return [slicer(image) for image in images]


def with_dense_masks(detections: sv.Detections) -> sv.Detections:
    """Dense (N, H, W) masks, which callers may treat as any array."""
    if isinstance(detections.mask, sv.CompactMask):
        detections.mask = detections.mask.to_dense()
    return detections


def _nms_setting(value: NmsSetting | str) -> NmsSetting:
    try:
        return NmsSetting(value)
    except ValueError as error:
        choices = [setting.value for setting in NmsSetting]
        raise SettingError(f"Expected nms_settings to be one of {choices}, received {value!r}") from error


def _suppress(detections: sv.Detections, nms: NmsSetting) -> sv.Detections:
    if nms is NmsSetting.NONE or not len(detections):
        return detections
    return detections.with_nms(class_agnostic=nms is NmsSetting.CLASS_AGNOSTIC)


def _versions() -> dict[str, str]:
    names = ("autodistill-grounded-sam3", "torch", "torchvision", "transformers", "supervision", "numpy")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _upload_to_roboflow(output: Path, project: str | None) -> None:
    import roboflow

    roboflow.login()
    roboflow.Roboflow().workspace().upload_dataset(str(output), project_name=project)
