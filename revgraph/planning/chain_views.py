"""Chain views: a planning problem seen as a chain, and the chain's schedules as its solutions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import networkx as nx

from revgraph.planning.chain_schedules import Action
from revgraph.planning.chains import Chain, ChainNode, Way
from revgraph.planning.merging import Merged, merge
from revgraph.planning.problem import Option, Problem, Solution


@dataclass(frozen=True)
class ChainView:
    """A problem whose every item reads all that is alive: `states[n]` are the values after node n of `chain`.

    `items` are the problem's items behind the nodes. Where two states have a value in common, as those of
    half-steps on two streams do, the chain counts it twice while both are held: its peaks are upper bounds.
    """

    merged: Merged
    chain: Chain
    items: tuple[int, ...]
    states: tuple[tuple[int, ...], ...]

    def solution(self, actions: Sequence[Action]) -> Solution:
        """The solution that does what the schedule says."""
        options = [-1] * len(self.merged.problem.items)
        reruns, holds = set[int](), dict[int, int]()
        turn = next(time for time, action in enumerate(actions) if action.do == "turn")
        stage_at: list[int] = []
        for action in reversed(actions):
            stage_at.append(action.node if action.do == "backward" or not stage_at else stage_at[-1])
        stage_at.reverse()
        for time, (do, node, way) in enumerate(actions):
            if do == "backward" and way is not None:
                options[self.items[node - 1]] = way.option
            elif do == "forward" and time > turn:
                reruns.add(self.items[node - 1])
                if way is not None and way.needs == "nothing" and not way.values:
                    holds[self.items[node - 1]] = self.items[stage_at[time] - 1]
        stored, drops = set[int](), defaultdict[int, set[int]](set)
        for value, spans in self._spans(actions).items():
            for (made, read), later in zip(spans, [*spans[1:], None], strict=True):
                if made < turn < read:
                    stored.add(self.merged.names[value][0])
                if later is not None and read > turn:
                    drops[self.items[stage_at[read] - 1]].update(self._with_relatives(value))
        return Solution(
            tuple(options),
            frozenset(stored),
            frozenset(reruns),
            holds,
            {j: tuple(sorted(values)) for j, values in sorted(drops.items())},
        )

    def _spans(self, actions: Sequence[Action]) -> dict[int, list[tuple[int, int]]]:
        """For each value of a state the times (made, last read) between which it is in memory."""
        by_state: defaultdict[int, list[list[int]]] = defaultdict(list)
        for time, (do, node, way) in enumerate(actions):
            if do == "forward":
                self._read(by_state, node - 1, time)
                by_state[node].append([time, time])
            elif do == "backward" and way is not None and way.needs == "input":
                self._read(by_state, node - 1, time)
            elif do == "backward" and way is not None and way.needs == "output":
                self._read(by_state, node, time)
                by_state[node - 1].append([time, time])
        spans: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for state, found in by_state.items():
            for value in self.states[state]:
                spans[value] += [(made, read) for made, read in found]
        began: dict[int, int] = {}
        for time, (do, node, way) in enumerate(actions):
            if do == "forward":
                began[node] = time
            elif way is not None:
                for value in way.values:
                    spans[value].append((began[node], time))
        return {value: _merged_spans(found) for value, found in spans.items()}

    @staticmethod
    def _read(by_state: defaultdict[int, list[list[int]]], state: int, time: int) -> None:
        if by_state[state]:
            by_state[state][-1][1] = time

    def _with_relatives(self, value: int) -> set[int]:
        """The value under all its names, with what wiring made of it on the way to a state."""
        in_states = {each for state in self.states for each in state}
        family = {value} | (_families(self.merged.problem).get(value, set()) - in_states)
        return {name for each in family for name in self.merged.names[each]}


def _merged_spans(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for made, read in sorted(spans):
        if joined and made <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], read)
        else:
            joined.append((made, read))
    return joined


def _families(problem: Problem) -> dict[int, set[int]]:
    network: nx.Graph[int] = nx.Graph()
    for item in problem.items:
        if not item.options:
            nx.add_star(network, [*item.inputs, *item.outputs])
    return {value: component for component in nx.connected_components(network) for value in component}


def chain_of(problem: Problem) -> ChainView | None:
    """The problem as a chain; None where values pass by an item that does not read them."""
    merged = merge(problem)
    viewing = _Viewing(merged.problem)
    if not viewing.is_chain():
        return None
    return ChainView(merged, viewing.chain(), tuple(viewing.nodes), tuple(viewing.states))


class _Viewing:
    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.nodes = [k for k, item in enumerate(problem.items) if item.options]
        self.given = self._closure(problem.given)
        self.free = {problem.storage_of[value] for value in (*problem.results, *problem.given)}
        self.states = [self._alive(k) for k in self.nodes]
        self.states.append(tuple(problem.results))

    def _alive(self, k: int) -> tuple[int, ...]:
        """What is made before item k and read there or later, other than what is always at hand."""
        items = self.problem.items
        made = {value for item in items[:k] for value in item.outputs}
        read = {value for item in items[k:] for value in item.inputs}
        return tuple(sorted((made & read) - self.given))

    def _closure(self, values: Iterable[int]) -> set[int]:
        """The values, and all that wiring makes of them either way."""
        known = set(values)
        wirings = [item for item in self.problem.items if not item.options]
        while True:
            before = len(known)
            for item in wirings:
                if known.issuperset(item.inputs):
                    known.update(item.outputs)
                if known.issuperset(item.outputs):
                    known.update(item.inputs)
            if len(known) == before:
                return known

    def is_chain(self) -> bool:
        items = self.problem.items
        return (
            bool(self.nodes)
            and not self.states[0]
            and not self._bytes(self.given)
            and all(
                set(state) <= set(items[k].inputs)
                for k, state in zip(self.nodes[1:], self.states[1:-1], strict=True)
            )
        )

    def _bytes(self, values: Iterable[int]) -> int:
        storages = {self.problem.storage_of[value] for value in values} - self.free
        return sum(self.problem.storage_bytes[storage] for storage in storages)

    def chain(self) -> Chain:
        problem = self.problem
        results = {problem.storage_of[value] for value in problem.results}
        maker = next(
            (i for i, item in enumerate(problem.items)
             if any(problem.storage_of[value] in results for value in item.outputs)), 0,
        )  # fmt: skip
        return Chain(
            tuple(self._node(n) for n in range(len(self.nodes))),
            problem.loss_bytes,
            sum(problem.storage_bytes[storage] for storage in results),
            sum(k <= maker for k in self.nodes),
        )

    def _node(self, n: int) -> ChainNode:
        item, problem = self.problem.items[self.nodes[n]], self.problem
        after = self.nodes[n + 1] if n + 1 < len(self.nodes) else len(problem.items)
        made = [value for other in problem.items[self.nodes[n] : after] for value in other.outputs]
        # Results count here: the chain holds them only once their node has run.
        out = sum(problem.storage_bytes[s] for s in {problem.storage_of[value] for value in made})
        first = [way for c, option in enumerate(item.options) for way in self._ways(n, c, option, out)]
        rerun_peak = max(item.rerun_peak, out)
        plain = [way for way in first if _is_plain(item.options[way.option])]
        again = [replace(way, forward_peak=rerun_peak) for way in plain]
        if plain:
            option = next(
                (c for c, each in enumerate(item.options) if each.name == "recompute" and _is_plain(each)),
                plain[0].option,
            )
            backward = max(0, item.options[option].backward_peak - item.captured_bytes)
            forward = max(item.rerun_peak, out + item.captured_bytes)
            again.append(Way("nothing", item.captured_bytes, 0, forward, backward, option))
        return ChainNode(
            state=self._bytes(self.states[n + 1]),
            flops=item.rerun_flops,
            first=tuple(first),
            again=tuple(again),
            gradient=item.gradient_bytes,
            run_peak=max((way.forward_peak for way in plain), default=1 << 62),
            rerun_peak=rerun_peak,
        )

    def _ways(self, n: int, c: int, option: Option, out: int) -> Iterator[Way]:
        """The ways that an option stands for: with its output, its whole input, or what it needs held."""
        held, given = option.held_bytes + self._bytes(option.pinned), self.given
        shared = self._bytes({v for v in option.pinned if v in self.states[n]})
        forward = max(option.forward_peak, option.held_bytes + out)
        way = Way("nothing", held, option.flops, forward, option.backward_peak, c, shared)
        if option.name == "keep":
            yield way
            return
        before, after = self._closure(self.states[n]) | given, self._closure(self.states[n + 1]) | given
        if option.gives and set(option.needs) <= after:
            back = self._closure({*option.gives, *after}) | given
            if set(self.states[n]) <= back:
                extra = self._beyond(option.needs, self.states[n + 1])
                yield replace(way, needs="output", backward_peak=option.backward_peak + extra)
        if set(option.needs) <= before:
            extra = self._beyond(option.needs, self.states[n])
            if _is_plain(option):
                yield replace(way, needs="input", backward_peak=option.backward_peak + extra)
            values = tuple(value for value in option.needs if value not in given)
            holding = replace(
                way,
                held=option.held_bytes + self._bytes({*option.pinned, *values}),
                shared=self._bytes({v for v in (*option.pinned, *values) if v in self.states[n]}),
                values=values,
            )
            if set(values) <= set(self.states[n]) and (holding.held > held or not _is_plain(option)):
                yield holding

    def _beyond(self, values: Iterable[int], state: Iterable[int]) -> int:
        """Bytes that values take where a state is in memory."""
        return self._bytes({*state, *values}) - self._bytes(state)


def _is_plain(option: Option) -> bool:
    return option.name != "keep" and not option.held_bytes and not option.pinned
