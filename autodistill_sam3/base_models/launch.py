"""Who labels: this process, processes on several devices, one job of an array, or a Ray cluster."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import supervision as sv

from autodistill_sam3.distributed import (
    Labeler,
    RayWorkers,
    device_names,
    label_on_devices,
    label_shard,
    label_with_ray,
    parse_shard,
    ray_workers,
)
from autodistill_sam3.errors import SettingError
from autodistill_sam3.labeling import LabelingPlan, label_images
from autodistill_sam3.ontology import PromptPairs

if TYPE_CHECKING:
    from autodistill.detection.detection_base_model import NmsSetting

    from autodistill_sam3.base_models.base import LabelingModel

Engine = Literal["local", "ray"]
_Devices: TypeAlias = "list[str] | RayWorkers | None"


def constructor_keywords(model: LabelingModel) -> tuple[PromptPairs, dict[str, Any]]:
    """What builds the model again: its ontology, and keywords but for the device.

    They are attributes of the same names, or `_keywords` has them.
    """
    table, own = model.table, model._keywords()
    pairs = zip(table.prompts, table.class_of_prompt, strict=True)
    ontology = PromptPairs(tuple((prompt, table.classes[index]) for prompt, index in pairs))
    names = sorted(set(inspect.signature(type(model)).parameters) - {"ontology", "model", "device"})
    return ontology, {name: own[name] if name in own else getattr(model, name) for name in names}


@dataclass(frozen=True)
class ModelRecipe:
    """How to build a model again, in another process; it can be pickled.

    Attributes:
        model: The class.
        ontology: Its prompts and classes.
        keywords: Of the constructor, but for the device.
        tile: Side of the tiles.
        nms: Non-maximum suppression after fusion.
        has_settings: Whether the workers say what decides their labels, to be compared; that takes hashes of gigabytes.
    """

    model: type[LabelingModel]
    ontology: PromptPairs
    keywords: dict[str, Any]
    tile: int | None
    nms: NmsSetting
    has_settings: bool

    @classmethod
    def of(cls, model: LabelingModel, tile: int | None, nms: NmsSetting, *, has_settings: bool) -> ModelRecipe:
        """The recipe of a model, whose constructor's keywords are attributes of the same names."""
        ontology, keywords = constructor_keywords(model)
        return cls(type(model), ontology, keywords, tile, nms, has_settings)

    def __call__(self, device: str) -> Labeler:
        model = self.model(self.ontology, **self.keywords, device=device)
        return model.labeler(self.tile, self.nms, has_settings=self.has_settings)


@dataclass(frozen=True)
class Launch:
    """Which workers `label()` was asked for.

    Attributes:
        gpus: Devices of this machine, one process each.
        shard: Such as "3/16".
        engine: "ray" for a cluster.
        workers: How many on a cluster.
        device: What the model was asked to run on.

    Raises:
        SettingError: The choices exclude each other, or are unknown.
        DeviceError: A device is not there.
    """

    gpus: Sequence[int | str] | None
    shard: str | None
    engine: Engine
    workers: int | None
    device: str | None

    def __post_init__(self) -> None:
        if self.engine not in get_args(Engine):
            raise SettingError(f"Expected engine to be one of {get_args(Engine)}, received {self.engine!r}")
        asked = {"gpus": self.gpus, "shard": self.shard, "engine='ray'": self.engine == "ray" or None}
        if len(given := [name for name, value in asked.items() if value is not None]) > 1:
            raise SettingError(f"Expected one kind of workers, received {' and '.join(given)}. Choose one.")
        if self.workers is not None and self.engine != "ray":
            raise SettingError("Expected workers with engine='ray', received it without. Name devices with gpus.")
        if self.shard is not None:
            parse_shard(self.shard)
        _ = self._devices

    @cached_property
    def _devices(self) -> _Devices:
        if self.engine == "ray":
            return ray_workers(self.workers, self.device)
        return None if self.gpus is None else device_names(self.gpus)

    @property
    def target(self) -> str | None:
        """A device such as the workers have; None if the model itself labels."""
        devices = self._devices
        return devices.device if isinstance(devices, RayWorkers) else devices[0] if devices else None

    def label(self, plan: LabelingPlan, model: LabelingModel, tile: int | None, nms: NmsSetting) -> sv.DetectionDataset:
        """Label images as the plan says."""
        devices = self._devices
        if isinstance(devices, RayWorkers):
            return label_with_ray(plan, ModelRecipe.of(model, tile, nms, has_settings=True), devices)
        if devices is not None:
            return label_on_devices(plan, ModelRecipe.of(model, tile, nms, has_settings=False), devices)
        labeler = model.labeler(tile, nms)
        if self.shard is not None:
            return label_shard(plan, parse_shard(self.shard), labeler)
        return label_images(plan, labeler.predict_batch, labeler.to_detections)
