"""What a folder holds: a checkpoint in transformers layout, one of the developers' own files, or neither."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from autodistill_sam3.errors import CheckpointError
from autodistill_sam3.weights.kinds import FLORENCE2, CheckpointKind
from autodistill_sam3.weights.paths import is_file, is_readable, names_in

logger = logging.getLogger("autodistill_sam3")

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")

_OFFICIAL_SUFFIXES = (".pt", ".pth", ".safetensors")
# Other models under the names that they are published with, parts of transformers' layout, and a trainer's other files.
_NOT_SAM3 = re.compile(
    r"sam2|sam_(b|l|h)\.|sam_vit|(mobile|fast|edge|efficient|repvit|hq)[-_]?sam(?!3)|yolo|florence"
    r"|^model(-\d+-of-\d+)?\.safetensors$|optimizer",
    re.IGNORECASE,
)


def checkpoint_in(kind: CheckpointKind, folder: Path, official: bool) -> Path | None:
    """The checkpoint in a folder, if there is one; a log line says which was taken when there are several.

    Args:
        kind: The model.
        folder: Need not exist.
        official: Take only the developers' own files.

    Raises:
        CheckpointError: It holds a checkpoint in transformers layout that cannot be used, and nothing else.
    """
    files = _official_files(kind, folder)
    if is_file(folder / CONFIG) and not official:
        if not files:
            return checked_folder(kind, folder)
        if _is_usable(kind, folder):
            logger.info("%s also holds %s; taken is %s", folder, files[0].name, WEIGHTS[0])
            return checked_folder(kind, folder)
    if not files:
        return None
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        logger.info("%s holds several checkpoints (%s); taken is %s", folder, names, files[0].name)
    return official_file(kind, files[0])


def official_file(kind: CheckpointKind, path: Path) -> Path:
    """A file given by its path.

    Raises:
        CheckpointError: Files of this model, or with this suffix, are not read.
    """
    if not kind.official_files or path.suffix.lower() not in _OFFICIAL_SUFFIXES:
        expected = f"one of {', '.join(kind.official_files)}, or " if kind.official_files else ""
        raise CheckpointError(f"Expected {expected}a folder in transformers layout, received {path}. {kind.help}")
    logger.debug("%s checkpoint: %s", kind.title, path)
    return path


def checked_folder(kind: CheckpointKind, folder: Path) -> Path:
    """A folder in transformers layout, if it is of this model and has weights.

    Raises:
        CheckpointError: It is not.
    """
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
    if not has_weights(folder):
        raise CheckpointError(f"Expected {WEIGHTS[0]} beside {folder / CONFIG}, received none. {kind.help}")
    logger.debug("%s checkpoint: %s", kind.title, folder)
    return folder


def has_weights(folder: Path) -> bool:
    """Whether there are weights in transformers layout."""
    return any(is_file(folder / name) for name in WEIGHTS)


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint folder.

    Raises:
        CheckpointError: It is not a JSON object.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"Expected JSON in {path}, which cannot be read: {error}. Copy it again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"Expected a JSON object in {path}, received {type(config).__name__}. Copy it again.")
    return config


def what_lies_there(kind: CheckpointKind, folder: Path, official: bool) -> str:
    """Why a folder that is not empty holds no checkpoint; empty if there is nothing to say."""
    if not is_readable(folder):
        return " (not readable)"
    if official and has_weights(folder):
        return " (holds transformers' layout, which the official code cannot read)"
    if has_weights(folder) and not is_file(folder / CONFIG):
        return f" (holds {WEIGHTS[0]} without {CONFIG})"
    for name in names_in(folder):
        if fault := _fault(kind, folder / name):
            return f" (holds {name}, {fault})"
    return ""


def _fault(kind: CheckpointKind, path: Path) -> str:
    if path.suffix.lower() not in _OFFICIAL_SUFFIXES and path.name not in (*kind.official_files, CONFIG):
        return ""
    if path.is_dir():
        return "a folder"
    if not is_file(path):
        return "a broken link, or not readable"
    if not path.stat().st_size:
        return "an empty file"
    return "another model" if _NOT_SAM3.search(path.name) else ""


def _is_usable(kind: CheckpointKind, folder: Path) -> bool:
    """Whether the transformers layout beside official files is one; Meta's builder leaves a config.json there."""
    try:
        return bool(checked_folder(kind, folder))
    except CheckpointError:
        return False


def _official_files(kind: CheckpointKind, folder: Path) -> list[Path]:
    """The developers' own files in a folder, the preferred one first; empty files are none."""
    if not kind.official_files:
        return []
    paths = [folder / name for name in names_in(folder) if Path(name).suffix.lower() in _OFFICIAL_SUFFIXES]
    files = [path for path in paths if not _NOT_SAM3.search(path.name) and is_file(path) and path.stat().st_size]
    ranks = {name: rank for rank, name in enumerate(kind.official_files)}
    return sorted(files, key=lambda path: (ranks.get(path.name, len(ranks)), path.name))
