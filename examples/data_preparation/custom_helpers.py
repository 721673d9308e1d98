"""The two calls of the older pipeline, on this package."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from autodistill_sam3.base_models.stand_in import stand_in_for_grounded_sam2
from autodistill_sam3.errors import AutodistillSAM3Error
from autodistill_sam3.segmentation import Segmenter, load_segmenter
from autodistill_sam3.weights import SAM3, find_checkpoint

MODELS = Path("models")


def load_sam3_local(models: str | Path = MODELS, device: str | None = None) -> Segmenter[Any]:
    """SAM 3 from a local folder: nothing is downloaded.

    Args:
        models: A models root, a SAM 3 folder or file, or "shapes".
        device: Such as "cuda:1"; by default the best there is.

    Returns:
        Encodes images and segments them by text or boxes; see `autodistill_sam3.segmentation.Segmenter`.
    """
    return load_segmenter(find_checkpoint(SAM3, models), device=device)


def patch_grounded_sam2() -> bool:
    """Let code that imports GroundedSAM2 run on GroundedSAM3; where that is not possible, warn with the cure.

    Returns:
        Whether it was possible.
    """
    try:
        stand_in_for_grounded_sam2()
    except AutodistillSAM3Error as error:
        warnings.warn(f"GroundedSAM2 is not replaced: {error}", stacklevel=2)
        return False
    return True
