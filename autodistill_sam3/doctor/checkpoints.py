"""Where checkpoints are, which one a run would take, and whether it is whole; no weights are read."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistill_sam3.doctor.outlines import florence2_outline, sam3_outline
from autodistill_sam3.doctor.report import Finding, Level
from autodistill_sam3.doctor.settings import RunSettings, first_line, gigabytes
from autodistill_sam3.errors import CheckpointError, CheckpointNotFoundError
from autodistill_sam3.weights import (
    FLORENCE2,
    SAM3,
    CheckpointKind,
    default_places,
    find_bpe,
    find_checkpoint,
    find_vocabulary,
    load_image_processor,
    load_sam3_tokenizer,
    load_tokenizer,
)
from autodistill_sam3.weights.official import SAM3_1, read_official
from autodistill_sam3.weights.official.files import TRACKER_HELP
from autodistill_sam3.weights.vocabulary import BPE_HELP, clean_prompt, read_bpe

if TYPE_CHECKING:
    from transformers import Sam3VideoModel

_ON_COMMAND_LINE = {
    SAM3: "On the command line: --checkpoint shapes.",
    FLORENCE2: "On the command line: --prompting text.",
}
_MODEL_SUFFIXES = (".pt", ".pth", ".safetensors", ".bin", ".onnx")


def check_sam3(run: RunSettings) -> Iterator[Finding]:
    """The places of SAM 3, the checkpoint that is taken, its tensors and its vocabulary."""
    finding = partial(Finding, SAM3.title)
    yield from _places(SAM3, run.checkpoint)
    try:
        path = find_checkpoint(SAM3, run.checkpoint, official=run.official)
    except CheckpointError as error:
        yield _not_usable(SAM3, error, _why_not_official(run) if run.official else "")
        return
    yield finding("taken", str(path))
    model: Sam3VideoModel | None = None
    try:
        model = sam3_outline(path)
        yield finding("tensors", f"all {len(model.state_dict())} there, none unexpected or of another shape")
        yield _abilities(path, run)
    except CheckpointError as error:
        yield _trouble(SAM3, "tensors", error, _help(SAM3))
    yield _vocabulary(path, model, run)


def check_florence2(run: RunSettings) -> Iterator[Finding]:
    """The places of Florence-2, the checkpoint that is taken, and its files."""
    from autodistill_sam3.weights import florence2_argument

    argument = florence2_argument(run.checkpoint, run.florence2_checkpoint)
    fault: Level = "problem" if run.with_boxes else "info"
    yield from _places(FLORENCE2, argument)
    try:
        path = find_checkpoint(FLORENCE2, argument)
    except CheckpointError as error:
        yield _not_usable(FLORENCE2, error, fault=fault)
        return
    yield Finding(FLORENCE2.title, "taken", str(path))
    parts = ("tensors", _count), ("tokenizer", _florence2_tokens), ("images", _image_processor), ("answers", _rules)
    for title, look in parts:
        try:
            yield Finding(FLORENCE2.title, title, look(path))
        except CheckpointError as error:
            yield _trouble(FLORENCE2, title, error, _help(FLORENCE2), fault)


# The places.


def _places(kind: CheckpointKind, argument: str | Path | None) -> Iterator[Finding]:
    if argument is not None:
        yield Finding(kind.title, "the argument", f"{argument}: {_found_in(kind, argument)}", "info")
    for place, folder in default_places(kind):
        yield Finding(kind.title, place, f"{folder}: {_found_in(kind, folder)}", "info")


def _found_in(kind: CheckpointKind, place: str | Path) -> str:
    folder = Path(place).expanduser()
    try:
        return _describe(find_checkpoint(kind, place))
    except CheckpointNotFoundError:
        if not folder.exists():
            return "nothing"
        names = sorted(path.name for path in folder.glob("*") if path.suffix in _MODEL_SUFFIXES)
        return f"no checkpoint, but {', '.join(names[:3])}" if names else "no checkpoint"
    except CheckpointError as error:
        return f"not usable: {first_line(error)}"


def _describe(path: Path) -> str:
    if path.is_dir():
        size = sum(file.stat().st_size for file in path.glob("model*.safetensors"))
        return f"transformers layout, {gigabytes(size)}"
    size_of = f"{path.name}, {gigabytes(path.stat().st_size)}"
    # Old files, which are no zip archives, would be read whole for their names.
    if not (path.suffix == ".safetensors" or zipfile.is_zipfile(path)):
        return size_of
    try:
        return f"{size_of}, {read_official(path).title}"
    except CheckpointError as error:
        return f"{size_of}, not usable: {first_line(error)}"


# What is taken.


def _abilities(path: Path, run: RunSettings) -> Finding:
    """What the checkpoint can be asked, which depends on the halves that it has."""
    finding = partial(Finding, SAM3.title, "good for")
    if path.is_dir():
        return finding("text, boxes and video")
    official = read_official(path)
    abilities = ["text", *(["boxes"] if official.has_boxes else []), *(["video"] if official.has_memory else [])]
    value = f"{', '.join(abilities)} ({official.title})"
    if run.official and official.title == SAM3_1:
        return finding(f"{value}; backend sam3 does not read it", "problem", "Leave out --backend sam3.")
    if run.with_boxes and not official.has_boxes:
        return finding(f"{value}; prompting {run.prompting} needs boxes", "problem", TRACKER_HELP)
    return finding(value)


def _vocabulary(path: Path, model: Sam3VideoModel | None, run: RunSettings) -> Finding:
    try:
        if run.official:
            source = find_bpe(path, run.bpe_path)
            count = len(read_bpe(source)[0])
        else:
            source = find_vocabulary(path, run.bpe_path)
            if model is None:
                return Finding(SAM3.title, "vocabulary", f"{source}, not tried", "info")
            tokenizer: Any = load_sam3_tokenizer(path, model, run.bpe_path)
            tokenizer(clean_prompt("red circle"))
            count = len(tokenizer)
    except CheckpointError as error:
        return _trouble(SAM3, "vocabulary", error, f"{BPE_HELP} If it lies elsewhere, name it with --bpe-path.")
    return Finding(SAM3.title, "vocabulary", f"{source} ({count} tokens)")


def _why_not_official(run: RunSettings) -> str:
    try:
        found = find_checkpoint(SAM3, run.checkpoint)
    except CheckpointError:
        return ""
    return f"Or leave out --backend sam3: {found} is there, which only this package's own engine reads."


def _count(path: Path) -> str:
    return f"all {len(florence2_outline(path).state_dict())} there, none unexpected or of another shape"


def _florence2_tokens(path: Path) -> str:
    tokenizer: Any = load_tokenizer(path)
    if tokenizer.convert_tokens_to_ids("<loc_0>") in (None, tokenizer.unk_token_id):
        raise CheckpointError(f"Expected a tokenizer with <loc_0>, the first of Florence-2's locations, in {path}.")
    return f"{len(tokenizer)} tokens"


def _image_processor(path: Path) -> str:
    return f"preprocessing is there ({type(load_image_processor(path)).__name__})"


def _rules(path: Path) -> str:
    from transformers import GenerationConfig

    from autodistill_sam3.grounding.token_rules import GENERATION_CONFIG, TokenRules

    if not (path / GENERATION_CONFIG).exists():
        return f"no {GENERATION_CONFIG}, those of config.json"
    try:
        settings = GenerationConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Expected settings of answers, received {path / GENERATION_CONFIG}: {error}") from error
    rules = TokenRules.of(settings)
    repeats = f"no {rules.ngram} tokens twice" if rules.ngram else "repeats allowed"
    return f"end with token {', '.join(map(str, rules.ends))}, {repeats}"


# What is wrong.


def _not_usable(kind: CheckpointKind, error: CheckpointError, also: str = "", fault: Level = "problem") -> Finding:
    cure = f"{_help(kind)} {also}".strip()
    if isinstance(error, CheckpointNotFoundError):
        return Finding(kind.title, "taken", "none: no checkpoint in any of these places", fault, cure)
    return _trouble(kind, "taken", error, cure, fault)


def _help(kind: CheckpointKind) -> str:
    return f"{kind.help} {_ON_COMMAND_LINE[kind]}"


def _trouble(kind: CheckpointKind, title: str, error: CheckpointError, cure: str, fault: Level = "problem") -> Finding:
    """An error with its advice taken out of the message, which is shown as the cure."""
    value = str(error)
    for advice in (kind.help, BPE_HELP):
        value = value.replace(advice, "")
    return Finding(kind.title, title, value.strip(), fault, cure)
