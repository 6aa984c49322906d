"""The programme of plans that run nothing more than once again, node by node, at any length.

Where that is enough memory it is nearly all that there is to gain, and a backward without reruns within
reruns takes no recurrence: what a stretch that was run plainly needs in its backward follows from its ends.
So the programme goes over the positions once, and leaves coarser segments to `segment_programme`, whose words
it shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from revgraph.planning.solver.line import Line
from revgraph.planning.solver.segment_programme import Step
from revgraph.planning.solver.segments import Segment, kept_results
from revgraph.planning.solver.slots import INFINITE, Counted, Row, Slots, entries, entries_of, least_of

# Entries that all jumps may take together; each goes over at most so many nodes.
ENTRIES, LONGEST = 300_000_000, 100


class OnceProgramme(Counted):
    """Costs and schedules of a line within `top` bytes; `segments` are its nodes, one by one."""

    def __init__(self, line: Line, segments: Sequence[Segment], top: float, slots: int) -> None:
        super().__init__(line, top, slots)
        self.segments = segments
        self.count = count = line.count
        self.state = [self.in_slots(line.size(storages)) for storages in line.storages]
        longest = max(4, min(LONGEST, ENTRIES // (count * slots)))
        kept = kept_results(segments, nothing=round(top) * 2)
        self.kept = [((held / self.unit + 0.5).astype(np.int64), saved) for held, saved in kept]
        self.jumps = [_Jumps(line, segments, i, longest) for i in range(count)]
        shape = (count + 1, slots + 1)
        self.lent, self.owned, self.released, self.returned = (
            np.full(shape, INFINITE, np.float32) for _ in range(4)
        )
        turn = self.in_slots(line.problem.loss_bytes) + self.state[count]
        self.owned[count] = self.released[count] = self.returned[count] = np.where(
            self.every >= turn, np.float32(0), INFINITE
        )
        for i in range(count - 1, -1, -1):
            rows = [costs for costs, _ in self._lent(i, self.every)]
            rows += [table.min(0) for _, table in self._jumps(i, self.every)]
            self.lent[i] = least_of(rows, slots + 1)
            self.returned[i] = least_of([costs for costs, _ in self._returned(i, self.every)], slots + 1)
            self.released[i] = least_of([costs for costs, _ in self._released(i, self.every)], slots + 1)
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
            chosen = self._chosen(kind, i, slots)
            match chosen:
                case ("store", number, held):
                    there.append(("store", i, number))
                    back.append(("stored back", i, number))
                    kind, i, slots = "owned", i + 1, slots - held
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
                case ("jump", k, rank):
                    there += [("run", n) for n in range(i, k)]
                    if rank:
                        kept = self.segments[k - 1].results[rank - 1]
                        there[-1] = ("run and keep", k - 1, kept.option)
                        slots -= self.in_slots(kept.held_bytes)
                    back += [("captured back", n) for n in range(i, k - 1)]
                    back += [("at once", k - 1), *(("capture", n) for n in range(k - 2, i - 1, -1))]
                    kind, i = "released", k
                case _:
                    raise AssertionError(chosen)
        return [*there, ("turn",), *reversed(back)]

    def _chosen(self, kind: str, i: int, slots: int) -> Step:
        at = np.array([slots])
        if kind == "owned":
            return ("return",) if self.returned[i, slots] <= self.released[i, slots] else ("release",)
        ways = {"lent": self._lent, "released": self._released, "returned": self._returned}[kind]
        least, chosen = INFINITE, None
        for costs, how in ways(i, at):
            if costs[0] < least:
                least, chosen = costs[0], how
        if kind == "lent":
            for rank, table in self._jumps(i, at):
                place = int(table[:, 0].argmin())
                if table[place, 0] < least:
                    least, chosen = table[place, 0], ("jump", i + 1 + place, rank)
        assert chosen is not None
        return chosen

    def _lent(self, i: int, at: Slots) -> Iterator[tuple[Row, Step]]:
        below = self.line.storages[i]
        for number, whole in enumerate(self.segments[i].storing):
            held = self.held(whole.own_bytes, whole.pins - below, i + 1)
            costs = entries(self.owned[i + 1], at - held) + np.float32(whole.cost)
            yield (
                self.within(costs, at, max(whole.forward_beyond, whole.backward_beyond)),
                ("store", number, held),
            )

    def _jumps(self, i: int, at: Slots) -> Iterator[tuple[int, Row]]:
        """Plain runs from i on, which are captured when their backward comes: costs by how far they go.

        The state behind them must not come back by inversion: a plan then has its values from there, and runs
        nothing again for them. By the rank of the results that the last of them keeps.
        """
        jumps = self.jumps[i]
        if not len(jumps.peaks):
            return
        k0, k1 = i + 1, i + 1 + len(jumps.peaks)
        needed = (jumps.peaks / self.unit + 0.5).astype(np.int64)
        costs = np.where(at[None, :] >= needed[:, None], jumps.cost[:, None], INFINITE)
        yield 0, self.released[k0:k1][:, at] + costs
        for rank, (held, saved) in enumerate(self.kept, start=1):
            left = at - held[i : k1 - 1, None]
            yield rank, entries_of(self.released[k0:k1], left) + costs - saved[i : k1 - 1, None]

    def _returned(self, i: int, at: Slots) -> Iterator[tuple[Row, Step]]:
        yield entries(self.lent[i], at - self.state[i]), ("lend",)
        for number, whole in enumerate(self.segments[i].undoing):
            held = self.held(whole.own_bytes, whole.pins, i + 1)
            costs = entries(self.returned[i + 1], at - held) + np.float32(whole.cost)
            yield self.within(costs, at, max(whole.forward, whole.backward)), ("invert", number, held)

    def _released(self, i: int, at: Slots) -> Iterator[tuple[Row, Step]]:
        yield entries(self.lent[i], at - self.state[i]), ("lend",)
        for number, whole in enumerate(self.segments[i].storing):
            held = self.held(whole.own_bytes, whole.pins, i + 1)
            costs = entries(self.owned[i + 1], at - held) + np.float32(whole.cost)
            yield self.within(costs, at, max(whole.forward, whole.backward)), ("store", number, held)


class _Jumps:
    """By length, for stretches from a position on: peaks beyond its state, cost of runs in the backward."""

    def __init__(self, line: Line, segments: Sequence[Segment], i: int, longest: int) -> None:
        peaks: list[int] = []
        cost: list[int] = []
        size, before = line.size, line.storages[i]
        own_bytes, pins, again = 0, set[int](), 0
        most = 0
        for n in range(i, min(i + longest, line.count)):
            segment, replay = segments[n], line.replay[n]
            if replay is None:
                break
            item, captured = line.item(n), segment.captured
            assert captured is not None
            alive = size((line.storages[n] | pins) - before)
            made = size(line.storages[n + 1] - line.storages[n] - pins)
            first = max(item.options[replay].forward_peak, made)
            run = own_bytes + max(item.rerun_peak, made + item.captured_bytes) + item.gradient_bytes
            own_bytes += item.captured_bytes
            pins |= captured.pins
            differentiated = max(0, item.options[replay].backward_peak - item.captured_bytes)
            back = size(pins - before) + own_bytes + item.gradient_bytes + differentiated
            most = max(most, size(line.storages[n] - before) + first, alive + run, back)
            peaks.append(most)
            cost.append(again + item.options[replay].cost)
            again += item.rerun_cost
        self.peaks = np.array(peaks, np.int64)
        self.cost = np.array(cost, np.float32)
