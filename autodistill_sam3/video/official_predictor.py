"""Meta's video predictor: building it from a checkpoint, containing what it does to the process, and running it.

On GPUs it is what `build_sam3_video_predictor` of the package sam3 makes. The code assumes CUDA throughout; on the CPU
its model runs with a few patches, in `float32`, which serves to try things out and to test.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from autodistill_sam3.devices import Precision, autocast, autocast_dtype, select_device
from autodistill_sam3.errors import CheckpointError, DeviceError, MissingPackageError, SettingError
from autodistill_sam3.segmentation.official_model import building
from autodistill_sam3.segmentation.official_package import GET_PINNED, contained, import_official
from autodistill_sam3.weights.official import SAM3_1, read_official

Request = dict[str, Any]

_BUILDER = "build_sam3_video_predictor"
_MODULES = (
    "sam3.model.sam3_video_predictor",
    "sam3.model.sam3_video_base",
    "sam3.model.sam3_video_inference",
    "sam3.model.sam3_tracking_predictor",
    "sam3.model.sam3_image",
    "sam3.model.io_utils",
    "sam3.perflib.connected_components",
)
# Where it draws progress bars.
_WITH_BARS = ("sam3.model.sam3_video_inference", "sam3.model.sam3_tracking_predictor", "sam3.model.io_utils")
# Where it casts to bf16, which without autocast does not go with weights in `float32`.
_WITH_BF16 = ("sam3.model.sam3_tracking_predictor", "sam3.model.sam3_image")


class OfficialPredictor:
    """Meta's predictor, whose requests change nothing in the process that outlasts them."""

    def __init__(
        self,
        checkpoint: Path,
        bpe_path: Path,
        gpus_to_use: Sequence[int] | None = None,
        *,
        code: Path | None = None,
        device: str | None = None,
        precision: Precision = "auto",
    ) -> None:
        """Build it; nothing is downloaded.

        Args:
            checkpoint: `sam3.pt`.
            bpe_path: The vocabulary, `bpe_simple_vocab_16e6.txt.gz`.
            gpus_to_use: Numbers of the GPUs that share the objects; more than one start a process each. By default the
                device's alone.
            code: A clone of Meta's repository; by default the installed package.
            device: "cuda", "cuda:1" or "cpu"; by default a GPU.
            precision: "bf16" is Meta's own and for GPUs, "fp32" is for comparing; "auto" takes what fits the device.

        Raises:
            CheckpointError: The file cannot be used, or `code` is no clone.
            DeviceError: A GPU is not on this machine, or there is none at all and `device` is not "cpu".
            MissingPackageError: The package cannot be imported, or is of another version.
            SettingError: `gpus_to_use` and `device` contradict each other, or it cannot run in this precision.
        """
        gpus, self.device = _devices(gpus_to_use, device)
        if len(gpus) > 1 and code is not None:
            raise SettingError(
                f"Expected one GPU with the clone in {code}, received gpus_to_use={gpus}: Meta's code starts processes "
                "that import the installed package. Install it instead, or use one GPU."
            )
        self._full_precision = _in_full_precision(precision, self.device)
        _check_file(checkpoint)
        builder = import_official(code)
        with contained(torch.device("cpu")):
            self._modules = {name: _module(name) for name in _MODULES}
        self._predictor: Any = None
        try:
            with self._running(), torch.random.fork_rng(devices=[]):
                if self.device.type == "cpu":
                    self._predictor = self._build_on_cpu(builder, checkpoint, bpe_path)
                else:
                    build = getattr(builder, _BUILDER)
                    self._predictor = build(
                        checkpoint_path=str(checkpoint),
                        bpe_path=str(bpe_path),
                        async_loading_frames=False,
                        gpus_to_use=gpus,
                    )
        except (AttributeError, TypeError) as error:
            raise MissingPackageError(f"{builder.__file__} does not fit: {error}. {GET_PINNED}.") from error
        except RuntimeError as error:
            if "state_dict" not in str(error):
                raise
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{checkpoint} does not fit the official video model: {reason}") from error

    @property
    def model(self) -> Any:
        """Meta's `Sam3VideoInference`; its thresholds are attributes."""
        return self._open._predictor.model

    def request(self, request: Request) -> dict[str, Any]:
        """The answer of `handle_request`."""
        predictor = self._open._predictor
        with self._running():
            answer: dict[str, Any] = predictor.handle_request(request)
        return answer

    def stream(self, request: Request) -> Iterator[dict[str, Any]]:
        """The answers of `handle_stream_request`; between them the process is as if it did not run."""
        answers = self._open._predictor.handle_stream_request(request)
        try:
            while True:
                with self._running():
                    answer = next(answers, None)
                if answer is None:
                    return
                yield answer
        finally:
            with self._running():
                answers.close()

    def let_point_anywhere(self, session_id: str) -> None:
        """Let points be the first prompts of a session.

        Meta's code adds objects only to frames of which it keeps an answer. This leaves what a propagation without
        prompts would have left, without its ViT pass over every frame.
        """
        state = self._open._predictor._get_session(session_id)["state"]
        for frame in range(state["num_frames"]):
            state["cached_frame_outputs"].setdefault(frame, {})

    def close(self) -> None:
        """End its processes and let the model go; closing twice is harmless."""
        predictor, self._predictor = self._predictor, None
        # It would forget the sessions of every predictor in the process, too.
        if getattr(predictor, "world_size", 1) > 1:
            with self._running():
                predictor.shutdown()
        del predictor
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _open(self) -> OfficialPredictor:
        if self._predictor is None:
            raise SettingError("Expected an open video engine, received a closed one. Make a new one.")
        return self

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contained(self.device))
            stack.enter_context(_quiet())
            for name in _WITH_BARS:
                stack.enter_context(mock.patch.object(self._modules[name], "tqdm", _NoBar))
            if self._full_precision:
                for name in _WITH_BF16:
                    stack.enter_context(mock.patch.object(self._modules[name], "torch", _FullPrecision()))
            else:
                # What the code's own tracker enters when it is made, and never leaves.
                stack.enter_context(autocast(self.device, torch.bfloat16))
            if self.device.type == "cpu":
                self._patch_for_cpu(stack)
            yield

    def _patch_for_cpu(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(mock.patch.object(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor))
        # These belong to a launcher of several processes, if there is one.
        stack.enter_context(mock.patch.dict(os.environ, {"RANK": "0", "WORLD_SIZE": "1"}))
        components: Any = self._modules["sam3.perflib.connected_components"]
        label = components.connected_components_cpu
        stack.enter_context(
            mock.patch.object(
                components, "connected_components_cpu", lambda masks: label(masks) if len(masks) else (masks, masks)
            )
        )

    def _build_on_cpu(self, builder: Any, checkpoint: Path, bpe_path: Path) -> Any:
        with building(builder):
            model = builder.build_sam3_video_model(
                checkpoint_path=str(checkpoint), bpe_path=str(bpe_path), load_from_HF=False, device="cpu"
            )
        model.eval()
        model.init_state = partial(model.init_state, offload_video_to_cpu=True)
        model.tracker.init_state = partial(model.tracker.init_state, offload_state_to_cpu=True)
        kind: Any = self._modules["sam3.model.sam3_video_predictor"]
        # Its constructor moves the model to a GPU.
        predictor = kind.Sam3VideoPredictor.__new__(kind.Sam3VideoPredictor)
        predictor.model = model
        predictor.async_loading_frames = False
        predictor.video_loader_type = "cv2"
        predictor._get_torch_and_gpu_properties = lambda: ""
        return predictor


class _NoBar:
    """In place of `tqdm`: it draws nothing."""

    def __init__(self, items: Any = (), **_: object) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def update(self, count: int = 1) -> None:
        pass

    def close(self) -> None:
        pass


class _FullPrecision:
    """The module torch, in which bf16 is `float32`."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _module(name: str) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(f"The official SAM 3 lacks what video needs: {error}. {GET_PINNED}.") from error
    return module


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Its loggers print whatever it does, unless a level was asked for in its own way."""
    names = [] if "LOG_LEVEL" in os.environ else list(logging.root.manager.loggerDict)
    loggers = [logging.getLogger(name) for name in names if name.startswith("sam3.")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.level, logging.WARNING))
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _devices(gpus_to_use: Sequence[int] | None, device: str | None) -> tuple[list[int], torch.device]:
    """The GPUs' numbers, none on the CPU, and where the first part of the model runs."""
    if device is not None and not device.startswith("cuda"):
        selected = select_device(device)
        if gpus_to_use:
            raise SettingError(f"Expected device='cuda' with gpus_to_use={list(gpus_to_use)}, received {device!r}")
        if selected.type != "cpu":
            raise DeviceError(f"Meta's video code runs on CUDA, received {device!r}. Use backend='transformers'.")
        return [], selected
    available = torch.cuda.device_count()
    if not available:
        raise DeviceError(
            "Meta's video code needs a CUDA device and this machine has none. Use backend='transformers', or pass "
            "device='cpu', where full-size SAM 3 takes minutes a frame."
        )
    selected = select_device(device or "cuda")
    gpus = sorted(set(gpus_to_use or [selected.index or 0]))
    if not all(0 <= gpu < available for gpu in gpus):
        raise DeviceError(f"Expected gpus_to_use among the {available} CUDA devices of this machine, received {gpus}")
    if device is not None and selected.index not in gpus:
        raise SettingError(f"Expected device among gpus_to_use={gpus}, received {device!r}")
    return gpus, torch.device("cuda", gpus[0])


def _in_full_precision(precision: Precision, device: torch.device) -> bool:
    dtype = autocast_dtype(precision, device)
    if precision == "auto":
        return device.type != "cuda"
    if dtype is not None and (dtype != torch.bfloat16 or device.type != "cuda"):
        raise SettingError(f"Meta's video code runs in bf16 on GPUs and in fp32, received {precision!r} on {device}")
    return dtype is None


def _check_file(checkpoint: Path) -> None:
    official = read_official(checkpoint)
    if official.title == SAM3_1:
        raise CheckpointError(f"Expected SAM 3 for backend='sam3', received SAM 3.1 in {checkpoint}.")
    if not official.has_memory:
        raise CheckpointError(
            f"Expected both halves of SAM 3, received {official.title} without the tracker in {checkpoint}. "
            "Take sam3.pt of https://huggingface.co/facebook/sam3."
        )
    if checkpoint.suffix.lower() == ".safetensors":
        raise CheckpointError(f"Expected sam3.pt for video with backend='sam3', received {checkpoint}.")
