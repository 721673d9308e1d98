"""A checkpoint folder -> a model with every tensor accounted for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autodistill_sam3.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    Model = TypeVar("Model", bound=PreTrainedModel)

_AGAIN = "Copy or download it again."


def load_model(model_class: type[Model], folder: Path, config: PreTrainedConfig | None = None) -> Model:
    """Load a transformers model in ``float32``, on the CPU, for inference.

    transformers itself only warns of tensors that are missing and leaves them random
    (and so labels nonsense); here that is an error.

    Args:
        model_class: A transformers model class with `from_pretrained`.
        folder: A folder in transformers layout.
        config: Replaces the folder's own.

    Raises:
        CheckpointError: A file is damaged, or tensors are missing, unexpected or of another shape.
    """
    keywords = {"local_files_only": True, "use_safetensors": True} | ({"config": config} if config else {})
    model, report = _load(model_class, folder, folder, **keywords)
    _check_tensors(report, folder)
    return model


def load_tensors(
    model_class: type[Model],
    config: PreTrainedConfig,
    tensors: Mapping[str, torch.Tensor],
    origin: Path,
    may_lack: Callable[[str], bool],
) -> Model:
    """:func:`load_model` from tensors in memory.

    Args:
        model_class: A transformers model class with `from_pretrained`.
        config: Of the model.
        tensors: By their names in the model.
        origin: Where they come from, for messages.
        may_lack: Whether the model can do without the tensor of this name. What it lacks is None in the model, not
            random.

    Raises:
        CheckpointError: Other tensors are missing, or some are unexpected or of another shape.
    """
    model, report = _load(model_class, None, origin, config=config, state_dict=dict(tensors))
    lacking = {name for name in report["missing_keys"] if may_lack(name)}
    _check_tensors({**report, "missing_keys": set(report["missing_keys"]) - lacking}, origin)
    for name in lacking:
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, None)
    return model


def _load(model_class: type[Model], folder: Path | None, origin: Path, **keywords: Any) -> tuple[Model, dict[str, Any]]:
    import torch

    strict: Any = type(model_class.__name__, (_ReportsAll, model_class), {})
    try:
        with quiet_transformers():
            model, report = strict.from_pretrained(
                folder,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, which is checked
                **keywords,
            )
    # A damaged folder makes transformers raise nearly anything, also types derived from Exception alone.
    except Exception as error:
        raise CheckpointError(f"{origin} cannot be loaded as {model_class.__name__}: {error}. {_AGAIN}") from error
    model.__class__ = model_class
    return model.eval().requires_grad_(False), report


class _ReportsAll:
    """Keeps transformers from dropping unexpected tensors from its report.

    It collects the patterns of names that may be ignored from all parts of a model: `Sam3TrackerModel` may ignore the
    detector and the detector the tracker, so that `Sam3VideoModel`, which has both, would ignore everything.
    """

    def post_init(self) -> None:
        super().post_init()  # type: ignore[misc]  # of the model class that follows
        # Rotation tables, which every version of the models computes itself.
        self._keys_to_ignore_on_load_unexpected = {r"\.rotary_emb\."}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer, padding on the right.

    Raises:
        CheckpointError: Its files are missing or damaged.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise CheckpointError(f"Expected tokenizer.json in {folder}, received none. Copy it from the same source.")
    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, padding_side="right", trust_remote_code=False
            )
    # The tokenizers library raises plain Exception for a damaged file.
    except Exception as error:
        raise CheckpointError(f"The tokenizer in {folder} cannot be loaded: {error}. {_AGAIN}") from error
    return tokenizer


def load_image_processor(folder: Path) -> BaseImageProcessor:
    """Load a checkpoint's image preprocessing.

    Raises:
        CheckpointError: Its file is missing or damaged.
    """
    from transformers import AutoImageProcessor

    load: Any = AutoImageProcessor.from_pretrained
    try:
        with quiet_transformers():
            processor: BaseImageProcessor = load(folder, local_files_only=True, trust_remote_code=False)
    # As in `_load`.
    except Exception as error:
        raise CheckpointError(f"The image preprocessing in {folder} cannot be loaded: {error}. {_AGAIN}") from error
    return processor


def _check_tensors(report: dict[str, Any], origin: Path) -> None:
    problems = []
    for what in ("missing", "unexpected", "mismatched"):
        # Mismatched ones come with both shapes.
        keys = sorted(str(key) for key in report.get(f"{what}_keys", ()))
        if keys:
            problems.append(f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
    if problems:
        raise CheckpointError(
            f"Expected every tensor of the model in {origin}, received {'; '.join(problems)}. "
            f"The file is incomplete or of another model. {_AGAIN}"
        )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and load reports off inside; what the caller had set comes back."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
