"""The line: a problem's nodes in program order, what is alive between any two of them, and ways through each.

Any graph is a line. A value that passes by a node belongs to the states on both sides of it. Live ranges are
contiguous: of three states, what the first and third have in common, the second has too. So checkpoints that
lie on one another count every storage once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from revgraph.planning.solver.events import relatives_of
from revgraph.planning.solver.merging import merge
from revgraph.planning.solver.problem import Item, Option, Problem

Storages = frozenset[int]


# A line knows joined copies by their parts where its states take less than this share of their bytes then.
WORTH = 0.9


@dataclass(frozen=True, slots=True)
class Way:
    """One option of a node, as a walk along the line takes it.

    Held from its forward to its backward are `own_bytes` of internals and the storages `pins`; of these,
    `stores` are values that the plan must store. Peaks and cost are the option's.
    """

    option: int
    own_bytes: int
    pins: Storages
    stores: tuple[int, ...]
    cost: int
    forward_peak: int
    backward_peak: int


class Line:
    """A problem along its nodes, which are counted from 0; position n is before node n.

    `states` are the values alive at each position, `storages` theirs without what the caller holds. A node's
    `storing` ways need nothing in the backward pass but what they hold; its `undoing` ways have the state
    after the node at hand and give the state before it. `replay` is the option under which a node is
    differentiated from its inputs, None where it has none; `silent` tells of nodes that save nothing, which
    are differentiated from nothing at all. `parts` are those of joined copies that states have by their
    parts: of all that could be so, or none, and unless `by_parts` says which, as is worth while.
    """

    def __init__(self, problem: Problem, *, by_parts: bool | None = None) -> None:
        self.original = problem
        self.merged = merge(problem)
        self.problem = self.merged.problem
        self.nodes = [k for k, item in enumerate(self.problem.items) if item.options]
        self.count = len(self.nodes)
        self.wirings_of: defaultdict[int, list[Item]] = defaultdict(list)
        for item in self.problem.items:
            if not item.options and item.inputs:
                for value in {*item.inputs, *item.outputs}:
                    self.wirings_of[value].append(item)
        self.relatives = relatives_of(self.problem)
        self.given = self._following(self.problem.given)
        held_anyway = (*self.problem.results, *self.problem.given)
        self.free = frozenset(self.problem.storage_of[value] for value in held_anyway)
        self.results_bytes = self.size({self.problem.storage_of[value] for value in self.problem.results})
        self.parts: dict[int, tuple[int, ...]] = {}
        self.states = self._states()
        self.storages = [self.storages_of(state) for state in self.states]
        if by_parts is not False:
            self._know_by_parts(WORTH if by_parts is None else 1.0)
        self._follows: dict[int, set[int]] = {}
        self.in_states = {value for state in self.states for value in state}
        self.storing = [list(self._storing(n)) for n in range(self.count)]
        self.last_pin = {
            storage: n for n, ways in enumerate(self.storing) for way in ways for storage in way.pins
        }
        self.undoing = [list(self._undoing(n)) for n in range(self.count)]
        self.replay = [replay_option(self.item(n)) for n in range(self.count)]
        self.silent = [
            replay is not None and self.item(n).options[replay].name == "keep"
            for n, replay in enumerate(self.replay)
        ]

    @property
    def is_chain(self) -> bool:
        """Whether one value leads from each node to the next, and no other passes by."""
        return all(len(state) <= 1 for state in self.states[:-1])

    def item(self, n: int) -> Item:
        return self.problem.items[self.nodes[n]]

    def size(self, storages: Iterable[int]) -> int:
        """Bytes of storages."""
        return sum(map(self.problem.storage_bytes.__getitem__, storages))

    def charged(self, pins: Storages, stop: int) -> int:
        """Bytes of what nodes before position `stop` pin, but for what a node from there on may pin as well.

        So that what several nodes pin is paid for once, by the last of them.
        """
        return self.size(storage for storage in pins if self.last_pin.get(storage, -1) < stop)

    @cached_property
    def comes_back(self) -> bool:
        """Whether part of some state follows from the next one over wiring, as joined parts do."""
        return any(
            value not in after and value not in self.lost(n, n + 1)
            for n, (before, after) in enumerate(pairwise(self.states))
            for value in before
        )

    def lost(self, start: int, stop: int) -> list[int]:
        """The values at position `start` that do not follow from those at a later one over wiring."""
        follows = self._behind(stop)
        return [value for value in self.states[start] if value not in follows]

    def _behind(self, position: int) -> set[int]:
        """The values that follow over wiring from those at a position."""
        if position not in self._follows:
            self._follows[position] = self._following(self.states[position], self.given)
        return self._follows[position]

    def _states(self) -> list[tuple[int, ...]]:
        made: dict[int, int] = {}
        last: dict[int, int] = {}
        for k, item in enumerate(self.problem.items):
            last.update(dict.fromkeys(self.in_parts(item.inputs), k))
            for value in item.outputs:
                if value not in self.parts:
                    made.setdefault(value, k)
        ends: defaultdict[int, list[int]] = defaultdict(list)
        begins: defaultdict[int, list[int]] = defaultdict(list)
        for value, k in made.items():
            if value not in self.given and last.get(value, -1) > k:
                begins[k].append(value)
                ends[last[value]].append(value)
        states: list[tuple[int, ...]] = []
        alive = set[int]()
        for k, item in enumerate(self.problem.items):
            if item.options:
                states.append(tuple(sorted(alive)))
            alive.update(begins[k])
            alive.difference_update(ends[k])
        return [*states, tuple(self.problem.results)]

    def _know_by_parts(self, worth: float) -> None:
        """Have joined copies in the states by their parts where that takes at most such a share of bytes."""
        before = self.states, self.storages
        whole = sum(map(self.size, self.storages))
        self.parts = parts_of(self.problem)
        if not self.parts:
            return
        self.states = self._states()
        self.storages = [self.storages_of(state) for state in self.states]
        if sum(map(self.size, self.storages)) <= worth * whole:
            self.problem = _with_joined(self.problem, self.parts)
        else:
            self.parts, (self.states, self.storages) = {}, before

    def in_parts(self, values: Iterable[int]) -> list[int]:
        """The values, with the parts of those that are known by their parts in their place."""
        found: dict[int, None] = {}
        for value in values:
            found.update(dict.fromkeys(self.parts.get(value, (value,))))
        return list(found)

    def storages_of(self, values: Iterable[int]) -> Storages:
        """The storages of values that count, for the caller does not hold them anyway."""
        return frozenset(self.problem.storage_of[v] for v in values if v not in self.given) - self.free

    def _following(self, values: Iterable[int], given: Iterable[int] = ()) -> set[int]:
        """The values with all that follows from them and from `given` over wiring, in either direction."""
        known = {*values, *given}
        pending = list(values)
        while pending:
            for item in self.wirings_of[pending.pop()]:
                for sources, targets in ((item.inputs, item.outputs), (item.outputs, item.inputs)):
                    if known.issuperset(sources) and not known.issuperset(targets):
                        pending += [value for value in targets if value not in known]
                        known.update(targets)
        return known

    def _storing(self, n: int) -> Iterator[Way]:
        for number, option in enumerate(self.item(n).options):
            if option.name != "invert":
                needs = self.in_parts(option.needs) if option.name != "keep" else ()
                yield self._way(number, option, [value for value in needs if value not in self.given])

    def _undoing(self, n: int) -> Iterator[Way]:
        after = self._behind(n + 1)
        for number, option in enumerate(self.item(n).options):
            needs = option.needs if option.name != "keep" else ()
            missing = [value for value in self.in_parts(needs) if value not in after]
            back = self._following({*after, *missing, *option.gives}, self.given)
            lost = [value for value in self.states[n] if value not in back]
            yield self._way(number, option, list(dict.fromkeys([*missing, *lost])))

    def _way(self, number: int, option: Option, stores: list[int]) -> Way:
        pinned = frozenset(self.problem.storage_of[value] for value in option.pinned)
        return Way(
            option=number,
            own_bytes=option.held_bytes,
            pins=(pinned - self.free) | self.storages_of(stores),
            stores=tuple(stores),
            cost=option.cost,
            forward_peak=option.forward_peak,
            backward_peak=option.backward_peak + self._joined_bytes(option.needs),
        )

    def _joined_bytes(self, values: Iterable[int]) -> int:
        """Bytes of values that are known by their parts, and that only a node's run or replay holds."""
        return self.size({self.problem.storage_of[value] for value in values if value in self.parts})


def parts_of(problem: Problem) -> dict[int, tuple[int, ...]]:
    """The values that a line knows by their parts, for those take no more bytes as long as both are alive.

    They are copies that wiring joins (a concatenation) of parts which are read later, too, or which the
    caller holds: a state with the copy in it has these parts twice. Readers of a copy run and replay with one
    that is made for that, which counts with their own bytes.
    """
    last: dict[int, int] = {}
    parts: dict[int, tuple[int, ...]] = {}
    storage_of, results = problem.storage_of, frozenset(problem.results)
    for k in range(len(problem.items) - 1, -1, -1):
        item = problem.items[k]
        storages = {storage_of[value] for value in item.inputs}
        ends = max((last.get(value, -1) for value in item.outputs), default=-1)
        copies = not results.intersection(item.outputs) and all(
            storage_of[value] not in storages for value in item.outputs
        )
        if not item.options and item.inputs and item.outputs and copies and ends > k:
            longer = {
                storage_of[value]
                for value in item.inputs
                if value not in problem.given and last.get(value, -1) < ends
            }
            size = sum(problem.storage_bytes[storage] for storage in longer)
            if size < sum(problem.storage_bytes[storage_of[value]] for value in item.outputs):
                parts.update(dict.fromkeys(item.outputs, item.inputs))
                for value in item.inputs:
                    last[value] = max(last.get(value, -1), ends)
        for value in item.inputs:
            last[value] = max(last.get(value, -1), k)
    for value in parts:
        parts[value] = tuple(_leaves(value, parts))
    return parts


def _leaves(value: int, parts: dict[int, tuple[int, ...]]) -> Iterator[int]:
    for part in parts.get(value, ()):
        yield from _leaves(part, parts) if part in parts else (part,)


def _with_joined(problem: Problem, parts: dict[int, tuple[int, ...]]) -> Problem:
    """The problem with the bytes of joined copies in the peaks of the runs that read them."""
    items: list[Item] = []
    for item in problem.items:
        joined = {problem.storage_of[value] for value in item.inputs if value in parts}
        if item.options and joined:
            size = sum(problem.storage_bytes[storage] for storage in joined)
            options = tuple(
                replace(option, forward_peak=option.forward_peak + size) for option in item.options
            )
            item = replace(item, options=options, rerun_peak=item.rerun_peak + size)
        items.append(item)
    return replace(problem, items=tuple(items))


def replay_option(item: Item) -> int | None:
    """The option of an item that replays all of it, so that a rerun may come before it.

    What saves nothing (an addition) has nothing to replay: that is to keep it.
    """
    options = item.options
    plain = [number for number, option in enumerate(options) if is_plain(option)]
    if not plain:
        plain = [number for number, option in enumerate(options) if not (option.held_bytes or option.pinned)]
    return max(plain, key=lambda number: options[number].name == "recompute", default=None)


def is_plain(option: Option) -> bool:
    """Whether an option replays all of a node: it may hold statistics of the forward, but no results."""
    return option.name != "keep" and not option.results and not option.pinned
