"""What is around the models: video decoding, the Hugging Face token, the environment, disk space."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from autodistill_sam3.doctor.report import Finding, Level
from autodistill_sam3.doctor.settings import RunSettings, gigabytes
from autodistill_sam3.errors import CheckpointError
from autodistill_sam3.weights import SAM3, find_checkpoint
from autodistill_sam3.weights.places import MODELS_VARIABLE

_finding = partial(Finding, "Surroundings")

_VARIABLES = (MODELS_VARIABLE, "HF_ENDPOINT", "HF_HUB_OFFLINE")
# A dataset holds a copy of every image.
_OUTPUT_BYTES = 2e9
# SAM 3 and Florence-2-large, and the files that they are received as.
_DOWNLOAD_BYTES = 8e9


def check_surroundings(run: RunSettings) -> Iterator[Finding]:
    """Video decoding, the token, the environment, and the disks that a run and a download would write to."""
    yield _video()
    yield from _environment()
    yield from _output_disk(run.output)
    yield from _hub(run)


def _video() -> Finding:
    import cv2

    readers = []
    with contextlib.suppress(metadata.PackageNotFoundError):
        readers.append(f"PyAV {metadata.version('av')}")
    if cv2.CAP_FFMPEG in cv2.videoio_registry.getBackends():
        readers.append(f"OpenCV {cv2.__version__} with FFmpeg")
    if not readers:
        return _finding("video decoding", "neither PyAV nor FFmpeg in OpenCV", "warning", "pip install av")
    return _finding("video decoding", ", ".join(readers))


def _environment() -> Iterator[Finding]:
    values = {name: value for name in _VARIABLES if (value := os.environ.get(name))}
    if not values:
        yield _finding("environment", f"none of {', '.join(_VARIABLES)} is set")
    for name, value in values.items():
        if name == MODELS_VARIABLE and not Path(value).expanduser().is_dir():
            yield _finding(name, f"{value}, which is no folder", "warning", f"Correct {name}, or unset it.")
        else:
            yield _finding(name, _without_password(value))


def _without_password(value: str) -> str:
    """An address without the name and password that may stand before its host."""
    before = urlsplit(value).netloc.rpartition("@")[0]
    return value.replace(f"{before}@", "***@", 1) if before else value


def _output_disk(output: Path | None) -> Iterator[Finding]:
    folder = _existing(output if output is not None else Path.cwd())
    free = shutil.disk_usage(folder).free
    title, value = "output disk", f"{gigabytes(free)} free in {folder}"
    if not os.access(folder, os.W_OK):
        # Without a folder given, the dataset goes beside the images, wherever they are.
        fault: Level = "problem" if output is not None else "info"
        yield _finding(title, f"{value}, which must not be written to", fault, "Choose another --output.")
    elif free < _OUTPUT_BYTES:
        yield _finding(title, value, "warning", "Make room, or choose another --output: a dataset copies every image.")
    else:
        yield _finding(title, value)


def _hub(run: RunSettings) -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    has_token = get_token() is not None
    yield _finding("Hugging Face token", "present, not shown" if has_token else "none", "ok" if has_token else "info")
    folder = _existing(Path(constants.HF_HUB_CACHE))
    free = shutil.disk_usage(folder).free
    value = f"{gigabytes(free)} free for {constants.HF_HUB_CACHE}"
    if free < _DOWNLOAD_BYTES and not _is_found(run):
        cure = f"Make room: the checkpoints take {gigabytes(_DOWNLOAD_BYTES)} while they are downloaded."
        yield _finding("cache disk", value, "warning", cure)
    else:
        yield _finding("cache disk", value)


def _is_found(run: RunSettings) -> bool:
    try:
        find_checkpoint(SAM3, run.checkpoint)
    except CheckpointError:
        return False
    return True


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())
