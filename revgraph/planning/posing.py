"""Posing: a graph with costs as a planning problem."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from revgraph.courses import Course, Event, Work, own_bytes
from revgraph.graph import Graph, Node
from revgraph.planning.deciding import Ordinary, keep_all
from revgraph.planning.holding import Storages
from revgraph.planning.plans import DECISIONS, CostKind, Decision
from revgraph.planning.profiles import GENERIC, Clock, DeviceProfile
from revgraph.planning.schedule import schedule
from revgraph.planning.simulating import Machine
from revgraph.planning.solver.problem import Item, Option, Problem
from revgraph.planning.sources import needs

# Into how many parts of a step nanoseconds are rounded.
TICKS = 2**17
MEASURES = ("held_bytes", "cost", "captured_bytes", "forward_peak", "backward_peak")


@dataclass(frozen=True, slots=True)
class Posed:
    """A graph's planning problem; `courses` are for each item the names of its options' courses."""

    graph: Graph
    problem: Problem
    courses: tuple[tuple[str, ...], ...]
    cost: CostKind
    profile: DeviceProfile


def pose(graph: Graph, cost: CostKind = "time", profile: DeviceProfile = GENERIC) -> Posed:
    """The planning problem of a graph whose costs are known, in nanoseconds by a profile or in FLOPs."""
    posing = _Posing(graph, cost, profile)
    nodes = [node for node in graph.nodes if node.kind not in ("input", "output")]
    options = [posing.options(node) for node in nodes]
    courses = tuple(tuple(each) for each in options)
    return Posed(graph, posing.problem(nodes, options), courses, cost, profile)


class _Posing:
    def __init__(self, graph: Graph, cost: CostKind, profile: DeviceProfile) -> None:
        self.graph = graph
        ordinary = graph.worked_out(Ordinary)
        self.clock = Clock(graph, profile) if cost == "time" else None
        self.plain_cost = ordinary.nanoseconds(graph, profile) if cost == "time" else ordinary.flops
        self.tick = max(1, self.plain_cost // TICKS)
        self.names = [value.name for value in graph.values]
        self.index = {name: index for index, name in enumerate(self.names)}
        self.looks: dict[Hashable, int] = {}

    def problem(self, nodes: Sequence[Node], options: Sequence[Mapping[str, Option]]) -> Problem:
        graph = self.graph
        gradients, loss_bytes = self._fixed_bytes()
        given = {graph.value[name].storage for name in graph.inputs}
        return Problem(
            items=tuple(
                self._item(node, tuple(each.values()), gradients.get(node.name, 0))
                for node, each in zip(nodes, options, strict=True)
            ),
            storage_of=tuple(self.index[value.storage] for value in graph.values),
            storage_bytes=tuple(
                0 if value.storage in given else graph.value[value.storage].nbytes for value in graph.values
            ),
            given=self._indices(graph.inputs),
            results=self._indices(dict.fromkeys(graph.outputs)),
            loss_bytes=loss_bytes,
            plain_cost=self.plain_cost,
        )

    def _fixed_bytes(self) -> tuple[dict[str, int], int]:
        """What no plan changes: bytes of gradients as each node's backward begins, and those of the loss."""
        plan = keep_all(self.graph)
        machine = Machine(plan)
        gradients: dict[str, int] = {}
        loss_bytes = before = scalars = 0
        events = self.graph.loss.cost.courses["keep"].forward if self.graph.loss is not None else ()
        loss_size = sum(event[2] for event in events if event[:2] == ("born", "out0"))
        for step in schedule(plan):
            if step.action == "backward":
                gradients[step.node] = machine.gradient_bytes() + scalars
            moment = machine.take(step)
            if self.graph.loss is not None and step.node == self.graph.loss.name:
                loss_bytes = max(loss_bytes, moment.peak_bytes - before)
                scalars += loss_size  # of the loss, then of its gradient, both held to the end
            else:
                before = moment.live_bytes
        return gradients, loss_bytes

    def options(self, node: Node) -> dict[str, Option]:
        """The options of a node by the names of their courses, without those that another one beats."""
        found = {
            name: self._option(node, name, course)
            for name, course in node.cost.courses.items()
            if _is_option(node, name, course)
        }
        if not found and node.kind != "wiring":
            return {"keep": Option("keep")}
        return {
            name: option
            for place, (name, option) in enumerate(found.items())
            if not any(
                _beats(other, option) and (not _beats(option, other) or rank < place)
                for rank, other in enumerate(found.values())
                if rank != place
            )
        }

    def _item(self, node: Node, options: tuple[Option, ...], gradient_bytes: int) -> Item:
        keep = node.cost.courses.get("keep", Course())
        look = (node.kind, tuple((name, id(course)) for name, course in node.cost.courses.items()))
        return Item(
            name=node.name,
            inputs=self._indices(node.inputs),
            outputs=self._indices(node.outputs),
            options=options,
            rerun_cost=self._cost(node, keep.forward_work),
            rerun_peak=_peak(keep.forward, {}),
            captured_bytes=max(0, own_bytes(keep.forward)),
            gradient_bytes=gradient_bytes,
            look=self.looks.setdefault(look, len(self.looks)),
        )

    def _option(self, node: Node, name: str, course: Course) -> Option:
        decision, *results = name.split("+")
        dropped = {event[1] for event in course.forward if event[0] == "drop"}
        held = (
            [value for label, value in _labelled(node) if label not in dropped] if decision == "keep" else []
        )
        gradients = {f"go{index}": self.graph.own_bytes(each) for index, each in enumerate(node.outputs)}
        replay = course.in_replay
        return Option(
            name=cast("Decision", decision),
            results=tuple(map(int, results)),
            held_bytes=course.held_bytes,
            pinned=tuple(self.index[self.graph.value[value].storage] for value in held),
            needs=self._indices(needs(node, cast("Decision", decision))),
            gives=self._indices((node.target,)) if decision == "invert" and node.target is not None else (),
            cost=self._cost(node, course.replay_work) if course.replays else 0,
            captured_bytes=max(0, own_bytes(replay)),
            forward_peak=_peak(course.forward, {}),
            backward_peak=_peak((*course.before_replay, *replay, *course.after_replay), gradients),
        )

    def _cost(self, node: Node, work: Work) -> int:
        """What running a node again costs; nanoseconds in ticks, by which a solver can round its bounds."""
        if self.clock is None:
            return work.flops
        return (
            max(1, round((self.clock.forward(node.name, work) + self.clock.replay) / self.tick)) * self.tick
        )

    def _indices(self, names: Any) -> tuple[int, ...]:
        return tuple(self.index[name] for name in names)


def _beats(one: Option, other: Option) -> bool:
    """Whether an option is at least as good as another in every way."""
    return (
        set(one.pinned) <= set(other.pinned)
        and set(one.needs) <= set(other.needs)
        and set(one.gives) >= set(other.gives)
        and all(getattr(one, name) <= getattr(other, name) for name in MEASURES)
    )


def _is_option(node: Node, name: str, course: Course) -> bool:
    """Whether a course stands for a decision on the node that is worth a thought."""
    decision = name.split("+")[0]
    if node.kind == "wiring" or decision not in DECISIONS:
        return False
    return decision in ("keep", "invert") or course.replays


def _labelled(node: Node) -> list[tuple[str, str]]:
    return [
        *((f"in{index}", name) for index, name in enumerate(node.inputs)),
        *((f"out{index}", name) for index, name in enumerate(node.outputs)),
    ]


def _peak(events: tuple[Event, ...], sizes: Mapping[str, int]) -> int:
    """The most bytes held at once while events run, beyond what was alive before; `sizes` are of that."""
    memory = Storages()
    labels = {label: memory.born(size) for label, size in sizes.items()}
    start = memory.most = memory.live
    for event in events:
        if event[0] == "use":
            memory.use(event[1], event[2])
        elif event[0] == "state":
            memory.use(event[1], event[1])
        elif event[0] == "born":
            labels[event[1]] = memory.born(event[2])
        elif event[0] == "drop":
            memory.release(labels.pop(event[1], 0))
        elif event[0] in ("grad", "same"):
            memory.hold(labels.get(event[2], 0))
    return memory.most - start
