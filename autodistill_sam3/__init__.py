"""Images and class names in, a dataset of masks out: Florence-2 proposes boxes, SAM 3 segments from boxes and text.

Importing this package loads nothing else: names are looked up when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autodistill_sam3.base_models import Florence2, GroundedSAM3, SegmentAnything3
    from autodistill_sam3.errors import (
        AccessError,
        AutodistillSAM3Error,
        CheckpointError,
        CheckpointNotFoundError,
        DeviceError,
        DownloadError,
        ImageError,
        InputFolderError,
        LabelingError,
        MissingPackageError,
        OntologyError,
        OutOfMemoryError,
        OutputFolderError,
        SettingError,
        VideoError,
    )
    from autodistill_sam3.video import SAM3Video, sam3_inference, video_masks

__version__ = "0.1.0"

__all__ = [
    "AccessError",
    "AutodistillSAM3Error",
    "CheckpointError",
    "CheckpointNotFoundError",
    "DeviceError",
    "DownloadError",
    "Florence2",
    "GroundedSAM3",
    "ImageError",
    "InputFolderError",
    "LabelingError",
    "MissingPackageError",
    "OntologyError",
    "OutOfMemoryError",
    "OutputFolderError",
    "SAM3Video",
    "SegmentAnything3",
    "SettingError",
    "VideoError",
    "sam3_inference",
    "video_masks",
]

_BASE_MODELS = frozenset({"Florence2", "GroundedSAM3", "SegmentAnything3"})
_VIDEO = frozenset({"SAM3Video", "sam3_inference", "video_masks"})


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    place = "base_models" if name in _BASE_MODELS else "video" if name in _VIDEO else "errors"
    module = import_module(f"{__name__}.{place}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
