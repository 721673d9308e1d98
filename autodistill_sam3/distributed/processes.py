"""Launcher for the devices of this machine: one process each, fed with small shards, then a merge."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import supervision as sv
from tqdm import tqdm

import autodistill_sam3
from autodistill_sam3 import errors
from autodistill_sam3.devices import select_device
from autodistill_sam3.distributed.ledger import Ledger
from autodistill_sam3.distributed.merge import merge_shards
from autodistill_sam3.distributed.rounds import Round, Shard, is_outdated, open_round, read_round
from autodistill_sam3.distributed.worker import STOP, MakeLabeler, Task
from autodistill_sam3.errors import LabelingError, SettingError
from autodistill_sam3.labeling import LabelingPlan, label_images
from autodistill_sam3.labeling.interrupt import Interruption, interruptible
from autodistill_sam3.layout import SHARDS

logger = logging.getLogger("autodistill_sam3")

_Event = tuple["_Worker", dict[str, Any] | None]


def device_names(gpus: Sequence[int | str]) -> list[str]:
    """The torch devices that are meant.

    Raises:
        SettingError: There is none, or a number is negative.
        DeviceError: This machine does not have one of them.

    Example:
        >>> device_names(["cpu", "cpu"])
        ['cpu', 'cpu']
    """
    names = [f"cuda:{gpu}" if str(gpu).isdecimal() else str(gpu) for gpu in gpus]
    if not names:
        raise SettingError("Expected at least one GPU in gpus, received none")
    for name in names:
        select_device(name)
    return names


def alone(device: str, visible: str | None) -> tuple[str, dict[str, str]]:
    """What a device is called where there is no other, so that what is compiled for one GPU serves all of its kind.

    Args:
        device: Its name here.
        visible: `CUDA_VISIBLE_DEVICES` here.

    Returns:
        Its name there, and what the environment there has to have.

    Example:
        >>> alone("cuda:1", None), alone("cuda:1", "4,6"), alone("cpu", None)
        (('cuda:0', {'CUDA_VISIBLE_DEVICES': '1'}), ('cuda:0', {'CUDA_VISIBLE_DEVICES': '6'}), ('cpu', {}))
    """
    kind, _, index = device.partition(":")
    if kind != "cuda" or not index:
        return device, {}
    return "cuda:0", {"CUDA_VISIBLE_DEVICES": visible.split(",")[int(index)].strip() if visible else index}


def label_on_devices(plan: LabelingPlan, make: MakeLabeler, devices: Sequence[str]) -> sv.DetectionDataset:
    """Label images with a process per device.

    The first Ctrl-C lets every worker finish the images in flight, the second one ends all at once. A worker that dies
    is replaced; the images that it had in hand are tried one by one, and none of them more than twice.

    Args:
        plan: What to label and how to write it.
        make: Builds the model on a device; called in each worker. It must be importable there.
        devices: Torch device names, one for each worker.

    Returns:
        The merged dataset, as one run would have written it.

    Raises:
        OutputFolderError, InputFolderError, LabelingError: As `label_images` raises them, and where a worker fails.
        KeyboardInterrupt: After Ctrl-C.
    """
    is_continued = not plan.overwrite and read_round(plan.output) is not None
    found = open_round(plan, workers=len(devices))
    # Only what earlier runs had not finished, and no more than the summaries may be missing.
    if found is None:
        return label_images(replace(plan, overwrite=False), _refuse)
    _Launch(plan, found, make, devices).run()
    dataset = merge_shards(plan.output, plot=plan.plot, progress=plan.progress)
    if is_continued and is_outdated(found, plan):
        return label_on_devices(plan, make, devices)
    return dataset


def _refuse(images: Sequence[Any]) -> list[Any]:
    raise LabelingError(f"Expected nothing left to label, received {len(images)} images. Run the same command again.")


class _Worker:
    """A process at work on a device."""

    def __init__(self, task: Task, number: int, events: queue.Queue[_Event], log: Path) -> None:
        self.number, self.device = number, task.device
        self.is_dismissed = False
        self.shard: Shard | None = None
        self.log = log
        # -P: what lies in the current folder must not take the place of a module.
        command = [sys.executable, "-P", "-m", "autodistill_sam3.distributed"]
        root = str(Path(autodistill_sam3.__file__).parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        device, environment = alone(task.device, os.environ.get("CUDA_VISIBLE_DEVICES"))
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                env=os.environ | {"PYTHONPATH": path} | environment,
                # Ctrl-C reaches the parent alone, which passes it on in order.
                start_new_session=True,
            )  # fmt: skip
        self._send(pickle.dumps(sys.path) + pickle.dumps(replace(task, device=device)))
        threading.Thread(target=self._listen, args=(cast(IO[bytes], self._process.stdout), events), daemon=True).start()

    def give(self, shard: Shard) -> None:
        """Let it label a shard."""
        self.shard = shard
        self._send(f"{shard.index}\n".encode())

    def stop(self) -> None:
        """Let it finish the images in flight, and end."""
        self.is_dismissed = True
        self._send(f"{STOP}\n".encode())

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self.how_it_ended()

    def how_it_ended(self) -> str:
        """To be read by people."""
        status = self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            cast(IO[bytes], self._process.stdin).close()
        if status >= 0:
            return f"exit status {status}"
        with contextlib.suppress(ValueError):
            return signal.Signals(-status).name
        return f"signal {-status}"

    def last_words(self) -> str:
        """The end of what it printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " | ".join(lines[-3:])

    def _send(self, data: bytes) -> None:
        stdin = cast(IO[bytes], self._process.stdin)
        # If it is dead already, the end of its output says so.
        with contextlib.suppress(BrokenPipeError):
            stdin.write(data)
            stdin.flush()

    def _listen(self, answers: IO[bytes], events: queue.Queue[_Event]) -> None:
        with answers:
            for line in answers:
                events.put((self, json.loads(line)))
        events.put((self, None))


class _Launch:
    """One round of shards over some workers."""

    def __init__(self, plan: LabelingPlan, round_: Round, make: MakeLabeler, devices: Sequence[str]) -> None:
        self._ledger = Ledger(round_)
        self._tasks = [Task(plan, round_, make, device, len(devices)) for device in devices]
        self._place = round_.output / SHARDS
        self._events: queue.Queue[_Event] = queue.Queue()
        self._workers: list[_Worker] = []
        self._error: BaseException | None = None
        self._is_stopping = False
        self._progress = plan.progress

    def run(self) -> None:
        """Until all shards are complete, or something ends it."""
        ledger = self._ledger
        try:
            # Workers beyond the number of shards would load a model for nothing.
            with interruptible() as interruption, tqdm(total=ledger.total, initial=ledger.finished, desc="Labeling",
                    unit="image", disable=not self._progress) as bar:  # fmt: skip
                for number in range(min(len(self._tasks), ledger.waiting)):
                    self._start(number)
                while self._workers:
                    self._step(interruption)
                    bar.update(ledger.finished - bar.n)
                if self._error is not None:
                    raise self._error
                interruption.check()
        finally:
            for worker in self._workers:
                worker.kill()

    def _start(self, number: int) -> None:
        log = self._place / f"worker-{number}.log"
        self._workers.append(_Worker(self._tasks[number], number, self._events, log))

    def _step(self, interruption: Interruption) -> None:
        if (interruption.is_wanted or self._error is not None) and not self._is_stopping:
            self._is_stopping = True
            for worker in self._workers:
                worker.stop()
        try:
            # Short, since a signal does not end the wait for a queue on every system.
            worker, message = self._events.get(timeout=0.2)
        except queue.Empty:
            return
        if message is None:
            self._ended(worker)
        elif "error" in message:
            self._error = self._error or _as_error(worker.device, message)
        elif "finished" in message and worker.shard is not None:
            self._ledger.progressed(worker.shard, message["finished"])
        elif "level" in message and not self._is_stopping:
            logger.log(message["level"], "%s", message["text"])
        elif "done" in message or "ready" in message:
            if worker.shard is not None:
                self._ledger.done(worker.shard, worker.device)
                worker.shard = None
            self._feed(worker)

    def _feed(self, worker: _Worker) -> None:
        shard = None if self._is_stopping else self._ledger.take()
        if shard is None:
            worker.stop()
        else:
            worker.give(shard)

    def _ended(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        how = worker.how_it_ended()
        if self._is_stopping or self._error is not None or worker.is_dismissed:
            return
        try:
            self._ledger.died(worker.device, worker.shard, how, worker.last_words())
        except LabelingError as error:
            self._error = error
            return
        self._start(worker.number)


def _as_error(device: str, message: dict[str, Any]) -> BaseException:
    """An error of this package as it is, anything else with where it came from."""
    kind = getattr(errors, message["error"], None)
    if isinstance(kind, type) and issubclass(kind, errors.AutodistillSAM3Error):
        error: BaseException = kind(message["text"])
        return error
    return LabelingError(f"The worker on {device} failed. What was finished stays valid.\n{message['traceback']}")
