"""Pictures and a page to judge labels by."""

from autodistill_sam3.labeling.review.drawing import ReviewSheet, draw_detections, draw_sheet, save_png
from autodistill_sam3.labeling.review.write import write_review

__all__ = ["ReviewSheet", "draw_detections", "draw_sheet", "save_png", "write_review"]
