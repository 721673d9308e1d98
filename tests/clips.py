"""Small clips of drawn shapes, with what is in them, for tests of tracking."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

HEIGHT, WIDTH = 72, 96
RED, BLUE, GRAY = (220, 30, 30), (30, 60, 220), (128, 128, 128)


def red_circle(index):
    """x0, y0, x1, y1 in pixels."""
    x = 12 + 2 * index
    return x, 20, x + 28, 48


def blue_square(index):
    y = 40 - index
    return 62, y, 84, y + 22


def draw(index):
    """(72, 96, 3) RGB: a red circle that goes right and a blue square that goes up."""
    image = Image.new("RGB", (WIDTH, HEIGHT), GRAY)
    pen = ImageDraw.Draw(image)
    pen.ellipse(red_circle(index), fill=RED)
    pen.rectangle(blue_square(index), fill=BLUE)
    return np.array(image)


def bgr_frames(count):
    """As this package takes arrays."""
    return [draw(index)[..., ::-1].copy() for index in range(count)]


def mask_of(place, index):
    """(72, 96) ``bool``, what `red_circle` or `blue_square` covers in a frame."""
    image = Image.new("1", (WIDTH, HEIGHT))
    pen = ImageDraw.Draw(image)
    (pen.ellipse if place is red_circle else pen.rectangle)(place(index), fill=1)
    return np.array(image, dtype=bool)


def iou(first, second):
    return (first & second).sum() / max((first | second).sum(), 1)


def write_mp4(path, count):
    from autodistill_sam3.video.writing import VideoWriter

    with VideoWriter(path, 25, (HEIGHT, WIDTH)) as writer:
        for index in range(count):
            writer.write(draw(index))
    return path
