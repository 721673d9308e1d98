"""This package: `label()` with its defaults, files in and files out."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autodistill_sam3.base_models import GroundedSAM3, SegmentAnything3
from autodistill_sam3.benchmark.engines.florence2_card import fixed_boxes
from autodistill_sam3.benchmark.engines.reference import Found
from autodistill_sam3.benchmark.settings import FLORENCE2_TOKENS, Measured, Prompting, Settings, Work
from autodistill_sam3.devices import select_device
from autodistill_sam3.grounding import Grounder
from autodistill_sam3.images import RGBImage
from autodistill_sam3.instances import Boxes
from autodistill_sam3.layout import COCO, JOURNAL, TIMES
from autodistill_sam3.ontology import PromptPairs
from autodistill_sam3.segmentation import can_compile
from autodistill_sam3.stages import recording
from autodistill_sam3.thresholds import Thresholds

# As few as the pipeline needs to be full.
_FEWEST = 96
# A run that takes so much longer than its pace compiled something at its start, and is repeated.
_COMPILING_S = 5.0
# Of the seconds that a row may take.
_LEAST_SHARE = 0.6
_POLL_S = 0.02


class FixedBoxes:
    """A `Grounder` that asks another and gives ten boxes an image whatever it answers.

    Args:
        grounder: The other; its time is what is measured.
    """

    def __init__(self, grounder: Grounder) -> None:
        self._grounder = grounder
        self.asked = 0
        self.images = 0

    def ground(
        self, images: Sequence[RGBImage], prompts: Sequence[str], wanted: Sequence[Sequence[int]] | None = None
    ) -> list[Boxes]:
        """Ten boxes for each image, shared out among its prompts; see `Grounder.ground`."""
        self._grounder.ground(images, prompts, wanted)
        indices = [list(range(len(prompts)))] * len(images) if wanted is None else [list(part) for part in wanted]
        self.images += len(images)
        self.asked += sum(map(len, indices))
        return [_boxes(image, index) for image, index in zip(images, indices, strict=True)]

    def __getattr__(self, name: str) -> Any:
        """Whatever else the other has, such as its settings."""
        if "_grounder" not in self.__dict__:
            # While it is being copied.
            raise AttributeError(name)
        return getattr(self._grounder, name)


def _boxes(image: RGBImage, prompts: list[int]) -> Boxes:
    if not prompts:
        return Boxes.empty()
    xyxy = fixed_boxes((image.shape[0], image.shape[1]))
    return Boxes(xyxy, np.ones(len(xyxy), np.float32), np.resize(np.array(prompts, np.int64), len(xyxy)))


class Ours:
    """A model of this package, loaded once for all rows of one kind of prompting.

    Args:
        settings: Name the checkpoints.
        prompting: "text" or "both".
    """

    def __init__(self, settings: Settings, prompting: Prompting) -> None:
        self._settings = settings
        ontology = PromptPairs((("object", "object"),))
        device = select_device(settings.device)
        # As `label()` does by itself in jobs that are long enough.
        is_compiled = device.type == "cuda" and can_compile(device)
        keywords: dict[str, Any] = {
            "checkpoint": settings.checkpoint, "bpe_path": settings.bpe_path, "device": settings.device,
            "compile": is_compiled,
        }  # fmt: skip
        self._boxes: FixedBoxes | None = None
        self.model: GroundedSAM3 | SegmentAnything3
        if prompting == "text":
            self.model = SegmentAnything3(ontology, **keywords)
            return
        model = GroundedSAM3(ontology, florence2_checkpoint=settings.florence2, **keywords)
        grounder: Any = model.grounder
        grounder.max_new_tokens = FLORENCE2_TOKENS
        self._boxes = FixedBoxes(grounder)
        model.grounder = self._boxes
        self.model = model

    def prepare(self, work: Work) -> None:
        """Look for this from now on."""
        self.model.set_ontology(PromptPairs(tuple((prompt, prompt) for prompt in work.prompts)))
        self.model.thresholds = Thresholds(confidence=work.threshold, box_confidence=0.0)
        if isinstance(self.model, GroundedSAM3):
            self.model.presence_gate = work.presence_gate

    def measure(self, work: Work, *, warm_up: int) -> Measured:
        """Label pictures twice: some untimed, then as many as the time allows.

        Args:
            work: The row's.
            warm_up: How many pictures are labelled first.
        """
        self.prepare(work)
        paths = sorted(self._settings.pictures.glob("*.jpg"))
        first = self._label(paths[:warm_up])
        # Its second half, when everything is warm, says how long one takes.
        rate = max(first.later_s_per_image, 1e-4)
        count = min(len(paths), self._settings.images, max(_FEWEST, int(self._settings.seconds / rate)))
        if self._boxes is not None:
            self._boxes.asked = self._boxes.images = 0
        timed = self._label(paths[:count])
        if timed.seconds - timed.later_s_per_image * count > _COMPILING_S:
            first, warm_up, timed = timed, count, self._label(paths[:count])
        # Few batches say little of many: the start of a run would be most of what is timed.
        if timed.seconds < _LEAST_SHARE * self._settings.seconds and count < min(len(paths), self._settings.images):
            count = min(len(paths), self._settings.images, int(count * self._settings.seconds / timed.seconds))
            timed = self._label(paths[:count])
        notes: dict[str, Any] = {
            "stages_ms": {name: seconds / count * 1000 for name, seconds in timed.stages.items()},
            "gpu_idle_share": timed.gpu_idle_share,
            "first_run_s": first.seconds,
            "first_run_images": min(warm_up, len(paths)),
            "precision": self.model.precision,
            "steady_ms_per_image": timed.later_s_per_image * 1000,
        }
        if self._boxes is not None and self._boxes.images:
            notes["prompts_asked"] = self._boxes.asked / self._boxes.images
        return Measured(count, timed.seconds, timed.masks / count, notes)

    def label_all(self, output: Path) -> None:
        """Label all pictures; the caller stops it."""
        self.clear(output)
        paths = sorted(self._settings.pictures.glob("*.jpg"))
        self.model.label([str(path) for path in paths], output_folder=output, progress=False)

    def clear(self, output: Path) -> None:
        """Remove a dataset that was only made to be timed."""
        shutil.rmtree(output, ignore_errors=True)

    def segment(self, image: Image.Image, work: Work) -> Found:
        """One image by `predict`, for autodistill's loop where Meta's package cannot read the checkpoint."""
        self.prepare(work)
        found = self.model.predict(image)
        masks, scores, class_id = found.mask, found.confidence, found.class_id
        assert masks is not None and scores is not None and class_id is not None
        return Found(np.asarray(masks), scores.astype(np.float32), class_id.astype(np.int64))

    def _label(self, paths: list[Path]) -> _Run:
        output = self._settings.output / "labeled"
        shutil.rmtree(output, ignore_errors=True)
        start = time.perf_counter()
        with recording() as times, finished_lines(output / JOURNAL, start) as lines:
            self.model.label([str(path) for path in paths], output_folder=output, progress=False)
        seconds = time.perf_counter() - start
        # The run writes down its stages itself; what it does not is recorded here.
        stages, idle = _read_times(output / TIMES) or (dict(times.seconds), None)
        run = _Run(seconds, _masks(output), stages, idle, _later_rate(lines, seconds, len(paths)))
        shutil.rmtree(output, ignore_errors=True)
        return run


@dataclass(frozen=True)
class _Run:
    seconds: float
    masks: int
    stages: dict[str, float]
    gpu_idle_share: float | None
    later_s_per_image: float


@contextlib.contextmanager
def finished_lines(journal: Path, start: float) -> Iterator[list[tuple[float, int]]]:
    """Within the context, when how many bytes of the journal were there: (seconds since `start`, bytes)."""
    seen: list[tuple[float, int]] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_POLL_S):
            with contextlib.suppress(OSError):
                size = journal.stat().st_size
                if size != (seen[-1][1] if seen else 0):
                    seen.append((time.perf_counter() - start, size))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()


def _later_rate(lines: list[tuple[float, int]], seconds: float, count: int) -> float:
    """Seconds an image from where a third of the journal was written to its end."""
    if len(lines) < 3:
        return seconds / count
    total = lines[-1][1]
    at, size = next(line for line in lines if line[1] >= total / 3)
    share = 1 - size / total
    return (lines[-1][0] - at) / (share * count) if share > 0.1 else seconds / count


def _masks(output: Path) -> int:
    return sum(len(json.loads(path.read_text(encoding="utf-8"))["annotations"]) for path in output.glob(f"*/{COCO}"))


def _read_times(path: Path) -> tuple[dict[str, float], float | None] | None:
    """What the run itself says of its stages, if it does."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stages = {str(name): float(value) for name, value in content["stages"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    idle = content.get("gpu_idle_share")
    return stages, None if idle is None else float(idle)
