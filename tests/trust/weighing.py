"""The time and memory that one call takes, and how it ends."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from revgraph.errors import RevgraphError

# What is refused is so within milliseconds; what is not limited takes minutes.
SECONDS = 5.0
KILOBYTES = 200 * 1024
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended: the error's type and text, or "done"; processor seconds, kilobytes at the peak."""

    kind: str
    text: str
    seconds: float
    kilobytes: int


@dataclass(slots=True)
class Tally:
    """How many cases ended how, and the most that any of them took."""

    kinds: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    kilobytes: int = 0

    def add(self, outcome: Outcome) -> None:
        self.kinds[outcome.kind] += 1
        self.seconds = max(self.seconds, outcome.seconds)
        self.kilobytes = max(self.kilobytes, outcome.kilobytes)

    @property
    def cases(self) -> int:
        return self.kinds.total()


def timed(call: Callable[[], Any]) -> Outcome:
    """What became of `call`, its memory not counted. An error that is not revgraph's own is let through."""
    with _uncollected():
        start = time.thread_time()
        try:
            call()
            kind, text = "done", ""
        except RevgraphError as error:
            kind, text = type(error).__name__, str(error)
        return Outcome(kind, text, time.thread_time() - start, 0)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No collection of garbage, which takes seconds where the tests before have left many objects."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def weighed(call: Callable[[], Any]) -> Outcome:
    """What became of `call`, with its memory, which takes some milliseconds to count."""
    before = peak_from_here()
    outcome = timed(call)
    return replace(outcome, kilobytes=peak() - before)


def peak_from_here() -> int:
    """The kilobytes in use, from which the peak is counted anew."""
    CLEAR.write_text("5")
    return _memory("VmRSS")


def peak() -> int:
    """The most kilobytes that were in use since `peak_from_here`."""
    return _memory("VmHWM")


def _memory(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1])
