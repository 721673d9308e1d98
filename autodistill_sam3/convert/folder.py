"""A loaded SAM 3 -> a folder in transformers layout, in 32 or 16 bits."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from autodistill_sam3.errors import CheckpointError, OutputFolderError
from autodistill_sam3.weights.loading import quiet_transformers
from autodistill_sam3.weights.paths import is_readable, names_in

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, Sam3VideoModel

# Random directions of position encodings: multiplied by 2 pi and a coordinate, 16 bits of them are a visible angle.
_ALWAYS_FP32 = ("shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding")
_MASK_STRIDE = 4
# Temporary folders are made for their owner alone.
_FOLDER_MODE = 0o755


def save_folder(
    model: Sam3VideoModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Write config, weights, tokenizer and preprocessing, which transformers' SAM 3 classes and this package load.

    `Sam3VideoModel.save_pretrained` is not used: `Sam3TrackerModel` finds nothing under the names it writes.

    Args:
        model: With all parts.
        tokenizer: Of the model.
        folder: Where to; it must not exist, or be empty. It appears when everything is in it.
        dtype: Of the weights in the file, ``float32`` if None; position encodings stay ``float32``. Whatever the
            file's, `config.json` has transformers compute in ``float32`` unless told otherwise.

    Raises:
        CheckpointError: The model lacks parts, or has weights that `dtype` cannot hold.
        OutputFolderError: The folder is there and not empty.
    """
    from safetensors.torch import save_file

    _check_complete(model)
    tensors = {name: _cast(name, tensor, dtype) for name, tensor in model.state_dict().items()}
    with new_folder(folder) as partial, quiet_transformers():
        model.config.save_pretrained(partial)
        _processor(model, tokenizer).save_pretrained(partial)
        weights = partial / "model.safetensors"
        save_file(tensors, weights, metadata={"format": "pt"})
        # safetensors lets only the owner read what it writes.
        shutil.copymode(partial / "config.json", weights)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` if all goes well and is gone otherwise.

    Raises:
        OutputFolderError: `folder` is there and not empty, or cannot be written.
    """
    require_new(folder)
    # A link to an empty folder stays a link.
    folder = folder.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise OutputFolderError(f"Expected to write beside {folder}: {error}. Choose another output.") from error
    try:
        yield partial
        partial.chmod(_FOLDER_MODE)
        partial.replace(folder)
    except (OSError, SafetensorError) as error:
        raise OutputFolderError(
            f"{folder} could not be written: {error}. Free some space or choose another."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_new(folder: Path) -> None:
    """Raise OutputFolderError unless a folder is not there yet, or empty."""
    if folder.is_dir() and not names_in(folder) and is_readable(folder):
        return
    if os.path.lexists(folder):
        raise OutputFolderError(f"Expected a new or empty folder for the result, received {folder}.")


def _check_complete(model: Any) -> None:
    parts = (model.tracker_model.no_memory_embedding, model.tracker_model.memory_temporal_positional_encoding)
    if any(part is None for part in parts):
        raise CheckpointError(
            "Expected a checkpoint with detector, box decoder and memory, received one without some of them, such as "
            "SAM 3.1 or what Meta's trainer saves. It needs no conversion: give it as checkpoint= as it is."
        )


def _cast(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    import torch

    keep = dtype is None or not tensor.is_floating_point() or name.endswith(_ALWAYS_FP32)
    cast = tensor if keep else tensor.to(dtype)
    if not bool(torch.isfinite(cast).all()):
        raise CheckpointError(f"Expected finite weights, received others in {name}; {cast.dtype} cannot hold it.")
    return cast.contiguous()


def _processor(model: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    from transformers import Sam3ImageProcessor, Sam3Processor

    vision = model.config.detector_config.vision_config.backbone_config
    mask = _MASK_STRIDE * vision.image_size // vision.patch_size
    size, mask_size = ({"height": pixels, "width": pixels} for pixels in (vision.image_size, mask))
    build: Any = Sam3Processor
    return build(Sam3ImageProcessor(size=size, mask_size=mask_size), tokenizer, target_size=vision.image_size)
