"""Meta's checkpoint files, read without running anything in them, and told apart by the names of their tensors.

Four kinds are SAM 3: `sam3.pt`; the same names in a `.safetensors` file; what Meta's trainer saves, which is the
detector under bare names; and `sam3.1_multiplex.pt`, whose box decoder has other names (renamed as ultralytics does,
ultralytics#26144) and whose video half is another model.
"""

from __future__ import annotations

import builtins
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistill_sam3.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

TRACKER_HELP = (
    "The tracker half, which turns boxes into masks, is in sam3.pt and model.safetensors of "
    'https://huggingface.co/facebook/sam3; without it, use prompting="text".'
)

_TRUNK = "backbone.vision_backbone.trunk."
_MASK_HEAD = "segmentation_head."
_BOX_DECODER = "tracker.sam_mask_decoder."
_MEMORY = "tracker.maskmem_backbone."
_INTERACTIVE = "inst_interactive_predictor.model."
SAM3_1 = "SAM 3.1"
_MULTIPLEX = "tracker.model."
_RENAMES_3_1 = (
    (re.compile(r"^tracker\.model\.interact(ive|ivity)_"), "tracker."),
    (re.compile(r"\binteractive_convs\b"), "sam2_convs"),
)
# SAM 3.1 tracks with other modules, and feeds them from a neck of their own.
_DROPPED_3_1 = re.compile(r"tracker\.model\..*|detector\.backbone\.vision_backbone\.propagation_convs\..*")
# What trainers and frameworks put a state dict into, and before its names.
_WRAPPERS = ("model", "state_dict")
_WRAPPED_NAME = "module."
# In this order: a name of the one model may begin like one of the next.
_OTHER_MODELS = (
    (
        "detector_model.",
        "SAM 3 under transformers' names: give the folder with its config.json, to backend='transformers'",
    ),
    ("image_encoder.trunk.", "SAM 2"),
    ("image_encoder.blocks.", "SAM 1"),
    ("image_encoder.", "an older Segment Anything model"),
    ("language_model.", "Florence-2"),
)


@dataclass(frozen=True, eq=False)
class OfficialCheckpoint:
    """The tensors of one of Meta's files.

    Attributes:
        path: The file.
        title: What it is, in words.
        tensors: By their names in `sam3.pt`: `detector.*` and, if it has that half, `tracker.*`.
    """

    path: Path
    title: str
    tensors: Mapping[str, torch.Tensor]

    @property
    def has_boxes(self) -> bool:
        """Whether it can turn boxes into masks."""
        return any(name.startswith(_BOX_DECODER) for name in self.tensors)

    @property
    def has_memory(self) -> bool:
        """Whether it can track through a video."""
        return any(name.startswith(_MEMORY) for name in self.tensors)


def read_official(path: Path) -> OfficialCheckpoint:
    """Read a `.pt` or `.safetensors` file with Meta's names; nothing in it is executed.

    Raises:
        CheckpointError: The file is missing, damaged, not a checkpoint, or of another model.
    """
    tensors = _read_tensors(path)
    if any(name.startswith(f"detector.{_TRUNK}") for name in tensors):
        title = SAM3_1 if any(name.startswith(_MULTIPLEX) for name in tensors) else "SAM 3"
        return OfficialCheckpoint(path, title, _without_multiplex(tensors))
    if any(name.startswith(_TRUNK) for name in tensors):
        _require_mask_head(tensors, path)
        return OfficialCheckpoint(path, "SAM 3 as Meta's trainer saves it", _from_trainer(tensors))
    raise _not_sam3(tensors, path)


def _read_tensors(path: Path) -> Tensors:
    try:
        content = _unpickle(path) if path.suffix.lower() != ".safetensors" else _read_safetensors(path)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise CheckpointError(f"Expected a checkpoint file, received {path}: {error.strerror}.") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from error
    # Damaged files make torch and safetensors raise nearly anything: EOFError, RuntimeError, KeyError.
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged or cut off: {_first_line(error)} Copy or download it again."
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = _only_tensors(content)
    if not tensors:
        raise CheckpointError(f"Expected named tensors in {path}, received {type(content).__name__} without any.")
    return tensors


def _unpickle(path: Path) -> Any:
    import torch

    # Files from before torch 1.6 are no zip archives and cannot be mapped.
    with torch.serialization.safe_globals(_plain_values()):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _plain_values() -> list[Any]:
    """What trainers keep beside tensors and cannot do anything: NumPy's numbers and arrays."""
    import numpy as np

    try:
        from numpy._core import multiarray
    except ImportError:  # before NumPy 2
        from numpy.core import multiarray  # type: ignore[no-redef]
    rebuild: Any = multiarray
    # NumPy 1 and 2 write different names.
    functions = [
        (getattr(rebuild, name), f"{module}.{name}")
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("scalar", "_reconstruct")
    ]
    kinds = [type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"]
    return [np.dtype, np.ndarray, *functions, *kinds]


def _refusal(path: Path, reason: str) -> str:
    name = re.search(r"GLOBAL ([\w.]+)", reason)
    # In a file of something else, any bytes may look like a name.
    is_name = name is not None and ("." in name[1] or hasattr(builtins, name[1]))
    what = f"holds {name[1]}" if name and is_name else "is damaged, or holds objects"
    return (
        f"{path} {what}, and nothing in a checkpoint is ever executed. Copy or download it again, or save its tensors "
        "alone with torch.save(model.state_dict(), ...)."
    )


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{text[0] if text else type(error).__name__}".rstrip(".") + "."


def _only_tensors(content: Any) -> Tensors:
    import torch

    if not isinstance(content, Mapping):
        return {}
    return {
        str(name).removeprefix(_WRAPPED_NAME): value
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }


def _require_mask_head(tensors: Tensors, path: Path) -> None:
    if not any(name.startswith(_MASK_HEAD) for name in tensors):
        raise CheckpointError(
            f"Expected a checkpoint that makes masks, received {path}, which was trained without "
            "(enable_segmentation: False). Train with it, or use sam3.pt."
        )


def _not_sam3(tensors: Tensors, path: Path) -> CheckpointError:
    for prefix, title in _OTHER_MODELS:
        if any(name.startswith(prefix) for name in tensors):
            return CheckpointError(f"Expected a SAM 3 checkpoint, received {path}, which is {title}.")
    names = ", ".join(sorted(tensors)[:3])
    return CheckpointError(f"Expected a SAM 3 checkpoint, received {path} with other tensors ({names}, ...).")


def _without_multiplex(tensors: Tensors) -> Tensors:
    """SAM 3.1's names -> those of SAM 3, which stay as they are."""
    renamed = {_name_3(name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in renamed.items() if not _DROPPED_3_1.fullmatch(name)}


def _name_3(name: str) -> str:
    for pattern, replacement in _RENAMES_3_1:
        name = pattern.sub(replacement, name)
    return name


def _from_trainer(tensors: Tensors) -> Tensors:
    return {
        name.replace(_INTERACTIVE, "tracker.", 1) if name.startswith(_INTERACTIVE) else f"detector.{name}": tensor
        for name, tensor in tensors.items()
    }
