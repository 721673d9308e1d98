"""Ctrl-C ends a run between two images, not within one."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

logger = logging.getLogger("autodistill_sam3")


class Interruption:
    """Whether Ctrl-C was pressed.

    Attributes:
        is_wanted: It was.
        is_urgent: It was, twice.
    """

    def __init__(self) -> None:
        self.is_wanted = False
        self.is_urgent = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if it was."""
        if self.is_wanted:
            raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Within the context, the first Ctrl-C is noted and the second one raises KeyboardInterrupt at once.

    Elsewhere than in the main thread, and where the process ignores or handles Ctrl-C itself, nothing changes.
    """
    interruption = Interruption()
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
        yield interruption
        return

    def note(number: int, frame: FrameType | None) -> None:
        if interruption.is_wanted:
            interruption.is_urgent = True
            signal.default_int_handler(number, frame)
        interruption.is_wanted = True
        logger.warning("Stopping after the images in flight; what is finished stays. Ctrl-C again stops at once.")

    signal.signal(signal.SIGINT, note)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, usual)
