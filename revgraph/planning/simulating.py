"""Simulating: the steps of a plan taken on paper, with every byte that is live after each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from revgraph.courses import NOTHING, Course, Event, Work
from revgraph.errors import PlanError
from revgraph.graph import Graph, Node
from revgraph.planning.holding import NOWHERE, Storages
from revgraph.planning.plans import Plan, course_of
from revgraph.planning.profiles import Clock
from revgraph.planning.schedule import CAPTURING, Instruction, schedule

# Under which name costs have what happens in an action of a node that is run again by itself.
COURSES = {
    "invert_again": "again",
    "recompute_and_keep": "hold",
    "invert_wiring": "rewire",
}
UNKNOWN = Course()


class Moment(NamedTuple):
    """An instruction; the activation bytes live after it, the most while it ran, its FLOPs and its time.

    The nanoseconds are those of the plan's device profile.
    """

    step: Instruction
    live_bytes: int
    peak_bytes: int
    flops: int
    nanoseconds: int = 0


def simulate(plan: Plan) -> list[Moment]:
    """A training step under a plan, step by step, with activation bytes and FLOPs.

    The loss is the mean of squares of the outputs, as in `measure`; the caller holds outputs and loss.
    Every operand must be live when it is read.

    Raises:
        PlanError: a step reads what is not in memory.
    """
    machine = Machine(plan)
    return [machine.take(step) for step in schedule(plan)]


def course_names(plan: Plan) -> dict[str, str]:
    """For each node the name of the course that its memory takes under this plan: `invert+0+2`.

    The replay of a sum whose target nobody asks for stops before the sum, as if it were recomputed. The
    caller's inputs are always asked for, to see how far they drift.
    """
    graph = plan.graph
    names = {node.name: plan.decided(node.name) for node in graph.nodes}
    for each in schedule(plan).replays:
        node = graph.node[each.node]
        if each.action == "invert" and node.additive and not each.makes and node.target not in graph.inputs:
            names[node.name] = names[node.name].replace("invert", "recompute")
    return names


def courses_of(plan: Plan) -> dict[str, Course]:
    """For each node, and the loss, how its memory runs under this plan; empty where that is not known."""
    graph, names = plan.graph, course_names(plan)
    found = {node.name: course_of(node, names[node.name]) for node in graph.nodes}
    if graph.loss is not None:
        found[graph.loss.name] = graph.loss.cost.courses.get("keep", UNKNOWN)
    return found


class Machine:
    """Takes steps; knows where every value, gradient and tape entry lies.

    What its `memory` is told, in order, is every storage of the training step.
    """

    def __init__(self, plan: Plan, memory: Storages | None = None) -> None:
        self.graph: Graph = plan.graph
        self.memory = Storages() if memory is None else memory
        self.env: dict[str, int] = dict.fromkeys(self.graph.inputs, NOWHERE)
        self.tape: dict[str, int] = dict.fromkeys(self.graph.inputs, NOWHERE)
        self.rebuilt: dict[str, int] = {}
        self.gradients: dict[str, int] = {}
        self.labels: dict[str, dict[str, int]] = {}
        self.begun: set[str] = set()
        self.held_again: set[str] = set()
        self.sums: dict[str, int] = {}
        self.same: dict[str, str] = {}
        self.courses = courses_of(plan)
        self.last_replay = schedule(plan).last_at
        self.position = 0
        self.states: dict[str, list[int]] = {}
        self.clock = Clock(plan.graph, plan.profile)
        self.node = dict(self.graph.node)
        if self.graph.loss is not None:
            self.node[self.graph.loss.name] = self.graph.loss
        self.parts = _contributors(self.graph, self.courses)
        # Of nodes that no gradient reaches: who holds autograd's graph of them.
        self.graphs: dict[str, int] = {}

    def gradient_bytes(self) -> int:
        """The bytes of all gradients that have arrived and are not used yet."""
        return sum(self.memory.sizes.get(number, 0) for number in set(self.gradients.values()))

    def take(self, step: Instruction) -> Moment:
        """Take the next step."""
        if self.states and step.action != "run":  # the forward is over, and what was noted for no replay goes
            for name in self.states.keys() - self.last_replay.keys():
                self._let_state_go(name)
        self.memory.most = self.memory.live
        work, nanoseconds = NOTHING, 0
        match step.action:
            case "free":
                for name in step.frees:
                    self.memory.release(self.tape.pop(name))
            case "backward":
                work = self._backward(step)
                nanoseconds = self.clock.backward(step.node, work)
            case "run":
                work = self._run(step)
                nanoseconds = self.clock.forward(step.node, work)
            case "loss":
                work = self._loss()
                nanoseconds = self.clock.forward(step.node, work)
            case _:
                work = self._rebuild(step)
                nanoseconds = self.clock.forward(step.node, work) + self.clock.replay
        return Moment(step, self.memory.live, self.memory.most, work.flops, nanoseconds)

    def _run(self, step: Instruction) -> Work:
        node = self.graph.node[step.node]
        course = self.courses[node.name]
        labels = self._inputs(node)
        self._follow(course.forward, node, labels, node.outputs, self.env)
        for name in node.outputs:
            self.env.setdefault(name, NOWHERE)
        for name in step.stores:
            self.tape[name] = self._held(self.env, name)
        self.labels[node.name] = labels
        self._note_graph(node, course)
        for name in step.frees:
            self.memory.release(self.env.pop(name, NOWHERE))
            self._let_graph_go(self._maker(name))
        return course.forward_work

    def _note_graph(self, node: Node, course: Course) -> None:
        """Who holds autograd's graph of a node that no gradient reaches: its outputs, and what reads them."""
        passed_on = [node.outputs[index] for index, _ in course.identities]
        for maker in map(self._maker, passed_on):
            if maker in self.graphs:
                self.graphs[maker] += 1
        if node.cost.courses and not course.backward and len(passed_on) < len(node.outputs):
            self.graphs[node.name] = len(node.outputs) - len(passed_on)
            for maker in self._makers(node):
                self.graphs[maker] += 1

    def _maker(self, name: str) -> str:
        """The node of whose graph a value's tensor is the result."""
        return self.graph.producer[self.same.get(name, name)].name

    def _inputs(self, node: Node) -> dict[str, int]:
        """The storages of a node's inputs in the forward pass, which it holds from now on."""
        env, hold = self.env, self.memory.hold
        return {f"in{index}": hold(env[name]) for index, name in enumerate(node.inputs)}

    def _makers(self, node: Node) -> set[str]:
        """The nodes before this one whose graphs its own holds, among those that no gradient reaches."""
        return {name for name in map(self._maker, node.inputs) if name in self.graphs}

    def _let_graph_go(self, name: str) -> None:
        """One that held autograd's graph of a node is gone; with the last one the graph goes, and what it
        held of others."""
        pending = [name]
        while pending:
            name = pending.pop()
            if name not in self.graphs:
                continue
            self.graphs[name] -= 1
            if not self.graphs[name]:
                del self.graphs[name]
                node = self.node[name]
                labels = self.labels.pop(name)
                self._follow(self.courses[node.name].release, node, labels)
                for number in labels.values():
                    self.memory.release(number)
                pending += self._makers(node)

    def _loss(self) -> Work:
        node = self.graph.loss
        if node is None:
            return Work()
        course = self.courses[node.name]
        labels = self._inputs(node)
        self._follow(course.forward, node, labels, node.outputs, self.env)
        self.labels[node.name] = labels
        return course.forward_work

    def _backward(self, step: Instruction) -> Work:
        node = self.node[step.node]
        if node is self.graph.loss:
            root = self.memory.born(self.memory.sizes[self.env[node.outputs[0]]])
            self.gradients[node.outputs[0]] = self.memory.hold(root)  # the caller of backward holds one, too
        self._begin(node)
        labels = self.labels.pop(node.name)
        course = self._backward_course(node)
        self._follow(course.after_replay, node, labels)
        for number in labels.values():
            self.memory.release(number)
        return course.backward_work

    def _backward_course(self, node: Node) -> Course:
        """The course that tells a node's backward: that of the rerun that captured for it, if one did."""
        if node.name in self.held_again:
            return node.cost.courses.get("hold", UNKNOWN)
        return self.courses[node.name]

    def _begin(self, node: Node) -> None:
        """What a node's backward does before it first asks for what it needs."""
        if node.name in self.begun:
            return
        self.begun.add(node.name)
        labels = self.labels[node.name]
        for index, name in enumerate(node.outputs):
            if name in self.gradients:
                labels[f"go{index}"] = self.gradients.pop(name)
        self._follow(self._backward_course(node).before_replay, node, labels)

    def _rebuild(self, step: Instruction) -> Work:
        self._begin(self.node[step.stage])
        node = self.graph.node[step.node]
        own = self.courses[node.name]
        captures = step.action in CAPTURING
        replays = captures and step.action != "recompute_and_keep" and own.replays
        course = own if replays else node.cost.courses.get(COURSES.get(step.action, step.action), UNKNOWN)
        events = course.in_replay if replays else course.forward
        work = course.replay_work if replays else course.forward_work
        if step.action == "recompute_and_keep":
            self.held_again.add(node.name)
        labels = self.labels.get(node.name, {}) if captures else {}
        for prefix, names in (("in", node.inputs), ("out", node.outputs)):
            for index, name in enumerate(names):
                if name in step.reads:
                    labels[f"{prefix}{index}"] = self._held(self._place(name, step), name)
        self._follow(events, node, labels, step.makes, self.rebuilt)
        for name in step.makes:
            self.rebuilt.setdefault(name, NOWHERE)  # by a node whose costs are not known
        if captures:
            kept = self._backward_course(node).dropped_after_replay
            going = [label for label in labels if label not in kept and label.startswith(("in", "out"))]
        else:
            going = list(labels)
        for label in going:
            self.memory.release(labels.pop(label))
        for name in step.frees:
            place = self.rebuilt if name in self.rebuilt else self.tape
            self.memory.release(place.pop(name))
        if self.last_replay[node.name] == self.position:
            self._let_state_go(node.name)
        self.position += 1
        return work

    def _let_state_go(self, name: str) -> None:
        """Let go of what a node's forward noted for replays."""
        for number in self.states.pop(name, ()):
            self.memory.release(number)

    def _follow(
        self,
        events: tuple[Event, ...],
        node: Node,
        labels: dict[str, int],
        makes: Collection[str] = (),
        place: dict[str, int] | None = None,
    ) -> None:
        """Take a node's events; storages of the values it makes are held at `place`, too."""
        memory = self.memory
        for position, event in enumerate(events):
            what = event[0]
            if what == "use":
                memory.use(event[1], event[2], node.name)
            elif what == "state":
                self.states.setdefault(node.name, []).append(memory.born(event[1]))
            elif what == "drop":
                memory.release(labels.pop(event[1], NOWHERE))
            elif what in ("born", "laid", "same"):
                label = event[1]
                name = None if place is None else _name_of(label, node)
                held_on = name is not None and name in makes
                if what == "laid" and not held_on:
                    continue
                number = memory.hold(labels[event[2]]) if what == "same" else memory.born(event[2])
                labels[label] = number
                if place is not None and name is not None and held_on:
                    place[name] = memory.hold(number)
            elif what == "grad":
                follows = events[position + 1] if position + 1 < len(events) else None
                passed_on = event[2].startswith("go") and follows != ("drop", event[2])
                number = labels.get(event[2], NOWHERE)
                if event[1] < len(node.inputs):
                    self._gradient(node.inputs[event[1]], number, passed_on)
                else:
                    self._parameter(node.cost.shared[event[1] - len(node.inputs)], number)
            elif what == "identity":
                source: str = node.inputs[event[2]]
                self.same[node.outputs[event[1]]] = self.same.get(source, source)

    def _gradient(self, name: str, number: int, passed_on: bool) -> None:
        """A gradient arrives for a value: the first is held as it is, a further one is added to a new sum."""
        name = self.same.get(name, name)
        before = self.gradients.get(name)
        size = self.graph.own_bytes(name)
        if before is None:
            self.gradients[name] = self.memory.hold(number)
        else:
            self.gradients[name] = self.memory.born(size)
            self.memory.release(before)
        self.parts[name] -= 1
        if name in self.graph.inputs and not self.parts[name] and before is None and passed_on:
            self.memory.release(self.gradients[name])
            self.gradients[name] = self.memory.born(size)  # the caller's leaf takes a copy

    def _parameter(self, name: str, number: int) -> None:
        """A gradient of a parameter that several nodes use arrives; the last sum is the parameter's own, and
        no activation."""
        before = self.sums.pop(name, None)
        self.parts[name] -= 1
        if before is None:
            self.sums[name] = self.memory.hold(number)
        else:
            if self.parts[name]:
                self.sums[name] = self.memory.born(self.memory.sizes[number])
            self.memory.release(before)

    def _held(self, place: Mapping[str, int], name: str) -> int:
        return self.memory.hold(place[name])

    def _place(self, name: str, step: Instruction) -> Mapping[str, int]:
        """Where a value is that a step reads in backward."""
        if name in self.tape:
            return self.tape
        if name in self.rebuilt:
            return self.rebuilt
        raise PlanError(
            f"the plan is not sound: {step.action} of {step.node!r} for the backward of {step.stage!r} reads "
            f"{name!r}, which is neither stored nor rebuilt by then"
        )


def _name_of(label: str, node: Node) -> str | None:
    """The value that a label of something rebuilt stands for."""
    if label == "target":
        return node.target
    if label.startswith("out"):
        return node.outputs[int(label[3:])]
    return node.inputs[int(label[2:])] if label.startswith("in") else None


def _contributors(graph: Graph, courses: Mapping[str, Course]) -> Counter[str]:
    """How many gradients arrive at every value, and at every parameter that several nodes share."""
    parts: Counter[str] = Counter()
    same: dict[str, str] = {}
    for node in graph.nodes:
        course = courses[node.name]
        for output, source in course.identities:
            name = node.inputs[source]
            same[node.outputs[output]] = same.get(name, name)
        for index in course.gradients:
            if index < len(node.inputs):
                name = node.inputs[index]
                parts[same.get(name, name)] += 1
            else:
                parts[node.cost.shared[index - len(node.inputs)]] += 1
    return parts
