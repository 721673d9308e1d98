"""`GroundedSAM3` where older scripts look for the plugin autodistill-grounded-sam-2."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from autodistill_sam3.base_models.grounded_sam3 import GroundedSAM3
from autodistill_sam3.errors import SettingError
from autodistill_sam3.weights import FLORENCE2, SAM3, find_checkpoint
from autodistill_sam3.weights.places import florence2_argument

_OLDER = "autodistill_grounded_sam_2"
_CLASS = "GroundedSAM2"


def stand_in_for_grounded_sam2(checkpoint: str | Path | None = None) -> None:
    """From now on, `from autodistill_grounded_sam_2 import GroundedSAM2` gives `GroundedSAM3`.

    The older plugin need not be installed, and is not imported: its import clones code and downloads weights. Older
    scripts give no checkpoint, so that there has to be one in the usual places.

    Args:
        checkpoint: Where to make sure that there are checkpoints; by default the usual places, where they are found.

    Raises:
        CheckpointNotFoundError: There are none: older scripts would fail at their first model.
        SettingError: The older plugin is imported already: what others have of it cannot be replaced.

    Example:
        >>> stand_in_for_grounded_sam2("shapes")
        >>> from autodistill_grounded_sam_2 import GroundedSAM2
        >>> GroundedSAM2.__name__
        'GroundedSAM3'
    """
    find_checkpoint(SAM3, checkpoint)
    find_checkpoint(FLORENCE2, florence2_argument(checkpoint, None))
    known = sys.modules.get(_OLDER)
    if known is not None and getattr(known, _CLASS, None) is not GroundedSAM3:
        raise SettingError(
            f"Expected {_OLDER} not to be imported yet, received a program that has imported it. Call this first, or "
            f"write `from autodistill_sam3 import GroundedSAM3 as {_CLASS}`."
        )
    module = ModuleType(_OLDER, "Stands in for the plugin of this name.")
    # For those who look whether a package is there.
    module.__spec__ = ModuleSpec(_OLDER, None)
    setattr(module, _CLASS, GroundedSAM3)
    sys.modules[_OLDER] = module
