"""What `video_full_size` measured, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any

Row = dict[str, Any]

# Frames of the compared clip whose numbers are put together.
SPANS = {"first": range(1), "second": range(1, 2), "3-5": range(2, 5), "6-9": range(5, 9)}
_DEVIATIONS = {
    "scores": "scores",
    "detected": "mask logits",
    **{f"tracked {name}": f"tracked, {name}" for name in SPANS},
}

_EXPLANATION = """\
# Video: Meta's numbers, and how fast

One random `sam3.pt` at full size is run by Meta's predictor of the package `sam3` {sam3}, by transformers'
`Sam3VideoModel` and by this package, on a drawn clip. So that all track the same number of objects, those detections of
the first frame that score highest become objects, none begins later, and the rules that remove objects, suppress
duplicate detections and fill holes are off everywhere.

The reference of the first table is Meta's predictor in fp32 without TF32, given the frames unrounded. A deviation is a
largest difference from it, divided by how far its values reach from their mean: of the 200 queries' mask logits in the
first frame ("mask logits"), and of the tracker's logits of all objects in later frames; scores are compared as they
are. Objects are matched in the first frame, with what the reference answers to the prompt, and "IoU" is the mean (and
the least) over the frames' masks under these ids; "-" is what a way does not let be seen. {why}

Frames a second are of the whole clip with all classes, from its frames in memory to masks on the CPU, after a warm-up;
Meta's predictor runs the clip once per class, as it must, with its share of the objects, rounded up.

Output of one {device}, torch {torch}, transformers {transformers}.
"""
_WHY = """\
Of new objects of a frame, Meta's
predictor remembers each pixel of the last one that claims it, which random weights' masks, lying on each other, make
much of; the engine and transformers remember whole masks (the row "without overlap" does as Meta's predictor). It says
the prompted frame of a run again, from that memory, goes over its memory twice, and lets go of a pointer earlier.
transformers' model leaves out a token of the detector (the row "with the token" has it), makes an object's first mask
of logits above 0.5 at low resolution instead of 0 at four times that, and takes its pointer from another token. So
later frames differ."""


def markdown(rows: Sequence[Row], device: str) -> str:
    names = {name: metadata.version(name) for name in ("sam3", "torch", "transformers")}
    text = _EXPLANATION.format(**names, device=device, why=_WHY)
    return f"{text}\n{_compared(rows)}\n{_speeds(rows)}"


def _compared(rows: Sequence[Row]) -> str:
    head = ["compared", *_DEVIATIONS.values(), "objects", "same", *(f"IoU, {name}" for name in SPANS)]
    lines = []
    for row in rows:
        kind, _, title = row["key"].partition("|")
        if kind == "compare":
            values = [f"{row[name]:.1e}" if name in row else "-" for name in _DEVIATIONS]
            counts = [str(row["objects"]), f"{row['matched']} of {row['expected']}"]
            overlap = [
                f"{row[f'IoU {name}']:.4f} ({row[f'least IoU {name}']:.4f})" if f"IoU {name}" in row else "-"
                for name in SPANS
            ]
            lines.append([title, *values, *counts, *overlap])
    return _table(head, lines)


def _speeds(rows: Sequence[Row]) -> str:
    measured = {tuple(row["key"].split("|", 1)): row for row in rows if row["key"].startswith("speed")}
    titles = list(dict.fromkeys(title for _, title in measured))
    grid = list(dict.fromkeys(case for case, _ in measured))
    lines = []
    for case in grid:
        _, classes, objects = case.split()
        cells = [_speed(measured.get((case, title))) for title in titles]
        lines.append([classes, objects, *cells])
    return _table(["classes", "objects", *(f"{title}: frames/s (tracked, GB)" for title in titles)], lines)


def _speed(row: Row | None) -> str:
    return "-" if row is None else f"{row['fps']:.2f} ({row['objects']}, {row['GB']:.1f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
