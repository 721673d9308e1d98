"""Launcher for a Ray cluster: Ray places workers and moves shard numbers to them; everything else is this package's.

Ray's own data pipelines are not used: they retry an image that kills its worker for ever, and end a job for an error
in one row. The output and the images must lie where every machine of the cluster sees them under the same path.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import supervision as sv
from tqdm import tqdm

from autodistill_sam3.distributed.ledger import Ledger
from autodistill_sam3.distributed.merge import merge_shards
from autodistill_sam3.distributed.rounds import Round, Shard, is_outdated, open_round, read_round
from autodistill_sam3.distributed.shard import work_on
from autodistill_sam3.distributed.worker import MakeLabeler
from autodistill_sam3.errors import AutodistillSAM3Error, DeviceError, LabelingError, MissingPackageError, SettingError
from autodistill_sam3.labeling import LabelingPlan, folder, label_images
from autodistill_sam3.labeling.interrupt import Interruption, interruptible
from autodistill_sam3.layout import SHARDS

logger = logging.getLogger("autodistill_sam3")

_STOP = "stop"


@dataclass(frozen=True)
class RayWorkers:
    """What is asked of a cluster.

    Attributes:
        count: How many workers.
        device: "cuda" for workers with a GPU each, or "cpu".
        machines: That the cluster has.
    """

    count: int
    device: str
    machines: int = 1

    @property
    def on_a_machine(self) -> int:
        """How many share one, if they are spread evenly."""
        return -(-self.count // self.machines)


def ray_workers(count: int | None = None, device: str | None = None) -> RayWorkers:
    """Connect to the cluster that `RAY_ADDRESS` names, or start one on this machine, and see what it has.

    Args:
        count: How many workers; by default one for each GPU of the cluster, or one in all on CPUs.
        device: "cuda" or "cpu"; by default GPUs where the cluster has any.

    Raises:
        MissingPackageError: Ray is not installed.
        DeviceError: The cluster does not have so many GPUs or CPUs; Ray itself would wait for them for ever.
        SettingError: There is no such number of workers or kind of device.
    """
    ray = _ray()
    if count is not None and count < 1:
        raise SettingError(f"Expected workers to be at least 1, received {count}")
    if device not in (None, "cuda", "cpu"):
        raise SettingError(f"Expected device to be 'cuda' or 'cpu' with engine='ray', received {device!r}")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    has = {name: int(ray.cluster_resources().get(name, 0)) for name in ("GPU", "CPU")}
    chosen = device or ("cuda" if has["GPU"] else "cpu")
    kind = "GPU" if chosen == "cuda" else "CPU"
    wanted = count or (max(1, has["GPU"]) if chosen == "cuda" else 1)
    if wanted > has[kind]:
        raise DeviceError(
            f"Expected a Ray cluster with {wanted} {kind}s, received one with {has[kind]}. Ask for fewer."
        )
    return RayWorkers(wanted, chosen, max(1, sum(node["Alive"] for node in ray.nodes())))


def label_with_ray(plan: LabelingPlan, make: MakeLabeler, workers: RayWorkers) -> sv.DetectionDataset:
    """Label images on a Ray cluster.

    Args:
        plan: What to label and how to write it. What decides which labels come out is asked of the first worker, since
            this machine may have another device.
        make: Builds the model on a device, and says its settings.
        workers: What :func:`ray_workers` found.

    Returns:
        The merged dataset, as one run would have written it.

    Raises:
        OutputFolderError, InputFolderError, LabelingError: As `label_images` raises them, and where a worker fails.
        KeyboardInterrupt: After Ctrl-C.
    """
    is_continued = not plan.overwrite and read_round(plan.output) is not None
    launch = _Launch(plan, make, workers)
    try:
        found = launch.run()
    finally:
        launch.close()
    if found is None:
        return label_images(replace(launch.plan, overwrite=False), _refuse)
    dataset = merge_shards(plan.output, plot=plan.plot, progress=plan.progress)
    if is_continued and is_outdated(found, launch.plan):
        return label_with_ray(plan, make, workers)
    return dataset


class _Actor:
    """What Ray starts on some machine of the cluster."""

    def __init__(self, make: MakeLabeler, device: str) -> None:
        self._labeler = make(device)

    def settings(self) -> dict[str, Any]:
        """What decides which labels come out."""
        return self._labeler.settings or {}

    def label(self, plan: LabelingPlan, round_: Round, index: int, workers: int) -> bool:
        """Label a shard beside other workers of the machine; False if it was told to stop."""
        is_over = threading.Event()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            watch = (round_.output / SHARDS / _STOP, is_over)
            threading.Thread(target=_interrupt_when_told, args=watch, daemon=True).start()
        try:
            work_on(plan, round_, round_.shard(index), self._labeler, is_supervised=True, workers=workers)
        except KeyboardInterrupt:
            return False
        finally:
            is_over.set()
        return True


@dataclass(frozen=True)
class _Call:
    """What a worker was asked: a shard, or its settings where that is None."""

    actor: Any
    shard: Shard | None


class _Launch:
    """One round of shards over the workers of a cluster."""

    def __init__(self, plan: LabelingPlan, make: MakeLabeler, workers: RayWorkers) -> None:
        self.plan = plan
        self._make, self._workers = make, workers
        self._calls: dict[Any, _Call] = {}
        self._round: Round | None = None
        self._ledger: Ledger | None = None
        self._is_stopping = False

    def run(self) -> Round | None:
        """Until all shards are complete, or something ends it; None if there was nothing to do."""
        with (
            interruptible() as interruption,
            tqdm(desc="Labeling", unit="image", disable=not self.plan.progress) as bar,
        ):
            for _ in range(self._workers.count):
                self._start()
            while self._calls:
                self._step(interruption)
                if self._ledger is not None:
                    bar.total = self._ledger.total
                    bar.update(self._ledger.finished - bar.n)
            interruption.check()
        return self._round

    def close(self) -> None:
        """End all workers."""
        for call in self._calls.values():
            _ray().kill(call.actor)
        if self._is_stopping:
            (self.plan.output / SHARDS / _STOP).unlink(missing_ok=True)

    def _start(self) -> None:
        ray, gpus = _ray(), int(self._workers.device == "cuda")
        # A restart by Ray would go on with an image that has just killed the worker.
        kind = ray.remote(_Actor).options(num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0)
        actor = kind.remote(self._make, self._workers.device)
        self._calls[actor.settings.remote()] = _Call(actor, None)

    def _step(self, interruption: Interruption) -> None:
        ray = _ray()
        if interruption.is_wanted and not self._is_stopping:
            self._is_stopping = True
            if self._round is not None:
                (self._round.output / SHARDS / _STOP).touch()
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=0.5)
        for future in ready:
            call = self._calls.pop(future)
            try:
                answer = ray.get(future)
            except ray.exceptions.RayActorError as error:
                self._died(call, error)
            except ray.exceptions.RayTaskError as error:
                raise _as_error(error) from error
            else:
                self._answered(call, answer)
        if self._is_stopping:
            self._let_go_of_idle()

    def _answered(self, call: _Call, answer: Any) -> None:
        if call.shard is None:
            self._check(answer)
        elif answer and self._ledger is not None:
            self._ledger.done(call.shard, self._workers.device)
        shard = self._ledger.take() if self._ledger is not None and not self._is_stopping else None
        if shard is None:
            _ray().kill(call.actor)
        else:
            future = call.actor.label.remote(self.plan, self._round, shard.index, self._workers.on_a_machine)
            self._calls[future] = _Call(call.actor, shard)

    def _check(self, settings: dict[str, Any]) -> None:
        """Begin the round with the settings of the first worker; later ones must have the same."""
        if self._ledger is not None:
            expected = {key: self.plan.settings[key] for key in settings}
            if difference := folder.settings_difference({"settings": expected}, settings):
                raise LabelingError(f"Expected workers that give equal labels, received other ones:\n{difference}")
            return
        self.plan = replace(self.plan, settings=self.plan.settings | settings)
        self._round = open_round(self.plan, workers=self._workers.count)
        if self._round is not None:
            (self._round.output / SHARDS / _STOP).unlink(missing_ok=True)
            self._ledger = Ledger(self._round)

    def _died(self, call: _Call, error: Exception) -> None:
        if getattr(error, "cause", None) is not None and not isinstance(error.cause, str):  # type: ignore[attr-defined]
            raise _as_error(error) from error
        how = str(error).strip().splitlines()[0]
        if self._ledger is None:
            raise LabelingError(f"The first worker died before it tried any image: {error}") from error
        self._ledger.died(self._workers.device, call.shard, how)
        if not self._is_stopping:
            self._start()

    def _let_go_of_idle(self) -> None:
        """End workers that are still building their model."""
        for future, call in list(self._calls.items()):
            if call.shard is None:
                del self._calls[future]
                _ray().kill(call.actor)


def _refuse(images: Any) -> list[Any]:
    raise LabelingError(f"Expected nothing left to label, received {len(images)} images. Run the same command again.")


def _interrupt_when_told(stop: Path, is_over: threading.Event) -> None:
    """As Ctrl-C, once somebody writes the file: Ray does not interrupt what a worker is at."""
    while not is_over.is_set():
        if stop.exists():
            os.kill(os.getpid(), signal.SIGINT)
            return
        time.sleep(1)


def _as_error(error: Any) -> Exception:
    """An error of this package as it is, anything else with what it was."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, AutodistillSAM3Error):
        return cause
    return LabelingError(f"A worker failed. What was finished stays valid.\n{error}")


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError(
            "Expected ray with engine='ray', received none. Install it: `pip install 'autodistill-grounded-sam3[ray]'`."
        ) from error
    return ray
