"""What the three base models share: `predict`, `predict_batch` and `label` around one batch function."""

from __future__ import annotations

import contextlib
import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, get_args

import cv2
import supervision as sv
from autodistill.detection import DetectionBaseModel
from autodistill.detection.detection_base_model import NmsSetting

from autodistill_sam3.background import Background
from autodistill_sam3.base_models.launch import Engine, Launch
from autodistill_sam3.base_models.provenance import settings_of_run, upload_to_roboflow
from autodistill_sam3.base_models.repeat import as_repeat
from autodistill_sam3.base_models.slices import predict_slices, with_dense_masks
from autodistill_sam3.devices import (
    Precision,
    batch_that_fits,
    precision_name,
    select_device,
    with_memory_errors,
)
from autodistill_sam3.distributed import Labeler
from autodistill_sam3.errors import DeviceError, SettingError
from autodistill_sam3.images import ImageInput, RGBImage, load_image
from autodistill_sam3.interpretation import Interpretation
from autodistill_sam3.labeling import (
    ImagesInput,
    LabelingPlan,
    SplitRule,
    check_formats,
    default_output,
    has_at_least,
)
from autodistill_sam3.labeling.versions import DECIDING_PACKAGES, installed_versions, versions_of_run
from autodistill_sam3.ontology import Ontology, PromptTable
from autodistill_sam3.segmentation import can_compile
from autodistill_sam3.thresholds import Thresholds, read_thresholds
from autodistill_sam3.tiling import DEFAULT_TILE, detect_in_tiles

OverlappingClasses = Literal["best", "keep"]

# Images from which on compiling, about a minute the first time, repays itself.
COMPILED_FROM = 1000


class LabelingModel(DetectionBaseModel):  # type: ignore[misc]  # autodistill has no types
    """A base model of autodistill that predicts in batches and labels folders safely."""

    # Whether the models run compiled; None leaves it to the size of the job.
    compile: bool | None = False

    # A class for what no object covers.
    background: str | None = None

    _gives_masks = True
    _has_weights = True

    def __init__(
        self,
        ontology: Ontology,
        thresholds: Thresholds,
        overlapping_classes: OverlappingClasses,
        device: str | None,
        precision: Precision,
    ) -> None:
        if overlapping_classes not in get_args(OverlappingClasses):
            raise SettingError(
                f"Expected overlapping_classes to be one of {get_args(OverlappingClasses)}, "
                f"received {overlapping_classes!r}"
            )
        self.thresholds = thresholds
        self.overlapping_classes = overlapping_classes
        selected = select_device(device)
        self.precision = precision_name(precision, selected)
        # Workers on other devices choose theirs by it.
        self._asked: tuple[str | None, Precision] = (device, precision)
        self._device = selected
        self._device_type = selected.type
        # Batches gain nothing on a CPU, and padding the last one costs.
        self._batch_size = 1 if selected.type == "cpu" else LabelingPlan.batch_size
        self.set_ontology(ontology)

    def set_ontology(self, ontology: Ontology) -> None:
        """Use other prompts and classes from now on.

        Raises:
            OntologyError: It is empty, holds something other than text, or gives one prompt two classes.
            SettingError: A threshold was given for a class that it does not have.
        """
        table = PromptTable.from_ontology(ontology, self.background)
        self.thresholds.check_classes(table.classes)
        self.table = table
        self.ontology = ontology

    def predict(self, input: ImageInput) -> sv.Detections:
        """Detect the ontology's classes in one image.

        Args:
            input: A path, an http(s) URL, a PIL image, or an array in autodistill's channel order, BGR.

        Returns:
            Detections sorted by falling confidence, the background last: `xyxy` in pixels of the upright image, `mask`
            (N, H, W) ``bool``, `confidence`, `class_id`, and `data` with "class_name", "prompt" and "source". Without
            any, all of them have length 0 and `mask` has shape (0, H, W). `Florence2` gives boxes only: `mask` is None.

        Raises:
            ImageError: The input cannot be read as an image.
        """
        return self.predict_batch([input])[0]

    def predict_batch(self, inputs: Sequence[ImageInput]) -> list[sv.Detections]:
        """:meth:`predict` for many images; the model sees them in batches."""
        found: list[sv.Detections] = []
        step, interpret = self._batch_size, self._interpretation()
        for start in range(0, len(inputs), step):
            images = [load_image(source) for source in inputs[start : start + step]]
            found += [with_dense_masks(interpret(seen)) for seen in self._see(images)]
        return found

    def sahi_predict(self, input: ImageInput) -> sv.Detections:
        """Autodistill's way to cut an image into slices; the background is that of the whole image."""
        plain = copy.copy(self)
        plain.table = PromptTable.from_ontology(self.ontology)
        return predict_slices(load_image(input), plain.predict, self._background_class())

    def label(
        self,
        input_folder: ImagesInput,
        extension: str | None = None,
        output_folder: str | Path | None = None,
        human_in_the_loop: bool = False,
        roboflow_project: str | None = None,
        roboflow_tags: Sequence[str] = ("autodistill",),
        sahi: bool = False,
        record_confidence: bool = False,
        nms_settings: NmsSetting = NmsSetting.NONE,
        *,
        recursive: bool = LabelingPlan.recursive,
        tile: int | None = None,
        thresholds: Mapping[str, float] | str | Path | None = None,
        formats: Sequence[str] = LabelingPlan.formats,
        limit: int | None = LabelingPlan.limit,
        plot: bool = LabelingPlan.plot,
        overwrite: bool = LabelingPlan.overwrite,
        batch_size: int | None = None,
        seed: int = SplitRule.seed,
        valid_share: float = SplitRule.valid_share,
        test_share: float = SplitRule.test_share,
        group_by: str | None = SplitRule.group_by,
        group_near_duplicates: bool = LabelingPlan.group_near_duplicates,
        progress: bool = LabelingPlan.progress,
        gpus: Sequence[int | str] | None = None,
        shard: str | None = None,
        engine: Engine = "local",
        workers: int | None = None,
    ) -> sv.DetectionDataset:
        """Label images; the first nine arguments are autodistill's.

        Writes autodistill's layout (`data.yaml`, `train|valid/{images,labels}`) and COCO with RLE beside it. Images are
        read some batches ahead of the models and written behind them, each noted when it is on the disk, so a run that
        was stopped goes on from there when it is started again, and ends with the same files. Images that cannot be
        read, or that the model fails on, are listed in `quarantine.jsonl`. `report.json` counts what the dataset holds,
        and what was left out; `times.json` says where the time of the last run went.

        Args:
            input_folder: The folder of images; or a glob, a manifest (`.txt` with a path in each line, or `.jsonl` with
                a path or `{"image": path, "group": text}` in each), an image, or a list of paths.
            extension: Take only files with this suffix, in any case; None takes all common ones.
            output_folder: The dataset's folder; by default the input's name with `_labeled`.
            human_in_the_loop: Upload the dataset to Roboflow afterwards.
            roboflow_project: The Roboflow project to upload to.
            roboflow_tags: Accepted for autodistill's sake; Roboflow's dataset upload takes no tags.
            sahi: Cut images larger than a tile into overlapping tiles, and look at the whole image, too.
            record_confidence: Write `confidence-<name>.txt` beside each label file, one value per line of it.
            nms_settings: Non-maximum suppression after fusion: none, per class, or across classes.
            recursive: Read sub-folders, too; their names go into the images' names.
            tile: Side of the tiles in pixels of the image; implies `sahi`, which alone takes tiles of 1008.
            thresholds: By class name, or the path of `thresholds.json` as `evaluate` writes it: values that replace the
                model's for these classes in this run.
            formats: Of the labels: "yolo" or "yolo-detection", "coco", "voc", "masks".
            limit: Label only so many images, in the order of their names; what earlier runs finished stays.
            plot: Write review sheets into `review/`.
            overwrite: Replace the dataset of an earlier run; other folders are never touched.
            batch_size: Images per call of the model, which gets smaller batches if memory runs out; by default that of
                the run that goes on, else 8, fewer if a GPU has not the memory for them, on a CPU 1.
            seed: Of the split.
            valid_share: Share of the images, or groups, that go to `valid`.
            test_share: Share that goes to `test`.
            group_by: A regular expression such as `r"cam[0-9]+"`; images whose names (paths below the input) have the
                same match, or the same first group of it, go to the same split.
            group_near_duplicates: Put an image into the split of the earliest one that it nearly equals.
            progress: Show a progress bar.
            gpus: GPUs of this machine by number, with a process and a copy of the models on each; names of devices
                work, too. This model is not used and keeps its memory: build it with device="cpu" to spare a GPU.
            shard: Label one part of the input, such as "3/16", in a job of its own; `autodistill-sam3 merge` puts the
                parts together.
            engine: "ray" labels on a Ray cluster.
            workers: How many on the cluster; by default one for each GPU that it has, without GPUs one.

        Returns:
            The dataset. Its annotations are read from disk when they are asked for.

        Raises:
            InputFolderError: There is nothing to label.
            OutputFolderError: The output folder may not be written to, holds a dataset made with other settings, or
                another run is at work in it.
            LabelingError: Writing failed, or an earlier run's journal is damaged.
            SettingError: A value is out of its range.
            DeviceError: A GPU in `gpus`, or of the cluster, is not there.
            KeyboardInterrupt: After Ctrl-C, when the images in flight are finished.
        """
        nms = _nms_setting(nms_settings)
        if "masks" in formats and not self._gives_masks:
            raise SettingError(f"Expected formats without 'masks', since {type(self).__name__} gives boxes only")
        if human_in_the_loop and shard is not None:
            raise SettingError("Expected human_in_the_loop without a shard, which is a part of the dataset")
        launch = Launch(gpus, shard, engine, workers, self._asked[0])
        # Hashes of gigabytes: kept here, since the copy below would take them along.
        self._identity()
        values = thresholds if isinstance(thresholds, Mapping | None) else read_thresholds(Path(thresholds))
        model = self._with_thresholds(self.thresholds.replaced_for(values or {}))
        if launch.target is not None:
            model._take_settings_of(launch.target)
        side = tile if tile is not None else DEFAULT_TILE if sahi else None
        output = Path(output_folder) if output_folder is not None else default_output(input_folder)
        earlier = {} if overwrite else settings_of_run(output)
        if model.compile is None:
            is_long = limit is None or limit >= COMPILED_FROM
            model.compile = earlier.get(
                "compiled",
                model._device_type == "cuda"
                and can_compile(model._device)
                and (is_long and has_at_least(COMPILED_FROM, input_folder, extension, recursive=recursive)),
            )
        if batch_size is None:
            batch_size = earlier.get("batch_size") or model._batch_for(launch.target)
        plan = LabelingPlan(
            source=input_folder,
            output=output,
            classes=self.table.classes,
            settings=model._settings() | {"tile": side, "nms_settings": nms.value},
            provenance={"checkpoints": self._checkpoints(), "versions": versions_of_run()},
            extension=extension,
            recursive=recursive,
            limit=limit,
            batch_size=batch_size,
            split=SplitRule(seed, valid_share, test_share, group_by),
            group_near_duplicates=group_near_duplicates,
            formats=check_formats(formats),
            record_confidence=record_confidence,
            plot=plot,
            overwrite=overwrite,
            progress=progress,
            # Two threads that queue work on Apple's GPUs crash torch 2.14 (pytorch#197805).
            on_gpu=model._device_type == "cuda",
        )
        plan = replace(plan, provenance=plan.provenance | {"repeat": as_repeat(model, plan)})
        dataset = launch.label(plan, model, side, nms)
        if human_in_the_loop:
            upload_to_roboflow(plan.output, roboflow_project)
        return dataset

    @classmethod
    def without_weights(cls, ontology: Ontology, **keywords: Any) -> Self:
        """A model that only starts workers, `label(gpus=...)` or `label(engine="ray")`, which load the weights."""
        model = cls.__new__(cls)
        model._has_weights = False
        # Only the constructor that a subclass has knows its keywords.
        model.__init__(ontology, **keywords)  # type: ignore[misc]  # called on a value, to have the flag set first
        return model

    def labeler(self, tile: int | None, nms: NmsSetting, *, has_settings: bool = False) -> Labeler:
        """This model as the labelling takes it."""
        settings = self._settings() if has_settings else None
        return Labeler(partial(self._begin_seeing, tile=tile), self._interpretation(tile, nms), settings)

    @abstractmethod
    def _begin(self, images: Sequence[RGBImage]) -> Callable[[], Sequence[Any]]:
        """Queue what a GPU can begin with for a batch.

        Returns:
            Gives what the models see in each image, compact and without torch, for :meth:`_fusion`.
        """

    def _fusion(self) -> Callable[[Any], sv.Detections] | None:
        """What :meth:`_begin` ends in for an image -> detections with compact masks; None if it ends in detections.

        It runs in other processes, too: picklable, of numpy alone, and from a module that imports no torch.
        """
        return None

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """Which models these are, by the hashes of their contents, as JSON values."""

    @abstractmethod
    def _checkpoints(self) -> dict[str, str]:
        """Where the models lie, to be read by people."""

    def _keywords(self) -> dict[str, Any]:
        """Keywords of the constructor whose values are not attributes of their names."""
        limits = self.thresholds
        return {
            "confidence": limits.confidence,
            "thresholds": dict(limits.per_class),
            "box_confidence": limits.box_confidence,
            "precision": self._asked[1],
        }

    def _take_settings_of(self, device: str) -> None:
        """Describe this model as it will be on another device."""
        # A cluster's GPUs are elsewhere; its first worker says what it computes in.
        with contextlib.suppress(DeviceError):
            self.precision = precision_name(self._asked[1], select_device(device))
        self._device_type = device.partition(":")[0]

    def _batch_for(self, target: str | None) -> int:
        """The batch of a run that begins, on this model's device or on another."""
        import torch

        return batch_that_fits(self._device if target is None else torch.device(target), LabelingPlan.batch_size)

    def _with_thresholds(self, thresholds: Thresholds) -> Self:
        """This model with other thresholds; it shares everything else."""
        thresholds.check_classes(self.table.classes)
        model = copy.copy(self)
        model.thresholds = thresholds
        return model

    def _settings(self) -> dict[str, Any]:
        """What decides which labels come out, as JSON values."""
        return {
            "model": type(self).__name__,
            # As pairs, since their order counts.
            "prompts": [list(pair) for pair in zip(self.table.prompts, self.table.class_of_prompt, strict=True)],
            "thresholds": asdict(self.thresholds),
            "overlapping_classes": self.overlapping_classes,
            "background": self.table.background,
            "device": self._device_type,
            "precision": self.precision,
            "compiled": bool(self.compile),
            "identity": self._identity(),
            "versions": installed_versions(DECIDING_PACKAGES) | {"opencv": cv2.__version__},
        }

    def _begin_seeing(self, images: Sequence[RGBImage], tile: int | None = None) -> Callable[[], Sequence[Any]]:
        """The models' part, for :meth:`_interpretation`, as `label_images` takes it."""
        if tile is not None:
            return lambda: self._see_tiles(images, tile)
        finish = with_memory_errors(lambda: self._begin(images), self._release)
        return lambda: with_memory_errors(finish, self._release)

    def _release(self) -> None:
        """Let go of memory that the models keep between calls."""

    def _see(self, images: Sequence[RGBImage]) -> Sequence[Any]:
        return self._begin_seeing(images)()

    def _see_tiles(self, images: Sequence[RGBImage], tile: int) -> list[sv.Detections]:
        """Detections of images that are seen tile by tile."""
        fuse = Interpretation(self._fusion(), keep_both=True)

        def detect(batch: Sequence[RGBImage]) -> Callable[[], list[sv.Detections]]:
            finish = self._begin_seeing(batch)
            return lambda: [fuse(seen) for seen in finish()]

        return detect_in_tiles(images, detect, tile=tile, batch_size=len(images))

    def _interpretation(self, tile: int | None = None, nms: NmsSetting = NmsSetting.NONE) -> Interpretation:
        """From what the models see in an image to its detections, without doubles across classes."""
        return Interpretation(
            fuse=self._fusion() if tile is None else None,
            keep_both=self.overlapping_classes == "keep",
            nms=nms.value,
            background=self._background_class(),
        )

    def _background_class(self) -> Background | None:
        name = self.table.background
        return None if name is None else Background(name, len(self.table.classes) - 1)


def _nms_setting(value: NmsSetting | str) -> NmsSetting:
    try:
        return NmsSetting(value)
    except ValueError as error:
        choices = [setting.value for setting in NmsSetting]
        raise SettingError(f"Expected nms_settings to be one of {choices}, received {value!r}") from error
