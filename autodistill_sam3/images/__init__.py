"""Anything that is an image -> RGB uint8 (H, W, 3), upright.

The only part that knows of BGR, EXIF orientation, alpha, palettes, CMYK and 16 bit.
"""

from autodistill_sam3.images.loading import (
    IMAGE_SUFFIXES,
    ImageInput,
    has_image_suffix,
    is_plain_rgb_file,
    load_image,
)
from autodistill_sam3.images.pixels import MAX_SIDE, RGBImage

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_SIDE",
    "ImageInput",
    "RGBImage",
    "has_image_suffix",
    "is_plain_rgb_file",
    "load_image",
]
