"""The files of a labelled folder, written whole or not at all, and whose folder it is.

data.yaml  run.json  journal.jsonl  quarantine.jsonl  report.json
train|valid|test/images/  train|valid|test/labels/  train|valid|test/_annotations.coco.json
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import yaml
from PIL import Image

from autodistill_sam3.errors import OutputFolderError
from autodistill_sam3.images import RGBImage, has_image_suffix, is_plain_rgb_file
from autodistill_sam3.labeling.journal import Journal
from autodistill_sam3.labeling.names import SourceImage
from autodistill_sam3.labeling.records import SPLITS, Split
from autodistill_sam3.layout import (
    CLIPS,
    DATA_YAML,
    DATASET,
    DROPPED,
    FRAMES,
    JOURNAL,
    MEASURED,
    OVERLAYS,
    QUARANTINE,
    REPORT,
    REVIEW,
    RUN,
    SHARDS,
    TIMES,
    TRACKS,
)
from autodistill_sam3.whole_files import PART, replacing

_LOCK = ".lock"
# What `run.json` calls a folder of tracked clips.
TRACKED_CLIPS = "tracked clips"


class BusyError(OutputFolderError):
    """Another run is at work in the folder."""


@contextlib.contextmanager
def claimed(output: Path, run: dict[str, Any], *, overwrite: bool) -> Iterator[dict[str, Any]]:
    """Hold the output folder for one run, or refuse.

    Args:
        output: The folder to write; created if missing.
        run: What is written to `run.json`. A folder whose `run.json` has equal `settings` is continued; what its
            earlier runs wrote (`writes`: formats, confidences) is written for new images, too.
        overwrite: Remove an earlier run's files first, whatever its settings.

    Yields:
        `run` with the `writes` of earlier runs.

    Raises:
        OutputFolderError: It holds something else, or an earlier run with other settings, cannot be written to, or
            another run is at work in it.
    """
    # As it will be read, and before anything is touched: settings that are no JSON are refused here.
    run = json.loads(json.dumps(run))
    _check_ours(output)
    with _writable(output):
        output.mkdir(parents=True, exist_ok=True)
    with _locked(output):
        earlier = read_run(output)
        if earlier is not None and (overwrite or earlier.get("is_being_removed")):
            check_idle(output)
            with _writable(output):
                _remove_run(output, earlier)
            earlier = None
        if earlier is not None:
            check_settings(output, earlier, run["settings"])
            run = run | {"writes": _joined(output, earlier.get("writes", {}), run["writes"])}
        with _writable(output), replacing(output / RUN, "w") as file:
            # First of all files: a folder without it is taken for somebody else's.
            json.dump(run, file, indent=2)
        yield run


def check_settings(output: Path, earlier: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse to go on with other settings.

    Raises:
        OutputFolderError: They differ; the message says in what.
    """
    if difference := settings_difference(earlier, settings):
        raise OutputFolderError(
            f"{output} holds a dataset made with other settings:\n{difference}\n"
            "Choose another folder, or pass overwrite=True (--overwrite) to start anew."
        )


def settings_difference(run: dict[str, Any], settings: dict[str, Any]) -> str:
    """In what settings differ from those of `run.json`, a line each; nothing if they are equal."""
    return _difference(_flat(run.get("settings")), _flat(settings))


def check_merged(output: Path) -> None:
    """Refuse to label a dataset of which shards are at work, or finished and not merged.

    Raises:
        OutputFolderError: There are shards.
    """
    if (output / SHARDS).exists():
        raise OutputFolderError(
            f"Expected a dataset without shards, received {output}, of which some are at work or not merged. Finish "
            "them as they were begun (--gpus, --shard or --engine ray) and merge them (`autodistill-sam3 merge`), or "
            "pass overwrite=True (--overwrite) to start anew."
        )


def is_busy(output: Path) -> bool:
    """Whether a run is at work in a folder."""
    try:
        with _locked(output):
            return False
    except BusyError:
        return True


def check_idle(output: Path) -> None:
    """Refuse to go on while a worker labels a shard of the dataset.

    Raises:
        OutputFolderError: One does.
    """
    for part in sorted((output / SHARDS).glob("*.part")):
        with _locked(part):
            pass


def check_apart(output: Path, searched: Path | None, images: Iterable[SourceImage]) -> None:
    """Refuse an output folder that holds the images, or lies in a folder that is searched for them.

    Raises:
        OutputFolderError: It does.
    """
    place = output.resolve()
    places = {searched} if searched is not None else {image.path.parent for image in images}
    if any(place == other or place in other.parents for other in map(_resolved, places)) or (
        searched is not None and _resolved(searched) in place.parents
    ):
        raise OutputFolderError(
            f"Expected an output folder apart from the images, neither among nor around them, received {output}"
        )


def make_splits(output: Path, splits: Sequence[Split]) -> None:
    """The folders of the images."""
    for split in splits:
        (output / split / "images").mkdir(parents=True, exist_ok=True)


def is_copied(source: SourceImage) -> bool:
    """Whether the dataset gets a copy of a file, which every reader sees as we do, and not a PNG of its pixels."""
    return has_image_suffix(source.path) and is_plain_rgb_file(source.path)


def image_name(source: SourceImage, stem: str, *, copied: bool) -> str:
    """An image's name in the dataset."""
    return stem + source.path.suffix if copied else f"{stem}.png"


def place_image(source: SourceImage, name: str, pixels: RGBImage | None, split_folder: Path, part: str = PART) -> None:
    """Put an image into a split: byte for byte, or these pixels as a lossless PNG.

    Args:
        source: The image.
        name: Its name in the dataset.
        pixels: Upright RGB, or None for a copy.
        split_folder: The split's folder.
        part: The name of the file until it is complete.
    """
    with replacing(split_folder / "images" / name, "wb", part=part) as file:
        if pixels is None:
            with source.path.open("rb") as original:
                shutil.copyfileobj(original, file)
        else:
            Image.fromarray(pixels).save(file, format="PNG")


def write_files(folder: Path, contents: dict[str, bytes], part: str = PART) -> None:
    """Write files given by their path below a folder."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, "wb", part=part) as file:
            file.write(content)


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Take back files given by their path below a folder, where they are there."""
    for name in names:
        # Among them may be a name that could not be written, and so cannot be removed.
        with contextlib.suppress(OSError):
            (folder / name).unlink()


def write_data_yaml(output: Path, splits: Sequence[Split], classes: Sequence[str]) -> None:
    """Write `data.yaml` with paths relative to itself, so that the folder can be moved; one that is there stays."""
    if (output / DATA_YAML).exists():
        return
    keys = {"train": "train", "valid": "val", "test": "test"}
    paths = {keys[split]: f"{split}/images" for split in splits}
    with replacing(output / DATA_YAML, "w") as file:
        content = paths | {"nc": len(classes), "names": list(classes)}
        yaml.safe_dump(content, file, sort_keys=False, allow_unicode=True)


def write_whole(output: Path, name: str, journal: Journal, write: Callable[[IO[str]], None]) -> None:
    """Write a file of the whole dataset; the journal knows its content before it takes its place."""
    with replacing(output / name, "w", before=lambda part: journal.wrote(name, _sha256(part))) as file:
        write(file)


def check_not_edited(output: Path, names: Iterable[str], journal: Journal) -> None:
    """Refuse to replace a file of the whole dataset that somebody has changed.

    Raises:
        OutputFolderError: One has a content that no run has written.
    """
    for path in (output / name for name in names):
        if path.exists() and not journal.has_written(path.relative_to(output).as_posix(), _sha256(path)):
            raise OutputFolderError(
                f"{path} was changed since it was written. Move it elsewhere to go on, or pass overwrite=True "
                "(--overwrite) to start anew."
            )


def append_quarantine(output: Path, source: str, reason: str) -> None:
    """Note an image that could not be labelled."""
    with (output / QUARANTINE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"source": source, "reason": reason}) + "\n")


def read_quarantine(output: Path) -> list[dict[str, str]]:
    """What could not be labelled, and why."""
    path = output / QUARANTINE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_run(output: Path) -> dict[str, Any] | None:
    """What `run.json` says, or None if the folder holds no dataset of this package."""
    try:
        run = json.loads((output / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return run if isinstance(run, dict) and run.get("format") == "autodistill_sam3" else None


def _check_ours(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise OutputFolderError(f"Expected a folder to write to, received a file: {output}")
    if read_run(output) is None and output.exists():
        with _writable(output):
            others = [path for path in output.iterdir() if path.name not in (PART, _LOCK)]
        if others:
            raise OutputFolderError(
                f"Expected a new or empty output folder, received one that holds something else: {output}. "
                "Choose another; nothing was written."
            )


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    import filelock

    lock = filelock.FileLock(output / _LOCK)
    try:
        with _writable(output):
            lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise BusyError(f"Another run is at work in {output}. Wait for it to end, or choose another folder.") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _writable(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise
        raise OutputFolderError(f"Expected a folder that can be written to, received {output}: {error}") from error


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    # A manifest may hold names that no file system takes.
    except (OSError, ValueError):
        return path


def _remove_run(output: Path, run: dict[str, Any]) -> None:
    """Remove what a run has written; a removal that is interrupted is completed by the next run."""
    with replacing(output / RUN, "w") as file:
        json.dump(run | {"is_being_removed": True}, file, indent=2)
    for name in (*_written_by(run), PART, QUARANTINE, RUN):
        path = output / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _written_by(run: dict[str, Any]) -> Sequence[str]:
    if run.get("kind") == TRACKED_CLIPS:
        return CLIPS, TRACKS, OVERLAYS, FRAMES, DATASET
    settings = run.get("settings", {})
    has_test = settings.get("split", {}).get("test_share") or "test" in settings.get("splits", ())
    splits = [split for split in SPLITS if split != "test" or has_test]
    return JOURNAL, SHARDS, *splits, REVIEW, DATA_YAML, REPORT, TIMES, MEASURED, DROPPED


def _joined(output: Path, earlier: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    formats = list(dict.fromkeys([*earlier.get("formats", ()), *now["formats"]]))
    if {"yolo", "yolo-detection"} <= set(formats):
        raise OutputFolderError(
            f"Expected one kind of YOLO labels, received {now['formats']} for {output}, which has "
            f"{earlier['formats']}. Choose another folder, or pass overwrite=True (--overwrite) to start anew."
        )
    confidence = bool(earlier.get("record_confidence")) or now["record_confidence"]
    return {"formats": formats, "record_confidence": confidence}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings under names such as `thresholds.confidence`."""
    if not isinstance(value, dict):
        return {prefix[:-1]: value}
    return {key: item for name, part in value.items() for key, item in _flat(part, f"{prefix}{name}.").items()}


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    def shown(values: dict[str, Any], key: str) -> str:
        return repr(values[key]) if key in values else "nothing"

    return "\n".join(
        f"  {key}: {shown(before, key)} there, {shown(now, key)} now"
        for key in sorted(before.keys() | now.keys())
        if shown(before, key) != shown(now, key)
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
