"""What can be downloaded: which repository, which of its files, into which folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autodistill_sam3.errors import SettingError
from autodistill_sam3.weights.kinds import FLORENCE2, SAM3, CheckpointKind

TRANSFORMERS = "transformers"
PT = "pt"
FORMATS = (TRANSFORMERS, PT)

CODE = "sam3-code"

# Beside the weights, and the same for all checkpoints of a model in what matters: the vocabulary, and the licence.
COMPANIONS = frozenset({"tokenizer.json", "LICENSE", "LICENSE.txt", "LICENSE.md"})


@dataclass(frozen=True)
class FileSet:
    """The files that make up one format of a checkpoint.

    Attributes:
        patterns: What is taken of the files at the repository's top level, as in `fnmatch`. Never code.
        required: Patterns that must each match a file.
        last: The file by which a folder is recognised as a checkpoint, moved into place after all others.
        borrowed: Files taken from other repositories where this one has none: name -> repository.
        kept: Files that stay as they are when the folder has them, whatever version that is.
    """

    patterns: tuple[str, ...]
    required: tuple[str, ...]
    last: str
    borrowed: Mapping[str, str]
    kept: frozenset[str]


@dataclass(frozen=True)
class Checkpoint:
    """A repository of the hub that holds a checkpoint.

    Attributes:
        kind: The model; names the folder.
        repository: Its id on the hub.
        file_sets: Format -> files; the first is the default.
        gated: Whether its files need a token of somebody who was granted access.
    """

    kind: CheckpointKind
    repository: str
    file_sets: Mapping[str, FileSet]
    gated: bool = False


@dataclass(frozen=True)
class Choice:
    """One checkpoint in one format.

    Attributes:
        name: As the user calls it.
        file_format: The format.
        checkpoint: Where it comes from.
    """

    name: str
    file_format: str
    checkpoint: Checkpoint

    @property
    def files(self) -> FileSet:
        """The files of the format."""
        return self.checkpoint.file_sets[self.file_format]


def _official(name: str) -> FileSet:
    # Meta's code brings its vocabulary and the checkpoint does not; tokenizer.json holds the same one. The licence
    # has to travel with the weights.
    return FileSet(
        patterns=(name, "tokenizer.json", "LICENSE*"),
        required=(name,),
        last=name,
        borrowed={"tokenizer.json": SAM3.hub_id},
        kept=COMPANIONS,
    )


_TRANSFORMERS = FileSet(
    patterns=("*.json", "*.txt", "*.jinja", "model*.safetensors", "LICENSE*"),
    required=("config.json", "model*.safetensors", "tokenizer.json"),
    last="config.json",
    borrowed={},
    kept=frozenset(),
)
_SAM3_FILE, _SAM3_1_FILE = SAM3.official_files

CHECKPOINTS = {
    "sam3": Checkpoint(SAM3, SAM3.hub_id, {TRANSFORMERS: _TRANSFORMERS, PT: _official(_SAM3_FILE)}, gated=True),
    "sam3.1": Checkpoint(SAM3, "facebook/sam3.1", {PT: _official(_SAM3_1_FILE)}, gated=True),
    "florence2": Checkpoint(FLORENCE2, FLORENCE2.hub_id, {TRANSFORMERS: _TRANSFORMERS}),
    "florence2-base": Checkpoint(FLORENCE2, "florence-community/Florence-2-base", {TRANSFORMERS: _TRANSFORMERS}),
}
NAMES = (*CHECKPOINTS, CODE)


def choose(name: str, file_format: str | None) -> Choice:
    """The checkpoint of a name, in the format asked for or its first.

    Raises:
        SettingError: There is no such checkpoint, or not in that format.

    Example:
        >>> choose("sam3", None).files.last
        'config.json'
    """
    if name not in CHECKPOINTS:
        raise SettingError(f"Expected one of {', '.join(NAMES)} to download, received {name!r}.")
    checkpoint = CHECKPOINTS[name]
    if file_format is None:
        file_format = next(iter(checkpoint.file_sets))
    if file_format not in checkpoint.file_sets:
        raise SettingError(
            f"Expected {' or '.join(checkpoint.file_sets)} as the format of {name}, which comes in no other, "
            f"received {file_format!r}."
        )
    return Choice(name, file_format, checkpoint)
