"""Progress: a line on the terminal while something is compiled, for it may take minutes."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from types import TracebackType
from typing import TextIO

logger = logging.getLogger("revgraph.compiling")
# Seconds from which on something is told, and between two tellings.
FIRST, EVERY = 1.0, 0.5


class Progress:
    """A block that is long, and tells what it is at and for how many seconds, on one line of a terminal.

    The line goes when the block ends. Nothing is written where standard error is no terminal, or where the
    logger `revgraph.compiling` tells of steps that are compiled.
    """

    def __init__(self, phase: str, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.phase = phase
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        self._begun = time.monotonic()
        if (
            self.stream.isatty()
            and os.environ.get("TERM") != "dumb"
            and not logger.isEnabledFor(logging.INFO)
        ):
            self._thread = threading.Thread(target=self._tell, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def line(self) -> str:
        """What is told now."""
        return f"compiling the step: {self.phase}, {time.monotonic() - self._begun:.0f} s"

    def _tell(self) -> None:
        if self._ended.wait(FIRST):
            return
        while True:
            self._write(f"\r{self.line}\x1b[K")
            if self._ended.wait(EVERY):
                break
        self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
