"""Ctrl-C as a request: once to save and stop, twice to stop at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def interruptible(tell: Callable[[], None]) -> Iterator[Interrupt]:
    """Within the block, the first Ctrl-C is noted and `tell` called; the second raises KeyboardInterrupt.

    `tell` runs inside a signal handler. Nothing changes outside the main thread, where signals cannot be
    handled, and where Ctrl-C is ignored already, as in a script's background job.
    """
    interrupt = Interrupt()
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored or threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True
        tell()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
