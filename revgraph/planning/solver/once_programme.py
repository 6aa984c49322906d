"""The programme of plans that run nothing more than once again, node by node, at any length.

Where that is enough memory it is nearly all that there is to gain, and a backward without reruns within
reruns takes no recurrence: what a stretch that was run plainly needs in its backward follows from its ends.
So the programme goes over the positions once, and leaves coarser segments to `segment_programme`, whose words
it shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from revgraph.planning.solver.line import Line
from revgraph.planning.solver.segment_programme import Step
from revgraph.planning.solver.segments import Segment
from revgraph.planning.solver.slots import (
    INFINITE,
    Counted,
    Passage,
    Row,
    Slots,
    undominated,
)

Truths = np.ndarray[Any, np.dtype[np.bool_]]
# A plain run goes over at most so many nodes.
LONGEST = 100
# In lines of more nodes than that a run of more than so many has one of these lengths.
EXACT, LENGTHS = 20, (22, 24, 26, 28, 31, 34, 37, 41, 45, 50, 55, 61, 67, 74, 82, 90, 100)


class Stretches(NamedTuple):
    """Nodes that are run plainly from a position on, by where they stop.

    The peak beyond the state before them, and the cost of runs in the backward. Of the state behind them so
    many bytes lie `beside` that before them; -1 where none of it lies in both. Of the state before them so
    many are `lost` behind them, and do not follow from there; -1 where that is all of it.
    """

    stop: Slots
    peak: Slots
    cost: Slots
    beside: Slots
    lost: Slots


class OnceProgramme(Counted):
    """Costs and schedules of a line within `top` bytes.

    `segments` are its nodes, one by one, and `stretches` what plain runs from each come to. With `returning`,
    the state before a plain run may come back over wiring from the state behind it: of layers that join what
    they are given and what they make, as a DenseNet's, the last joined state gives all those before it.
    """

    def __init__(
        self,
        line: Line,
        segments: Sequence[Segment],
        stretches: Sequence[Stretches],
        top: float,
        slots: int,
        *,
        returning: bool,
    ) -> None:
        super().__init__(line, segments, top, slots)
        for ways in (self.storing, self.storing_lent, self.storing_beside, self.undoing):
            ways[:] = map(undominated, ways)
        self.count = count = line.count
        self.state = [self.in_slots(line.size(storages)) for storages in line.storages]
        # Plain runs by the task that begins with them.
        self.runs = {"lent": [self._runs(stretches[i]) for i in range(count)]}
        if returning:
            self.runs["returned"] = [self._returning(i, stretches[i]) for i in range(count)]
        self._steps: dict[tuple[str, int, int], Step] = {}
        shape = (count + 1, slots + 1)
        self.lent, self.owned, self.released, self.returned = (
            np.full(shape, INFINITE, np.float32) for _ in range(4)
        )
        self.tables = {
            "lent": self.lent,
            "owned": self.owned,
            "released": self.released,
            "returned": self.returned,
        }
        turn = self.in_slots(line.problem.loss_bytes) + self.state[count]
        for table in (self.owned, self.released, self.returned):
            table[count, turn:] = 0
        for i in range(count - 1, -1, -1):
            self.lent[i] = self._least(self._lent(i))
            np.minimum(self.lent[i], self._run_cost("lent", i), out=self.lent[i])
            self.returned[i] = self._least(self._returned(i))
            if returning:
                np.minimum(self.returned[i], self._run_cost("returned", i), out=self.returned[i])
            self.released[i] = self._least(self._released(i))
            self.owned[i] = np.minimum(self.released[i], self.returned[i])

    @property
    def costs(self) -> Row:
        """What is computed again in the whole step costs, for each number of slots."""
        return self.lent[0]

    def schedule(self, slots: int) -> list[Step]:
        """The actions of the cheapest step within so many slots."""
        there: list[Step] = []
        back: list[Step] = []
        kind, i = "lent", 0
        while i < self.count:
            costs = self.tables[kind][i]
            # The fewest within which it costs no more: costs fall with slots.
            slots = self.slots + 1 - int(costs[::-1].searchsorted(costs[slots], "right"))
            task = kind, i, slots
            if task not in self._steps:
                self._steps[task] = self._chosen(*task)
            chosen = self._steps[task]
            match chosen:
                case ("store", number, held):
                    there.append(("store", i, number))
                    back.append(("stored back", i, number))
                    kind, i, slots = "owned", i + 1, slots - held
                case ("store beside", number, held):
                    there.append(("store", i, number))
                    back.append(("stored back", i, number))
                    kind, i, slots = "lent", i + 1, slots - held
                case ("invert", number, held):
                    there.append(("invert", i, number))
                    back.append(("undo", i, number))
                    kind, i, slots = "returned", i + 1, slots - held
                case ("lend",):
                    kind, slots = "lent", slots - self.state[i]
                case ("return",):
                    kind = "returned"
                case ("release",):
                    kind = "released"
                case ("jump", k, rank, stays, held):
                    there += [("run", n) for n in range(i, k)]
                    if rank:
                        kept = self.segments[k - 1].results[rank - 1]
                        there[-1] = ("run and keep", k - 1, kept.option)
                    slots -= held
                    back += [("captured back", n) for n in range(i, k - 1)]
                    back += [("at once", k - 1), *(("capture", n) for n in range(k - 2, i - 1, -1))]
                    if kind == "returned":
                        back.append(("come back", i, k))
                    else:
                        kind = "lent" if stays else "released"
                    i = k
                case _:
                    raise AssertionError(chosen)
        return [*there, ("turn",), *reversed(back)]

    def _chosen(self, kind: str, i: int, slots: int) -> Step:
        if kind == "owned":
            return ("return",) if self.returned[i, slots] <= self.released[i, slots] else ("release",)
        moves = {"lent": self._lent, "released": self._released, "returned": self._returned}[kind]
        least, chosen = INFINITE, None
        for move in moves(i):
            if slots >= move.least:
                cost = move.table[move.after, slots - move.held] + move.cost
                if cost < least:
                    least, chosen = cost, move.how
        if kind in self.runs:
            runs, behind = self.runs[kind][i], self._behind(kind)
            left = slots - runs.held
            then = np.where(runs.stays, self.lent[runs.stop, left], behind[runs.stop, left])
            costs = np.where(slots >= runs.least, then + runs.cost, INFINITE)
            if len(costs) and costs.min() < least:
                at = int(costs.argmin())
                chosen = (
                    "jump", int(runs.stop[at]), int(runs.rank[at]), bool(runs.stays[at]), int(runs.held[at]),
                )  # fmt: skip
        assert chosen is not None
        return chosen

    def _lent(self, i: int) -> Iterator[_Move]:
        yield from self._ways(self.owned, i, self.storing_lent[i], "store")
        yield from self._ways(self.lent, i, self.storing_beside[i], "store beside")

    def _returned(self, i: int) -> Iterator[_Move]:
        yield self._lending(i)
        yield from self._ways(self.returned, i, self.undoing[i], "invert")

    def _released(self, i: int) -> Iterator[_Move]:
        yield self._lending(i)
        yield from self._ways(self.owned, i, self.storing[i], "store")

    def _ways(self, table: Row, i: int, passages: Sequence[Passage], what: str) -> Iterator[_Move]:
        for number, held, cost, least, _ in passages:
            yield _Move(table, i + 1, held, cost, max(least, held), (what, number, held))

    def _lending(self, i: int) -> _Move:
        """The state before i stays where it is, and the task takes it for someone else's."""
        return _Move(self.lent, i, self.state[i], np.float32(0), self.state[i], ("lend",))

    def _least(self, moves: Iterable[_Move]) -> Row:
        """The least cost with one of the moves, for each number of slots."""
        best, end = np.full(self.slots + 1, INFINITE, np.float32), self.slots + 1
        for table, after, held, cost, least, _ in moves:
            if least < end:
                np.minimum(best[least:], table[after, least - held : end - held] + cost, out=best[least:])
        return best

    def _runs(self, stretches: Stretches) -> _Runs:
        """Plain runs from i to a position, which are captured when their backward comes.

        The state behind them must not come back by inversion: a plan then has its values from there, and runs
        nothing again for them. It `stays` beside the state before them, or goes. The last of them may keep
        results.
        """
        needed, stretches = self._reached(stretches, 0)
        less = self.rows_in_slots(np.maximum(stretches.beside, 0))
        always = np.full(len(less), True)
        released = self._keeping(stretches, needed, np.zeros_like(less), always, stays=False)
        beside = self._keeping(stretches, needed, less, stretches.beside >= 0, stays=True)
        return _joined(released, beside)

    def _returning(self, i: int, stretches: Stretches) -> _Runs:
        """Such runs from i where the state before them comes back over wiring from that behind them.

        What does not is held meanwhile.
        """
        needed, stretches = self._reached(stretches, self.state[i])
        held = self.rows_in_slots(np.maximum(stretches.lost, 0))
        return self._keeping(stretches, needed, held, stretches.lost >= 0, stays=False)

    def _reached(self, stretches: Stretches, beside: int) -> tuple[Slots, Stretches]:
        """The slots that stretches take, and those that fit: longer ones take no less."""
        needed = self.rows_in_slots(stretches.peak) + beside
        reached = int(np.searchsorted(needed, self.slots, "right"))
        return needed[:reached], Stretches(*(row[:reached] for row in stretches))

    def _keeping(
        self, stretches: Stretches, needed: Slots, held: Slots, possible: Truths, *, stays: bool
    ) -> _Runs:
        """Runs of stretches that hold so many slots besides, for each rank of results that the last keeps."""
        stop = stretches.stop
        results = [(kept[stop - 1], saved[stop - 1]) for kept, saved in self.kept]
        found: list[_Runs] = []
        for rank, (kept, saved) in enumerate([(np.zeros_like(stop), np.float32(0)), *results]):
            most = held + kept
            fits = possible & (most <= self.slots)
            found.append(
                _Runs(
                    stop[fits],
                    np.full_like(stop, rank)[fits],
                    np.full_like(stop, stays)[fits],
                    (stretches.cost.astype(np.float32) - saved)[fits],
                    np.maximum(needed, most)[fits],
                    most[fits],
                )
            )
        return _joined(*found)

    def _behind(self, kind: str) -> Row:
        """The costs of what comes behind a task's plain run, where the state before it does not stay."""
        return self.released if kind == "lent" else self.returned

    def _run_cost(self, kind: str, i: int) -> Row:
        """The least cost of a task that begins with a plain run, for each number of slots."""
        best, end = np.full(self.slots + 1, INFINITE, np.float32), self.slots + 1
        runs, behind = self.runs[kind][i], self._behind(kind)
        stops = runs.stop.tolist()
        rows = zip(
            stops, runs.stays.tolist(), runs.cost, runs.least.tolist(), runs.held.tolist(), strict=True
        )
        for k, stays, cost, least, held in rows:
            costs = (self.lent if stays else behind)[k, least - held : end - held] + cost
            np.minimum(best[least:], costs, out=best[least:])
        return best


class _Move(NamedTuple):
    """A way on from a position: the table and position of what comes then, and how it is done.

    It holds so many slots meanwhile, costs so much, and takes so many slots at least.
    """

    table: Row
    after: int
    held: int
    cost: np.float32
    least: int
    how: Step


class _Runs(NamedTuple):
    """Plain runs from a position, each with a number in every row.

    Where they stop, the rank of the results that the last of them keeps (0 for none), whether the state
    behind stays beside that before them, their cost, and the slots that they take at least and hold.
    """

    stop: Slots
    rank: Slots
    stays: Slots
    cost: Row
    least: Slots
    held: Slots


def _joined(*found: _Runs) -> _Runs:
    return _Runs(*map(np.concatenate, zip(*found, strict=True)))


def stretches_of(line: Line, segments: Sequence[Segment]) -> list[Stretches]:
    """What stretches of nodes come to that are run plainly, by where they begin."""
    return [_stretches(line, segments, i) for i in range(line.count)]


def _stretches(line: Line, segments: Sequence[Segment], i: int) -> Stretches:
    size, before = line.size, line.storages[i]
    own_bytes, pins, pinned_bytes, again = 0, set[int](), 0, 0
    most = 0
    state = size(before)
    found: list[tuple[int, ...]] = []
    for n in range(i, min(i + LONGEST, line.count)):
        segment, replay = segments[n], line.replay[n]
        if replay is None:
            break
        item, captured = line.item(n), segment.captured
        assert captured is not None
        here = line.storages[n] - before
        alive = pinned_bytes + size(here - pins)
        made = size(line.storages[n + 1] - line.storages[n] - pins)
        first = max(item.options[replay].forward_peak, made)
        run = own_bytes + max(item.rerun_peak, made + item.captured_bytes) + item.gradient_bytes
        own_bytes += item.captured_bytes
        pinned_bytes += size(captured.pins - pins - before)
        pins |= captured.pins
        differentiated = max(0, item.options[replay].backward_peak - item.captured_bytes)
        back = pinned_bytes + own_bytes + item.gradient_bytes + differentiated
        most = max(most, size(here) + first, alive + run, back)
        after, length = line.storages[n + 1], n + 1 - i
        if line.count <= LONGEST or length <= EXACT or length in LENGTHS:
            beside = -1 if before.isdisjoint(after) else size(after - before)
            lost = size(line.storages_of(line.lost(i, n + 1)))
            lost = -1 if lost == state else lost
            found.append((n + 1, most, again + item.options[replay].cost, beside, lost))
        again += item.rerun_cost
    return Stretches(*np.array(found, np.int64).reshape(-1, 5).T)
