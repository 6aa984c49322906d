"""The programme over segments: the least cost for every stretch of a line within every number of bytes.

The recurrence of checkpointing on a chain (Griewank and Walther 2000, "Algorithm 799: revolve"; Beaumont et
al. 2021, "Efficient combination of rematerialization and offloading", their Rotor), with what revgraph can do
besides: a state that comes back by inversion, internals and results that stay, runs that capture. Bytes are
counted in slots of equal size. A task is a stretch of segments i to j, whose backward is to be carried out;
what differs is who holds the state before i, and what is at hand:

    lent      the state before i is someone else's, and stays
    at hand   the same, and the state after j is there, which may go
    owned     the state before i is the task's own, and may go when it is not needed any more
    released  it is the task's own, and does not come back by inversion: a plan would have its values from
              there, and run nothing again for them
    returned  it is the task's own, and must be there at the end

The stretches that end with the line (j is the number of segments) have their forward pass and the loss before
them. Figures are foreseen, not simulated: they choose schedules, which are then judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from revgraph.planning.solver.line import Line, Storages
from revgraph.planning.solver.segments import Segment, Whole
from revgraph.planning.solver.slots import (
    INFINITE,
    Counted,
    Passage,
    Row,
    Slots,
    entries,
    entries_of,
    from_slots,
    least_of,
    single,
)

# A task (its kind, i, j, slots), or an action: what is done to a segment, and with which of its ways.
Step = tuple[Any, ...]
TASKS = ("lent", "at hand", "owned", "released", "returned")


class SegmentProgramme(Counted):
    """Costs and schedules of a line's segments within `top` bytes, which are counted in so many `slots`."""

    def __init__(self, line: Line, segments: Sequence[Segment], top: float, slots: int) -> None:
        super().__init__(line, segments, top, slots)
        self.count = len(segments)
        self.cuts = [segment.start for segment in segments] + [segments[-1].stop]
        states = [line.storages[cut] for cut in self.cuts]
        self.state = [self.in_slots(line.size(each)) for each in states]
        self.beside = np.array([[self.in_slots(line.size(q - p)) for q in states] for p in states])
        self.cost = np.concatenate([[0.0], np.cumsum([float(each.cost) for each in segments])])
        self.shared = [[line.size(p & q) for q in states] for p in states]
        # Whether a state lies in part in one behind it: then that is held beside it, and costs less.
        self.overlaps = [any(self.shared[i][i + 1 :]) for i in range(self.count)]
        self.run_peaks = [self._run_peaks(i, first=False) for i in range(self.count)]
        self.first_run_peaks = [self._run_peaks(i, first=True) for i in range(self.count)]
        self.captured = [self._captured_way(each) for each in segments]
        self.captured_lent = [self._captured_way(each, line.storages[each.start]) for each in segments]
        self.rerun_cost = np.array([each.cost for each in segments], np.float32)
        # Where no segment gives its state before back for nothing, a state at hand is of no use.
        self.undoes = any(
            _is_free(whole) for n, segment in enumerate(segments) if states[n] for whole in segment.undoing
        )
        count = self.count
        self.lent = np.full((count, count + 1, slots + 1), INFINITE, np.float32)
        # By the end j first, as they are read: everything from any k to j.
        self.lent_to = np.full((count + 1, count + 1, slots + 1), INFINITE, np.float32)
        self.at_hand = np.full((count, count, slots + 1), INFINITE, np.float32)
        self.owned_to = np.full((count + 1, count + 2, slots + 1), INFINITE, np.float32)
        self.released_to = np.full((count + 1, count + 2, slots + 1), INFINITE, np.float32)
        self.returned_to = np.full((count + 1, count + 2, slots + 1), INFINITE, np.float32)
        self._solve()
        # By task, for schedules of other sizes have many of them in common.
        self._steps: dict[Step, list[Step]] = {}

    def _run_peaks(self, i: int, *, first: bool) -> Slots:
        """What plain runs from i to each position behind it take beyond the state before i, in bytes.

        As far as segments run again.
        """
        peaks: list[int] = []
        for n in range(i, self.count):
            segment = self.segments[n]
            if not segment.reruns:
                break
            peak = (segment.first_run_peak if first else segment.run_peak) - self.shared[n][i]
            peaks.append(max(peak, peaks[-1] if peaks else 0))
        return np.array(peaks, np.int64)

    def _captured_way(self, segment: Segment, before: Storages | None = None) -> Passage:
        found = self.passages([segment.captured] if segment.captured else [], segment.stop, before)
        return found[0] if found else Passage(0, 0, INFINITE, 0)

    @property
    def costs(self) -> Row:
        """What is computed again in the whole step costs, for each number of slots."""
        return self.lent[0, self.count]

    def schedule(self, slots: int) -> list[Step]:
        """The actions of the cheapest step within so many slots."""
        actions: list[Step] = []
        pending: list[Step] = [("lent", 0, self.count, slots)]
        while pending:
            step = pending.pop()
            if step[0] in TASKS:
                if step not in self._steps:
                    self._steps[step] = self._expanded(*step)
                pending += reversed(self._steps[step])
            else:
                actions.append(step)
        return actions

    def _solve(self) -> None:
        count = self.count
        for j in range(count):
            for i in range(j, -1, -1):
                self._fill(i, j)
        turn = self.in_slots(self.line.problem.loss_bytes) + self.state[count]
        for table in (self.owned_to, self.released_to, self.returned_to):
            table[count, count, turn:] = 0
        for i in range(count - 1, -1, -1):
            self._fill(i, count)

    def _fill(self, i: int, j: int) -> None:
        every, length = self.every, self.slots + 1
        rows = [row for row, _ in self._lent(i, j, every)]
        rows += [table.min(0) for _, _, _, table in self._jumps(i, j, every)]
        self.lent[i, j] = self.lent_to[j, i] = least_of(rows, length)
        if j < self.count and self.undoes:
            self.at_hand[i, j] = least_of([row for row, _ in self._at_hand(i, j, every)], length)
        self.returned_to[j, i] = least_of([row for row, _ in self._returned(i, j, every)], length)
        self.released_to[j, i] = least_of([row for row, _ in self._released(i, j, every)], length)
        self.owned_to[j, i] = np.minimum(self.released_to[j, i], self.returned_to[j, i])

    # What follows gives for a task every way to do it: its costs for a range of slots, and the way.

    def _gradient_bytes(self, j: int) -> int:
        """What is alive beside a rerun before the backward of segment j."""
        return self.segments[j].gradient_bytes if j < self.count else 0

    def _lent(self, i: int, j: int, at: slice) -> Iterator[tuple[Row, Step]]:
        segment = self.segments[i]
        if i == j and segment.at_once is not None:
            cost, peak = segment.at_once
            costs = np.full(at.stop - at.start, cost, np.float32)
            yield from_slots(costs, at, self.in_slots(peak)), ("at once", i)
        if j == self.count:
            for number, held, cost, least in self.storing_lent[i]:
                costs = entries(self.owned_to[j, i + 1], at, held) + cost
                yield from_slots(costs, at, least), ("store", i, number, held)
            for number, held, cost, least in self.storing_beside[i]:
                costs = entries(self.lent_to[j, i + 1], at, held) + cost
                yield from_slots(costs, at, least), ("store beside", i, number, held)
        elif i < j and segment.captured is not None:
            yield self._captured(i, j, at, self.captured_lent[i], segment.captured.forward_beyond)

    def _captured(self, i: int, j: int, at: slice, way: Passage, forward: int) -> tuple[Row, Step]:
        """A rerun that captures what segment i needs, which takes so many bytes itself."""
        costs = entries(self.owned_to[j, i + 1], at, way.held) + self.rerun_cost[i]
        least = max(way.least, self.in_slots(forward + self._gradient_bytes(j)))
        return from_slots(costs, at, least), ("capture", i, way.held)

    def _jumps(self, i: int, j: int, at: slice) -> Iterator[tuple[tuple[str, str], int, int, Row]]:
        """Plain runs from i to a position k, the backward from k to j, and then the one from i to k.

        By the two tasks: costs for each k from the number given on, and each number of slots. In the forward
        pass the node before k may keep results (the option of that rank), which its replay then has.
        """
        first = j == self.count
        needed = self.rows_in_slots(
            (self.first_run_peaks if first else self.run_peaks)[i][: j - i] + self._gradient_bytes(j)
        )
        # Longer runs take no less.
        reached = int(np.searchsorted(needed, self.slots, "right"))
        if not reached:
            return
        k0, k1 = i + 1, i + 1 + reached
        enough = np.arange(at.start, at.stop) >= needed[:reached, None]
        runs = np.zeros(reached) if first else self.cost[k0:k1] - self.cost[i]
        costs = np.where(enough, runs.astype(np.float32)[:, None], INFINITE)
        beside = self.beside[i, k0:k1]
        then = self.lent[i, k0 - 1 : k1 - 1, at] + costs
        yield ("released", "lent"), 0, k0, self.released_to[j, k0:k1, at] + then
        if self.overlaps[i]:
            yield ("lent", "lent"), 0, k0, entries_of(self.lent_to[j, k0:k1], at, beside) + then
        if self.undoes:
            back = self.at_hand[i, k0 - 1 : k1 - 1, at] + costs
            yield ("returned", "at hand"), 0, k0, self.returned_to[j, k0:k1, at] + back
            yield ("lent", "at hand"), 0, k0, entries_of(self.lent_to[j, k0:k1], at, beside) + back
        if not first:
            return
        for rank, (held, saved) in enumerate(self.kept, start=1):
            less, rest = held[i : k1 - 1], then - saved[i : k1 - 1, None]
            released = entries_of(self.released_to[j, k0:k1], at, less)
            yield ("released", "lent"), rank, k0, released + rest
            if self.overlaps[i]:
                staying = entries_of(self.lent_to[j, k0:k1], at, less + beside)
                yield ("lent", "lent"), rank, k0, staying + rest

    def _at_hand(self, i: int, j: int, at: slice) -> Iterator[tuple[Row, Step]]:
        yield self.lent[i, j, at], ("let go",)
        segment = self.segments[j]
        after = self.line.storages[segment.stop]
        for number, whole in enumerate(segment.undoing):
            if _is_free(whole):
                shared = self.shared[i][j + 1]
                peak = max(self.line.size(after) - shared, whole.backward - shared)
                rest = self.at_hand[i, j - 1, at] if i < j else np.zeros(at.stop - at.start, np.float32)
                costs = rest + np.float32(whole.cost)
                yield from_slots(costs, at, self.in_slots(peak)), ("undo", j, number)

    def _returned(self, i: int, j: int, at: slice) -> Iterator[tuple[Row, Step]]:
        yield entries(self.lent[i, j], at, self.state[i]), ("lend",)
        first, segment = j == self.count, self.segments[i]
        if i == j or (not first and not segment.reruns):
            return
        for number, held, cost, least in self.undoing[i]:
            whole = segment.undoing[number]
            if not first and (whole.own_bytes or not self._replays(i, number)):
                continue
            costs = entries(self.returned_to[j, i + 1], at, held) + cost
            if not first:
                costs += self.rerun_cost[i]
                least = max(least, self.in_slots(whole.forward + self._gradient_bytes(j)))
            yield from_slots(costs, at, least), ("invert", i, number, held)

    def _replays(self, i: int, number: int) -> bool:
        """Whether a way is one of replays alone, which may come after a rerun."""
        nodes = range(self.segments[i].start, self.segments[i].stop)
        ways = self.segments[i].undoing[number].ways
        return all(
            way.option == self.line.replay[n] or self.line.item(n).options[way.option].name != "keep"
            for n, way in zip(nodes, ways, strict=True)
        )

    def _owned(self, i: int, j: int, at: slice) -> Iterator[tuple[Row, Step]]:
        yield self.returned_to[j, i, at], ("return",)
        yield self.released_to[j, i, at], ("release",)

    def _released(self, i: int, j: int, at: slice) -> Iterator[tuple[Row, Step]]:
        yield entries(self.lent[i, j], at, self.state[i]), ("lend",)
        segment = self.segments[i]
        if j == self.count:
            for number, held, cost, least in self.storing[i]:
                costs = entries(self.owned_to[j, i + 1], at, held) + cost
                yield from_slots(costs, at, least), ("store", i, number, held)
        elif i < j and segment.captured is not None:
            yield self._captured(i, j, at, self.captured[i], segment.captured.forward)

    def _expanded(self, kind: str, i: int, j: int, slots: int) -> list[Step]:
        """A task as the actions and smaller tasks of its cheapest way."""
        if i == self.count:
            return [("turn",)]
        if j < i:
            return []
        at = single(slots)
        ways = {
            "lent": self._lent,
            "at hand": self._at_hand,
            "owned": self._owned,
            "released": self._released,
            "returned": self._returned,
        }[kind]
        least, chosen = INFINITE, None
        for costs, how in ways(i, j, at):
            if costs[0] < least:
                least, chosen = costs[0], how
        if kind == "lent":
            for tasks, rank, k0, table in self._jumps(i, j, at):
                place = int(table[:, 0].argmin())
                if table[place, 0] < least:
                    least, chosen = table[place, 0], ("jump", tasks, rank, k0 + place)
        assert chosen is not None
        return self._taken(chosen, i, j, slots)

    def _taken(self, chosen: Step, i: int, j: int, slots: int) -> list[Step]:
        match chosen:
            case ("jump", (first, then), rank, k):
                runs: list[Step] = [("run", each) for each in range(i, k)]
                left = slots - (int(self.beside[i, k]) if first == "lent" else 0)
                if rank:
                    kept = self.segments[k - 1].results[rank - 1]
                    left -= self.in_slots(kept.held_bytes)
                    runs[-1] = ("run and keep", k - 1, kept.option)
                return [*runs, (first, k, j, left), (then, i, k - 1, slots)]
            case ("at once", _):
                return [chosen]
            case ("let go",):
                return [("lent", i, j, slots)]
            case ("lend",):
                return [("lent", i, j, slots - self.state[i])]
            case ("return",):
                return [("returned", i, j, slots)]
            case ("release",):
                return [("released", i, j, slots)]
            case ("undo", _, number):
                return [chosen, *([("at hand", i, j - 1, slots)] if i < j else [])]
            case ("capture", _, held):
                return [("capture", i), ("owned", i + 1, j, slots - held), ("captured back", i)]
            case ("store", _, number, held):
                return [("store", i, number), ("owned", i + 1, j, slots - held), ("stored back", i, number)]
            case ("store beside", _, number, held):
                return [("store", i, number), ("lent", i + 1, j, slots - held), ("stored back", i, number)]
            case ("invert", _, number, held):
                return [("invert", i, number), ("returned", i + 1, j, slots - held), ("undo", i, number)]
        raise AssertionError(chosen)


def _is_free(whole: Whole) -> bool:
    """Whether a way holds nothing from the forward on."""
    return not whole.own_bytes and not whole.pins
