"""A path -> the labels there, whatever their format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from autodistill_sam3.errors import InputFolderError, LabelingError
from autodistill_sam3.evaluation.coco_files import CocoFile
from autodistill_sam3.evaluation.journal_files import JournalEntry, JournalImage, journal_entries
from autodistill_sam3.evaluation.labels import SPLITS, LabelSet, class_names
from autodistill_sam3.evaluation.yolo_files import load_yaml, read_text, read_yaml, yolo_images
from autodistill_sam3.layout import COCO, DATA_YAML, JOURNAL


def read_labels(path: Path) -> LabelSet:
    """The labels of a labelled folder, a COCO file or a YOLO dataset.

    A folder is read from its COCO files if it has them, since those have exact masks and confidences, else from its
    YOLO labels, else from its journal. To have the YOLO labels of a folder with both, name its `data.yaml`.

    Args:
        path: A COCO file; a `data.yaml`; or a folder with `_annotations.coco.json`, `data.yaml` or a journal in it, or
            one of its splits.

    Raises:
        InputFolderError: There is nothing.
        LabelingError: There is something else, or damaged labels.
    """
    if path.is_file():
        if path.suffix.lower() in (".yaml", ".yml"):
            return _from_yaml(path, path)
        if path.suffix.lower() == ".json":
            return _from_coco(path, [(None, path)], {})
        raise LabelingError(f"Expected a COCO file (.json) or a data.yaml, received {path}")
    if not path.is_dir():
        raise InputFolderError(f"Expected a dataset, received nothing there: {path}")
    return _from_folder(path)


def _from_folder(path: Path) -> LabelSet:
    # A split may be asked for alone; what names its classes lies beside it.
    is_split = path.name in SPLITS and not (path / DATA_YAML).exists()
    root = path.parent if is_split else path
    entries = [entry for entry in journal_entries(root / JOURNAL) if not is_split or entry.split == path.name]
    sources = {entry.file: entry.source for entry in entries}
    if coco := [(split, file) for split in (None, *SPLITS) if (file := path / (split or "") / COCO).is_file()]:
        return _from_coco(path, coco, sources)
    has_labels = any(path.rglob("labels/**/*.txt"))
    if entries and not has_labels:
        return _from_journal(path, root, entries)
    if (path / DATA_YAML).is_file():
        return _from_yaml(path, path / DATA_YAML, sources)
    if has_labels:
        splits = [split for split in SPLITS if (path / split).is_dir()]
        places: list[tuple[str | None, Path]] = [(split, path / split) for split in splits]
        places = places or [(None, path)]
        return _from_yolo(path, _classes_beside(path, root), places, sources, ["labels"])
    raise LabelingError(
        f"Expected a folder with {COCO}, {DATA_YAML} or labels, received {path}. "
        "Name the COCO file itself if it has another name."
    )


def _from_coco(path: Path, places: Sequence[tuple[str | None, Path]], sources: Mapping[str, str]) -> LabelSet:
    files = [CocoFile(file, split, sources) for split, file in places]
    if not any(file.images for file in files):
        raise LabelingError(f"Expected at least one image in the COCO files, received none: {path}")
    return LabelSet(
        path,
        [_relative(file.path, path) for file in files],
        [name for file in files for name in file.classes],
        [image for file in files for image in file.images],
    )


def _from_yaml(path: Path, yaml_path: Path, sources: Mapping[str, str] | None = None) -> LabelSet:
    classes, splits = read_yaml(yaml_path)
    if sources is None:
        sources = {entry.file: entry.source for entry in journal_entries(yaml_path.parent / JOURNAL)}
    return _from_yolo(path, classes, splits, sources, [_relative(yaml_path, path)])


def _from_yolo(
    path: Path,
    classes: Sequence[str],
    splits: Sequence[tuple[str | None, Path]],
    sources: Mapping[str, str],
    files: Sequence[str],
) -> LabelSet:
    images = [image for split, place in splits for image in yolo_images(place, split, classes, sources)]
    if not images:
        raise InputFolderError(f"Expected images or label files, received none of them in {path}")
    return LabelSet(path, files, classes, images)


def _from_journal(path: Path, root: Path, entries: Sequence[JournalEntry]) -> LabelSet:
    classes = _classes_beside(path, root)
    images = [JournalImage(root / JOURNAL, entry, classes) for entry in entries]
    return LabelSet(path, [JOURNAL], classes, images)


def _classes_beside(path: Path, root: Path) -> list[str]:
    for folder in dict.fromkeys((path, root)):
        if (file := folder / DATA_YAML).is_file():
            return class_names(load_yaml(file).get("names"), file)
        for file in (folder / "classes.txt", folder / "labels" / "classes.txt"):
            if file.is_file():
                return class_names([line for line in read_text(file).splitlines() if line.strip()], file)
    raise LabelingError(f"Expected a {DATA_YAML} or classes.txt with the class names beside {path}, received neither")


def _relative(file: Path, path: Path) -> str:
    return file.relative_to(path).as_posix() if path in file.parents else file.name
