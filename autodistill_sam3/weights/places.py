"""Where checkpoints are looked for, in which order, and what is said when there is none."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autodistill_sam3.bundled import bundled_path, checkout_models
from autodistill_sam3.errors import CheckpointError, CheckpointNotFoundError

logger = logging.getLogger("autodistill_sam3")

SHAPES = "shapes"
MODELS_VARIABLE = "AUTODISTILL_SAM3_MODELS"

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_OFFICIAL_SUFFIXES = (".pt", ".pth")
# Files of SAM 1 and 2 under the names that they are published with.
_OLDER = re.compile(r"sam2|sam_vit|mobile_sam", re.IGNORECASE)


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
        official_files: Names of its developers' own files, which are read without conversion, the preferred one first.
    """

    title: str
    folder: str
    model_type: str
    cache_folder: str
    hub_id: str
    help: str
    official_files: tuple[str, ...] = ()


SAM3 = CheckpointKind(
    title="SAM 3",
    folder="sam3",
    model_type="sam3_video",
    cache_folder="segment_anything_3",
    hub_id="facebook/sam3",
    help=(
        "Request access on https://huggingface.co/facebook/sam3, then run `hf auth login` and "
        "`autodistill-sam3 download sam3`, or copy sam3.pt or the files of that page to models/sam3/. "
        'To try the pipeline without it on drawn shapes, pass checkpoint="shapes".'
    ),
    official_files=("sam3.pt", "sam3.1_multiplex.pt"),
)
FLORENCE2 = CheckpointKind(
    title="Florence-2",
    folder="florence2",
    model_type="florence2",
    cache_folder="florence_2",
    hub_id="florence-community/Florence-2-large",
    help=(
        "Run `autodistill-sam3 download florence2`, or copy the files of "
        "https://huggingface.co/florence-community/Florence-2-large to models/florence2/. "
        'prompting="text" needs no Florence-2.'
    ),
)


def find_checkpoint(kind: CheckpointKind, argument: str | Path | None = None, *, official: bool = False) -> Path:
    """The folder of a checkpoint in transformers layout, or one of the developers' own files.

    Looked at in this order: `argument`; the folder named by the environment variable `AUTODISTILL_SAM3_MODELS`;
    `./models`; `models/` of the checkout; `~/.cache/autodistill`; the Hugging Face cache. Nothing is downloaded.
    Where a folder holds both layouts, transformers' is taken.

    Args:
        kind: `SAM3` or `FLORENCE2`.
        argument: `"shapes"` for the small bundled checkpoints, a file, a folder that holds the checkpoint, or a models
            root with a folder of the kind's name in it. None looks in the other places.
        official: Take only the developers' own files, which their code reads.

    Raises:
        CheckpointNotFoundError: It is in none of the places; the message lists them all.
        CheckpointError: What was found is something else.

    Example:
        >>> find_checkpoint(SAM3, "shapes").name
        'sam3'
    """
    if argument is not None:
        return _from_argument(kind, argument, official)
    looked_at = []
    for place, folder in default_places(kind):
        if (found := _in_folder(kind, folder, official)) is not None:
            return found
        looked_at.append((place, folder))
    raise _not_found(kind, looked_at, official)


def florence2_argument(checkpoint: str | Path | None, florence2_checkpoint: str | Path | None) -> str | Path | None:
    """A models root serves both models; a SAM 3 folder leaves Florence-2 to its own places."""
    if florence2_checkpoint is not None or checkpoint is None:
        return florence2_checkpoint
    if checkpoint == SHAPES or (Path(checkpoint).expanduser() / FLORENCE2.folder).is_dir():
        return checkpoint
    return None


def _from_argument(kind: CheckpointKind, argument: str | Path, official: bool) -> Path:
    root = bundled_path("models/shapes") if argument == SHAPES else Path(argument).expanduser()
    if root.is_file() and (root.parent / "config.json").is_file() and root.name in _WEIGHTS and not official:
        return _checked(kind, root.parent)
    if root.is_file():
        return _official_file(kind, root)
    candidates = [root / kind.folder, root]
    for folder in candidates:
        if (found := _in_folder(kind, folder, official)) is not None:
            return found
    raise _not_found(kind, [("the argument", folder) for folder in candidates], official)


def _in_folder(kind: CheckpointKind, folder: Path, official: bool) -> Path | None:
    """The checkpoint in a folder; a log line says which was taken when there are several."""
    files = _official_files(kind, folder)
    has_folder = (folder / "config.json").is_file() and not official
    # Meta's builder leaves a config.json beside sam3.pt, which is no checkpoint of its own.
    if has_folder and not (files and not _has_weights(folder)):
        if files:
            logger.info("%s also holds %s; taken is %s", folder, files[0].name, _WEIGHTS[0])
        return _checked(kind, folder)
    if not files:
        return None
    if len(files) > 1:
        logger.info("%s holds several checkpoints (%s); taken is %s", folder, _names(files), files[0].name)
    return _official_file(kind, files[0])


def _official_files(kind: CheckpointKind, folder: Path) -> list[Path]:
    """The developers' own files in a folder, the preferred one first."""
    if not kind.official_files:
        return []
    known = [folder / name for name in kind.official_files if (folder / name).is_file()]
    others = [path for path in folder.glob("*") if path.suffix in _OFFICIAL_SUFFIXES and path not in known]
    return known + sorted(path for path in others if path.is_file() and not _OLDER.match(path.name))


def _official_file(kind: CheckpointKind, path: Path) -> Path:
    if not kind.official_files or path.suffix not in {*_OFFICIAL_SUFFIXES, ".safetensors"}:
        expected = f"one of {', '.join(kind.official_files)}, or " if kind.official_files else ""
        raise CheckpointError(f"Expected {expected}a folder in transformers layout, received {path}. {kind.help}")
    logger.debug("%s checkpoint: %s", kind.title, path)
    return path


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)


def default_places(kind: CheckpointKind) -> Iterator[tuple[str, Path]]:
    """Where a checkpoint is looked for when none is given: what the place is called, and the folder."""
    if variable := os.environ.get(MODELS_VARIABLE):
        yield MODELS_VARIABLE, Path(variable).expanduser() / kind.folder
    yield "the current folder", Path("models", kind.folder).absolute()
    models = checkout_models()
    if models is not None and models != Path("models").absolute():
        yield "the repository", models / kind.folder
    yield "autodistill's cache", Path.home() / ".cache" / "autodistill" / kind.cache_folder
    yield "the Hugging Face cache", _hugging_face_snapshot(kind)


def find_official_code(checkpoint: Path) -> Path | None:
    """A clone of Meta's code, `sam3/` beside the checkpoint or in the usual places; None if there is none."""
    folders = [checkpoint if checkpoint.is_dir() else checkpoint.parent]
    folders += [folder for _, folder in default_places(SAM3)]
    for clone in (folder / "sam3" for folder in folders):
        if any((clone / package / "model_builder.py").is_file() for package in ("sam3", ".")):
            return clone
    return None


def _hugging_face_snapshot(kind: CheckpointKind) -> Path:
    from huggingface_hub import constants, try_to_load_from_cache

    for name in ("config.json", *kind.official_files):
        found = try_to_load_from_cache(kind.hub_id, name)
        if isinstance(found, str):
            return Path(found).parent
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
    if not _has_weights(folder):
        raise CheckpointError(f"Expected {_WEIGHTS[0]} beside {folder / 'config.json'}, received none. {kind.help}")
    logger.debug("%s checkpoint: %s", kind.title, folder)
    return folder


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _WEIGHTS)


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


def _not_found(kind: CheckpointKind, looked_at: list[tuple[str, Path]], official: bool) -> CheckpointNotFoundError:
    layouts = [] if official else [f"a folder with config.json and {_WEIGHTS[0]}"]
    layouts += kind.official_files
    places = "\n".join(f"  - {place}: {folder}{_unusable(folder, official)}" for place, folder in looked_at)
    return CheckpointNotFoundError(
        f"No {kind.title} checkpoint found ({', or '.join(layouts)}). Looked at:\n{places}\n{kind.help}"
    )


def _unusable(folder: Path, official: bool) -> str:
    """What lies there and is not taken."""
    if official and _has_weights(folder):
        return " (holds transformers' layout, which the official code cannot read)"
    older = sorted(path.name for path in folder.glob("*") if _OLDER.match(path.name))
    return f" (holds {older[0]}, an older model)" if older else ""
