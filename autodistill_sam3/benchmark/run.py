"""A whole benchmark: pictures and checkpoints, one process for each engine, and results on disk as they come."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

from autodistill_sam3.benchmark.pictures import draw_pictures
from autodistill_sam3.benchmark.plot import write_plot
from autodistill_sam3.benchmark.report import write_markdown
from autodistill_sam3.benchmark.settings import ENGINES, EngineName, Settings, Work, row_name
from autodistill_sam3.errors import LabelingError, SettingError
from autodistill_sam3.whole_files import replacing

RESULTS, REPORT, PLOT = "benchmark.json", "benchmark.md", "benchmark.png"
# In this order, so that what matters most is there first if the time ends.
_ENGINE_ORDER: tuple[EngineName, ...] = ("ours", "sam3-package", "autodistill-loop", "transformers")
OTHER_TASKS = ("prepare", "vision", "start")
_PACKAGES = ("autodistill-grounded-sam3", "sam3", "transformers", "torch", "torchvision", "autodistill", "supervision")
_GATED_CLASSES = 5

# What all rows of one file have in common; a row says itself how many pictures it was given.
_SAME = ("sam3_file", "sam3_folder", "checkpoint", "florence2", "bpe_path", "device")

Echo = Callable[[str], None]


def run_benchmark(
    settings: Settings,
    *,
    rows: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    overwrite: bool = False,
    echo: Echo = print,
) -> dict[str, Any]:
    """Measure what is not measured yet, and write `benchmark.json`, `benchmark.md` and `benchmark.png`.

    Each engine runs in a process of its own, so that none shares memory with another. A result is written as soon as it
    is there: a run that was stopped goes on.

    Args:
        settings: What to measure.
        rows: Names of rows, `engine/prompting/classes`, or "vision" or "start"; `*` stands for anything.
        skip: Engines to leave out.
        overwrite: Measure again what an earlier run has measured.
        echo: Told of every result.

    Returns:
        What `benchmark.json` holds.

    Raises:
        SettingError: No row has such a name, or the output holds a benchmark of something else.
        LabelingError: The preparation failed.
    """
    settings = replace(settings, output=settings.output.absolute())
    settings.output.mkdir(parents=True, exist_ok=True)
    results = _Results(settings)
    tasks = _wanted(settings, rows, skip)
    draw_pictures(settings.pictures, max(settings.images, settings.reference_images, settings.warmup_images))
    if not results.is_calibrated(settings):
        error = _run(settings, "prepare", [], results, echo)
        if not results.is_calibrated(settings):
            raise LabelingError(f"The benchmark cannot be prepared: {error}")
    for task, works in tasks.items():
        left = [work for work in _with_thresholds(works, results.content) if overwrite or not results.has(task, work)]
        if not left and (works or (task in results.content["finished"] and not overwrite)):
            continue
        error = _run(settings, task, left or _start_works(settings, task, results.content), results, echo)
        results.finish(task, left, error)
        _write_report(settings, results.content)
    _write_report(settings, results.content)
    return results.content


def all_works(settings: Settings) -> list[Work]:
    """The rows of every engine, without thresholds; the gate's are this package's alone."""
    return [Work(classes, prompting, 0.0) for prompting in settings.prompting for classes in settings.classes]


def _wanted(settings: Settings, rows: Sequence[str], skip: Sequence[str]) -> dict[str, list[Work]]:
    """The works of each engine that is wanted, and the other tasks with none."""
    if unknown := set(skip) - set(ENGINES):
        raise SettingError(f"Expected engines to skip of {ENGINES}, received {sorted(unknown)}")
    tasks: dict[str, list[Work]] = {}
    for engine in _ENGINE_ORDER:
        works = all_works(settings) + (_gate_works(settings) if engine == "ours" else [])
        chosen = [work for work in works if any(fnmatch(row_name(engine, work), pattern) for pattern in rows)]
        if chosen and engine not in skip:
            tasks[engine] = chosen
    for task in OTHER_TASKS[1:]:
        if any(fnmatch(task, pattern) for pattern in rows):
            tasks[task] = []
    if not tasks and "prepare" not in rows:
        names = [row_name(engine, work) for engine in _ENGINE_ORDER for work in all_works(settings)]
        raise SettingError(f"Expected rows of {[*names, *OTHER_TASKS]}, received {list(rows)}")
    return tasks


def _gate_works(settings: Settings) -> list[Work]:
    if "both" not in settings.prompting or _GATED_CLASSES not in settings.classes:
        return []
    return [Work(_GATED_CLASSES, "both", 0.0, presence_gate=0.0)]


def _with_thresholds(works: Sequence[Work], content: dict[str, Any]) -> list[Work]:
    found = content["calibration"]
    return [
        replace(
            work,
            threshold=found["confidence"][str(work.classes)],
            presence_gate=None if work.presence_gate is None else found["presence_gate"],
        )
        for work in works
    ]


def _start_works(settings: Settings, task: str, content: dict[str, Any]) -> list[Work]:
    """The time to the first image is measured with text, and the number of classes in the middle."""
    if task != "start":
        return []
    works = [work for work in all_works(settings) if work.prompting == settings.prompting[0]]
    return _with_thresholds([works[len(works) // 2]], content)


class _Results:
    """`benchmark.json`, written anew after every result."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.output / RESULTS
        described = {name: value for name, value in settings.as_json().items() if name != "output"}
        self.content: dict[str, Any] = {"settings": described, "rows": {}, "finished": []}
        if self._path.exists():
            earlier = json.loads(self._path.read_text(encoding="utf-8"))
            if any(earlier["settings"][name] != described[name] for name in _SAME):
                raise SettingError(
                    f"Expected the settings of {self._path}, received others. Choose another --output, or delete it."
                )
            self.content = earlier
        now = datetime.datetime.now(datetime.UTC)
        self.content |= {"date": now.isoformat(timespec="seconds"), **_machine(settings)}

    def has(self, task: str, work: Work) -> bool:
        """Whether a row was measured, and did not fail."""
        row = self.content["rows"].get(row_name(task, work))
        return row is not None and "error" not in row

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Keep a result."""
        if name == "vision":
            self.content.setdefault("vision", []).append(result)
        elif name in ("ceilings", "calibration", "start"):
            self.content[name] = result
        else:
            self.content["rows"][name] = result
        self.write()

    def forget_vision(self) -> None:
        """Before it is measured again."""
        self.content.pop("vision", None)

    def is_calibrated(self, settings: Settings) -> bool:
        """Whether there is a confidence for every number of classes."""
        found = self.content.get("calibration", {}).get("confidence", {})
        return all(str(classes) in found for classes in settings.classes)

    def finish(self, task: str, works: Sequence[Work], error: str | None) -> None:
        """A process ended: say of the rows that it owes why they are missing."""
        if error is None and task not in self.content["finished"]:
            self.content["finished"].append(task)
        for work in works:
            name = row_name(task, work)
            if name not in self.content["rows"]:
                self.content["rows"][name] = {"error": error or "its process ended without a result"}
        self.write()

    def write(self) -> None:
        """Write the file whole."""
        with replacing(self._path, "w") as file:
            json.dump(self.content, file, indent=2)
            file.write("\n")


def _run(settings: Settings, task: str, works: Sequence[Work], results: _Results, echo: Echo) -> str | None:
    """Run one task in a process; what went wrong, or None."""
    if task == "vision":
        results.forget_vision()
    asked = {
        "task": task, "settings": settings.as_json(), "works": [asdict(work) for work in works], "started": time.time(),
    }  # fmt: skip
    log = settings.output / f"{task}.log"
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as errors, subprocess.Popen(
        [sys.executable, "-m", "autodistill_sam3.benchmark"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(asked))
        process.stdin.close()
        for line in process.stdout:
            name, result = json.loads(line)
            results.add(name, result)
            echo(f"{name}: {_in_short(result)}")
    echo(f"({task} took {time.perf_counter() - start:.0f} s)")
    return None if process.returncode == 0 else _last_line(log, process.returncode)


def _last_line(log: Path, status: int) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'no message'} (status {status}; see {log.name})"


def _in_short(result: dict[str, Any]) -> str:
    if "error" in result:
        return str(result["error"])
    shown = ("engine", "precision", "batch", "ms_per_image", "vit_ms_per_image", "images", "masks_per_image",
             "matmul_tflops", "copy_gb_s", "confidence", "presence_gate", "loaded_s", "first_image_s")  # fmt: skip
    values = [(name, result[name]) for name in shown if result.get(name) is not None]
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values)


def _machine(settings: Settings) -> dict[str, Any]:
    import torch

    from autodistill_sam3.devices import select_device

    device = select_device(settings.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"device": name, "device_type": device.type, "versions": versions}


def _write_report(settings: Settings, content: dict[str, Any]) -> None:
    write_markdown(content, settings.output / REPORT)
    write_plot(content, settings.output / PLOT)
