"""Progress: a line on the terminal while something takes long, and nothing anywhere else."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

# Seconds from which on something is told, and between two tellings.
FIRST, EVERY = 1.0, 0.5
# The blocks that are under way, the innermost last: it is the one that is told.
_under_way: list[Progress] = []


class Progress:
    """A block that may be long, and tells what it is at and for how many seconds, on one line of a terminal.

    `phase` is what the work is at by now: a text, or what gives one. The line goes when the block ends.
    Nothing is written where standard error is no terminal, or where the `logger` tells of the work.
    """

    def __init__(
        self,
        work: str,
        phase: str | Callable[[], str] = "",
        logger: logging.Logger | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self.work = work
        self.phase = phase
        self.logger = logger
        self.stream = sys.stderr if stream is None else stream
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        self._begun = time.monotonic()
        is_outermost = not _under_way
        _under_way.append(self)
        if is_outermost and self._is_seen():
            self._thread = threading.Thread(target=self._tell, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _under_way.remove(self)
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def line(self) -> str:
        """What is told now."""
        phase = self.phase if isinstance(self.phase, str) else self.phase()
        said = f"{self.work}: {phase}" if phase else self.work
        return f"{said}, {time.monotonic() - self._begun:.0f} s"

    def _is_seen(self) -> bool:
        if self.logger is not None and self.logger.isEnabledFor(logging.INFO):
            return False
        return self.stream.isatty() and os.environ.get("TERM") != "dumb"

    def _tell(self) -> None:
        if self._ended.wait(FIRST):
            return
        while True:
            self._write(f"\r{(_under_way or [self])[-1].line}\x1b[K")
            if self._ended.wait(EVERY):
                break
        self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
