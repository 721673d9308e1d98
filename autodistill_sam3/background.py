"""What no object covers, as one more detection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import supervision as sv

from autodistill_sam3.instances import compact_masks, tight_xyxy

BACKGROUND = "background"


@dataclass(frozen=True)
class Background:
    """A class that no model is asked for.

    Attributes:
        name: Of the class.
        class_id: Of the class.
    """

    name: str
    class_id: int

    def added_to(self, found: sv.Detections) -> sv.Detections:
        """The detections of one image, and behind them one of all other pixels, if there are any.

        Its confidence is 1: it is as right as the masks that it leaves over.

        Args:
            found: With compact masks, also if there are none, and with `confidence`, `class_id` and `data` of
                "class_name", "prompt" and "source".

        Example:
            >>> masks = compact_masks([(np.ones((4, 2), bool), 0, 0)], (4, 5))
            >>> data = {"class_name": np.array(["ball"]), "prompt": np.array(["ball"]), "source": np.array(["text"])}
            >>> ball = sv.Detections(
            ...     tight_xyxy(masks), mask=masks, confidence=np.array([0.6]), class_id=np.array([0]), data=data
            ... )
            >>> found = Background("ground", 1).added_to(ball)
            >>> found.xyxy[1].tolist(), found.data["class_name"].tolist()
            ([2.0, 0.0, 5.0, 4.0], ['ball', 'ground'])
        """
        masks = found.mask
        if not isinstance(masks, sv.CompactMask) or found.confidence is None or found.class_id is None:
            raise ValueError("Background needs detections with compact masks, confidence and class_id")
        image_hw = (int(masks.shape[1]), int(masks.shape[2]))
        free = _uncovered(masks, image_hw)
        if not free.any():
            return found
        own = compact_masks([(free, 0, 0)], image_hw)
        words = {"class_name": self.name, "prompt": "", "source": BACKGROUND}
        return sv.Detections(
            xyxy=np.concatenate([found.xyxy, tight_xyxy(own)]),
            mask=masks.merge([masks, own]) if len(masks) else own,
            confidence=np.append(found.confidence, np.ones(1, found.confidence.dtype)),
            class_id=np.append(found.class_id, self.class_id),
            data={key: np.append(found.data[key], word) for key, word in words.items()},
            metadata=found.metadata,
        )


def _uncovered(masks: sv.CompactMask, image_hw: tuple[int, int]) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """(H, W) ``bool``; masks are opened one by one, as all of a large image need not fit into memory."""
    free = np.ones(image_hw, dtype=np.bool_)
    for index, (x, y) in enumerate(masks.offsets.tolist()):
        crop = masks.crop(index)
        free[y : y + crop.shape[0], x : x + crop.shape[1]] &= ~crop
    return free
