"""Pascal VOC's XML: one file per image, with boxes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from autodistill_sam3.labeling.records import Annotation, ImageRecord

# What XML 1.0 cannot hold, not even escaped, but names of files can.
_UNWRITABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def voc_xml(record: ImageRecord, classes: Sequence[str], *, segmented: bool) -> bytes:
    """One image as VOC's development kit describes it.

    `bndbox` holds the first and the last pixel that the box covers, counted from 1: a box over the upper left pixel
    alone is 1, 1, 1, 1. Boxes that do not end between pixels are rounded to where they nearly do. `truncated` is 1 for
    boxes that touch the border of the image.

    Args:
        record: The image.
        classes: Class names; class ids are indices into them. Characters that XML cannot hold become U+FFFD.
        segmented: Whether there is a PNG of the classes, too.

    Returns:
        The file's content in UTF-8.
    """
    root = ElementTree.Element("annotation")
    _add(root, "folder", "images")
    _add(root, "filename", record["file"])
    size = ElementTree.SubElement(root, "size")
    for name, value in (("width", record["width"]), ("height", record["height"]), ("depth", 3)):
        _add(size, name, str(value))
    _add(root, "segmented", str(int(segmented)))
    for annotation in record["annotations"]:
        _add_object(root, annotation, classes[annotation["class_id"]], (record["width"], record["height"]))
    ElementTree.indent(root)
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _add(parent: ElementTree.Element, name: str, text: str) -> None:
    ElementTree.SubElement(parent, name).text = _UNWRITABLE.sub("\ufffd", text)


def _add_object(root: ElementTree.Element, annotation: Annotation, name: str, image_wh: tuple[int, int]) -> None:
    (xmin, xmax), (ymin, ymax) = (
        _first_and_last_pixel(annotation["bbox"][axis], annotation["bbox"][axis + 2], image_wh[axis]) for axis in (0, 1)
    )
    element = ElementTree.SubElement(root, "object")
    _add(element, "name", name)
    _add(element, "pose", "Unspecified")
    _add(element, "truncated", str(int(xmin == 1 or ymin == 1 or xmax == image_wh[0] or ymax == image_wh[1])))
    _add(element, "difficult", "0")
    box = ElementTree.SubElement(element, "bndbox")
    for tag, value in (("xmin", xmin), ("ymin", ymin), ("xmax", xmax), ("ymax", ymax)):
        _add(box, tag, str(value))


def _first_and_last_pixel(start: float, length: float, side: int) -> tuple[int, int]:
    first = min(max(round(start), 0), side - 1) + 1
    return first, min(max(round(start + length), first), side)
