"""A checkpoint -> its model as the engine would load it, without reading the weights.

The model's loader gets stand-ins of the shapes that the file names, each a single zero in memory, and so says of
missing and misshapen tensors exactly what it would say in a run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autodistill_sam3.doctor.settings import first_line
from autodistill_sam3.errors import CheckpointError
from autodistill_sam3.weights import load_sam3
from autodistill_sam3.weights.loading import load_tensors, quiet_transformers

if TYPE_CHECKING:
    import torch
    from transformers import Florence2ForConditionalGeneration, PreTrainedConfig, PreTrainedModel, Sam3VideoModel

    Model = TypeVar("Model", bound=PreTrainedModel)

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def sam3_outline(checkpoint: Path) -> Sam3VideoModel:
    """SAM 3 from a folder or one of Meta's files; what these lack, such as SAM 3.1's memory, is None in it.

    Raises:
        CheckpointError: The files are damaged or of another model, or tensors do not fit.
    """
    from transformers import Sam3VideoConfig, Sam3VideoModel

    if checkpoint.is_file():
        # Tensors of these stay in the file, which is mapped into memory.
        return load_sam3(checkpoint, boxes=False)
    return _outline(Sam3VideoModel, Sam3VideoConfig, checkpoint)


def florence2_outline(folder: Path) -> Florence2ForConditionalGeneration:
    """Florence-2 from a folder.

    Raises:
        CheckpointError: The files are damaged or of another model, or tensors do not fit.
    """
    from transformers import Florence2Config, Florence2ForConditionalGeneration

    return _outline(Florence2ForConditionalGeneration, Florence2Config, folder)


def _outline(model_class: type[Model], config_class: type[PreTrainedConfig], folder: Path) -> Model:
    try:
        with quiet_transformers():
            config = config_class.from_pretrained(folder, local_files_only=True)
    # Wrong values make transformers' strict configurations raise types of their own.
    except Exception as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be used: {first_line(error)}") from error
    return load_tensors(model_class, config, _stand_ins(folder), folder, lambda name: False)


def _stand_ins(folder: Path) -> dict[str, torch.Tensor]:
    import torch
    from safetensors import safe_open

    opened: Any
    stand_ins: dict[str, torch.Tensor] = {}
    zero = torch.zeros(())
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as opened:
                stand_ins |= {name: zero.expand(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        # safetensors' own exception derives from Exception alone.
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read, it is damaged or cut off: {first_line(error)}") from error
    return stand_ins


def _weight_files(folder: Path) -> list[Path]:
    """The one file, or the shards that the index names."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / _INDEX} cannot be read: {first_line(error)}") from error
