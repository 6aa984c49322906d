"""Turns: one node at a time, where several threads train nets on the CPU.

A replay puts the forward's random numbers and buffers back for a moment. Both belong to the whole process, so
another thread's node must not run meanwhile: it would draw numbers that were drawn before, and update buffers
that are thrown away.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

_NODES = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_NODES._at_fork_reinit)  # pyright: ignore[reportAttributeAccessIssue]


def turn(devices: Sequence[int]) -> AbstractContextManager[Any]:
    """What to hold while a node runs, where `devices` are the GPUs that it may use.

    On a GPU it is nothing: there a backward pass runs in threads of its own, which a forward that
    differentiates may have to wait for.
    """
    return nullcontext() if devices else _NODES


def has_company() -> bool:
    """Whether other threads may have drawn random numbers since this one last looked."""
    return threading.active_count() > 1
