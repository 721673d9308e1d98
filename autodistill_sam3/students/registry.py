"""Students by name: this package's own, and the target models of autodistill that are installed."""

from __future__ import annotations

import difflib
import re

from autodistill_sam3.errors import SettingError
from autodistill_sam3.students.plugins import Plugin, find_plugin
from autodistill_sam3.students.student import Student

# One of each family, and what it is.
STUDENTS = {
    "rf-detr-seg-nano": "RF-DETR Seg, also -small, -medium, -large, ... (Apache-2.0; the extra rfdetr)",
    "yolo11n-seg": "ultralytics, its models whose names end in -seg (AGPL-3.0; the extra ultralytics)",
    "mask-rcnn": "Mask R-CNN on MobileNetV3 by torchvision (BSD-3-Clause; no extra)",
}
_YOLO = re.compile(r"yolo(v?\d+)[a-z]+-seg(-p6)?")
_RF_DETR = re.compile(r"rf-detr-seg-(nano|small|medium|large|xlarge|2xlarge)")


def find_student(name: str) -> type[Student]:
    """The class of a student, to be given its name, `weights` and `device`.

    Args:
        name: One of `STUDENTS` or their like, or of an installed target model, such as "yolov8" for the package
            `autodistill_yolov8`.

    Raises:
        SettingError: There is none of that name; the message says which there are.

    Example:
        >>> find_student("mask-rcnn").__name__
        'MaskRCNNStudent'
    """
    if name == "mask-rcnn":
        from autodistill_sam3.students.mask_rcnn import MaskRCNNStudent

        return MaskRCNNStudent
    if _YOLO.fullmatch(name):
        from autodistill_sam3.students.ultralytics_student import UltralyticsStudent

        return UltralyticsStudent
    if _RF_DETR.fullmatch(name):
        from autodistill_sam3.students.rf_detr import RFDETRStudent

        return RFDETRStudent
    if find_plugin(name) is not None:
        return Plugin
    near = difflib.get_close_matches(name.lower(), STUDENTS, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise SettingError(
        f"Expected a student such as {', '.join(STUDENTS)}, or the name of an installed target model of autodistill "
        f"(`pip install autodistill-NAME`), received {name!r}.{guess}"
    )
