"""The labelling run: images are read ahead of the model and written behind it; then the files that need all of it."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import supervision as sv
from tqdm import tqdm

from autodistill_sam3.labeling import folder
from autodistill_sam3.labeling.attempts import Attempts
from autodistill_sam3.labeling.batches import BatchPredictor, Outcome, PredictBatch
from autodistill_sam3.labeling.encoding import Encode, Encoder, Job, Known, Processes, ToDetections, processes_for
from autodistill_sam3.labeling.finish import open_dataset, write_pages, write_summaries
from autodistill_sam3.labeling.inputs import find_images, searched_folder
from autodistill_sam3.labeling.interrupt import Interruption, interruptible
from autodistill_sam3.labeling.journal import Journal
from autodistill_sam3.labeling.names import SourceImage
from autodistill_sam3.labeling.overlap import in_order, quick_switches
from autodistill_sam3.labeling.plan import LabelingPlan
from autodistill_sam3.labeling.portion import Portion
from autodistill_sam3.labeling.reading import Batch, ReadImage, read_ahead, read_image
from autodistill_sam3.labeling.resume import Left, PerImage, what_is_left
from autodistill_sam3.labeling.times import RunTimes, write_times
from autodistill_sam3.labeling.writing import SeenBatch, SeenImage, Writer, remove_parts, writing
from autodistill_sam3.layout import COCO, JOURNAL, QUARANTINE
from autodistill_sam3.stages import recording

logger = logging.getLogger("autodistill_sam3")

# One has its numbers turned into masks, one is computed, one is queued behind it. A single thread begins with them: two
# would take Python's lock from each other at every operation that they queue, and be slower than one after the other.
BATCHES_ON_GPU = 3


def label_images(
    plan: LabelingPlan,
    predict_batch: PredictBatch,
    to_detections: ToDetections | None = None,
    *,
    portion: Portion | None = None,
) -> sv.DetectionDataset:
    """Label images.

    Images that an earlier run with the same settings finished are not labelled again. An image that cannot be read, or
    that the model fails on, goes to `quarantine.jsonl` and the run goes on. Batches are cut from the sorted input
    whatever is finished of it, and padded to one size, so that a run that was stopped computes what it would have.

    While the model sees a batch, the next ones are read and earlier ones are written, in threads. The model is called
    in the caller's thread, batch by batch; with `plan.on_gpu` it begins with a batch before the results of those
    before are there. Another thread waits for them then, and calls the model itself where a batch has to be done anew.
    What is written, and in which order, does not depend on who is faster.

    Args:
        plan: What to label and how to write it.
        predict_batch: `batch_size` RGB images -> what the model sees in each, as any values but exceptions and None.
            It may return a function that waits for that. With `OutOfMemoryError` it gets smaller batches.
        to_detections: What the model sees in an image -> its detections, with `class_id` and `confidence`. It runs
            behind the model, with `plan.on_gpu` in other processes, so it must be picklable then, and should not need
            torch. None if `predict_batch` returns detections.
        portion: Label no more than this part of the input, and leave the files that need all images to others.

    Returns:
        The dataset in the output folder; annotations are read from disk when they are asked for.

    Raises:
        InputFolderError: There is nothing to label.
        OutputFolderError: The output folder may not be written to.
        LabelingError: Writing failed, or the journal is damaged.
        KeyboardInterrupt: After the images in flight, if Ctrl-C was pressed.
    """
    return _label(plan, predict_batch, to_detections=to_detections, portion=portion)


def label_known_images(plan: LabelingPlan, known: Known) -> sv.DetectionDataset:
    """Make a dataset of images whose objects are known, as :func:`label_images` does with a model.

    Args:
        plan: What to label and how to write it.
        known: An image's name in the input -> its detections, with `class_id` and `confidence`; `tracker_id` becomes
            the annotations' `track_id`.

    Returns:
        The dataset.

    Raises:
        What :func:`label_images` raises.
    """
    return _label(plan, lambda images: [()] * len(images), known=known)


def _label(
    plan: LabelingPlan,
    predict_batch: PredictBatch,
    *,
    to_detections: ToDetections | None = None,
    known: Known | None = None,
    portion: Portion | None = None,
) -> sv.DetectionDataset:
    images = find_images(plan.source, plan.extension, recursive=plan.recursive) if portion is None else portion.images
    folder.check_apart(plan.output, searched_folder(plan.source), images)
    with recording() as times, folder.claimed(plan.output, plan.as_run(), overwrite=plan.overwrite) as run:
        clock = RunTimes(times)
        journal = Journal(plan.output.resolve() / JOURNAL)
        per_image = PerImage(tuple(run["writes"]["formats"]), run["writes"]["record_confidence"], plan.classes)
        with writing(plan):
            if portion is None:
                folder.check_merged(plan.output)
            folder.check_not_edited(plan.output, [f"{split}/{COCO}" for split in plan.splits], journal)
            remove_parts(plan)
            left = what_is_left(images, plan.limit, journal, plan.output, per_image)
            if portion is not None:
                left = left.of(portion.left)
            folder.make_splits(plan.output, plan.splits)
            folder.write_data_yaml(plan.output, plan.splits, plan.classes)
            # Images that failed before are tried again, so that what is in quarantine is what is wrong now.
            (plan.output / QUARANTINE).unlink(missing_ok=True)
        encode = Encode(per_image, to_detections, known)
        _Labeling(plan, journal, left, encode, clock, portion).run(images[: plan.limit], predict_batch)
        with writing(plan):
            if portion is None:
                _finish(plan, journal, left, per_image)
            if left.stems:
                write_times(plan.output, clock)
    return open_dataset(plan.output, journal, plan.classes)


def _finish(plan: LabelingPlan, journal: Journal, left: Left, per_image: PerImage) -> None:
    """The files that need all images."""
    for source, entry in left.earlier.items():
        # Its copy was gone, and it could not be labelled again.
        if not (plan.output / entry.split / "images" / journal[source].file).exists():
            journal.forget(source)
    report = write_summaries(plan.output, journal, per_image, plan.splits, plan.source)
    if plan.plot:
        write_pages(plan.output, journal, plan.classes, report)


class _Labeling:
    """One run over the images that are left."""

    def __init__(
        self,
        plan: LabelingPlan,
        journal: Journal,
        left: Left,
        encode: Encode,
        clock: RunTimes,
        portion: Portion | None = None,
    ) -> None:
        self._plan, self._journal, self._left, self._encode, self._clock = plan, journal, left, encode, clock
        # What is left at any moment.
        self._stems = dict(left.stems)
        self._attempts = portion.attempts() if portion is not None and portion.attempts is not None else None
        self._portion = portion

    def run(self, images: Sequence[SourceImage], predict_batch: PredictBatch) -> None:
        """Label what is left of the images, in batches cut from all of them."""
        plan, left = self._plan, self._left.stems
        with (
            interruptible() as interruption,
            _progress_bar(plan, len(images), len(left)) as bar,
            self._processes() as processes,
            Writer(plan, self._journal, self._left, lambda count: self._written(count, bar)) as writer,
            _stopping_at_once(interruption, writer),
            quick_switches() if plan.on_gpu else contextlib.nullcontext(),
        ):
            encoder = Encoder(self._encode, processes)
            model = _Model(predict_batch, self._journal.batch_size or plan.batch_size, encoder, self._clock)
            self._written(0, bar)
            if self._attempts is not None:
                self._try_suspects(images, model, writer, self._attempts, interruption)
            self._label(images, model, writer, interruption)
        if writer.quarantined and self._portion is None:
            place = plan.output / QUARANTINE
            logger.warning("%d of %d images are left out; %s says why", writer.quarantined, len(images), place)

    @contextlib.contextmanager
    def _processes(self) -> Iterator[Processes]:
        """The processes of this run, or those that the portion came with."""
        workers = 1 if self._portion is None else self._portion.workers
        count = processes_for(len(self._left.stems), on_gpu=self._plan.on_gpu, workers=workers)
        if self._portion is not None and self._portion.processes is not None:
            self._portion.processes.start(count)
            yield self._portion.processes
            return
        with Processes() as own:
            own.start(count)
            yield own

    def _label(self, images: Sequence[SourceImage], model: _Model, writer: Writer, interruption: Interruption) -> None:
        with contextlib.closing(read_ahead(self._batches(images), self._read)) as batches:
            wanted = itertools.takewhile(lambda _: not interruption.is_wanted, batches)
            at_once = BATCHES_ON_GPU if self._plan.on_gpu else 1
            # Closed before the reader that it takes batches from.
            with contextlib.closing(in_order(model.begin, wanted, at_once=at_once)) as results:
                for seen in results:
                    writer.write(seen)
                    if writer.doubt is not None:
                        model.check(self._encode)
                        writer.doubt = None
        writer.wait(0)
        if writer.doubt is not None:
            model.check(self._encode)
        interruption.check()

    def _try_suspects(
        self,
        images: Sequence[SourceImage],
        model: _Model,
        writer: Writer,
        attempts: Attempts,
        interruption: Interruption,
    ) -> None:
        """Images that a worker died at, each alone in its place of the batch, and on the disk before the next."""
        if not any(attempts.is_suspect(name) for name in self._stems):
            return
        # If that kills the worker, it is not the images.
        model.check(self._encode)
        for batch in self._batches(images, note=False):
            for suspect in batch:
                if suspect.name in self._stems and attempts.is_suspect(suspect.name):
                    interruption.check()
                    attempts.begin([suspect.name])
                    alone = [self._read(image) if image is suspect else ReadImage(image, None) for image in batch]
                    writer.write(model.begin(alone)())
                    writer.wait(0)
                    del self._stems[suspect.name]

    def _batches(self, images: Sequence[SourceImage], *, note: bool = True) -> Iterator[Batch]:
        for start in range(0, len(images), self._plan.batch_size):
            batch = images[start : start + self._plan.batch_size]
            names = [image.name for image in batch if image.name in self._stems]
            if names:
                if self._attempts is not None and note:
                    self._attempts.begin(names)
                yield batch

    def _read(self, image: SourceImage) -> ReadImage:
        stem = self._stems.get(image.name)
        reason = self._attempts.reason_against(image.name) if self._attempts is not None else None
        return read_image(image, stem) if reason is None else ReadImage(image, stem, error=reason)

    def _written(self, count: int, bar: tqdm[Any]) -> None:
        self._clock.images += count
        bar.update(count)
        if self._portion is not None and self._portion.on_progress is not None:
            self._portion.on_progress(len(self._portion.left) - len(self._left.stems) + self._clock.images)


class _Model:
    """The model, with what happens right before and after its call."""

    def __init__(self, predict_batch: PredictBatch, batch_size: int, encoder: Encoder, clock: RunTimes) -> None:
        self._shrunk: list[int] = []
        self._predictor = BatchPredictor(predict_batch, batch_size, self._shrunk.append)
        self._encoder, self._clock = encoder, clock

    def begin(self, batch: Sequence[ReadImage]) -> Callable[[], SeenBatch]:
        """Have the model begin with a batch.

        Returns:
            Waits for it, and has what is left of it encoded.
        """
        if not any(read.pixels is not None and read.stem is not None for read in batch):
            return lambda: self._seen_batch(batch, [None] * len(batch))
        with self._clock.model():
            finish = self._predictor.begin([read.pixels for read in batch])

        def wait() -> SeenBatch:
            with self._clock.model():
                outcomes = finish()
            return self._seen_batch(batch, outcomes)

        return wait

    def _seen_batch(self, batch: Sequence[ReadImage], outcomes: Sequence[Outcome]) -> SeenBatch:
        is_seen = [outcome is not None and not isinstance(outcome, Exception) for outcome in outcomes]
        if any(isinstance(outcome, Exception) for outcome in outcomes) and not any(is_seen):
            # Images may be at fault, or the model, which then fails on anything.
            self._predictor.check_model()
        shrunk, self._shrunk[:] = list(self._shrunk), []
        pairs = [(read, outcome) for read, outcome in zip(batch, outcomes, strict=True) if read.stem is not None]
        return SeenBatch([self._seen(read, outcome) for read, outcome in pairs], shrunk)

    def check(self, encode: Encode) -> None:
        """Raise what is raised on a blank image, where it is not the images that are at fault."""
        seen = self._predictor.check_model()
        if encode.to_detections is not None:
            encode.to_detections(seen)

    def _seen(self, read: ReadImage, outcome: object) -> SeenImage:
        if outcome is None or isinstance(outcome, Exception):
            return SeenImage(read.without_pixels(), outcome)
        return SeenImage(read.without_pixels(), self._encoder.submit(Job.of(read, outcome)))


@contextlib.contextmanager
def _stopping_at_once(interruption: Interruption, writer: Writer) -> Iterator[None]:
    """With a second Ctrl-C, nothing more is written."""
    try:
        yield
    except KeyboardInterrupt:
        if interruption.is_urgent:
            writer.stop()
        raise


def _progress_bar(plan: LabelingPlan, images: int, left: int) -> tqdm[Any]:
    """Its rate is a recent one: the mean since the start would be that of the model's warm-up for long."""
    return tqdm(total=images, initial=images - left, desc="Labeling", unit="image", smoothing=0.3,
                disable=not plan.progress)  # fmt: skip
