"""Posing: a graph with costs as a planning problem, and a solution of it as a plan."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, cast

from revgraph.courses import Course, Event, own_bytes
from revgraph.graph import Graph, Node
from revgraph.planning.deciding import decide, keep_all
from revgraph.planning.plans import DECISIONS, Decision, Plan
from revgraph.planning.problem import Item, Option, Problem, Solution
from revgraph.planning.schedule import schedule
from revgraph.planning.simulating import Machine, Storages, after_replay, before_replay, in_replay
from revgraph.planning.sources import needs


def pose(graph: Graph) -> Problem:
    """The planning problem of a graph whose costs are known."""
    return _Posing(graph).problem()


class _Posing:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names = [value.name for value in graph.values]
        self.index = {name: index for index, name in enumerate(self.names)}
        self.looks: dict[Hashable, int] = {}

    def problem(self) -> Problem:
        graph = self.graph
        gradients, loss_bytes = self._fixed_bytes()
        nodes = [node for node in graph.nodes if node.kind not in ("input", "output")]
        given = {graph.value[name].storage for name in graph.inputs}
        return Problem(
            items=tuple(self._item(node, gradients.get(node.name, 0)) for node in nodes),
            storage_of=tuple(self.index[value.storage] for value in graph.values),
            storage_bytes=tuple(
                0 if value.storage in given else graph.value[value.storage].nbytes for value in graph.values
            ),
            given=self._indices(graph.inputs),
            results=self._indices(dict.fromkeys(graph.outputs)),
            loss_bytes=loss_bytes,
            plain_flops=sum(node.cost.flops + node.cost.backward_flops for node in graph.nodes),
        )

    def _fixed_bytes(self) -> tuple[dict[str, int], int]:
        """What no plan changes: bytes of gradients as each node's backward begins, and those of the loss."""
        plan = keep_all(self.graph)
        machine = Machine(plan)
        gradients: dict[str, int] = {}
        loss_bytes = before = 0
        for step in schedule(plan):
            if step.action == "backward":
                gradients[step.node] = machine.gradient_bytes()
            moment = machine.take(step)
            if self.graph.loss is not None and step.node == self.graph.loss.name:
                loss_bytes = max(loss_bytes, moment.peak_bytes - before)
            else:
                before = moment.live_bytes
        return gradients, loss_bytes

    def _item(self, node: Node, gradient_bytes: int) -> Item:
        courses = node.cost.courses
        keep = courses.get("keep", Course())
        look = (node.kind, tuple((name, id(course)) for name, course in courses.items()))
        options = tuple(
            self._option(node, name, course)
            for name, course in courses.items()
            if _is_option(node, name, course)
        )
        return Item(
            name=node.name,
            inputs=self._indices(node.inputs),
            outputs=self._indices(node.outputs),
            options=options or (Option("keep"),) * (node.kind != "wiring"),
            rerun_flops=keep.flops,
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
        replay = in_replay(course)
        return Option(
            name=cast("Decision", decision),
            results=tuple(map(int, results)),
            held_bytes=max(0, own_bytes(course.forward)),
            pinned=tuple(self.index[self.graph.value[value].storage] for value in held),
            needs=self._indices(needs(node, cast("Decision", decision))),
            gives=self._indices((node.target,)) if decision == "invert" and node.target is not None else (),
            flops=course.replay_flops,
            captured_bytes=max(0, own_bytes(replay)),
            forward_peak=_peak(course.forward, {}),
            backward_peak=_peak((*before_replay(course), *replay, *after_replay(course)), gradients),
        )

    def _indices(self, names: Any) -> tuple[int, ...]:
        return tuple(self.index[name] for name in names)


def planned(graph: Graph, solution: Solution) -> Plan:
    """The plan that a solution of the graph's problem stands for."""
    names = [value.name for value in graph.values]
    nodes = [node for node in graph.nodes if node.kind not in ("input", "output")]
    problem_options = [
        [name for name, course in node.cost.courses.items() if _is_option(node, name, course)] or ["keep"]
        for node in nodes
    ]
    chosen = {
        node.name: options[index]
        for node, options, index in zip(nodes, problem_options, solution.options, strict=True)
        if index >= 0 and node.kind != "wiring"
    }
    decisions: Mapping[str, Any] = {name: option.split("+")[0] for name, option in chosen.items()}
    stored = [names[index] for index in sorted(solution.stored) if names[index] not in graph.inputs]
    return decide(graph, decisions, stored)


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
        elif event[0] == "born":
            labels[event[1]] = memory.born(event[2])
        elif event[0] == "drop":
            memory.release(labels.pop(event[1], 0))
        elif event[0] in ("grad", "same"):
            memory.hold(labels.get(event[2], 0))
    return memory.most - start
