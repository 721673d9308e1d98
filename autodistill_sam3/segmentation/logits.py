"""Masks as the model says them, for those who go on computing with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, eq=False)
class MaskLogits:
    """Instances found in one image.

    Attributes:
        logits: (K, 4g, 4g) ``float32``, each covering the whole image, on the model's device.
        scores: (K,) ``float32`` in 0..1.
        prompt_index: (K,) ``int64``, which prompt each answers.
    """

    logits: torch.Tensor
    scores: npt.NDArray[np.float32]
    prompt_index: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls, side: int, device: torch.device) -> MaskLogits:
        """Nothing, as masks of this side."""
        return cls(torch.zeros(0, side, side, device=device), np.zeros(0, np.float32), np.zeros(0, np.int64))

    @classmethod
    def join(cls, parts: Sequence[MaskLogits]) -> MaskLogits:
        """What several hold, in their order; at least one."""
        return cls(
            torch.cat([part.logits for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.prompt_index for part in parts]),
        )

    def select(self, index: npt.NDArray[np.int64]) -> MaskLogits:
        """Those at these positions."""
        at = torch.from_numpy(index).to(self.logits.device)
        return MaskLogits(self.logits[at], self.scores[index], self.prompt_index[index])
