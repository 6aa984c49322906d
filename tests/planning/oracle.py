"""Exhaustive search: the least cost of reruns among all schedules of a small planning problem.

A shortest path over the states of a machine: which values are in memory, what each item holds, and where the
training step stands. Written from the meaning of a problem alone; it shares nothing with the planners but
the problem's own data. Values are bits of a number.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from revgraph.planning.solver.problem import Item, Option, Problem

BARE, CAPTURED = -1, -2


class State(NamedTuple):
    """`done` items have run forward, `left` ones are yet to be differentiated (-1: before the turn).

    `held[k]` is what item k holds: `BARE` nothing, an option's index what the option holds, `CAPTURED` what a
    rerun captured, `-3 - c` what an early replay under option c did. One of the values in each of `owed` has
    to be read before the stage ends: nothing captures except on the way to a value.
    """

    done: int
    left: int
    values: int
    held: tuple[int, ...]
    owed: frozenset[int] = frozenset()


def least_cost(problem: Problem, limit: int, below: int | None = None) -> int | None:
    """The least cost within `limit` bytes; None where no schedule fits, or none costs less than `below`."""
    return Machine(problem, limit).search(below)


class Machine:
    """The steps that are possible from each state. Values go only where memory is short: later is as good."""

    def __init__(self, problem: Problem, limit: int) -> None:
        self.problem = problem
        self.items = problem.items
        self.limit = limit
        self.given = bits(problem.given)
        self.inputs = [bits(item.inputs) for item in self.items]
        self.outputs = [bits(item.outputs) for item in self.items]
        self.needs = [[bits(option.needs) for option in item.options] for item in self.items]
        self.gives = [[bits(option.gives) & ~self.given for option in item.options] for item in self.items]
        self.last_read = {v: i for i, item in enumerate(self.items) for v in item.inputs}
        counts = range(len(self.items) + 1)
        made = [bits(v for item in self.items[:done] for v in item.outputs) for done in counts]
        self.results = [bits(problem.results) & values for values in made]
        self.stage = self._stages()
        self.sizes: dict[int, int] = {}
        self.holds: dict[tuple[int, ...], tuple[int, int]] = {}
        self.least = [self._least(item) for item in self.items]
        self.purposes = [self._purpose(left) for left in range(len(self.items) + 1)]
        self.wishes: dict[tuple[int, int, int], int] = {}

    def search(self, below: int | None) -> int | None:
        start = State(0, -1, 0, (BARE,) * len(self.items))
        best = {start: 0}
        queue: list[tuple[int, int, int, State]] = [(0, 0, 0, start)]
        while queue:
            _, _, cost, state = heapq.heappop(queue)
            if cost > best[state]:
                continue
            if state.left == 0:
                return cost
            for more, after in self.steps(state):
                total = cost + more
                bound = total + self.still_to_pay(after)
                if (below is None or bound < below) and total < best.get(after, total + 1):
                    best[after] = total
                    heapq.heappush(queue, (bound, -len(best), total, after))
        return None

    def still_to_pay(self, state: State) -> int:
        """No schedule pays less from here on: what holds nothing is replayed or rerun once at least."""
        left = state.done if state.left < 0 else state.left
        return sum(self.least[k] for k in range(left) if state.held[k] == BARE)

    def steps(self, state: State) -> Iterator[tuple[int, State]]:
        if state.left < 0:
            yield from self.turn(state) if state.done == len(self.items) else self.forward(state)
            return
        short = False
        for room, cost, after in self.backward(state):
            if room < 0:
                short = True
            else:
                yield cost, after._replace(values=after.values & self.purposes[after.left])
        # What memory has room for need not go yet, except to be rebuilt by what captures on the way.
        going = state.values if short else state.values & self.wanted(0, state.held, state.left - 1)
        yield from ((0, state._replace(values=state.values & ~bit)) for bit in single(going))

    def forward(self, state: State) -> Iterator[tuple[int, State]]:
        i, item = state.done, self.items[state.done]
        before, made = self.live(state), state.values | self.outputs[i]
        dying = [v for v in {*item.inputs, *item.outputs} if self.last_read.get(v, i) <= i]
        dying_bits = bits(dying) & ~self.given
        for code, peak in self.holdings(item):
            after = State(i + 1, -1, made, (*state.held[:i], code, *state.held[i + 1 :]))
            if max(before + peak, self.live(after)) <= self.limit:
                drop = dying_bits
                while True:  # every subset of what forward reads no more
                    yield 0, after._replace(values=made & ~drop)
                    if not drop:
                        break
                    drop = (drop - 1) & dying_bits

    def holdings(self, item: Item) -> list[tuple[int, int]]:
        """What an item may hold from its forward on, and its forward's peak."""
        holding = [(c, option.forward_peak) for c, option in enumerate(item.options) if not bare(option)]
        plain = [option.forward_peak for option in item.options if bare(option)]
        return [*holding, *([(BARE, min(plain, default=0))] if plain or not item.options else [])]

    def turn(self, state: State) -> Iterator[tuple[int, State]]:
        if self.live(state) + self.problem.loss_bytes <= self.limit:
            left = self.stage[len(self.items)]
            yield 0, state._replace(left=left, values=state.values & self.purposes[left])

    def backward(self, state: State) -> Iterator[tuple[int, int, State]]:
        """Steps with the bytes that they leave free, negative where they do not fit."""
        j = state.left - 1
        room = self.limit - self.live(state) - self.items[j].gradient_bytes
        yield from self.own_stage(state, j, room)
        wanted = self.wanted(state.values, state.held, j)
        if not wanted:
            return
        for k, item in enumerate(self.items):
            if item.options:
                ways = self.ways_back(state, j, k) if k < state.left else []
            else:
                ways = self.wire(state, self.inputs[k], self.outputs[k])
                ways += self.wire(state, self.outputs[k], self.inputs[k])
            for peak, cost, made, after in ways:
                if made & wanted & ~state.values:
                    yield room - max(peak, self.live(after) - self.live(state)), cost, after

    def own_stage(self, state: State, j: int, room: int) -> Iterator[tuple[int, int, State]]:
        held = (*state.held[:j], BARE, *state.held[j + 1 :])
        for c, captured in self.finishes(j, state.held[j]):
            option = self.items[j].options[c]
            after = state._replace(left=self.stage[j], held=held, owed=frozenset())
            if option.name == "keep" or captured is not None:
                if not state.owed:
                    yield room - max(0, option.backward_peak - (captured or 0)), 0, after
            elif self.there(state, self.needs[j][c]) and not paid(state.owed, self.needs[j][c]):
                values = state.values | self.gives[j][c]
                yield room - option.backward_peak, option.cost, after._replace(values=values)

    def finishes(self, j: int, code: int) -> list[tuple[int, int | None]]:
        """The options that item j may be differentiated under, each with what is captured for it already."""
        item = self.items[j]
        if code >= 0:
            return [(code, None)]
        if code <= -3:
            return [(-3 - code, item.options[-3 - code].captured_bytes)]
        plain = [c for c, option in enumerate(item.options) if bare(option)]
        if code == CAPTURED:
            chosen = [c for c in plain if item.options[c].name == "recompute"] or plain
            return [(chosen[0], item.captured_bytes)]
        return [(c, None) for c in plain]

    def ways_back(self, state: State, j: int, k: int) -> list[tuple[int, int, int, State]]:
        """Item k run again in the stage of item j: plainly, captured, or as its early replay."""
        item, ways = self.items[k], list[tuple[int, int, int, State]]()
        # What holds anything from its forward on is not run again: its two runs could not be told apart.
        if state.held[k] < 0 and self.there(state, self.inputs[k]):
            made, owed = self.outputs[k], paid(state.owed, self.inputs[k])
            run = state._replace(values=state.values | made, owed=owed)
            ways.append((item.rerun_peak, item.rerun_cost, made, run))
            if k < j and state.held[k] == BARE and any(map(bare, item.options)):
                ways.append((item.rerun_peak, item.rerun_cost, made, captured_by(run, k, CAPTURED, made)))
        for c, option in enumerate(item.options):
            made = self.gives[k][c]
            matches = state.held[k] == c or (state.held[k] == BARE and bare(option))
            if k < j and matches and made and self.there(state, self.needs[k][c]):
                owed = paid(state.owed, self.needs[k][c])
                run = state._replace(values=state.values | made, owed=owed)
                ways.append((option.backward_peak, option.cost, made, captured_by(run, k, -3 - c, made)))
        return ways

    def wire(self, state: State, reads: int, makes: int) -> list[tuple[int, int, int, State]]:
        makes &= ~self.given
        if not reads or not self.there(state, reads) or self.there(state, makes):
            return []
        owed = paid(state.owed, reads)
        return [(0, 0, makes, state._replace(values=state.values | makes, owed=owed))]

    def wanted(self, values: int, held: tuple[int, ...], j: int) -> int:
        """What is missing for the stage of item j, and what is missing to rebuild that, by any rule."""
        key = values, held[j], j
        if key not in self.wishes:
            there = values | self.given
            found, before = 0, -1
            for c, captured in self.finishes(j, held[j]):
                found |= self.needs[j][c] & ~there if captured is None else 0
            while found != before:
                before = found
                for k, item in enumerate(self.items):
                    if found & self.outputs[k]:
                        found |= self.inputs[k] & ~there
                    if not item.options and found & self.inputs[k]:
                        found |= self.outputs[k] & ~there
                    for c in range(len(item.options)):
                        if found & self.gives[k][c]:
                            found |= self.needs[k][c] & ~there
            self.wishes[key] = found
        return self.wishes[key]

    def there(self, state: State, values: int) -> bool:
        return not values & ~(state.values | self.given)

    def live(self, state: State) -> int:
        if state.held not in self.holds:
            self.holds[state.held] = self._held_by(state.held)
        extra, pinned = self.holds[state.held]
        values = state.values | pinned | self.results[state.done]
        if values not in self.sizes:
            storages = {s for v, s in enumerate(self.problem.storage_of) if values >> v & 1}
            self.sizes[values] = sum(self.problem.storage_bytes[storage] for storage in storages)
        return extra + self.sizes[values]

    def _held_by(self, held: tuple[int, ...]) -> tuple[int, int]:
        """Bytes of internals, and the values pinned."""
        extra, pinned = 0, 0
        for item, code in zip(self.items, held, strict=True):
            if code == CAPTURED:
                extra += item.captured_bytes
            elif code != BARE:
                option = item.options[code if code >= 0 else -3 - code]
                extra += option.held_bytes + (option.captured_bytes if code <= -3 else 0)
                pinned |= bits(option.pinned)
        return extra, pinned

    def _stages(self) -> list[int]:
        """For each number of items left, how many are when the next with a stage of its own has its turn."""
        stages = [0]
        for n, item in enumerate(self.items):
            stages.append(n + 1 if item.options else stages[-1])
        return stages

    def _least(self, item: Item) -> int:
        costs = [option.cost for option in item.options if bare(option)]
        return min([*costs, item.rerun_cost]) if costs else 0

    def _purpose(self, left: int) -> int:
        """The values that items left to differentiate, or wiring from those, have to do with."""
        found, before = 0, -1
        for k in range(left):
            found |= self.inputs[k] | self.outputs[k]
        while found != before:
            before = found
            for k, item in enumerate(self.items):
                if not item.options and found & (self.inputs[k] | self.outputs[k]):
                    found |= self.inputs[k] | self.outputs[k]
        return found & ~self.given


def paid(owed: frozenset[int], reads: int) -> frozenset[int]:
    return frozenset(values for values in owed if not values & reads) if owed else owed


def captured_by(state: State, k: int, code: int, makes: int) -> State:
    held = (*state.held[:k], code, *state.held[k + 1 :])
    return state._replace(held=held, owed=state.owed | {makes})


def bare(option: Option) -> bool:
    return option.name != "keep" and not option.held_bytes and not option.pinned


def bits(values: Iterable[int]) -> int:
    return sum(1 << value for value in set(values))


def single(values: int) -> Iterator[int]:
    while values:
        bit = values & -values
        yield bit
        values ^= bit
