"""The files of a labelled folder: autodistill's layout, COCO beside it, and what the run was.

data.yaml  run.json  journal.jsonl  quarantine.jsonl
train|valid/images/  train|valid/labels/  train|valid/_annotations.coco.json
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import yaml
from PIL import Image

from autodistill_sam3.errors import OutputFolderError
from autodistill_sam3.images import RGBImage, has_image_suffix, is_plain_rgb_file
from autodistill_sam3.labeling.records import SPLITS, ImageRecord, yolo_lines
from autodistill_sam3.labeling.source import CONFIDENCE_PREFIX, SourceImage

JOURNAL = "journal.jsonl"
QUARANTINE = "quarantine.jsonl"
RUN = "run.json"
REVIEW = "review"
_PART = ".part"
# The order in which an earlier run is removed: first what says which images are finished, last what says it is ours.
_OURS = (JOURNAL, "train", "valid", REVIEW, "data.yaml", QUARANTINE, _PART, RUN)


def claim_folder(output: Path, source: Path, run: dict[str, Any], *, overwrite: bool) -> None:
    """Make the output folder ready for a run, or refuse.

    Args:
        output: The folder to write; created if missing.
        source: The input folder.
        run: What is written to `run.json`. A folder whose `run.json` has equal `settings` is continued.
        overwrite: Remove an earlier run's files first, whatever its settings.

    Raises:
        OutputFolderError: It lies in the input, holds something else, or an earlier run with other settings.
    """
    inside, outside = output.resolve(), source.resolve()
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise OutputFolderError(
            f"Expected an output folder apart from the images: neither in {source} nor around it, received {output}"
        )
    if output.exists() and not output.is_dir():
        raise OutputFolderError(f"Expected a folder to write to, received a file: {output}")
    earlier = read_run(output)
    if earlier is None and output.exists() and any(path.name != _PART for path in output.iterdir()):
        raise OutputFolderError(
            f"Expected a new or empty output folder, received one that holds something else: {output}. "
            "Choose another; nothing was written."
        )
    if earlier is not None and overwrite:
        _remove_run(output)
    elif earlier is not None and earlier.get("settings") != run["settings"]:
        raise OutputFolderError(
            f"{output} holds a dataset made with other settings:\n"
            f"{_difference(earlier.get('settings'), run['settings'])}\n"
            "Choose another folder, or pass overwrite=True to start anew."
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        # First of all files: a folder without it is taken for somebody else's.
        with replacing(output / RUN, "w") as file:
            json.dump(run, file, indent=2)
        for split in SPLITS:
            for part in ("images", "labels"):
                (output / split / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputFolderError(f"Expected a folder that can be written to, received {output}: {error}") from error


def place_image(source: SourceImage, pixels: RGBImage, split_folder: Path) -> str:
    """Put an image into a split: byte for byte if every reader sees it as we do, else as a lossless upright PNG.

    Returns:
        Its file name.
    """
    if has_image_suffix(source.path) and is_plain_rgb_file(source.path):
        name = source.stem + source.path.suffix
        with replacing(split_folder / "images" / name, "wb") as file, source.path.open("rb") as original:
            shutil.copyfileobj(original, file)
    else:
        name = f"{source.stem}.png"
        with replacing(split_folder / "images" / name, "wb") as file:
            Image.fromarray(pixels).save(file, format="PNG")
    return name


def remove_image(source: SourceImage, split_folder: Path) -> None:
    """Take back what was written of an image that could not be written whole."""
    images = [split_folder / "images" / f"{source.stem}{suffix}" for suffix in (source.path.suffix, ".png")]
    for path in [*images, *label_paths(images[0].name, split_folder, record_confidence=True)]:
        # Among them is the name that could not be written, and so cannot be removed.
        with contextlib.suppress(OSError):
            path.unlink()


def label_paths(file: str, split_folder: Path, record_confidence: bool) -> list[Path]:
    """The label file of an image and, if asked for, its confidence file."""
    prefixes = ("", CONFIDENCE_PREFIX) if record_confidence else ("",)
    return [split_folder / "labels" / f"{prefix}{Path(file).stem}.txt" for prefix in prefixes]


def write_labels(record: ImageRecord, split_folder: Path, *, record_confidence: bool) -> None:
    """Write an image's YOLO file and, if asked, `confidence-<name>.txt` with one value per line of it."""
    contents = (yolo_lines(record), [str(annotation["confidence"]) for annotation in record["annotations"]])
    for path, lines in zip(label_paths(record["file"], split_folder, record_confidence), contents, strict=False):
        _write_lines(path, lines)


def write_data_yaml(output: Path, classes: Iterable[str]) -> None:
    """Write `data.yaml` with paths relative to itself, so that the folder can be moved."""
    names = list(classes)
    content = {"train": "train/images", "val": "valid/images", "nc": len(names), "names": names}
    with replacing(output / "data.yaml", "w") as file:
        yaml.safe_dump(content, file, sort_keys=False, allow_unicode=True)


def write_coco(path: Path, records: Callable[[], Iterable[ImageRecord]], classes: Iterable[str]) -> None:
    """Write a COCO file, one record in memory at a time.

    Image and annotation ids count from 1 in the order of the records; category ids are class ids plus 1, since
    COCO tools take 0 for "no category".
    """
    categories = [{"id": index, "name": name, "supercategory": "object"} for index, name in enumerate(classes, 1)]
    with replacing(path, "w") as file:
        file.write('{"info":{"description":"autodistill_sam3"},\n"categories":')
        file.write(json.dumps(categories))
        file.write(',\n"images":[')
        _write_items(file, (_coco_image(index, record) for index, record in enumerate(records(), 1)))
        file.write('],\n"annotations":[')
        _write_items(file, _coco_annotations(records()))
        file.write("]}\n")


def append_quarantine(output: Path, source: str, reason: str) -> None:
    """Note an image that could not be labelled."""
    with (output / QUARANTINE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"source": source, "reason": reason}) + "\n")


@contextlib.contextmanager
def replacing(path: Path, mode: str) -> Iterator[IO[Any]]:
    """Open a temporary file that takes the path's place when the block ends without an error."""
    # Not made from the path's name, which may already be as long as the file system allows.
    temporary = path.with_name(_PART)
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with replacing(path, "w") as file:
        file.writelines(f"{line}\n" for line in lines)


def _write_items(file: IO[str], items: Iterable[dict[str, Any]]) -> None:
    for index, item in enumerate(items):
        file.write(("," if index else "") + "\n" + json.dumps(item, separators=(",", ":")))


def _coco_image(image_id: int, record: ImageRecord) -> dict[str, Any]:
    return {
        "id": image_id,
        "file_name": f"images/{record['file']}",
        "width": record["width"],
        "height": record["height"],
    }


def _coco_annotations(records: Iterable[ImageRecord]) -> Iterable[dict[str, Any]]:
    annotation_id = 0
    for image_id, record in enumerate(records, 1):
        for annotation in record["annotations"]:
            annotation_id += 1
            yield {
                "id": annotation_id,
                "image_id": image_id,
                "category_id": annotation["class_id"] + 1,
                "bbox": annotation["bbox"],
                "area": annotation["area"],
                "segmentation": annotation["segmentation"] or [],
                "iscrowd": 0,
                "score": annotation["confidence"],
                **annotation["data"],
            }


def default_output(source: Path) -> Path:
    """Where a folder's dataset goes if nothing is said: beside it, with `_labeled` behind its name.

    Example:
        >>> default_output(Path("photos/")).as_posix()
        'photos_labeled'
    """
    named = source if source.name not in ("", "..") else source.resolve()
    return named.with_name(f"{named.name}_labeled")


def read_run(output: Path) -> dict[str, Any] | None:
    """What `run.json` says, or None if the folder holds no dataset of this package."""
    try:
        run = json.loads((output / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return run if isinstance(run, dict) and run.get("format") == "autodistill_sam3" else None


def _remove_run(output: Path) -> None:
    for name in _OURS:
        path = output / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _difference(earlier: Any, now: dict[str, Any]) -> str:
    before = earlier if isinstance(earlier, dict) else {}
    return "\n".join(
        f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    )
