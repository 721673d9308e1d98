"""The calibration as a picture."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from autodistill_sam3.evaluation.calibration import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED, _GRID = "#1f2933", "#6b7785", "#dde3e9"
_BAR, _POINT, _COUNT = "#cfe0f1", "#1f5f9e", "#aebccb"
_WIDTH = 0.1
_CONFIDENCE_Z = 1.96


def calibration_png(calibration: Calibration) -> bytes:
    """A PNG: share right against confidence, with 95 % intervals, above the number of detections."""
    # Not pyplot, whose figures and back end belong to the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.4), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw_shares(upper, calibration)
    _draw_counts(lower, calibration)
    for axes in (upper, lower):
        _style(axes)
    figure.align_ylabels([upper, lower])
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def wilson_interval(right: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share seen in so many cases (Wilson 1927).

    Example:
        >>> low, high = wilson_interval(0.5, 100)
        >>> round(low, 3), round(high, 3)
        (0.404, 0.596)
    """
    square = _CONFIDENCE_Z**2
    centre = (right + square / (2 * count)) / (1 + square / count)
    half = _CONFIDENCE_Z / (1 + square / count) * math.sqrt(right * (1 - right) / count + square / (4 * count**2))
    # With all or none right, rounding may leave the share itself outside.
    return min(max(centre - half, 0.0), right), max(min(centre + half, 1.0), right)


def _draw_shares(axes: Axes, calibration: Calibration) -> None:
    filled = [item for item in calibration.bins if item.count]
    confidence, right = [item.mean_confidence for item in filled], [item.right for item in filled]
    axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (5, 4)), zorder=2.5)
    label: dict[str, Any] = {
        "rotation": 45,
        "rotation_mode": "anchor",
        "transform_rotates_text": True,
        "backgroundcolor": "white",
    }
    axes.text(0.05, 0.09, "as often right as confident", color=_MUTED, fontsize=9, zorder=0.9, **label)
    centres = [(item.low + item.high) / 2 for item in filled]
    axes.bar(centres, right, width=0.92 * _WIDTH, color=_BAR, zorder=2)
    intervals = [wilson_interval(item.right, item.count) for item in filled]
    errors = [
        [share - low for share, (low, _) in zip(right, intervals, strict=True)],
        [high - share for share, (_, high) in zip(right, intervals, strict=True)],
    ]
    axes.errorbar(
        confidence,
        right,
        yerr=errors,
        fmt="o",
        color=_POINT,
        markersize=5,
        capsize=3,
        linewidth=1.4,
        zorder=3,
        clip_on=False,
    )
    axes.set_ylim(0, 1)
    axes.set_ylabel("share that is right")
    error = calibration.expected_error
    said = "nothing found" if math.isnan(error) else f"expected calibration error {error:.3f}"
    axes.set_title(f"How often a confidence is right: {said}", loc="left", color=_INK, fontsize=12, pad=24)
    note = "dots at the mean confidence of each range, lines for the 95 % interval"
    axes.text(0, 1.04, note, color=_MUTED, fontsize=9, transform=axes.transAxes)


def _draw_counts(axes: Axes, calibration: Calibration) -> None:
    from matplotlib.ticker import MaxNLocator

    counts = [item.count for item in calibration.bins]
    centres = [(item.low + item.high) / 2 for item in calibration.bins]
    bars = axes.bar(centres, counts, width=0.92 * _WIDTH, color=_COUNT)
    labels = [str(count) if count else "" for count in counts]
    axes.bar_label(bars, labels, color=_MUTED, fontsize=8, padding=2)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.2 * max(*counts, 1))
    axes.set_xticks([tick / 10 for tick in range(0, 11, 2)])
    axes.set_xlabel("confidence")
    axes.set_ylabel("objects found")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))


def _style(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.tick_params(colors=_MUTED, length=0, labelsize=9, pad=5)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(_MUTED)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(_INK)
