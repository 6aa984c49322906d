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

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from revgraph.planning.solver.line import Line, Storages
from revgraph.planning.solver.segments import Segment, Whole
from revgraph.planning.solver.slots import (
    INFINITE,
    At,
    Counted,
    Passage,
    Row,
    Slots,
    Table,
    undominated,
    width,
)

# A task (its kind, i, j, slots), or an action: what is done to a segment, and with which of its ways.
Step = tuple[Any, ...]
TASKS = ("lent", "at hand", "owned", "released", "returned")
# Bytes of a run that cannot be: more than there are, and with gradients beside them still no overflow.
ENDLESS = 1 << 60
# Rows of costs that are worked on at once: more of them leave the processor's cache.
AT_ONCE = 256


class _Way(NamedTuple):
    """A way by segment: slots held up to its backward, cost, slots at least, bytes that its forward takes.

    Where a segment has no such way, it takes more slots than there are. Segments have ways of other numbers
    here.
    """

    number: Slots
    held: Slots
    cost: Row
    least: Slots
    forward: Slots


class SegmentProgramme(Counted):
    """Costs and schedules of a line's segments within `top` bytes, which are counted in so many `slots`.

    Stretches of one length depend on shorter ones alone, so that all of them are filled at once.
    """

    def __init__(self, line: Line, segments: Sequence[Segment], top: float, slots: int) -> None:
        super().__init__(line, segments, top, slots)
        self.count = count = len(segments)
        cuts = [segment.start for segment in segments] + [segments[-1].stop]
        states = [line.storages[cut] for cut in cuts]
        sizes = [line.size(each) for each in states]
        shared = [[line.size(p & q) for q in states] for p in states]
        self.shared = np.array(shared, np.int64)
        self.state = self.rows_in_slots(np.array(sizes, np.int64))
        self.after = np.array(sizes[1:], np.int64)
        self.beside = self.rows_in_slots(np.array(sizes, np.int64) - self.shared)
        self.cost = np.concatenate([[0.0], np.cumsum([float(each.cost) for each in segments])])
        # Whether a state lies in part in one behind it: then that is held beside it, and costs less.
        self.overlaps = np.array([any(shared[i][i + 1 :]) for i in range(count)])
        self.run_peaks = self._run_peaks(shared, first=False)
        self.first_run_peaks = self._run_peaks(shared, first=True)
        # What is alive beside a rerun before the backward of each segment; before the turn there is none.
        self.gradient_bytes = np.array([*(each.gradient_bytes for each in segments), 0], np.int64)
        self.rerun_cost = np.array([each.cost for each in segments], np.float32)
        self._prepare_ways(states)
        self.numbers = self._numbers()
        self.lent, self.at_hand, self.owned, self.released, self.returned = (
            Table(self.numbers, slots) for _ in range(5)
        )
        self.tables = {
            "lent": self.lent,
            "at hand": self.at_hand,
            "owned": self.owned,
            "released": self.released,
            "returned": self.returned,
        }
        self._solve()
        # By task, for schedules of other sizes have many of them in common.
        self._steps: dict[Step, list[Step]] = {}

    def _run_peaks(self, shared: list[list[int]], *, first: bool) -> Slots:
        """What plain runs from i to k take beyond the state before i, in bytes, as far as segments rerun."""
        peaks = np.full((self.count, self.count + 1), ENDLESS, np.int64)
        for i in range(self.count):
            most = 0
            for n in range(i, self.count):
                segment = self.segments[n]
                if not segment.reruns:
                    break
                run = segment.first_run_peak if first else segment.run_peak
                peaks[i, n + 1] = most = max(most, run - shared[n][i])
        return peaks

    def _prepare_ways(self, states: Sequence[Storages]) -> None:
        segments = self.segments
        forwards = [[whole.forward for whole in each.undoing] for each in segments]
        self.ways_storing = self._ways(self.storing)
        self.ways_storing_lent = self._ways(self.storing_lent)
        self.ways_storing_beside = self._ways(self.storing_beside)
        self.ways_undoing = self._ways(self.undoing, forwards)
        # After a rerun only what replays alone can be undone.
        again = [
            [
                way
                if segment.reruns
                and not segment.undoing[way.number].own_bytes
                and self._replays(n, way.number)
                else None
                for way in self.undoing[n]
            ]
            for n, segment in enumerate(segments)
        ]
        self.ways_undoing_again = self._ways(again, forwards)
        free = [
            [way if _is_free(segment.undoing[way.number]) else None for way in self.undoing[n]]
            for n, segment in enumerate(segments)
        ]
        backwards = [[whole.backward for whole in each.undoing] for each in segments]
        self.ways_free = self._ways(free, backwards)
        # Where no segment gives its state before back for nothing, a state at hand is of no use.
        self.undoes = any(way is not None for n, ways in enumerate(free) if self.state[n] for way in ways)
        captured = [[each.captured] if each.captured is not None else [] for each in segments]
        own = [self.passages(ways, each.stop) for ways, each in zip(captured, segments, strict=True)]
        lent = [
            self.passages(ways, each.stop, state)
            for ways, each, state in zip(captured, segments, states, strict=False)
        ]
        (self.way_captured,) = self._ways(own, [[way.forward for way in ways] for ways in captured]) or [None]
        (self.way_captured_lent,) = self._ways(
            lent, [[way.forward_beyond for way in ways] for ways in captured]
        ) or [None]
        at_once = [each.at_once or (INFINITE, 0) for each in segments]
        self.at_once_cost = np.array([cost for cost, _ in at_once], np.float32)
        self.at_once_least = self.rows_in_slots(np.array([peak for _, peak in at_once], np.int64))

    def _ways(
        self, found: Sequence[Sequence[Passage | None]], forwards: Sequence[Sequence[int]] = ()
    ) -> list[_Way]:
        """All ways as rows over the segments: their first ones, their second ones, and so on."""
        there: list[list[Passage]] = []
        for n, passages in enumerate(found):
            fitting = [each for each in passages if each is not None and each.held <= self.slots]
            if forwards:
                fitting = [each._replace(forward=forwards[n][each.number]) for each in fitting]
            there.append(undominated(fitting))
        ways: list[_Way] = []
        for place in range(max(map(len, there), default=0)):
            held = np.full(self.count, self.slots + 1)
            number, forward, least = np.zeros_like(held), np.zeros_like(held), held.copy()
            cost = np.zeros(self.count, np.float32)
            for n, passages in enumerate(there):
                if place < len(passages):
                    number[n], held[n], cost[n], least[n], forward[n] = passages[place]
            ways.append(_Way(number, held, cost, least, forward))
        return ways

    @property
    def costs(self) -> Row:
        """What is computed again in the whole step costs, for each number of slots."""
        return self.lent.row(0, self.count)

    def schedule(self, slots: int) -> list[Step]:
        """The actions of the cheapest step within so many slots."""
        if not self._steps:  # one after another takes several times as long as all at once
            falls = np.flatnonzero(self.costs < np.concatenate([[INFINITE], self.costs[:-1]]))
            self._read(*(("lent", 0, self.count, each) for each in falls.tolist()))
        whole: Step = ("lent", 0, self.count, slots)
        self._read(whole)
        actions: list[Step] = []
        pending = [whole]
        while pending:
            step = pending.pop()
            if step[0] in TASKS:
                pending += reversed(self._steps[step])
            else:
                actions.append(step)
        return actions

    def _numbers(self) -> Slots:
        """For stretches from i to j their rows' numbers in tables: those that look alike have one.

        What a stretch comes to hangs on its segments, and on what its states share. It looks like another one
        if it does so without its last segment and without its first one, and the states at its ends share
        as much. Stretches that end with the line are like none.
        """
        count = self.count
        numbers = np.full((count + 1, count + 1), -1)
        known: dict[Hashable, int] = {}
        for length in range(count + 1):
            for i in range(count + 1 - length):
                j = i + length
                if j == count:
                    look: Hashable = i, j
                else:
                    parts = (numbers[i, j - 1], numbers[i + 1, j]) if length else (self._look(i),)
                    look = *parts, self.shared[i, j + 1]
                numbers[i, j] = known.setdefault(look, len(known))
        return numbers

    def _look(self, n: int) -> Hashable:
        """All that stretches are told of a segment, and of the states at its ends."""
        ways = (
            *(self.ways_undoing_again + self.ways_free),
            *(each for each in (self.way_captured, self.way_captured_lent) if each is not None),
        )
        segment = self.segments[n]
        return (
            segment.reruns, segment.cost, segment.run_peak, segment.gradient_bytes,
            self.shared[n, n], self.shared[n + 1, n + 1], self.overlaps[n],
            self.at_once_cost[n], self.at_once_least[n],
            *((way.held[n], way.cost[n], way.least[n], way.forward[n]) for way in ways),
        )  # fmt: skip

    def _solve(self) -> None:
        count = self.count
        for length in range(count):
            alike = np.diagonal(self.numbers, length)[: count - length]
            i = np.unique(alike, return_index=True)[1]
            self._fill(i, i + length)
        turn = self.in_slots(self.line.problem.loss_bytes) + int(self.state[count])
        for table in (self.owned, self.released, self.returned):
            table.row(count, count)[turn:] = 0
        for i in range(count - 1, -1, -1):
            self._fill(np.array([i]), np.array([count]))

    def _fill(self, i: Slots, j: Slots) -> None:
        """Fill in tasks of one length, of which none hangs on another, or one that ends with the line."""
        every = self.every
        self.lent.fill(i, j, [*(rows for rows, _ in self._lent(i, j, every)), self._least_jumps(i, j)])
        if j[0] < self.count and self.undoes:
            self.at_hand.fill(i, j, [rows for rows, _ in self._at_hand(i, j, every)])
        self.returned.fill(i, j, [rows for rows, _ in self._returned(i, j, every)])
        self.released.fill(i, j, [rows for rows, _ in self._released(i, j, every)])
        self.owned.fill(i, j, [rows for rows, _ in self._owned(i, j, every)])

    def _least_jumps(self, i: Slots, j: Slots) -> Row:
        """The least cost of each task with a plain run first."""
        least = np.full((len(i), self.slots + 1), INFINITE, np.float32)
        lengths = np.arange(1, int(j[0] - i[0]) + 1)
        peaks = (self.first_run_peaks if j[0] == self.count else self.run_peaks)[
            i[:, None], i[:, None] + lengths
        ]
        fits = self.rows_in_slots(peaks + self.gradient_bytes[j, None]) <= self.slots
        lengths = lengths[: int(fits.sum(1).max(initial=0))]  # longer runs take no less
        if not len(lengths):
            return least
        at_once = max(1, AT_ONCE // len(lengths))
        for first in range(0, len(i), at_once):
            some = slice(first, first + at_once)
            start, stop = np.repeat(i[some], len(lengths)), np.repeat(j[some], len(lengths))
            run = (i[some, None] + lengths).ravel()
            for _, _, costs in self._jumps(start, run, stop, self.every):
                of_task = costs.reshape(-1, len(lengths), self.slots + 1)
                np.minimum(least[some], of_task.min(1), out=least[some])
        return least

    # What follows gives for tasks from i to j every way to do them: costs `at` slots, and the way.

    def _lent(self, i: Slots, j: Slots, at: At) -> Iterator[tuple[Row, Step]]:
        if i[0] == j[0]:
            costs = np.repeat(self.at_once_cost[i, None], width(at), 1)
            yield self.from_slots(costs, at, self.at_once_least[i]), ("at once",)
        if j[0] == self.count:
            for way in self.ways_storing_lent:
                yield self._through(self.owned, way, i, j, at), ("store", way)
            for way in self.ways_storing_beside:
                yield self._through(self.lent, way, i, j, at), ("store beside", way)
        elif i[0] < j[0] and self.way_captured_lent is not None:
            yield self._captured(self.way_captured_lent, i, j, at)

    def _through(self, table: Table, way: _Way, i: Slots, j: Slots, at: At) -> Row:
        """The first segment goes a way, and then comes the task of a table, with what that leaves."""
        costs = table.entries(i + 1, j, at, way.held[i]) + way.cost[i, None]
        return self.from_slots(costs, at, np.maximum(way.least, way.held)[i])

    def _captured(self, way: _Way, i: Slots, j: Slots, at: At) -> tuple[Row, Step]:
        """A rerun that captures what the first segment needs."""
        costs = self.owned.entries(i + 1, j, at, way.held[i]) + self.rerun_cost[i, None]
        run = self.rows_in_slots(way.forward[i] + self.gradient_bytes[j])
        least = np.maximum(np.maximum(way.least, way.held)[i], run)
        return self.from_slots(costs, at, least), ("capture", way)

    def _jumps(self, i: Slots, k: Slots, j: Slots, at: At) -> Iterator[tuple[tuple[str, str], int, Row]]:
        """Plain runs from i to a position k, the backward from k to j, and then the one from i to k.

        By the two tasks. In the forward pass the node before k may keep results (the option of that rank),
        which its replay then has.
        """
        first = j[0] == self.count
        needed = self.rows_in_slots(
            (self.first_run_peaks if first else self.run_peaks)[i, k] + self.gradient_bytes[j]
        )
        if needed.min() > self.slots:
            return
        # In the forward pass a run costs nothing, for it happens anyway.
        runs = np.zeros(len(i)) if first else self.cost[k] - self.cost[i]
        cost, beside = runs.astype(np.float32)[:, None], self.beside[i, k]
        then = self.from_slots(self.lent.entries(i, k - 1, at) + cost, at, needed)
        yield ("released", "lent"), 0, self.released.entries(k, j, at) + then
        overlaps = self.overlaps[i].any()
        if overlaps:
            beside = np.where(self.overlaps[i], beside, self.slots + 1)
            yield ("lent", "lent"), 0, self._beside(k, j, at, beside) + then
        if self.undoes:
            back = self.from_slots(self.at_hand.entries(i, k - 1, at) + cost, at, needed)
            yield ("returned", "at hand"), 0, self.returned.entries(k, j, at) + back
            yield ("lent", "at hand"), 0, self._beside(k, j, at, self.beside[i, k]) + back
        if not first:
            return
        for rank, (held, saved) in enumerate(self.kept, start=1):
            less, rest = held[k - 1], then - saved[k - 1, None]
            released = self.released.entries(k, j, at, less)
            yield ("released", "lent"), rank, self.from_slots(released, at, less) + rest
            if overlaps:
                yield ("lent", "lent"), rank, self._beside(k, j, at, less + beside) + rest

    def _beside(self, k: Slots, j: Slots, at: At, less: Slots) -> Row:
        """Costs of the stretch behind k, whose state before it is held for so many slots."""
        return self.from_slots(self.lent.entries(k, j, at, less), at, less)

    def _at_hand(self, i: Slots, j: Slots, at: At) -> Iterator[tuple[Row, Step]]:
        yield self.lent.entries(i, j, at), ("let go",)
        shared = self.shared[i, j + 1]
        for way in self.ways_free:
            costs = np.repeat(way.cost[j, None], width(at), 1)
            if i[0] < j[0]:
                costs += self.at_hand.entries(i, j - 1, at)
            peak = self.rows_in_slots(np.maximum(self.after[j], way.forward[j]) - shared)
            # A segment without this way holds more slots than there are.
            yield self.from_slots(costs, at, np.maximum(peak, way.held[j])), ("undo", way)

    def _returned(self, i: Slots, j: Slots, at: At) -> Iterator[tuple[Row, Step]]:
        yield self._beside(i, j, at, self.state[i]), ("lend",)
        if i[0] == j[0]:
            return
        if j[0] == self.count:
            for way in self.ways_undoing:
                yield self._through(self.returned, way, i, j, at), ("invert", way)
            return
        for way in self.ways_undoing_again:
            costs = self.returned.entries(i + 1, j, at, way.held[i]) + way.cost[i, None]
            costs += self.rerun_cost[i, None]
            run = self.rows_in_slots(way.forward[i] + self.gradient_bytes[j])
            least = np.maximum(np.maximum(way.least, way.held)[i], run)
            yield self.from_slots(costs, at, least), ("invert", way)

    def _replays(self, n: int, number: int) -> bool:
        """Whether a way is one of replays alone, which may come after a rerun."""
        nodes = range(self.segments[n].start, self.segments[n].stop)
        ways = self.segments[n].undoing[number].ways
        return all(
            way.option == self.line.replay[n] or self.line.item(n).options[way.option].name != "keep"
            for n, way in zip(nodes, ways, strict=True)
        )

    def _owned(self, i: Slots, j: Slots, at: At) -> Iterator[tuple[Row, Step]]:
        yield self.returned.entries(i, j, at), ("return",)
        yield self.released.entries(i, j, at), ("release",)

    def _released(self, i: Slots, j: Slots, at: At) -> Iterator[tuple[Row, Step]]:
        yield self._beside(i, j, at, self.state[i]), ("lend",)
        if j[0] == self.count:
            for way in self.ways_storing:
                yield self._through(self.owned, way, i, j, at), ("store", way)
        elif i[0] < j[0] and self.way_captured is not None:
            yield self._captured(self.way_captured, i, j, at)

    def _read(self, *wanted: Step) -> None:
        """Find what tasks come to in their cheapest ways, and the tasks in these, those of a kind at once."""
        pending = set(wanted)
        while pending:
            alike: defaultdict[tuple[str, bool, bool], list[Step]] = defaultdict(list)
            for task in pending.difference(self._steps):
                kind, i, j, _ = task
                if i > j or i == self.count:
                    self._steps[task] = [("turn",)] if i == j else []
                else:
                    alike[kind, i == j, j == self.count].append(task)
            for tasks in alike.values():
                self._expand(tasks)
            pending = {
                step
                for tasks in alike.values()
                for task in tasks
                for step in self._steps[task]
                if step[0] in TASKS
            }

    def _expand(self, tasks: Sequence[Step]) -> None:
        """Tasks of one kind as actions and smaller tasks, in the fewest slots in which they cost no more."""
        kind = tasks[0][0]
        i, j, slots = np.array([task[1:] for task in tasks]).T
        costs = self.tables[kind].row(i, j)
        first = (costs == costs[np.arange(len(tasks)), slots, None]).argmax(1)
        least = [(kind, *task) for task in zip(i.tolist(), j.tolist(), first.tolist(), strict=True)]
        places = {task: place for place, task in enumerate(least) if task not in self._steps}
        rows = np.array([*places.values()], np.int64)
        if len(rows):
            chosen = self._cheapest(kind, i[rows], j[rows], first[rows])
            for task, how in zip(places, chosen, strict=True):
                self._steps[task] = self._taken(how, *task[1:])
        for task, cheapest in zip(tasks, least, strict=True):
            self._steps[task] = self._steps[cheapest]

    def _cheapest(self, kind: str, i: Slots, j: Slots, slots: Slots) -> list[Step]:
        """The cheapest way of each task."""
        ways = {
            "lent": self._lent,
            "at hand": self._at_hand,
            "owned": self._owned,
            "released": self._released,
            "returned": self._returned,
        }[kind]
        least = self.tables[kind].entries(i, j, slots)[:, 0]
        found: dict[int, Step] = {}
        for costs, how in ways(i, j, slots):
            for place in np.flatnonzero(costs[:, 0] == least).tolist():
                found.setdefault(place, how)
        rest = np.array([place for place in range(len(i)) if place not in found], np.int64)
        if len(rest):  # they begin with a plain run
            counts = j[rest] - i[rest]
            task = np.repeat(rest, counts)
            k = i[task] + 1 + np.arange(len(task)) - np.repeat(np.cumsum(counts) - counts, counts)
            for tasks, rank, costs in self._jumps(i[task], k, j[task], slots[task]):
                for run in np.flatnonzero(costs[:, 0] == least[task]).tolist():
                    found.setdefault(int(task[run]), ("jump", tasks, rank, int(k[run])))
        return [found[place] for place in range(len(i))]

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
            case ("at once",):
                return [("at once", i)]
            case ("let go",):
                return [("lent", i, j, slots)]
            case ("lend",):
                return [("lent", i, j, slots - int(self.state[i]))]
            case ("return",):
                return [("returned", i, j, slots)]
            case ("release",):
                return [("released", i, j, slots)]
            case ("undo", way):
                return [("undo", j, int(way.number[j])), *([("at hand", i, j - 1, slots)] if i < j else [])]
            case ("capture", way):
                left = slots - int(way.held[i])
                return [("capture", i), ("owned", i + 1, j, left), ("captured back", i)]
            case ("store" | "store beside" | "invert" as what, way):
                left, number = slots - int(way.held[i]), int(way.number[i])
                task = {"store": "owned", "store beside": "lent", "invert": "returned"}[what]
                there, back = ("invert", "undo") if what == "invert" else ("store", "stored back")
                return [(there, i, number), (task, i + 1, j, left), (back, i, number)]
        raise AssertionError(chosen)


def _is_free(whole: Whole) -> bool:
    """Whether a way holds nothing from the forward on."""
    return not whole.own_bytes and not whole.pins
