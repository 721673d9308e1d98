"""Many clips -> tracks, overlays and one dataset, clip by clip; what is finished is passed over by the next run."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import supervision as sv
from tqdm import tqdm

from autodistill_sam3.errors import MissingPackageError, SettingError, VideoError
from autodistill_sam3.labeling import folder
from autodistill_sam3.labeling.batches import PADDING
from autodistill_sam3.labeling.names import Taken
from autodistill_sam3.labeling.versions import DECIDING_PACKAGES, installed_versions, versions_of_run
from autodistill_sam3.labeling.writing import writing
from autodistill_sam3.layout import FRAMES, OVERLAYS, QUARANTINE, TRACKS
from autodistill_sam3.video.choosing import choose_frames, measure_frames
from autodistill_sam3.video.clip import Frame
from autodistill_sam3.video.clip_session import ClipSession
from autodistill_sam3.video.dataset import label_frames, write_frames
from autodistill_sam3.video.find_clips import SourceClip, check_apart, find_clips, is_unchanged, stamp_of
from autodistill_sam3.video.plan import TrackingPlan
from autodistill_sam3.video.rendering import render
from autodistill_sam3.video.reports import ClipReport, ClipReports
from autodistill_sam3.video.sam3_video import SAM3Video
from autodistill_sam3.video.sources import open_clip
from autodistill_sam3.video.track_files import TrackFile, TrackWriter
from autodistill_sam3.video.writing import VideoWriter
from autodistill_sam3.whole_files import PART

logger = logging.getLogger("autodistill_sam3")

# Frames of one time follow one another by this many seconds in an overlay.
_NEXT_INSTANT = 0.001


@dataclass(frozen=True)
class TrackedClips:
    """What a run ended with.

    Attributes:
        clips: Of the output folder, in the order of their names, those of earlier runs among them.
        quarantined: Source -> why it was left out.
        dataset: Of the chosen frames; None if there are none.
    """

    clips: list[ClipReport]
    quarantined: dict[str, str]
    dataset: sv.DetectionDataset | None


class _ClipError(Exception):
    """A clip cannot be read, or the model fails on it."""


def track_clips(video: SAM3Video, plan: TrackingPlan) -> TrackedClips:
    """Track clips, and make a dataset of their frames.

    Writes `tracks/NAME.jsonl` for each clip, `overlays/NAME.mp4` if wanted, `clips/NAME.json` with what is known of it,
    its chosen frames as `frames/NAME/NUMBER.png`, and of the frames of all clips the labelled folder `dataset/`, in
    which a clip is in one split alone. A clip that cannot be read, or that the model fails on, is listed in
    `quarantine.jsonl`, and the run goes on. What was finished with the same settings is passed over; clips of other
    content are tracked again. Killed at any moment, the same call goes on and ends with the same bytes. What is held
    in memory does not grow with a clip's length but for some numbers a frame.

    Args:
        video: The model.
        plan: Which clips to track, and what to write.

    Returns:
        What there is now. The dataset's annotations are read from disk when they are asked for.

    Raises:
        InputFolderError: There is no clip.
        OutputFolderError: The output folder may not be written to, holds results of other settings, or another run is
            at work in it.
        LabelingError: Writing failed.
        SettingError: The model has no prompts.
        KeyboardInterrupt: After Ctrl-C; the clip in flight is tracked again by the next run.
    """
    if not video.table.prompts:
        raise SettingError("Expected a model with prompts, received one for objects that are pointed at")
    sources = find_clips(plan.clips, recursive=plan.recursive)
    check_apart(plan.output, plan.clips, sources)
    run = _as_run(video, plan)
    with folder.claimed(plan.output, run, overwrite=plan.overwrite), writing(plan):
        _prepare(plan.output)
        leaves_empty_out = run["settings"]["identity"]["on_empty"] == "skip"
        work = _Work(video, plan, ClipReports(plan.output), leaves_empty_out)
        quarantined = work.finish_all(sources)
        reports = list(work.reports)
        dataset = None
        if any(report.chosen for report in reports):
            dataset = label_frames(plan, reports, video.table.classes, run["settings"], run["provenance"])
        else:
            logger.warning("No frame was chosen, so there is no dataset")
    return TrackedClips(reports, quarantined, dataset)


def _as_run(video: SAM3Video, plan: TrackingPlan) -> dict[str, Any]:
    """What `run.json` says."""
    places = {"sam3": video.checkpoint, "florence2": video.florence2_checkpoint}
    return {
        "format": "autodistill_sam3",
        "kind": folder.TRACKED_CLIPS,
        "settings": {
            "model": type(video).__name__,
            "identity": video.identity(),
            "tracking": plan.settings(),
            "versions": installed_versions((*DECIDING_PACKAGES, "av")) | {"opencv": cv2.__version__},
        },
        "writes": {"formats": list(plan.formats), "record_confidence": plan.record_confidence},
        "provenance": {
            "checkpoints": {name: str(path) for name, path in places.items() if path is not None},
            "versions": versions_of_run(),
        },
    }


def _prepare(output: Path) -> None:
    """Make the folders, and clear away what a run that was killed left half written."""
    for kind in (TRACKS, OVERLAYS, FRAMES):
        (output / kind).mkdir(exist_ok=True)
        for part in (output / kind).glob(f".*{PART}"):
            part.unlink()
    # Clips that failed before are tried again, so that what is in quarantine is what is wrong now.
    (output / QUARANTINE).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Work:
    """One run."""

    video: SAM3Video
    plan: TrackingPlan
    reports: ClipReports
    leaves_empty_out: bool

    def finish_all(self, sources: Sequence[SourceClip]) -> dict[str, str]:
        """Finish each clip; those that cannot be are returned, with the reason."""
        quarantined = {}
        names = self._names(sources)
        for number, source in enumerate(sources, 1):
            title = f"{names[source.place]} ({number}/{len(sources)})"
            try:
                self._finish(source, names[source.place], title)
            except _ClipError as fault:
                self._drop_unfinished(source.place, names[source.place])
                quarantined[source.place] = str(fault)
                folder.append_quarantine(self.plan.output, source.place, str(fault))
                logger.warning("%s is left out: %s", source.path, fault)
        return quarantined

    def _names(self, sources: Sequence[SourceClip]) -> dict[str, str]:
        """What each clip's results are called: as they are already, or by its own name, with a number if need be."""
        taken = Taken(report.name for report in self.reports)
        names = {}
        for source in sources:
            known = self.reports.find(source.place)
            names[source.place] = taken.free(source.stem) if known is None else known.name
        return names

    def _finish(self, source: SourceClip, name: str, title: str) -> None:
        report = self.reports.find(source.place)
        with _faults():
            is_known = report is not None and self._tracks(name).exists() and is_unchanged(source.path, report.stamp)
        if report is not None and not is_known:
            self.reports.remove(report)
        if report is None or not is_known:
            self._discard(name)
            report = self._track(source, name, title)
            self.reports.write(report)
        if report.chosen is None:
            report = self._choose(report)
            self.reports.write(report)
        if self.plan.render and not self._overlay(name).exists():
            self._render(report, title)

    def _track(self, source: SourceClip, name: str, title: str) -> ClipReport:
        class_of_track: dict[int, str] = {}
        frames_with_objects = 0
        with contextlib.ExitStack() as stack:
            with self._faults_of_model():
                stamp = stamp_of(source.path)
                session = stack.enter_context(self.video.open(source.path))
            wanted = self.plan.frames_of(session.clip.num_frames or 0)
            tracks = stack.enter_context(TrackWriter(self._tracks(name), session.clip.hw))
            bar = stack.enter_context(self._bar(title, len(wanted)))
            for index, detections in self._tracked(session):
                tracks.write(index, session.clip.time_of(index), detections)
                frames_with_objects += len(detections) > 0
                for track, class_name in _classes_of(detections):
                    class_of_track.setdefault(track, class_name)
                bar.update()
        clip = session.clip
        return ClipReport(
            name, source.place, stamp, clip.hw[1], clip.hw[0], clip.num_frames or 0, clip.frame_rate,
            wanted.start, wanted.stop, [one for one in clip.skipped if one.index in wanted], frames_with_objects,
            dict(sorted(Counter(class_of_track.values()).items())),
        )  # fmt: skip

    def _tracked(self, session: ClipSession) -> Iterator[tuple[int, sv.Detections]]:
        plan = self.plan
        with self._faults_of_model():
            yield from session.track(plan.start_frame, plan.max_frames, plan.direction, compact=True)

    def _choose(self, report: ClipReport) -> ClipReport:
        """Choose frames, and write them."""
        tracks = self._track_file(report)
        measured = [
            frame
            for frame in measure_frames(self._frames(report), self.plan.every)
            if frame.index in tracks or not self.leaves_empty_out
        ]

        def boxes_of(frame: int) -> dict[int, Sequence[float]]:
            return {line["id"]: line["box"] for line in tracks.lines(frame)}

        chosen, left_out = choose_frames(measured, boxes_of, self.plan.min_sharpness)
        wanted = set(chosen)
        kept = (frame for frame in self._frames(report) if frame.index in wanted)
        write_frames(self.plan.output / FRAMES / report.name, kept, report.stamp.mtime_ns)
        return replace(report, chosen=chosen, left_out=dict(sorted(left_out.items())))

    def _render(self, report: ClipReport, title: str) -> None:
        tracks, classes = self._track_file(report), self.video.table.classes
        start, last = None, -_NEXT_INSTANT
        with (
            VideoWriter(self._overlay(report.name), report.frame_rate, report.image_hw) as writer,
            self._bar(f"{title}, overlay", report.stop_frame - report.first_frame) as bar,
        ):
            for frame in self._frames(report):
                time = frame.time
                if time is not None:
                    start = time if start is None else start
                    time = last = max(time - start, last + _NEXT_INSTANT)
                writer.write(render(frame.image, tracks.detections(frame.index), classes), time)
                bar.update()

    def _frames(self, report: ClipReport) -> Iterator[Frame]:
        """The pictures of the frames that were tracked, in rising order."""
        with _faults(), open_clip(report.source) as clip:
            yield from clip.frames(report.first_frame, report.stop_frame)

    def _drop_unfinished(self, place: str, name: str) -> None:
        """Remove what there is of a clip, unless it was finished, and lacks an overlay alone."""
        report = self.reports.find(place)
        if report is None or report.chosen is None:
            self._discard(name)
            if report is not None:
                self.reports.remove(report)

    def _discard(self, name: str) -> None:
        """Remove what there is of a clip."""
        for path in (self._tracks(name), self._overlay(name)):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.plan.output / FRAMES / name, ignore_errors=True)

    @contextlib.contextmanager
    def _faults_of_model(self) -> Iterator[None]:
        """Faults of the clip; but if the model fails on anything, what it raises then."""
        try:
            with _faults():
                yield
        except _ClipError as fault:
            if not isinstance(fault.__cause__, VideoError | SettingError):
                for _ in self.video.track([PADDING]):
                    pass
            raise

    def _track_file(self, report: ClipReport) -> TrackFile:
        return TrackFile(self._tracks(report.name), self.video.table.classes)

    def _tracks(self, name: str) -> Path:
        return self.plan.output / TRACKS / f"{name}.jsonl"

    def _overlay(self, name: str) -> Path:
        return self.plan.output / OVERLAYS / f"{name}.mp4"

    def _bar(self, title: str, total: int) -> tqdm[Any]:
        return tqdm(total=total, desc=title, unit="frame", smoothing=0.3, disable=not self.plan.progress)


def _classes_of(detections: sv.Detections) -> Iterator[tuple[int, str]]:
    ids: Any = detections.tracker_id
    names: Any = detections.data["class_name"]
    return zip(ids.tolist(), names.tolist(), strict=True)


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Whatever reading and tracking raise on one clip must not end a run over many."""
    try:
        yield
    except (MissingPackageError, _ClipError):
        raise
    except Exception as error:
        own = isinstance(error, VideoError | SettingError)
        reason = str(error) if own else f"the model failed on it: {type(error).__name__}: {error}"
        raise _ClipError(reason) from error
