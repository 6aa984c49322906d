"""Whose turn it is: while one thread traces a model, no other runs a net.

A trace puts others in the place of torch's functions and of a model's tensors, for the whole process. Nets
run beside each other in any number of threads; a trace waits until those that run are through, and begins
alone.
"""

from __future__ import annotations

import os
import threading


class Turns:
    """A lock that many threads hold who run nets, or one that traces.

    A thread that runs a net may go on to trace, for another form of call, or for a net inside. Two such
    threads do not wait for each other: what waits to trace does nothing meanwhile that could be disturbed.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: dict[int, int] = {}
        self._waiting: set[int] = set()
        self._tracing: int | None = None
        self._depth = 0

    def start_running(self, waits: bool = True) -> None:
        """Wait for a trace that is under way, and for those that wait, if this thread `waits`."""
        me = threading.get_ident()
        with self._changed:
            if waits and me not in self._running:
                while self._tracing not in (None, me) or (self._waiting and self._tracing is None):
                    self._changed.wait()
            self._running[me] = self._running.get(me, 0) + 1

    def stop_running(self) -> None:
        """Let those go on who wait for this thread."""
        me = threading.get_ident()
        with self._changed:
            self._running[me] -= 1
            if not self._running[me]:
                del self._running[me]
                if self._waiting:
                    self._changed.notify_all()

    def start_tracing(self) -> None:
        """Wait until no other thread traces or runs a net."""
        me = threading.get_ident()
        with self._changed:
            if self._tracing != me:
                self._waiting.add(me)
                try:
                    # Inside of a node that runs there are threads that wait for the node.
                    others = self._running.keys() if self._running.get(me, 0) < 2 else frozenset[int]()
                    while self._tracing is not None or others - self._waiting - {me}:
                        self._changed.wait()
                finally:
                    self._waiting.discard(me)
                    self._changed.notify_all()
                self._tracing = me
            self._depth += 1

    def stop_tracing(self) -> None:
        """Let the others go on."""
        with self._changed:
            self._depth -= 1
            if not self._depth:
                self._tracing = None
                self._changed.notify_all()

    def traced_elsewhere(self) -> bool:
        """Whether another thread traces now."""
        return self._tracing not in (None, threading.get_ident())


_turns = Turns()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_turns.__init__)


def traced_elsewhere() -> bool:
    """Whether another thread traces a model now."""
    return _turns.traced_elsewhere()


class Running:
    """A block in which a net runs."""

    __slots__ = ()

    def __enter__(self) -> None:
        _turns.start_running()

    def __exit__(self, *_: object) -> None:
        _turns.stop_running()


class RunningAgain(Running):
    """A block of a backward pass, which may be in a thread of autograd's.

    Those do not wait: a forward that differentiates may wait for them, and so may a trace. Only the `thread`
    of the forward does.
    """

    __slots__ = ("thread",)

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def __enter__(self) -> None:
        _turns.start_running(waits=self.thread == threading.get_ident())


class TracingAlone:
    """A block in which this thread traces, and no other runs a net."""

    __slots__ = ()

    def __enter__(self) -> None:
        _turns.start_tracing()

    def __exit__(self, *_: object) -> None:
        _turns.stop_tracing()
