"""The tensors of an official checkpoint -> Meta's own image model, on the CPU, in `float32`."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from autodistill_sam3.errors import CheckpointError, MissingPackageError
from autodistill_sam3.segmentation.official_package import GET_PINNED, contained, import_official
from autodistill_sam3.weights.official.files import TRACKER_HELP

_DETECTOR = "detector."
_TRACKER = "tracker."
# Where the image model keeps the tracker.
_TRACKER_HERE = "inst_interactive_predictor.model."
_TRACKER_NECK = "detector.backbone.vision_backbone.sam2_convs."
# Rotation tables, which the code computes itself; which of them are saved differs between its versions.
_TABLE = re.compile(r"(.*\.)?freqs_cis(_real|_imag)?")

# The builder asks these classes to fill tables on the GPU named "cuda", whatever the model's device. Without, they are
# filled at first use, where the model is.
_NO_TABLES: Mapping[str, Mapping[str, None]] = {
    "PositionEmbeddingSine": {"precompute_resolution": None},
    "TransformerDecoder": {"resolution": None, "stride": None},
}
_BUILDER = "build_sam3_image_model"
_NAMES_SHOWN = 3


def build_official_model(
    tensors: Mapping[str, torch.Tensor], bpe_path: Path, *, code: Path | None = None, with_boxes: bool = True
) -> torch.nn.Module:
    """Build Meta's `Sam3Image` with these weights, ready for inference on the CPU.

    Args:
        tensors: By their names in `sam3.pt` (`detector.*`, `tracker.*`). The model takes them over without a copy,
            where they are `float32`.
        bpe_path: The vocabulary, `bpe_simple_vocab_16e6.txt.gz`.
        code: A clone of Meta's repository; see `import_official`.
        with_boxes: Whether to build the tracker half, which turns boxes into masks. Without, its tensors are ignored.

    Raises:
        CheckpointError: A tensor is missing, unexpected or of another shape, or there is no package in `code`, or
            another version of it.
        MissingPackageError: The package cannot be imported, or the installed one is of another version.
    """
    with torch.random.fork_rng(devices=[]):
        model = build_untrained(bpe_path, code=code, with_boxes=with_boxes)
    _load(model, tensors, with_boxes)
    return model.train(False).requires_grad_(False)


def build_untrained(bpe_path: Path, *, code: Path | None = None, with_boxes: bool = True) -> torch.nn.Module:
    """The same with weights drawn from torch's random numbers."""
    builder = import_official(code)
    arguments = {
        "bpe_path": str(bpe_path),
        "device": "cpu",
        "load_from_HF": False,
        "enable_inst_interactivity": with_boxes,
    }
    misfits = list(_misfits(builder, {**_NO_TABLES, _BUILDER: arguments}))
    if misfits:
        refusal = MissingPackageError if code is None else CheckpointError
        raise refusal(f"{builder.__file__} does not fit: {'; '.join(misfits)}. This is another version. {GET_PINNED}.")
    with building(builder):
        model: torch.nn.Module = getattr(builder, _BUILDER)(**arguments)
    return model


def _misfits(builder: ModuleType, calls: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    """What is not there or does not take these arguments."""
    for name, arguments in calls.items():
        try:
            inspect.signature(getattr(builder, name)).bind_partial(**arguments)
        except (AttributeError, TypeError, ValueError) as error:
            yield f"{name} ({error})"


def move_official(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Move a model with the tables and caches that it keeps outside of parameters and buffers."""
    model.to(device)
    for module in model.modules():
        attributes = vars(module)
        for name, value in attributes.items():
            if name not in ("_parameters", "_buffers"):
                attributes[name] = _moved(value, device)
        # Some modules remember where they were.
        if "_device" in attributes:
            attributes["_device"] = None
    return model


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple) and any(isinstance(item, torch.Tensor) for item in value):
        return tuple(_moved(item, device) for item in value)
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _moved(item, device)
    return value


@contextlib.contextmanager
def building(builder: ModuleType) -> Iterator[None]:
    """Inside, the builder makes nothing on a GPU."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contained(torch.device("cpu")))
        stack.enter_context(torch.inference_mode(False))
        # Where there is a GPU, the tracker would make its rotation tables on it.
        stack.enter_context(mock.patch.object(torch.cuda, "is_available", lambda: False))
        for name, arguments in _NO_TABLES.items():
            stack.enter_context(mock.patch.object(builder, name, _with(getattr(builder, name), arguments)))
        yield


def _with(build: Callable[..., object], overrides: Mapping[str, None]) -> Callable[..., object]:
    return lambda **arguments: build(**{**arguments, **overrides})


def _load(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], with_boxes: bool) -> None:
    expected = {_official_name(name): tensor for name, tensor in model.state_dict().items()}
    unused = () if with_boxes else (_TRACKER, _TRACKER_NECK)
    received = {
        name: tensor
        for name, tensor in tensors.items()
        if name in expected or not (name.startswith(unused) or _TABLE.fullmatch(name))
    }
    _check(expected, received)
    with contained(torch.device("cpu")), torch.inference_mode(False):
        loaded = {
            name: received[_official_name(name)].to("cpu", tensor.dtype) for name, tensor in model.state_dict().items()
        }
        model.load_state_dict(loaded, assign=True)


def _official_name(name: str) -> str:
    if name.startswith(_TRACKER_HERE):
        return _TRACKER + name.removeprefix(_TRACKER_HERE)
    return _DETECTOR + name


def _check(expected: Mapping[str, torch.Tensor], received: Mapping[str, torch.Tensor]) -> None:
    problems = {
        "missing": expected.keys() - received.keys(),
        "unexpected": received.keys() - expected.keys(),
        "of another shape": {
            name for name in expected.keys() & received.keys() if expected[name].shape != received[name].shape
        },
    }
    found = "; ".join(f"{problem}: {_some(names)}" for problem, names in problems.items() if names)
    if found:
        lacks_tracker = any(name.startswith((_TRACKER, _TRACKER_NECK)) for name in problems["missing"])
        hint = TRACKER_HELP if lacks_tracker else "Use another checkpoint, or the code that belongs to it."
        raise CheckpointError(f"The checkpoint does not fit the official SAM 3: tensors {found}. {hint}")


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:_NAMES_SHOWN])
    return f"{shown} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else shown
