"""Small histograms as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from autodistill_sam3.labeling.review.summary import CONFIDENCE_BINS, SIZE_BINS, SMALLEST_SIZE, ClassSummary

WIDTH = 200
HEIGHT = 40
_LOWEST_BAR = 1.5


@dataclass(frozen=True)
class Bar:
    """A bar in a chart's frame, with what it says in words."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Chart:
    """A histogram: bars of the bins that are not empty, ticks as (x, text, SVG text-anchor), and a description."""

    bars: list[Bar]
    ticks: list[tuple[float, str, str]]
    description: str


def confidence_chart(summary: ClassSummary) -> Chart:
    """Confidences of a class from 0 to 1."""
    edges = [index / CONFIDENCE_BINS for index in range(CONFIDENCE_BINS + 1)]
    labels = [f"{low:.2f} to {high:.2f}" for low, high in pairwise(edges)]
    values = summary.confidence_range
    words = f"mean {values.mean:.2f}, lowest {values.lowest:.2f}" if len(values) else "none"
    ticks = [(0.0, "0", "start"), (WIDTH / 2, "0.5", "middle"), (float(WIDTH), "1", "end")]
    return Chart(_bars(summary.confidences.tolist(), labels), ticks, words)


def size_chart(summary: ClassSummary) -> Chart:
    """Object sizes of a class: the side of a square of the same area, each bin twice as large as the one before."""
    edges = [SMALLEST_SIZE * 2**index for index in range(SIZE_BINS - 1)]
    between = [f"{low} to {high} px" for low, high in pairwise(edges)]
    labels = [f"below {edges[0]} px", *between, f"{edges[-1]} px and more"]
    values = summary.size_range
    words = f"{values.lowest:.0f} to {values.highest:.0f} px" if len(values) else "none"
    step = WIDTH / SIZE_BINS
    ticks = [((index + 1) * step, str(edges[index]), "middle") for index in range(0, SIZE_BINS - 1, 2)]
    return Chart(_bars(summary.sizes.tolist(), labels), ticks, words)


def _bars(counts: Sequence[int], labels: Sequence[str]) -> list[Bar]:
    step, most = WIDTH / len(counts), max(1, *counts)
    return [
        Bar(
            x=round(index * step + 0.5, 2),
            y=round(HEIGHT - height, 2),
            width=round(step - 1, 2),
            height=round(height, 2),
            label=f"{label}: {count}",
        )
        for index, (count, label) in enumerate(zip(counts, labels, strict=True))
        if count and (height := max(_LOWEST_BAR, HEIGHT * count / most))
    ]
