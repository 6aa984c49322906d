"""Slots: bytes counted in units of equal size, so that costs by bytes are rows of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from revgraph.planning.solver.line import Line, Storages

Row = np.ndarray[Any, np.dtype[np.float32]]
Slots = np.ndarray[Any, np.dtype[np.int64]]
INFINITE = np.float32(np.inf)


class Counted:
    """A line whose bytes up to `top` are counted in so many `slots`, each of `unit` bytes."""

    def __init__(self, line: Line, top: float, slots: int) -> None:
        self.line = line
        self.slots = slots
        self.unit = max(1.0, top / slots)
        self.every: Slots = np.arange(slots + 1)

    def in_slots(self, size: float) -> int:
        return int(size / self.unit + 0.5)

    def held(self, own_bytes: int, pins: Storages, stop: int) -> int:
        """Slots of what nodes before position `stop` hold to their backward."""
        return self.in_slots(own_bytes + self.line.charged(pins, stop))

    def within(self, costs: Row, at: Slots, size: float) -> Row:
        """The costs at these numbers of slots, where they are so many bytes at least."""
        return np.where(at >= self.in_slots(size), costs, INFINITE)


def entries(row: Row, places: Slots) -> Row:
    """A row's entries at these places; there are none before the first."""
    return np.where(places >= 0, row[np.maximum(places, 0)], INFINITE)


def entries_of(rows: Row, places: Slots) -> Row:
    """Each row's entries at its places."""
    found = np.take_along_axis(rows, np.maximum(places, 0), 1)
    found[places < 0] = INFINITE
    return found


def least_of(rows: Sequence[Row], length: int) -> Row:
    """The least of the rows, place by place."""
    return np.minimum.reduce(rows) if rows else np.full(length, INFINITE, np.float32)
