"""Quieting: what compiled code prints goes to standard error, so that standard output stays the caller's."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def quieted() -> Iterator[None]:
    """Run with standard output's descriptor on standard error: HiGHS prints whatever it is told."""
    try:
        sys.stdout.flush()
        kept = os.dup(1)
    except (OSError, ValueError, AttributeError):  # there is no standard output to keep clean
        yield
        return
    try:
        with suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).fflush(None)  # C's own buffer, before the descriptor is the caller's again
        os.dup2(kept, 1)
        os.close(kept)
