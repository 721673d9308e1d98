"""`benchmark.json` -> a picture of bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autodistill_sam3.benchmark.report import floor_ms, measured_rows
from autodistill_sam3.benchmark.settings import ENGINES, TITLES

_COLOURS = {"sam3-package": "#9aa5b1", "transformers": "#c3ccd6", "autodistill-loop": "#6b7785", "ours": "#2f6fde"}
_WIDTH = 0.2


def write_plot(content: dict[str, Any], path: Path) -> None:
    """Draw images a second of each engine for each kind of work, and the floor, on a logarithmic scale.

    Args:
        content: As `run_benchmark` returns it.
        path: The PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [(name.split("/"), row) for name, row in measured_rows(content) if "error" not in row]
    rows = [(parts, row) for parts, row in rows if len(parts) == 3]
    groups = list(dict.fromkeys((parts[1], int(parts[2])) for parts, _ in rows))
    if not groups:
        return
    figure = Figure(figsize=(max(7.0, 1.7 * len(groups)), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, engine in enumerate(ENGINES):
        own = [((parts[1], int(parts[2])), row) for parts, row in rows if parts[0] == engine]
        positions = [groups.index(group) + (index - 1.5) * _WIDTH for group, _ in own]
        if not own:
            continue
        bars = axes.bar(
            positions,
            [row["images_per_s"] for _, row in own],
            _WIDTH * 0.95,
            color=_COLOURS[engine],
            label=TITLES[engine],
        )
        axes.bar_label(bars, [_short(row["images_per_s"]) for _, row in own], fontsize=7, padding=1)
    _draw_floor(axes, groups, rows, content)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.margins(y=0.15)
    axes.set_xticks(
        range(len(groups)), [f"{prompting}\n{count} class{'es' * (count > 1)}" for prompting, count in groups]
    )
    axes.set_ylabel("images a second")
    axes.set_title(f"Labelling 1280 x 960 pictures on {content['device']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.savefig(path, dpi=150)


def _draw_floor(axes: Any, groups: list[tuple[str, int]], rows: list[Any], content: dict[str, Any]) -> None:
    is_first = True
    for index, group in enumerate(groups):
        row = next(row for parts, row in rows if (parts[1], int(parts[2])) == group)
        # A gate's row would have another floor, and is not drawn.
        floor = floor_ms({**row, "prompts_asked": None}, content)
        if floor is not None:
            label = "arithmetic at the matrix product's rate" if is_first else None
            axes.hlines(1000 / floor, index - 0.42, index + 0.42, color="#c2410c", linestyle="--", lw=1.2, label=label)
            is_first = False


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
