"""PNG of the classes: one gray image per image, as tools for semantic segmentation read it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from autodistill_sam3.errors import SettingError
from autodistill_sam3.labeling.records import ImageRecord
from autodistill_sam3.rle import rle_to_crop

# 255 often stands for "ignore".
_MAX_CLASSES_OF_8_BITS = 254


def class_png(record: ImageRecord, classes: int) -> bytes:
    """Each pixel's class id plus 1, and 0 for background, as a PNG of one channel.

    Where objects overlap, the most confident one is seen, and of equally confident ones the first. There are 8 bits
    per pixel, or 16 if there are more than 254 classes.

    Args:
        record: The image.
        classes: The number of classes.

    Raises:
        SettingError: An object has no mask.
    """
    dtype = np.uint8 if classes <= _MAX_CLASSES_OF_8_BITS else np.uint16
    canvas = np.zeros((record["height"], record["width"]), dtype=dtype)
    annotations = record["annotations"]
    for index in sorted(range(len(annotations)), key=lambda index: (annotations[index]["confidence"], -index)):
        annotation = annotations[index]
        if annotation["segmentation"] is None:
            raise SettingError(
                "Expected objects with masks for the format 'masks', received boxes alone. "
                "Leave it out of formats for a model that gives no masks."
            )
        x, y, width, height = (int(value) for value in annotation["bbox"])
        crop = rle_to_crop(annotation["segmentation"], (x, y, width, height))
        canvas[y : y + height, x : x + width][crop] = annotation["class_id"] + 1
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, format="PNG")
    return buffer.getvalue()
