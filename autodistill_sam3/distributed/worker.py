"""A worker process: reads shard numbers from its standard input, labels them, and says so on its standard output.

Started by :mod:`autodistill_sam3.distributed.processes` as `python -m autodistill_sam3.distributed`, which, unlike
multiprocessing, does not run the user's script again. The first things on the input are two pickles: `sys.path`, and a
:class:`Task`. Then comes a line for each shard; the end of the input is the end of the parent.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from autodistill_sam3.distributed.rounds import Round
from autodistill_sam3.distributed.shard import Labeler, work_on
from autodistill_sam3.labeling import LabelingPlan

# Device name -> a model at work on it.
MakeLabeler: TypeAlias = Callable[[str], Labeler]
_Say: TypeAlias = Callable[..., None]

STOP = "stop"


@dataclass(frozen=True)
class Task:
    """What a worker works at, the same for all of them but for the device. All of it can be pickled.

    Attributes:
        plan: Of the whole dataset.
        round: Its shards.
        make: Builds the model.
        device: Where.
        workers: How many there are.
    """

    plan: LabelingPlan
    round: Round
    make: MakeLabeler
    device: str
    workers: int


def main() -> int:
    """Work until the parent says stop, or ends.

    Returns:
        The exit status.
    """
    # What others print must not get among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path[:] = pickle.load(sys.stdin.buffer)
    task: Task = pickle.load(sys.stdin.buffer)
    say = partial(_say, answers, threading.Lock())
    # A shell that starts jobs in the background hands on that Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    commands: queue.Queue[int | None] = queue.Queue()
    threading.Thread(target=_listen, args=(commands,), daemon=True).start()
    logger = logging.getLogger("autodistill_sam3")
    logger.addHandler(_Telling(say))
    # What a run says of itself is for the whole dataset, and said when that is merged.
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        _work(task, commands, say)
    except KeyboardInterrupt:
        return 130
    # Whatever it is, the parent has to know.
    except BaseException as error:
        say(error=type(error).__name__, text=str(error), traceback=traceback.format_exc())
        return 1
    return 0


def _work(task: Task, commands: queue.Queue[int | None], say: _Say) -> None:
    labeler = task.make(task.device)
    say(ready=True)
    with labeler.processes:
        while (index := commands.get()) is not None:
            shard = task.round.shard(index)
            progress = partial(_progress, say, index)
            work_on(
                task.plan, task.round, shard, labeler, is_supervised=True, on_progress=progress, workers=task.workers
            )
            say(done=index)


def _progress(say: _Say, index: int, finished: int) -> None:
    say(shard=index, finished=finished)


def _listen(commands: queue.Queue[int | None]) -> None:
    for line in sys.stdin.buffer:
        if line.strip().decode() == STOP:
            commands.put(None)
            # As Ctrl-C: the images in flight are finished.
            os.kill(os.getpid(), signal.SIGINT)
        else:
            commands.put(int(line))
    # The parent is gone; what is on the disk is in order at any moment.
    os._exit(1)


def _say(answers: Any, lock: threading.Lock, **message: Any) -> None:
    with lock, contextlib.suppress(BrokenPipeError):
        answers.write(json.dumps(message) + "\n")
        answers.flush()


class _Telling(logging.Handler):
    """Sends what is logged to the parent."""

    def __init__(self, say: _Say) -> None:
        super().__init__()
        self._tell = say

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(level=record.levelno, text=record.getMessage())
