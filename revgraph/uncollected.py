"""Work without the garbage collector, for a while."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """A block in which Python's collector of cycles does not run by itself.

    For what watches memory, where things are to go when nothing refers to them; for what traps calls, among
    which the collector's would be; and for what makes many small objects and no cycles, where the collector
    would go through the whole program again and again.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
