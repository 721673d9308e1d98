"""Text prompts -> what is looked for in frames, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from autodistill_sam3.grounding import Grounder
from autodistill_sam3.images import RGBImage
from autodistill_sam3.instances import Boxes
from autodistill_sam3.ontology import PromptTable
from autodistill_sam3.thresholds import Thresholds
from autodistill_sam3.video.detections import Detecting

# Of a class's threshold, in frames in which nothing reaches it.
RETRY_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class Lookout:
    """How prompts are looked for: those of an ontology as it says, any other as a class of its own.

    Attributes:
        table: The ontology.
        thresholds: By its classes.
        use_text: Whether SAM 3 looks for the prompts itself.
        grounder: What proposes boxes; None for text alone.
        key_frames: Frames from one to the next for which boxes are asked.
        is_retried: Whether frames in which nothing is seen are looked at once more.
    """

    table: PromptTable
    thresholds: Thresholds
    use_text: bool
    grounder: Grounder | None
    key_frames: int
    is_retried: bool

    def __call__(self, prompts: Sequence[str]) -> Detecting:
        known = dict(zip(self.table.prompts, self.table.class_of_prompt, strict=True))
        classes = self.table.classes
        class_of_prompt = [known.get(prompt, len(classes) + place) for place, prompt in enumerate(prompts)]
        names = [classes[known[prompt]] if prompt in known else prompt for prompt in prompts]
        floors = tuple(self.thresholds.for_text(name) for name in names)
        propose = None
        if self.grounder is not None:
            minima = np.array([self.thresholds.for_boxes(name) for name in names], dtype=np.float32)
            propose = partial(_propose, self.grounder, tuple(prompts), minima)
        return Detecting(
            prompts=tuple(prompts),
            class_of_prompt=tuple(class_of_prompt),
            min_scores=floors,
            retry_scores=tuple(RETRY_SHARE * floor for floor in floors) if self.is_retried else None,
            use_text=self.use_text,
            propose=propose,
            propose_every=self.key_frames,
        )


def _propose(
    grounder: Grounder, prompts: Sequence[str], minima: npt.NDArray[np.float32], images: Sequence[RGBImage]
) -> list[Boxes]:
    """Boxes that are worth a mask."""
    found = grounder.ground(images, prompts)
    return [boxes.select(boxes.scores >= minima[boxes.prompt_index]) for boxes in found]
