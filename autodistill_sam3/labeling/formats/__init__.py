"""What a labelled folder can hold beside its images; every file is made from the records alone.

yolo            labels/x.txt, one polygon per object; boxes for models that give no masks
yolo-detection  labels/x.txt, one box per object
coco            _annotations.coco.json, one file per split, lossless masks
voc             voc/x.xml, boxes
masks           masks/x.png, class index + 1 of each pixel
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal, get_args

from autodistill_sam3.errors import SettingError
from autodistill_sam3.labeling.formats.coco import write_coco
from autodistill_sam3.labeling.formats.masks import class_png
from autodistill_sam3.labeling.formats.voc import voc_xml
from autodistill_sam3.labeling.formats.yolo import box_lines, confidence_lines, object_lines
from autodistill_sam3.labeling.records import ImageRecord
from autodistill_sam3.layout import CONFIDENCE_PREFIX

Format = Literal["yolo", "yolo-detection", "coco", "voc", "masks"]
FORMATS: tuple[Format, ...] = get_args(Format)
DEFAULT_FORMATS: tuple[Format, ...] = ("yolo", "coco")

__all__ = [
    "DEFAULT_FORMATS",
    "FORMATS",
    "Format",
    "check_formats",
    "image_files",
    "image_paths",
    "write_coco",
]


def check_formats(formats: Sequence[str]) -> tuple[Format, ...]:
    """The formats in the order of `FORMATS`, so that equal choices are equal values.

    Raises:
        SettingError: There is none, one is unknown or named twice, or both kinds of YOLO are asked for.

    Example:
        >>> check_formats(["voc", "yolo"])
        ('yolo', 'voc')
    """
    known = ", ".join(FORMATS)
    if isinstance(formats, str):
        raise SettingError(f"Expected a list of formats, received the text {formats!r}. Pass [{formats!r}].")
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise SettingError(f"Expected formats out of {known}, received {unknown[0]!r}")
    if not formats:
        raise SettingError(f"Expected at least one format, received none. Choose from {known}.")
    if len(set(formats)) < len(formats):
        raise SettingError(f"Expected each format once, received {list(formats)}")
    if {"yolo", "yolo-detection"} <= set(formats):
        raise SettingError(
            "Expected one kind of YOLO labels, received 'yolo' and 'yolo-detection', which both write labels/. "
            "Trainers of detectors read 'yolo', too."
        )
    return tuple(name for name in FORMATS if name in formats)


def image_files(
    record: ImageRecord, classes: Sequence[str], formats: Sequence[Format], *, record_confidence: bool
) -> dict[str, bytes]:
    """The files of one image, without the image: path relative to the split's folder -> content.

    Args:
        record: The image.
        classes: Class names; class ids are indices into them.
        formats: Which files to make; those of formats that have one file for all images are not among them.
        record_confidence: Beside YOLO labels, make a file with the confidence of the object on each of their lines.

    Raises:
        SettingError: "masks" is asked for and the model gave boxes alone.
    """
    contents = []
    for name in check_formats(formats):
        if name in ("yolo", "yolo-detection"):
            contents.append(_as_bytes(object_lines(record) if name == "yolo" else box_lines(record)))
            contents += [_as_bytes(confidence_lines(record))] * record_confidence
        elif name == "voc":
            contents.append(voc_xml(record, classes, segmented="masks" in formats))
        elif name == "masks":
            contents.append(class_png(record, len(classes)))
    paths = image_paths(record["file"], formats, record_confidence=record_confidence)
    return dict(zip(paths, contents, strict=True))


def image_paths(file: str, formats: Sequence[Format], *, record_confidence: bool) -> list[str]:
    """The paths of :func:`image_files` of an image, by its name in `images/` alone.

    Example:
        >>> image_paths("a.b.jpg", ("yolo", "coco", "voc"), record_confidence=True)
        ['labels/a.b.txt', 'labels/confidence-a.b.txt', 'voc/a.b.xml']
    """
    stem = PurePosixPath(file).stem
    paths = []
    for name in check_formats(formats):
        if name in ("yolo", "yolo-detection"):
            paths.append(f"labels/{stem}.txt")
            paths += [f"labels/{CONFIDENCE_PREFIX}{stem}.txt"] * record_confidence
        elif name == "voc":
            paths.append(f"voc/{stem}.xml")
        elif name == "masks":
            paths.append(f"masks/{stem}.png")
    return paths


def _as_bytes(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("ascii")
