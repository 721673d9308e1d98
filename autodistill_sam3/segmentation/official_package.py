"""Meta's `sam3` package: where it is, importing it, and containing what it does to the process.

Importing sam3 0.1.4 sets TF32 flags and TOKENIZERS_PARALLELISM and gives the root logger a handler; its tracker enters
an autocast that it never leaves, and switches attention kernels on at every call. All of it is undone here, so that
this package changes no numbers in the rest of the program.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from autodistill_sam3.errors import CheckpointError, MissingPackageError, SettingError

logger = logging.getLogger("autodistill_sam3")

INSTALL = "pip install 'autodistill-grounded-sam3[sam3]'"
GET_PINNED = "Get the pinned one with `autodistill-sam3 download sam3-code`"

# What its README asks for. Its imports fail below 2.3, which brought `sdpa_kernel`.
_TORCH_NEEDED = "2.7"
# Distributions that are called otherwise than what they are imported as.
_DISTRIBUTIONS = {"cv2": "opencv-python", "skimage": "scikit-image", "pkg_resources": "setuptools<81"}

_HARMLESS_WARNINGS = (
    # It names the device type "cuda" to switch autocast off, also where there is none.
    ".*CUDA is not available",
    "`torch.jit.script` is deprecated",
    "pkg_resources is deprecated",
)


def import_official(code: Path | None = None) -> ModuleType:
    """Import Meta's package and return its `sam3.model_builder`; what importing it sets is set back.

    Args:
        code: A clone of Meta's repository, or the package's folder in it; its code is executed. By default what is
            imported already, else what is installed.

    Raises:
        CheckpointError: There is no such package in `code`.
        MissingPackageError: The package or one that it needs is not installed, torch is too old for it, or it cannot be
            imported for another reason.
        SettingError: Another `sam3` is imported already.
    """
    folder = _installed_folder() if code is None else _folder_in(code)
    logger.info("Running the official SAM 3 code in %s", folder)
    _check_not_another(folder)
    with contained(torch.device("cpu")):
        return _import(folder, "sam3.model_builder")


def import_processor() -> Any:
    """The class `Sam3Processor` of the package that :func:`import_official` imported.

    Raises:
        MissingPackageError: It cannot be imported.
    """
    folder = _installed_folder()
    with contained(torch.device("cpu")):
        module = _import(folder, "sam3.model.sam3_image_processor")
    processor = getattr(module, "Sam3Processor", None)
    if processor is None:
        raise MissingPackageError(f"{module.__file__} has no Sam3Processor: this is another version. {GET_PINNED}.")
    return processor


_ONE_THREAD = threading.RLock()


@contextlib.contextmanager
def contained(device: torch.device) -> Iterator[None]:
    """Whatever official code changes in the process inside is as before when the context ends, also by an exception.

    One thread at a time: another would take what the first one changed for what was there before.

    Args:
        device: Where the model runs; the code's "cuda" means this GPU.
    """
    with _ONE_THREAD, contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        for message in _HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        for kept in (_environment_kept, _log_handlers_kept, _precision_kept, _attention_kernels_kept, _autocast_kept):
            stack.enter_context(kept())
        if torch.get_default_device().type != "cpu":
            # It makes small tensors on the default device and pins them, which only the CPU's can be.
            stack.enter_context(torch.device("cpu"))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        else:
            # Needs CUDA, and would start it on a machine where only the CPU was asked for.
            stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda tensor, *_: tensor))
        yield


# Finding and importing.


def _folder_in(code: Path) -> Path:
    for folder in (code / "sam3", code):
        if _is_official(folder):
            return folder.resolve()
    raise CheckpointError(
        f"Expected a clone of https://github.com/facebookresearch/sam3 in {code}, found no sam3/model_builder.py. "
        f"Clone it there, or remove that folder and install the package: {INSTALL}"
    )


def _installed_folder() -> Path:
    try:
        loaded = sys.modules.get("sam3")
        file = getattr(loaded, "__file__", None) or getattr(importlib.util.find_spec("sam3"), "origin", None)
    except (ImportError, ValueError):
        file = None
    # A folder of that name in the current one, such as models/sam3, is found too, as a namespace without a file.
    if file is None:
        raise MissingPackageError(f"backend='sam3' needs Meta's package sam3, which is not installed. Run: {INSTALL}")
    folder = Path(file).resolve().parent
    if not _is_official(folder):
        raise MissingPackageError(
            f"Expected Meta's package sam3, received another of that name: {folder}. Run: {INSTALL}"
        )
    return folder


def _is_official(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("__init__.py", "model_builder.py"))


def _check_not_another(folder: Path) -> None:
    loaded = getattr(sys.modules.get("sam3"), "__file__", None)
    if loaded is not None and Path(loaded).resolve().parent != folder:
        raise SettingError(
            f"Expected the official code in {folder}, but {Path(loaded).parent} is imported already and a process "
            "can hold only one. Start a new process, or use the same code everywhere in this one."
        )


def _import(folder: Path, name: str) -> ModuleType:
    path, before = list(sys.path), set(sys.modules)
    try:
        if getattr(sys.modules.get("sam3"), "__file__", None) is None:
            _execute_package(folder)
        return importlib.import_module(name)
    except BaseException as error:
        # What was imported before the failure would hide from the next attempt that something was installed since.
        for loaded in set(sys.modules) - before:
            if loaded.split(".")[0] == "sam3":
                del sys.modules[loaded]
        # Its code runs, so that anything can come out of it.
        if isinstance(error, Exception):
            raise MissingPackageError(_reason(error, folder)) from error
        raise
    finally:
        sys.path[:] = path


def _execute_package(folder: Path) -> None:
    """Import the package of this folder as `sam3` without making its neighbours importable."""
    spec = importlib.util.spec_from_file_location(
        "sam3", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is no package", name="sam3")
    sys.modules["sam3"] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules["sam3"]
        raise


def _reason(error: Exception, folder: Path) -> str:
    name = (error.name or "").split(".")[0] if isinstance(error, ImportError) else ""
    if name == "torch" or (isinstance(error, AttributeError) and "torch" in str(error)):
        return (
            f"The official SAM 3 needs torch {_TORCH_NEEDED} or newer, received {torch.__version__} ({error}). "
            "Upgrade torch, or use backend='transformers'."
        )
    if isinstance(error, ModuleNotFoundError) and name and name != "sam3":
        package = _DISTRIBUTIONS.get(name, name)
        return f"The official SAM 3 needs {name}, which is not installed. Run: {INSTALL}, or: pip install '{package}'"
    return (
        f"The official SAM 3 in {folder} cannot be imported: {type(error).__name__}: {error}. "
        f"It is damaged or of another version. {GET_PINNED}, or install it: {INSTALL}"
    )


# Containing.


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() | before.keys():
            if name not in before:
                del os.environ[name]
            elif os.environ.get(name) != before[name]:
                os.environ[name] = before[name]


@contextlib.contextmanager
def _log_handlers_kept() -> Iterator[None]:
    """`logging.debug` of a program that has set up no logging sets it up."""
    before = list(logging.root.handlers)
    try:
        yield
    finally:
        for handler in set(logging.root.handlers) - set(before):
            logging.root.removeHandler(handler)


@contextlib.contextmanager
def _precision_kept() -> Iterator[None]:
    """TF32 and its relatives, in torch's older and newer terms."""
    before = [(read, write, _value(read)) for read, write in _precision_settings()]
    try:
        yield
    finally:
        # Only what changed: writing a setting in one of the two terms can make it unreadable in the other.
        for read, write, value in before:
            if value is not None and _value(read) != value:
                write(value)


def _precision_settings() -> list[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    backends: Any = torch.backends
    owners = [(backends.cuda.matmul, "allow_tf32"), (backends.cudnn, "allow_tf32")]
    # Since torch 2.9.
    if hasattr(backends, "fp32_precision"):
        newer = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
        owners += [(owner, "fp32_precision") for owner in newer]
    attributes = [(partial(getattr, owner, name), partial(setattr, owner, name)) for owner, name in owners]
    return [(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision), *attributes]


def _value(read: Callable[[], Any]) -> Any:
    """A setting; None where it was set in the newer terms and cannot be read in the older."""
    try:
        return read()
    except RuntimeError:
        return None


@contextlib.contextmanager
def _attention_kernels_kept() -> Iterator[None]:
    cuda: Any = torch.backends.cuda
    switches = (
        (cuda.flash_sdp_enabled(), cuda.enable_flash_sdp),
        (cuda.math_sdp_enabled(), cuda.enable_math_sdp),
        (cuda.mem_efficient_sdp_enabled(), cuda.enable_mem_efficient_sdp),
    )
    try:
        yield
    finally:
        for enabled, switch in switches:
            switch(enabled)


@contextlib.contextmanager
def _autocast_kept() -> Iterator[None]:
    """Leaves every autocast that was entered inside, also those whose context object is lost."""
    kinds = ("cpu", "cuda")
    before = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]
    caches = torch.is_autocast_cache_enabled()
    depth = torch.autocast_increment_nesting()
    try:
        yield
    finally:
        for kind, enabled, dtype in before:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        torch.set_autocast_cache_enabled(caches)
        while (left := torch.autocast_decrement_nesting()) >= depth:
            pass
        if not left:
            torch.clear_autocast_cache()
