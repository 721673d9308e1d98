"""Where checkpoints are looked for, in which order, and what is said when there is none."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autodistill_sam3.bundled import bundled_path, checkout_models
from autodistill_sam3.errors import CheckpointError, CheckpointNotFoundError

logger = logging.getLogger("autodistill_sam3")

SHAPES = "shapes"
MODELS_VARIABLE = "AUTODISTILL_SAM3_MODELS"


@dataclass(frozen=True)
class CheckpointKind:
    """One of the two models.

    Attributes:
        title: The model's name in messages.
        folder: Its folder under a models root.
        model_type: `model_type` of its transformers `config.json`.
        cache_folder: Its folder under `~/.cache/autodistill`.
        hub_id: Its repository on the Hugging Face hub.
        help: What to do when there is no checkpoint.
    """

    title: str
    folder: str
    model_type: str
    cache_folder: str
    hub_id: str
    help: str


SAM3 = CheckpointKind(
    title="SAM 3",
    folder="sam3",
    model_type="sam3_video",
    cache_folder="segment_anything_3",
    hub_id="facebook/sam3",
    help=(
        "Request access on https://huggingface.co/facebook/sam3, then run `hf auth login` and "
        "`hf download facebook/sam3 --local-dir models/sam3 --exclude sam3.pt`, or copy that folder from elsewhere. "
        'To try the pipeline without it on drawn shapes, pass checkpoint="shapes".'
    ),
)
FLORENCE2 = CheckpointKind(
    title="Florence-2",
    folder="florence2",
    model_type="florence2",
    cache_folder="florence_2",
    hub_id="florence-community/Florence-2-large",
    help=(
        "Run `hf download florence-community/Florence-2-large --local-dir models/florence2`, or copy that folder "
        'from elsewhere. prompting="text" needs no Florence-2.'
    ),
)


def find_checkpoint(kind: CheckpointKind, argument: str | Path | None = None) -> Path:
    """The folder of a checkpoint in transformers layout.

    Looked at in this order: `argument`; the folder named by the environment variable `AUTODISTILL_SAM3_MODELS`;
    `./models`; `models/` of the checkout; `~/.cache/autodistill`; the Hugging Face cache. Nothing is downloaded.

    Args:
        kind: `SAM3` or `FLORENCE2`.
        argument: `"shapes"` for the small bundled checkpoints, a folder that holds the checkpoint (or the
            `model.safetensors` in it), or a models root with a folder of the kind's name in it. None looks in the
            other places.

    Raises:
        CheckpointNotFoundError: It is in none of the places; the message lists them all.
        CheckpointError: What was found is something else.

    Example:
        >>> find_checkpoint(SAM3, "shapes").name
        'sam3'
    """
    if argument is not None:
        return _from_argument(kind, argument)
    looked_at = []
    for place, folder in _default_places(kind):
        if (folder / "config.json").is_file():
            return _checked(kind, folder)
        looked_at.append((place, folder))
    raise _not_found(kind, looked_at)


def _from_argument(kind: CheckpointKind, argument: str | Path) -> Path:
    root = bundled_path("models/shapes") if argument == SHAPES else Path(argument).expanduser()
    if root.is_file() and root.suffix != ".safetensors":
        raise CheckpointError(
            f"Expected a folder in transformers layout or its model.safetensors, received {root}, which this version "
            f"cannot read. {kind.help}"
        )
    if root.is_file():
        root = root.parent
    candidates = [root / kind.folder, root]
    for folder in candidates:
        if (folder / "config.json").is_file():
            return _checked(kind, folder)
    raise _not_found(kind, [("the argument", folder) for folder in candidates])


def _default_places(kind: CheckpointKind) -> Iterator[tuple[str, Path]]:
    if variable := os.environ.get(MODELS_VARIABLE):
        yield MODELS_VARIABLE, Path(variable).expanduser() / kind.folder
    yield "the current folder", Path("models", kind.folder).absolute()
    models = checkout_models()
    if models is not None and models != Path("models").absolute():
        yield "the repository", models / kind.folder
    yield "autodistill's cache", Path.home() / ".cache" / "autodistill" / kind.cache_folder
    yield "the Hugging Face cache", _hugging_face_snapshot(kind)


def _hugging_face_snapshot(kind: CheckpointKind) -> Path:
    from huggingface_hub import constants, try_to_load_from_cache

    config = try_to_load_from_cache(kind.hub_id, "config.json")
    if isinstance(config, str):
        return Path(config).parent
    return Path(constants.HF_HUB_CACHE) / f"models--{kind.hub_id.replace('/', '--')}"


def _checked(kind: CheckpointKind, folder: Path) -> Path:
    config = read_config(folder)
    if "auto_map" in config and kind is FLORENCE2:
        raise CheckpointError(
            f"{folder} holds Microsoft's Florence-2 with remote code, which current transformers cannot run and this "
            f"package would never execute. Use the same model converted: {kind.help}"
        )
    if config.get("model_type") != kind.model_type:
        raise CheckpointError(
            f"Expected a {kind.title} checkpoint (model_type {kind.model_type!r}) in {folder}, "
            f"received model_type {config.get('model_type')!r}. {kind.help}"
        )
    weights = ("model.safetensors", "model.safetensors.index.json")
    if not any((folder / name).is_file() for name in weights):
        raise CheckpointError(f"Expected {weights[0]} beside {folder / 'config.json'}, received none. {kind.help}")
    logger.debug("%s checkpoint: %s", kind.title, folder)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint folder.

    Raises:
        CheckpointError: It is not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Expected JSON in {path}, which cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"Expected a JSON object in {path}, received {type(config).__name__}")
    return config


def _not_found(kind: CheckpointKind, looked_at: list[tuple[str, Path]]) -> CheckpointNotFoundError:
    places = "\n".join(f"  - {place}: {folder}{_unreadable(folder)}" for place, folder in looked_at)
    return CheckpointNotFoundError(
        f"No {kind.title} checkpoint found (a folder with config.json and model.safetensors). "
        f"Looked at:\n{places}\n{kind.help}"
    )


def _unreadable(folder: Path) -> str:
    """What lies there that looks like a checkpoint and is none that can be read."""
    names = sorted(path.name for path in folder.glob("*.pt")) if folder.is_dir() else []
    return f" (holds {', '.join(names)}, which this version cannot read)" if names else ""
