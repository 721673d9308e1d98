"""`benchmark.json` -> Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autodistill_sam3.benchmark.ceilings import floor_tflop
from autodistill_sam3.benchmark.settings import (
    BOXES_PER_IMAGE,
    ENGINES,
    FLORENCE2_TOKENS,
    MASKS_PER_IMAGE,
    TITLES,
    Work,
)
from autodistill_sam3.whole_files import replacing

REFERENCE = "sam3-package"
_VISION_TITLES: dict[str, str] = dict(TITLES) | {"ours, compiled": f"{TITLES['ours']}, compiled"}
_EXPLAINED = f"""\
Every engine is given the same JPEG files of 1280 x 960 pixels and the same weights. **sam3 package** and
**transformers** open, decode and segment one picture at a time and bring the masks to the host, without files;
**autodistill loop** runs the first of them and writes YOLO and COCO at its end; **this package** runs `label()` with
its defaults, files in and files out. The confidence is chosen once for each number of classes so that about
{MASKS_PER_IMAGE} masks an image are left; the column says how many came out, with "both" {BOXES_PER_IMAGE} more from
boxes, and in this package after duplicates were merged. Florence-2 generates up to {FLORENCE2_TOKENS} tokens in every
engine; {BOXES_PER_IMAGE} fixed boxes an image then replace its answers. The floor is the arithmetic of the full-size
model (5.61 TFLOP an image, 0.42 a prompt; Florence-2 1.49 an image, 0.26 a prompt) at the measured rate of a large
matrix product; the share says how near a row comes to it."""


def write_markdown(content: dict[str, Any], path: Path) -> None:
    """Write the report of what has been measured so far.

    Args:
        content: As `run_benchmark` returns it.
        path: The file.
    """
    with replacing(path, "w") as file:
        file.write(markdown(content))


def markdown(content: dict[str, Any]) -> str:
    """The report as text."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    parts = [f"# Benchmark\n\n{content['device']}, {content['date'][:10]}. {versions}.\n"]
    if ceilings := content.get("ceilings"):
        parts.append(
            f"Ceilings measured in this run: {ceilings['matmul_tflops']:.0f} TFLOP/s (large matrix product), "
            f"{ceilings['copy_gb_s']:.0f} GB/s (copy, read plus written).\n"
        )
    parts += [_EXPLAINED + "\n", "![Images a second](benchmark.png)\n"]
    parts += ["## Engines\n", _engine_table(content), "## Where this package's time goes\n", _stage_table(content)]
    if content.get("vision"):
        parts += ["## Image encoder and neck alone, ms an image\n", _vision_table(content["vision"])]
    if start := content.get("start"):
        parts.append(_start(start))
    return "\n".join(parts)


def floor_ms(row: dict[str, Any], content: dict[str, Any]) -> float | None:
    """The least time of a row in ms an image, at the measured rate; None where the model is not the full-size one."""
    if not is_full_size(content) or "ceilings" not in content:
        return None
    work = Work(row["classes"], row["prompting"], 0.0)
    rate = float(content["ceilings"]["matmul_tflops"])
    return floor_tflop(work, pairs_asked=row.get("prompts_asked")) / rate * 1000


def is_full_size(content: dict[str, Any]) -> bool:
    """Whether the arithmetic that is counted is that of the model that ran."""
    return bool(content["settings"].get("checkpoint") != "shapes")


def row_of(content: dict[str, Any], engine: str, row: dict[str, Any]) -> dict[str, Any] | None:
    """The same work's row of another engine, if it was measured."""
    found = content["rows"].get(f"{engine}/{row['prompting']}/{row['classes']}")
    return None if found is None or "error" in found else found


def measured_rows(content: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Names and rows in the order of the work, then of the engines; failed ones too."""
    ranks: dict[str, int] = {name: rank for rank, name in enumerate(ENGINES)}

    def order(item: tuple[str, dict[str, Any]]) -> tuple[object, ...]:
        engine, prompting, classes, *gate = item[0].split("/")
        return prompting != "text", int(classes), ranks[engine], gate

    return sorted(content["rows"].items(), key=order)


def _engine_table(content: dict[str, Any]) -> str:
    lines = []
    for name, row in measured_rows(content):
        engine, prompting, classes, *gate = name.split("/")
        title = TITLES[engine] + (", presence gate" if gate else "")
        start = [prompting, classes, title]
        if "error" in row:
            lines.append([*start, "not measured: " + _cell(row["error"]), *[""] * 8])
            continue
        floor = floor_ms(row, content)
        lines.append([
            *start, f"{row['ms_per_image']:.1f}", f"{row['images_per_s']:.2f}",
            _times(content, REFERENCE, row), _times(content, "autodistill-loop", row),
            f"{floor:.1f} ms, {floor / row['ms_per_image']:.0%}" if floor else "",
            f"{row['masks_per_image']:.0f}", str(row["images"]),
            _number(row.get("gpu_reserved_gb")), _number(row.get("host_gb")),
        ])  # fmt: skip
    head = ["prompting", "classes", "engine", "ms/image", "images/s", "x sam3 package", "x autodistill loop",
            "floor, share", "masks", "images", "GPU GB", "host GB"]  # fmt: skip
    return table(head, lines)


def _times(content: dict[str, Any], engine: str, row: dict[str, Any]) -> str:
    other = row_of(content, engine, row)
    return f"{other['ms_per_image'] / row['ms_per_image']:.1f}" if other else ""


def _stage_table(content: dict[str, Any]) -> str:
    rows = [(name, row) for name, row in measured_rows(content) if row.get("stages_ms")]
    if not rows:
        return "Not measured.\n"
    stages = list(dict.fromkeys(stage for _, row in rows for stage in row["stages_ms"]))
    lines = [
        [
            name.partition("/")[2],
            f"{row['ms_per_image']:.1f}",
            _number(row.get("steady_ms_per_image")),
            *(_number(row["stages_ms"].get(stage)) for stage in stages),
            "" if row.get("gpu_idle_share") is None else f"{row['gpu_idle_share']:.0%}",
        ]
        for name, row in rows
    ]
    text = (
        "ms an image; steady: without the start of a run. Stages overlap, and those of several threads count each.\n\n"
    )
    return text + table(["row", "wall", "steady", *stages, "GPU idle"], lines)


def _vision_table(results: Sequence[dict[str, Any]]) -> str:
    batches = sorted({result["batch"] for result in results})
    kinds = list(dict.fromkeys((result["precision"], result["engine"]) for result in results))
    lines = []
    for precision, engine in kinds:
        cells = {r["batch"]: r for r in results if (r["precision"], r["engine"]) == (precision, engine)}
        lines.append([precision, _VISION_TITLES[engine], *(_vision_cell(cells.get(batch)) for batch in batches)])
    text = (
        "transformers is eager and given pixels on the GPU. This package is given pictures in the host's memory; in "
        "brackets, without their transfer and resizing.\n\n"
    )
    return text + table(["precision", "engine", *(f"batch {batch}" for batch in batches)], lines)


def _vision_cell(result: dict[str, Any] | None) -> str:
    if result is None or "error" in result:
        return "" if result is None else "out of memory"
    vit = result.get("vit_ms_per_image")
    return f"{result['ms_per_image']:.1f}" + (f" ({vit:.1f})" if vit else "")


def _start(start: dict[str, Any]) -> str:
    if start["first_image_s"] is None:
        return "No image was finished in the time that the start is given.\n"
    return (
        f"From the start of the process to the first finished image of a long job ({start['prompting']}, "
        f"{start['classes']} classes, compile caches as the rows above left them): {start['first_image_s']:.1f} s, of "
        f"which {start['loaded_s']:.1f} s to have the model loaded.\n"
    )


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    Example:
        >>> print(table(["a", "b"], [["1", "2"]]), end="")
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "/")[:200]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
