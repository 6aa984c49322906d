"""Unrolling: a schedule of segments as what is done to each node, and this as a solution of the problem.

A solution says what is stored, rerun, captured and dropped, and its plan's schedule follows from that. So of
a schedule's times only those count that it can say: the stage in which a rerun comes, and where a value goes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from revgraph.planning.solver.line import Line, Way
from revgraph.planning.solver.problem import Solution
from revgraph.planning.solver.segment_programme import Step
from revgraph.planning.solver.segments import Segment


class Action(NamedTuple):
    """A node's forward or backward, or the turn between the passes.

    A forward is `plain`, `captured`, one that keeps `results` (of the option given), or that of a `way`. A
    backward differentiates what was `captured`, replays from its `input`, or goes by a `way`, which may
    `undo` the node. Or the state before a node comes `back` over wiring from the one at a later `position`.
    """

    what: str
    node: int = -1
    how: str = ""
    way: Way | None = None
    option: int = -1
    position: int = -1


TURN = Action("turn")


class Unrolling:
    """Makes solutions of the schedules of one programme, which have most of their steps in common."""

    def __init__(self, line: Line, segments: Sequence[Segment]) -> None:
        self.line = line
        self.segments = segments
        self._known: dict[Step, tuple[Action, ...]] = {("turn",): (TURN,)}

    def solution(self, schedule: Iterable[Step]) -> Solution:
        """The solution that does what the programme's schedule says."""
        known, actions = self._known, list[Action]()
        for step in schedule:
            if step not in known:
                known[step] = tuple(self._actions(step))
            actions += known[step]
        return _Unrolled(self.line, actions).solution()

    def _actions(self, step: Step) -> Iterator[Action]:
        what, place, *arguments = step
        segment = self.segments[place]
        nodes = range(segment.start, segment.stop)
        if what == "run":
            yield from (Action("forward", n, "plain") for n in nodes)
        elif what == "run and keep":
            yield from (Action("forward", n, "plain") for n in nodes[:-1])
            yield Action("forward", nodes[-1], "results", option=arguments[0])
        elif what == "come back":
            yield Action("back", place, position=arguments[0])
        elif what == "capture":
            yield from (Action("forward", n, "captured") for n in nodes)
        elif what == "captured back":
            yield from (Action("backward", n, "captured") for n in reversed(nodes))
        elif what == "at once":
            last = max((n for n in nodes if not self.line.silent[n]), default=segment.start)
            yield from (Action("backward", n, "captured") for n in range(segment.stop - 1, last, -1))
            yield from (Action("forward", n, "captured") for n in range(segment.start, last))
            yield Action("backward", last, "input")
            yield from (Action("backward", n, "captured") for n in range(last - 1, segment.start - 1, -1))
        else:
            chosen = (segment.storing if what.startswith("store") else segment.undoing)[arguments[0]]
            pairs = list(zip(nodes, chosen.ways, strict=True))
            if what in ("store", "invert"):
                yield from (Action("forward", n, "way", way) for n, way in pairs)
            else:
                how = "undo" if what == "undo" else "way"
                yield from (Action("backward", n, how, way) for n, way in reversed(pairs))


class _Unrolled:
    def __init__(self, line: Line, actions: Sequence[Action]) -> None:
        self.line = line
        self.actions = actions
        self.turn = actions.index(TURN)
        self.stage = self._stages()

    def _stages(self) -> list[int]:
        """For each action after the turn the node whose backward it comes before, of those that replay."""
        silent = self.line.silent
        stage = self.actions[-1].node
        stages: list[int] = []
        for what, node, *_ in reversed(self.actions):
            if what == "backward" and not silent[node]:
                stage = node
            stages.append(stage)
        return stages[::-1]

    def solution(self) -> Solution:
        nodes = self.line.nodes
        options = [-1] * len(self.line.problem.items)
        reruns, holds = set[int](), dict[int, int]()
        for time, (what, n, how, way, *_) in enumerate(self.actions):
            k = nodes[n]
            if what == "backward" and options[k] < 0:
                replay = self.line.replay[n]
                options[k] = way.option if way is not None else replay if replay is not None else 0
            elif what == "forward" and time > self.turn:
                reruns.add(k)
                if how == "captured" and self.stage[time] != n:
                    holds[k] = nodes[self.stage[time]]
        for _, n, how, _, option, _ in self.actions:
            if how == "results":
                options[nodes[n]] = option
        for n, k in enumerate(nodes):
            replay = self.line.replay[n]
            if k in reruns and replay is not None and self.line.item(n).options[options[k]].name == "keep":
                options[k] = replay
        stored, drops = self._values()
        return Solution(tuple(options), stored, frozenset(reruns), holds, drops)

    def _values(self) -> tuple[frozenset[int], dict[int, tuple[int, ...]]]:
        """What is stored, and what goes at the end of a stage although a later one reads it."""
        nodes, names = self.line.nodes, self.line.merged.names
        stored, drops = set[int](), defaultdict[int, set[int]](set)
        for value, spans in self._spans().items():
            if any(made < self.turn < read for made, read in spans):
                stored.add(names[value][0])
            for _, read in spans[:-1]:
                if read > self.turn:
                    relatives = self.line.relatives.get(value, frozenset())
                    for each in {value} | (relatives - self.line.in_states):
                        drops[nodes[self.stage[read]]].update(names[each])
        return frozenset(stored), {k: tuple(sorted(values)) for k, values in sorted(drops.items())}

    def _spans(self) -> dict[int, list[tuple[int, int]]]:
        """For each value the times from when it is made to when it is last read, as often as it is made."""
        states: defaultdict[int, list[list[int]]] = defaultdict(list)
        spans: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        began: dict[int, int] = {}
        for time, (what, n, how, way, _, position) in enumerate(self.actions):
            if what == "forward":
                if states[n]:
                    states[n][-1][1] = time
                states[n + 1].append([time, time])
                began[n] = time
            elif what == "backward":
                read = n if how == "input" else n + 1 if how == "undo" else -1
                if read >= 0 and states[read]:
                    states[read][-1][1] = time
                if how == "undo":
                    states[n].append([time, time])
                if way is not None and n in began:
                    for value in way.stores:
                        spans[value].append((began[n], time))
            elif what == "back":
                states[position][-1][1] = time
                states[n].append([time, time])
                for value in self.line.lost(n, position):
                    spans[value].append((began[n], time))
        for position, found in states.items():
            times = [(made, last) for made, last in found]
            for value in self.line.states[position]:
                spans[value] += times
        return {value: found if len(found) == 1 else _joined(found) for value, found in spans.items()}


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for made, last in sorted(spans):
        if joined and made <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((made, last))
    return joined
