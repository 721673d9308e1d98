"""What a grounding model offers the rest of the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from autodistill_sam3.images import RGBImage
from autodistill_sam3.instances import Boxes


class Grounder(Protocol):
    """Proposes boxes for prompts. Works on batches, also of one, and keeps no results."""

    def ground(
        self,
        images: Sequence[RGBImage],
        prompts: Sequence[str],
        wanted: Sequence[Sequence[int]] | None = None,
    ) -> list[Boxes]:
        """Boxes for every prompt in every image.

        Args:
            images: RGB ``uint8`` (H, W, 3) of any sizes.
            prompts: What to look for; `Boxes.prompt_index` counts in this list.
            wanted: Per image, the indices of the prompts to ask for; None asks for all of them.
        """
        ...

    def release(self) -> None:
        """Let go of memory that is kept between calls; the next one takes it again."""
        ...
