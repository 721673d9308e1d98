"""Where checkpoints are looked for, in which order, and what is said when there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from autodistill_sam3.bundled import bundled_path, checkout_models
from autodistill_sam3.errors import CheckpointNotFoundError
from autodistill_sam3.weights.folders import (
    CONFIG,
    WEIGHTS,
    checked_folder,
    checkpoint_in,
    official_file,
    what_lies_there,
)
from autodistill_sam3.weights.kinds import FLORENCE2, SAM3, CheckpointKind
from autodistill_sam3.weights.paths import expanded, is_file

SHAPES = "shapes"
MODELS_VARIABLE = "AUTODISTILL_SAM3_MODELS"


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
        SettingError: The argument is empty, or no path.

    Example:
        >>> find_checkpoint(SAM3, "shapes").name
        'sam3'
    """
    if argument is not None:
        return _from_argument(kind, argument, official)
    looked_at = []
    for place, folder in default_places(kind):
        if (found := checkpoint_in(kind, folder, official)) is not None:
            return found
        looked_at.append((place, folder))
    raise _not_found(kind, looked_at, official)


def florence2_argument(checkpoint: str | Path | None, florence2_checkpoint: str | Path | None) -> str | Path | None:
    """A models root serves both models; a SAM 3 folder leaves Florence-2 to its own places."""
    if florence2_checkpoint is not None or checkpoint is None:
        return florence2_checkpoint
    if str(checkpoint) == SHAPES or (expanded(checkpoint, "checkpoint") / FLORENCE2.folder).is_dir():
        return checkpoint
    return None


def default_places(kind: CheckpointKind) -> Iterator[tuple[str, Path]]:
    """Where a checkpoint is looked for when none is given: what the place is called, and the folder."""
    yield from _own_places(kind)
    home = os.path.expanduser("~")  # noqa: PTH111  # which leaves a process without a home as it is
    if home != "~":
        yield "autodistill's cache", Path(home) / ".cache" / "autodistill" / kind.cache_folder
    yield "the Hugging Face cache", _hugging_face_snapshot(kind)


def _own_places(kind: CheckpointKind) -> Iterator[tuple[str, Path]]:
    if variable := os.environ.get(MODELS_VARIABLE):
        yield MODELS_VARIABLE, expanded(variable, MODELS_VARIABLE) / kind.folder
    yield "the current folder", Path("models", kind.folder).absolute()
    models = checkout_models()
    if models is not None and models != Path("models").absolute():
        yield "the repository", models / kind.folder


def find_official_code(checkpoint: Path) -> Path | None:
    """A clone of Meta's code, `sam3/` beside the checkpoint or in a models root; None if there is none.

    Caches are left out: what lies there came from elsewhere, and this code is executed.
    """
    from huggingface_hub import constants

    beside = checkpoint if checkpoint.is_dir() else checkpoint.parent
    folders = [] if beside.absolute().is_relative_to(constants.HF_HUB_CACHE) else [beside]
    folders += [folder for _, folder in _own_places(SAM3)]
    for clone in (folder / "sam3" for folder in folders):
        if any(is_file(clone / package / "model_builder.py") for package in ("sam3", ".")):
            return clone
    return None


def _from_argument(kind: CheckpointKind, argument: str | Path, official: bool) -> Path:
    shapes = str(argument) == SHAPES
    root = bundled_path("models/shapes") if shapes else expanded(argument, "checkpoint")
    if is_file(root):
        is_in_folder = root.name in WEIGHTS and is_file(root.parent / CONFIG) and not official
        return checked_folder(kind, root.parent) if is_in_folder else official_file(kind, root)
    candidates = [root / kind.folder, root]
    for folder in candidates:
        if (found := checkpoint_in(kind, folder, official)) is not None:
            return found
    raise _not_found(kind, [("the argument", folder) for folder in candidates], official)


def _hugging_face_snapshot(kind: CheckpointKind) -> Path:
    from huggingface_hub import constants, try_to_load_from_cache

    for repository, name in ((kind.hub_id, CONFIG), *kind.hub_files):
        try:
            found = try_to_load_from_cache(repository, name)
        except OSError:
            continue
        if isinstance(found, str):
            return Path(found).parent
    return Path(constants.HF_HUB_CACHE) / f"models--{kind.hub_id.replace('/', '--')}"


def _not_found(kind: CheckpointKind, looked_at: list[tuple[str, Path]], official: bool) -> CheckpointNotFoundError:
    layouts = [] if official else [f"a folder with {CONFIG} and {WEIGHTS[0]}"]
    layouts += kind.official_files
    places = "\n".join(f"  - {place}: {folder}{what_lies_there(kind, folder, official)}" for place, folder in looked_at)
    hint = "\nThe official code needs `autodistill-sam3 download sam3 --format pt`." if official else ""
    return CheckpointNotFoundError(
        f"No {kind.title} checkpoint found ({', or '.join(layouts)}). Looked at:\n{places}\n{kind.help}{hint}"
    )
