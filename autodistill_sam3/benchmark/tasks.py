"""What one process of a benchmark does: one engine's rows, or one of the other measurements."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from autodistill_sam3.benchmark.memory import measured_memory
from autodistill_sam3.benchmark.settings import EngineName, Measured, Prompting, Settings, Work, row_name
from autodistill_sam3.devices import select_device
from autodistill_sam3.layout import JOURNAL

Result = tuple[str, dict[str, Any]]
_START_LIMIT_S = 240
_POLL_S = 0.01
# Of rows after the first: everything is warm but what depends on the number of prompts.
_LATER_WARM_UP = 24


def run_task(task: str, settings: Settings, works: list[Work], started: float) -> Iterator[Result]:
    """Do one task.

    Args:
        task: The name of an engine, "prepare", "vision" or "start".
        settings: Of the benchmark.
        works: The rows, for an engine.
        started: Unix time at which the process was started.

    Yields:
        Where a result belongs (a row's name, "ceilings", "calibration", "vision" or "start"), and the result.
    """
    if task == "prepare":
        from autodistill_sam3.benchmark.calibration import calibrate
        from autodistill_sam3.benchmark.ceilings import measure_ceilings

        yield "ceilings", measure_ceilings(select_device(settings.device))
        yield "calibration", calibrate(settings)
    elif task == "vision":
        from autodistill_sam3.benchmark.vision import measure_vision

        for result in measure_vision(settings):
            yield "vision", result
    elif task == "start":
        yield "start", _time_to_first_image(settings, works[0], started)
    else:
        yield from _rows(task, settings, works)  # type: ignore[arg-type]  # the rest are engines


def _rows(engine: EngineName, settings: Settings, works: list[Work]) -> Iterator[Result]:
    device = str(select_device(settings.device))
    for prompting in dict.fromkeys(work.prompting for work in works):
        # Loaded anew, so that a row's memory is that of what it needs.
        run = None
        for work in works:
            if work.prompting != prompting:
                continue
            with measured_memory(device) as peaks:
                is_first = run is None
                try:
                    run = run or _load(engine, settings, prompting, device)
                    measured = run(work, is_first)
                # A reference may fail in any way, and the others go on.
                except Exception as error:
                    yield row_name(engine, work), {"error": f"{type(error).__name__}: {error}"}
                    continue
            memory = {name: value for name, value in vars(peaks).items() if value is not None}
            yield row_name(engine, work), _as_row(engine, work, measured) | memory


def _load(
    engine: EngineName, settings: Settings, prompting: Prompting, device: str
) -> Callable[[Work, bool], Measured]:
    """The engine, as a function of the work and of whether it is the first."""
    if engine == "ours":
        from autodistill_sam3.benchmark.engines.ours import Ours

        ours = Ours(settings, prompting)
        later = min(_LATER_WARM_UP, settings.warmup_images)
        return lambda work, first: ours.measure(work, warm_up=settings.warmup_images if first else later)
    from autodistill_sam3.benchmark.engines.reference import OneImageModel, measure_one_by_one

    model: OneImageModel
    if engine == "transformers":
        from autodistill_sam3.benchmark.engines.transformers_card import TransformersCard

        model = TransformersCard(settings, prompting, device)
        return lambda work, first: measure_one_by_one(model, work, settings, warm_up=first)
    if settings.sam3_file is None and engine == "autodistill-loop":
        from autodistill_sam3.benchmark.engines.ours import Ours

        model = Ours(settings, prompting)
    else:
        from autodistill_sam3.benchmark.engines.sam3_package import SAM3Package

        model = SAM3Package(settings, prompting, device)
    if engine == "sam3-package":
        return lambda work, first: measure_one_by_one(model, work, settings, warm_up=first)
    from autodistill_sam3.benchmark.engines.autodistill_loop import measure_loop

    return lambda work, first: measure_loop(model, work, settings, warm_up=first)


def _as_row(engine: EngineName, work: Work, measured: Measured) -> dict[str, Any]:
    return {
        "engine": engine, "prompting": work.prompting, "classes": work.classes, "presence_gate": work.presence_gate,
        "confidence": work.threshold, "images": measured.images, "seconds": measured.seconds,
        "ms_per_image": measured.seconds / measured.images * 1000,
        "images_per_s": measured.images / measured.seconds,
        "masks_per_image": measured.masks, **measured.notes,
    }  # fmt: skip


def _time_to_first_image(settings: Settings, work: Work, started: float) -> dict[str, Any]:
    """From the start of the process to the first finished image of a long job, which is stopped then."""
    from autodistill_sam3.benchmark.engines.ours import Ours

    output = settings.output / "labeled"
    ours = Ours(settings, work.prompting)
    loaded = time.time() - started
    ours.prepare(work)
    first: list[float] = []

    def watch() -> None:
        while not first and time.time() - started < _START_LIMIT_S:
            time.sleep(_POLL_S)
            journal = output / JOURNAL
            if journal.exists() and journal.stat().st_size:
                first.append(time.time() - started)
                # As Ctrl-C does: images in flight are finished.
                _thread.interrupt_main()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        ours.label_all(output)
    except KeyboardInterrupt:
        pass
    finally:
        watcher.join()
        ours.clear(output)
    return {
        "loaded_s": loaded, "first_image_s": first[0] if first else None,
        "prompting": work.prompting, "classes": work.classes,
    }  # fmt: skip
