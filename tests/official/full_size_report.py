"""What `full_size` found, as numbers against their limits and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np

from .narrow import Array

# Output -> the deviation from the reference that fp32 may have.
ARRAYS = {
    "text logits": 1e-4,
    "presence logit": 1e-4,
    "text boxes": 1e-4,
    "text mask logits": 1e-3,
    "box mask logits": 1e-4,
    "box IoU": 1e-4,
}
LEAST_MASK_IOU = 0.99

_EXPLANATION = """\
# Does it give Meta's numbers?

One random `sam3.pt` at full size (32 layers, 1008 pixels, the state dict of the official video model) is loaded in four
ways: by Meta's package `sam3` {sam3} as its README shows, which is the reference, in fp32 without TF32; by this
package's engine as it is; by the engine from the folder that `convert --format transformers` makes of it; and by
`backend="sam3"`. All are asked the same of {images} example images: {prompts} text prompts and {boxes} boxes each.

A deviation is the largest difference from the reference over all images, queries and pixels, divided by how far the
reference's values reach from their mean. Masks are those above a threshold that was put, per image and prompt, into the
widest gap between the reference's scores; "same count" is the share of image-prompt pairs with as many masks, and mask
IoU is the smallest over all masks, matched one to one. Masks of boxes are compared in the same way. The reference's
filling of small holes in the masks of boxes is switched off; this package does not fill any.

In bf16 the reference itself is the first row: so far it is from its own fp32. Random weights make it worse than trained
ones would: attention is peaked, scores lie close together, and masks are noise with borders everywhere.

Reproduce it on a GPU with 24 GB: `{command}`. This page is its output on one {device}, torch {torch},
transformers {transformers}.
"""


@dataclass(frozen=True, eq=False)
class Row:
    title: str
    precision: str
    deviations: dict[str, float]
    same_count: float
    text_iou: float
    mean_text_iou: float
    mean_query_iou: float
    box_iou: float
    mean_box_iou: float
    masks: int

    def failures(self) -> list[str]:
        failed = [name for name, value in self.deviations.items() if not value <= ARRAYS[name]]
        if self.same_count < 1:
            failed.append("count")
        if min(self.text_iou, self.box_iou) < LEAST_MASK_IOU:
            failed.append("mask IoU")
        return failed


@dataclass(frozen=True, eq=False)
class Report:
    device: str
    images: int
    prompts: int
    rows: list[Row] = field(default_factory=list)

    def add(self, title: str, precision: str, expected: Sequence[Any], received: Sequence[Any]) -> None:
        pairs = [
            (ours, official)
            for answer, truth in zip(received, expected, strict=True)
            for ours, official in zip(answer.texts, truth.texts, strict=True)
        ]
        texts = np.concatenate([matched_iou(ours, official) for ours, official in pairs])
        boxes = np.concatenate(
            [pixel_iou(answer.boxes, truth.boxes) for answer, truth in zip(received, expected, strict=True)]
        )
        queries = np.concatenate([query_iou(*pair) for pair in zip(received, expected, strict=True)])
        deviations = {
            name: deviation([a.arrays[name] for a in received], [t.arrays[name] for t in expected]) for name in ARRAYS
        }
        same = float(np.mean([len(ours) == len(official) for ours, official in pairs]))
        self.rows.append(
            Row(
                title,
                precision,
                deviations,
                same,
                float(texts.min()),
                float(texts.mean()),
                float(queries.mean()),
                float(boxes.min()),
                float(boxes.mean()),
                len(texts),
            )
        )

    def passed(self) -> bool:
        """Whether every row in fp32 is within the limits."""
        return not any(row.failures() for row in self.rows if row.precision == "fp32")

    def markdown(self) -> str:
        names = {name: metadata.version(name) for name in ("sam3", "torch", "transformers")}
        command = "PYTHONPATH=tests python -m official.full_size --bpe-path bpe_simple_vocab_16e6.txt.gz"
        text = _EXPLANATION.format(
            **names, images=self.images, prompts=self.prompts, boxes=10, device=self.device, command=command
        )
        return f"{text}\n{self._deviations()}\n{self._masks()}"

    def _deviations(self) -> str:
        head = ["deviation", *(f"{name} (≤ {limit:.0e})" for name, limit in ARRAYS.items())]
        rows = [
            [f"{row.title}, {row.precision}", *(f"{row.deviations[name]:.1e}" for name in ARRAYS)] for row in self.rows
        ]
        return _table(head, rows)

    def _masks(self) -> str:
        head = [
            "masks",
            "same count",
            "least text IoU",
            "mean",
            "same queries, mean",
            "least box IoU",
            "mean",
            "text masks",
        ]
        rows = [
            [
                f"{row.title}, {row.precision}",
                f"{row.same_count:.0%}",
                f"{row.text_iou:.4f}",
                f"{row.mean_text_iou:.4f}",
                f"{row.mean_query_iou:.4f}",
                f"{row.box_iou:.4f}",
                f"{row.mean_box_iou:.4f}",
                str(row.masks),
            ]
            for row in self.rows
        ]
        return _table(head, rows)


def deviation(received: Sequence[Array], expected: Sequence[Array]) -> float:
    """The largest difference, relative to how far the expected values reach from their mean."""
    difference = max(float(np.abs(ours - official).max()) for ours, official in zip(received, expected, strict=True))
    mean = float(np.mean([float(official.mean()) for official in expected]))
    return difference / max(float(np.abs(official - mean).max()) for official in expected)


def pixel_iou(received: Array, expected: Array) -> Array:
    """(N,), of masks (N, H, W) at the same places; two empty ones agree."""
    both = (received & expected).sum(axis=(1, 2))
    either = (received | expected).sum(axis=(1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def matched_iou(received: Array, expected: Array) -> Array:
    """(K,), of each expected mask with the one that is matched to it, 0 if there is none."""
    from scipy.optimize import linear_sum_assignment

    if not len(received):
        return np.zeros(len(expected))
    ours, official = (masks.reshape(len(masks), -1).astype(np.float32) for masks in (received, expected))
    both = official @ ours.T
    either = official.sum(axis=1)[:, None] + ours.sum(axis=1)[None] - both
    iou = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    best = np.zeros(len(expected))
    rows, columns = linear_sum_assignment(-iou)
    best[rows] = iou[rows, columns]
    return best


def query_iou(received: Any, expected: Any) -> Array:
    """(K,), of the low-resolution masks of the queries that the reference keeps, whatever they score here."""
    found = []
    for prompt, masks in enumerate(expected.texts):
        best = np.argsort(-expected.arrays["text logits"][prompt])[: len(masks)]
        low = [answer.arrays["text mask logits"][prompt][best] > 0 for answer in (received, expected)]
        found.append(pixel_iou(low[0], low[1]))
    return np.concatenate(found)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
