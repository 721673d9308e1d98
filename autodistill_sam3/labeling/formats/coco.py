"""COCO's JSON: one file for all images of a split, with lossless masks."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from autodistill_sam3.labeling.records import Annotation, ImageRecord

_KEPT_IN_MEMORY = 16 * 2**20


def write_coco(file: IO[str], records: Iterable[ImageRecord], classes: Iterable[str]) -> None:
    """Write a COCO file in one pass over the records, one of them in memory at a time.

    Image and annotation ids count from 1 in the order of the records; category ids are class ids plus 1, since
    COCO tools take 0 for "no category". All objects have `iscrowd` 0, also those of several parts or with holes:
    trainers drop crowds. `segmentation` is empty for models that give no masks; objects of frames of a clip have the
    `track_id` that they have in it.

    Args:
        file: Where to write. Annotations wait in a temporary file without a name, in the folder of this one.
        records: The images.
        classes: Class names; class ids are indices into them.
    """
    categories = [{"id": index, "name": name, "supercategory": "none"} for index, name in enumerate(classes, 1)]
    file.write('{"info":{"description":"autodistill_sam3"},\n"categories":')
    file.write(json.dumps(categories))
    file.write(',\n"images":[')
    annotation_id = 0
    with tempfile.SpooledTemporaryFile(_KEPT_IN_MEMORY, "w+", encoding="utf-8", dir=_folder_of(file)) as annotations:
        for image_id, record in enumerate(records, 1):
            _write_item(file, _image(image_id, record), is_first=image_id == 1)
            for annotation in record["annotations"]:
                annotation_id += 1
                item = _annotation(annotation_id, image_id, annotation)
                _write_item(annotations, item, is_first=annotation_id == 1)
        file.write('],\n"annotations":[')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
    file.write("]}\n")


def _folder_of(file: IO[str]) -> str | None:
    name = getattr(file, "name", None)
    return str(Path(name).parent) if isinstance(name, str | os.PathLike) else None


def _write_item(file: IO[str], item: dict[str, Any], *, is_first: bool) -> None:
    file.write(("\n" if is_first else ",\n") + json.dumps(item, separators=(",", ":")))


def _image(image_id: int, record: ImageRecord) -> dict[str, Any]:
    return {
        "id": image_id,
        "file_name": f"images/{record['file']}",
        "width": record["width"],
        "height": record["height"],
    }


def _annotation(annotation_id: int, image_id: int, annotation: Annotation) -> dict[str, Any]:
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": annotation["class_id"] + 1,
        "bbox": annotation["bbox"],
        "area": annotation["area"],
        "segmentation": annotation["segmentation"] or [],
        "iscrowd": 0,
        "score": annotation["confidence"],
        **annotation["data"],
        **({"track_id": annotation["track_id"]} if "track_id" in annotation else {}),
    }
