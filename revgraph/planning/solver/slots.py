"""Slots: bytes counted in units of equal size, so that costs by bytes are rows of numbers.

A row has the cost within each number of slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from revgraph.planning.solver.line import Line, Storages
from revgraph.planning.solver.segments import Segment, Whole, kept_results

Row = np.ndarray[Any, np.dtype[np.float32]]
Slots = np.ndarray[Any, np.dtype[np.int64]]
INFINITE = np.float32(np.inf)
At = slice | Slots
"""Where rows are looked at: in all slots, or each row in one."""


class Passage(NamedTuple):
    """A way through a segment: its number, slots held up to its backward, its cost, and slots at least.

    Bytes that its forward takes are told where they matter besides.
    """

    number: int
    held: int
    cost: np.float32
    least: int
    forward: int = 0


class Table:
    """A row of costs for each stretch from i to j, by its number in `numbers`; infinite to begin with."""

    def __init__(self, numbers: Slots, slots: int) -> None:
        self.numbers = numbers
        self.length = slots + 1
        count = int(numbers.max()) + 1
        # Before the first row lies room for what is read before its first entry.
        flat = np.full((count + 1) * self.length, INFINITE, np.float32)
        self.flat, self.rows = flat, flat[self.length :].reshape(count, self.length)
        self.windows = np.lib.stride_tricks.sliding_window_view(flat, self.length)

    def row(self, i: int | Slots, j: int | Slots) -> Row:
        """The row of a stretch, or those of several."""
        return self.rows[self.numbers[i, j]]

    def fill(self, i: Slots, j: Slots, costs: Sequence[Row]) -> None:
        """The least of several rows for each of the stretches."""
        self.rows[self.numbers[i, j]] = np.minimum.reduce(costs)

    def entries(self, i: Slots, j: Slots, at: At, less: Slots | None = None) -> Row:
        """Entries at some slots, or so many before; those before a row's first one have no meaning."""
        begins = (self.numbers[i, j] + 1) * self.length
        if less is not None:
            begins -= np.minimum(less, self.length)
        return self.windows[begins] if isinstance(at, slice) else self.flat[begins + at][:, None]


class Counted:
    """A line whose bytes up to `top` are counted in so many `slots`, each of `unit` bytes.

    By segment, `storing`, `storing_lent` (where the state before is someone else's), `storing_beside` (where
    the state behind is so, too, and part of it lies in the state before) and `undoing` are the ways through
    it; `kept` are results that its last node may keep, by rank.
    """

    def __init__(self, line: Line, segments: Sequence[Segment], top: float, slots: int) -> None:
        self.line = line
        self.segments = segments
        self.slots = slots
        self.unit = max(1.0, top / slots)
        self.every = slice(0, slots + 1)
        # By slots, a row that is infinite below so many and nothing from there on.
        steps = np.repeat(np.array([INFINITE, 0], np.float32), [slots + 1, slots + 1])
        self.masks = np.lib.stride_tricks.sliding_window_view(steps, slots + 1)[::-1]
        self.storing = [self.passages(each.storing, each.stop) for each in segments]
        self.storing_lent = [
            self.passages(each.storing, each.stop, line.storages[each.start]) for each in segments
        ]
        self.storing_beside = [self._passages_beside(each) for each in segments]
        self.undoing = [self.passages(each.undoing, each.stop) for each in segments]
        kept = kept_results(segments, nothing=round(top) * 2)
        self.kept = [(self.rows_in_slots(held), saved) for held, saved in kept]

    def in_slots(self, size: float) -> int:
        return int(size / self.unit + 0.5)

    def rows_in_slots(self, sizes: Slots) -> Slots:
        return (sizes / self.unit + 0.5).astype(np.int64)

    def from_slots(self, costs: Row, at: At, least: Slots) -> Row:
        """Costs at some slots, which are changed for that: infinite below so many, row by row."""
        if isinstance(at, slice):
            costs += self.masks[np.minimum(least, self.slots + 1)]
        else:
            costs[least > at] = INFINITE
        return costs

    def passages(self, ways: Sequence[Whole], stop: int, before: Storages | None = None) -> list[Passage]:
        """Ways through a segment that ends at position `stop`.

        The state `before` it is someone else's, where it is given, and does not count.
        """
        found: list[Passage] = []
        for number, way in enumerate(ways):
            own = before is None
            pins = way.pins if before is None else way.pins - before
            held = self.in_slots(way.own_bytes + self.line.charged(pins, stop))
            peak = max(way.forward, way.backward) if own else max(way.forward_beyond, way.backward_beyond)
            found.append(Passage(number, held, np.float32(way.cost), self.in_slots(peak)))
        return found

    def _passages_beside(self, segment: Segment) -> list[Passage]:
        """Ways through a segment that hold the state behind it beside that before it, as far as it is new.

        None where nothing lies in both: then the state behind may as well be the task's own.
        """
        before, after = self.line.storages[segment.start], self.line.storages[segment.stop]
        if before.isdisjoint(after):
            return []
        found: list[Passage] = []
        for number, way in enumerate(segment.storing):
            held = self.in_slots(way.own_bytes + self.line.size((way.pins | after) - before))
            peak = self.in_slots(max(way.forward_beyond, way.backward_beyond))
            found.append(Passage(number, held, np.float32(way.cost), max(peak, held)))
        return found


def undominated(passages: Iterable[Passage]) -> list[Passage]:
    """Those than which no other is as good in every way: many that differ in bytes are one in slots.

    Of equals it is the first, and one that costs no more than a later one stays, which is then preferred.
    """
    found: list[Passage] = []
    for passage in passages:
        if not any(_as_good(other, passage) for other in found):
            found = [other for other in found if other.cost <= passage.cost or not _as_good(passage, other)]
            found.append(passage)
    return found


def _as_good(one: Passage, other: Passage) -> bool:
    return (
        one.held <= other.held
        and one.least <= other.least
        and one.forward <= other.forward
        and bool(one.cost <= other.cost)
    )


def width(at: At) -> int:
    """How many slots each row is looked at in."""
    return at.stop - at.start if isinstance(at, slice) else 1
