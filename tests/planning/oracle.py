"""Exhaustive search: the least FLOPs computed again among all schedules of a small planning problem.

A shortest path over the states of a machine: which values are in memory, what each item holds, and where the
training step stands. Written from the meaning of a problem alone; it shares nothing with the planners but
the problem's own data.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import chain, combinations
from typing import NamedTuple

from revgraph.planning.problem import Item, Option, Problem

BARE, CAPTURED = -1, -2


class State(NamedTuple):
    """`done` items have run forward, `left` ones are yet to be differentiated (-1: before the turn).

    `held[k]` is what item k holds: `BARE` nothing, an option's index what that option holds, `CAPTURED` what a
    rerun captured, `-3 - c` what an early replay under option c did. One of the values in each of `owed` has
    to be read before the stage ends: nothing captures except on the way to a value.
    """

    done: int
    left: int
    values: frozenset[int]
    held: tuple[int, ...]
    owed: frozenset[frozenset[int]] = frozenset()


def least_flops(problem: Problem, limit: int, below: int | None = None) -> int | None:
    """The least FLOPs within `limit` bytes; None where no schedule fits, or none costs less than `below`."""
    return Machine(problem, limit).search(below)


class Machine:
    def __init__(self, problem: Problem, limit: int) -> None:
        self.problem = problem
        self.items = problem.items
        self.limit = limit
        self.given = frozenset(problem.given)
        self.last_read = {v: i for i, item in enumerate(problem.items) for v in item.inputs}
        self.maker = {v: i for i, item in enumerate(problem.items) for v in item.outputs}
        self.known: dict[tuple[frozenset[int], tuple[int, ...], int], int] = {}
        self.known_wanted: dict[tuple[frozenset[int], int, int], frozenset[int]] = {}
        self.purposes = self._purposes()

    def search(self, below: int | None) -> int | None:
        start = State(0, -1, frozenset(), (BARE,) * len(self.items))
        best = {start: 0}
        queue: list[tuple[int, int, State]] = [(0, 0, start)]
        count = 0
        while queue:
            cost, _, state = heapq.heappop(queue)
            if cost > best[state]:
                continue
            if state.left == 0:
                return cost
            for more, after in self.steps(state):
                after = self.useful(after)
                total = cost + more
                if below is not None and total >= below:
                    continue
                if total < best.get(after, total + 1):
                    best[after] = total
                    count += 1
                    heapq.heappush(queue, (total, count, after))
        return None

    def steps(self, state: State) -> Iterator[tuple[int, State]]:
        if state.left < 0:
            yield from self.turn(state) if state.done == len(self.items) else self.forward(state)
            return
        j = state.left - 1
        if not self.items[j].options:
            if not state.owed:
                yield 0, state._replace(left=j)
        else:
            yield from self.own_stage(state, j)
        for k in range(state.left):
            yield from self.rebuild(state, self.stage_of(state), k)
        for item in self.items:
            if not item.options:
                yield from self.wire(state, item.inputs, item.outputs)
                yield from self.wire(state, item.outputs, item.inputs)
        for value in state.values:
            yield 0, state._replace(values=state.values - {value})

    def forward(self, state: State) -> Iterator[tuple[int, State]]:
        i, item = state.done, self.items[state.done]
        before = self.live(state)
        made = state.values.union(item.outputs)
        dying = [v for v in {*item.inputs, *item.outputs} - self.given if self.last_read.get(v, i) <= i]
        ways = [(BARE, 0)] if not item.options else self.holdings(item)
        for code, peak in ways:
            held = (*state.held[:i], code, *state.held[i + 1 :])
            after = State(i + 1, -1, made, held)
            if max(before + peak, self.live(after)) > self.limit:
                continue
            for drop in subsets(dying):
                yield 0, after._replace(values=made.difference(drop))

    def holdings(self, item: Item) -> list[tuple[int, int]]:
        """What an item may hold from its forward on, and its forward's peak."""
        holding = [(c, option.forward_peak) for c, option in enumerate(item.options) if not bare(option)]
        plain = [option.forward_peak for option in item.options if bare(option)]
        return [*holding, *([(BARE, min(plain))] if plain else [])]

    def turn(self, state: State) -> Iterator[tuple[int, State]]:
        if self.live(state) + self.problem.loss_bytes <= self.limit:
            yield 0, state._replace(left=len(self.items))

    def own_stage(self, state: State, j: int) -> Iterator[tuple[int, State]]:
        item, live = self.items[j], self.live(state)
        after = state._replace(left=j, held=(*state.held[:j], BARE, *state.held[j + 1 :]))
        room = self.limit - live - item.gradient_bytes
        for option, captured in self.finishes(item, state.held[j]):
            if option.name == "keep" or captured:
                if max(0, option.backward_peak - captured) <= room and not state.owed:
                    yield 0, after
            elif self.there(state, option.needs) and option.backward_peak <= room:
                if not paid(state.owed, option.needs):
                    yield option.flops, after._replace(
                        values=state.values.union(option.gives) - self.given, owed=frozenset()
                    )

    def finishes(self, item: Item, code: int) -> list[tuple[Option, int]]:
        """The options that item may be differentiated under, each with what is captured for it already."""
        if code >= 0:
            return [(item.options[code], 0)]
        if code == CAPTURED:
            plain = [option for option in item.options if bare(option)]
            option = next((option for option in plain if option.name == "recompute"), plain[0])
            return [(option, item.captured_bytes or 0)] if item.captured_bytes else [(free(option), 0)]
        if code <= -3:
            option = item.options[-3 - code]
            return [(option, option.captured_bytes)] if option.captured_bytes else [(free(option), 0)]
        return [(option, 0) for option in item.options if bare(option)]

    def rebuild(self, state: State, j: int, k: int) -> Iterator[tuple[int, State]]:
        """Item k run again in the stage of item j: plainly, captured, or as its early replay."""
        item = self.items[k]
        if not item.options:
            return
        beside = self.items[j].gradient_bytes
        room = self.limit - self.live(state) - beside
        wanted = self.wanted(state, j)
        ways: list[tuple[int, State]] = []
        if self.there(state, item.inputs) and item.rerun_peak <= room:
            owed = paid(state.owed, item.inputs)
            run = state._replace(values=state.values.union(item.outputs), owed=owed)
            ways.append((item.rerun_flops, run))
            if k < j and state.held[k] == BARE and any(bare(option) for option in item.options):
                ways.append((item.rerun_flops, captured(run, k, CAPTURED, item.outputs)))
        if k < j and state.held[k] >= BARE:
            for c, option in enumerate(item.options):
                matches = state.held[k] == c or (state.held[k] == BARE and bare(option))
                if matches and option.gives and self.there(state, option.needs) and option.backward_peak <= room:
                    owed = paid(state.owed, option.needs)
                    run = state._replace(values=state.values.union(option.gives) - self.given, owed=owed)
                    ways.append((option.flops, captured(run, k, -3 - c, option.gives)))
        for cost, after in ways:
            if wanted & (after.values - state.values) and self.live(after) + beside <= self.limit:
                yield cost, after

    def wanted(self, state: State, j: int) -> frozenset[int]:
        """What is missing for the stage of item j, and what is missing to rebuild that by any rule."""
        key = state.values, state.held[j], j
        if key not in self.known_wanted:
            there = state.values | self.given
            finishes = self.finishes(self.items[j], state.held[j])
            pending = [v for option, done in finishes if not done for v in option.needs if v not in there]
            found = set[int]()
            while pending:
                value = pending.pop()
                if value in found or value in there:
                    continue
                found.add(value)
                for item in self.items:
                    if value in item.outputs:
                        pending += item.inputs
                    if not item.options and value in item.inputs:
                        pending += item.outputs
                    pending += [v for option in item.options if value in option.gives for v in option.needs]
            self.known_wanted[key] = frozenset(found)
        return self.known_wanted[key]

    def stage_of(self, state: State) -> int:
        """The item whose gradient is there; wiring has no stage of its own."""
        return next((j for j in reversed(range(state.left)) if self.items[j].options), 0)

    def wire(
        self, state: State, reads: tuple[int, ...], makes: tuple[int, ...]
    ) -> Iterator[tuple[int, State]]:
        if self.there(state, reads) and not self.there(state, makes):
            after = state._replace(
                values=state.values.union(makes) - self.given, owed=paid(state.owed, reads)
            )
            if self.live(after) + self.items[self.stage_of(state)].gradient_bytes <= self.limit:
                yield 0, after

    def there(self, state: State, values: tuple[int, ...]) -> bool:
        return all(value in state.values or value in self.given for value in values)

    def live(self, state: State) -> int:
        key = state.values, state.held, state.done
        if key not in self.known:
            storages = {self.problem.storage_of[value] for value in state.values}
            storages |= {
                self.problem.storage_of[v] for v in self.problem.results if self.maker.get(v, -1) < state.done
            }
            extra = 0
            for item, code in zip(self.items, state.held, strict=True):
                if code == CAPTURED:
                    extra += item.captured_bytes
                elif code != BARE:
                    option = item.options[code if code >= 0 else -3 - code]
                    extra += option.held_bytes + (option.captured_bytes if code <= -3 else 0)
                    storages |= {self.problem.storage_of[value] for value in option.pinned}
            self.known[key] = extra + sum(self.problem.storage_bytes[storage] for storage in storages)
        return self.known[key]

    def useful(self, state: State) -> State:
        """The state without values that nothing to come can read: dropping them early harms nothing."""
        if state.left < 0:
            return state
        return state._replace(values=state.values & self.purposes[state.left])

    def _purposes(self) -> list[frozenset[int]]:
        """For each number of items left, the values that they, or wiring from them, have to do with."""
        found: list[frozenset[int]] = []
        for left in range(len(self.items) + 1):
            values = {v for item in self.items[:left] for v in (*item.inputs, *item.outputs)}
            while True:
                more = {
                    v
                    for item in self.items
                    if not item.options and values.intersection((*item.inputs, *item.outputs))
                    for v in (*item.inputs, *item.outputs)
                }
                if more <= values:
                    break
                values |= more
            found.append(frozenset(values))
        return found


def paid(owed: frozenset[frozenset[int]], reads: tuple[int, ...]) -> frozenset[frozenset[int]]:
    return frozenset(values for values in owed if not values.intersection(reads))


def captured(state: State, k: int, code: int, makes: tuple[int, ...]) -> State:
    held = (*state.held[:k], code, *state.held[k + 1 :])
    return state._replace(held=held, owed=state.owed | {frozenset(makes)})


def bare(option: Option) -> bool:
    return option.name != "keep" and not option.held_bytes and not option.pinned


def free(option: Option) -> Option:
    """The option where all is captured, in no bytes."""
    return Option("keep", backward_peak=option.backward_peak)


def subsets(values: list[int]) -> Iterator[tuple[int, ...]]:
    return chain.from_iterable(combinations(values, count) for count in range(len(values) + 1))
