"""Simulating: the steps of a plan taken on paper, with every byte that is live after each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from revgraph.courses import NOTHING, Brief, Course, Event, Work
from revgraph.errors import PlanError
from revgraph.graph import Graph, Node
from revgraph.planning.holding import NOWHERE, Storages
from revgraph.planning.plans import UNKNOWN, Plan, course_of
from revgraph.planning.profiles import Clock
from revgraph.planning.schedule import CAPTURING, Instruction, schedule

# Under which name costs have what happens in an action of a node that is run again by itself.
COURSES = {
    "invert_again": "again",
    "recompute_and_keep": "hold",
    "invert_wiring": "rewire",
}
NONE = frozenset[str]()
# Events with which a node holds a storage under a label.
BEGINNING = ("made", "begun", "born", "laid", "same")


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
        PlanError: a step reads what is not in memory, or this is no plan.
    """
    if not isinstance(plan, Plan):
        hint = ": give its .plan" if isinstance(getattr(plan, "plan", None), Plan) else ""
        raise PlanError(f"a revgraph.Plan is simulated, and this is a {type(plan).__name__}{hint}")
    machine = Machine(plan)
    return [machine.take(step) for step in schedule(plan)]


class Weight(NamedTuple):
    """A step in all: its most bytes and when it takes them, its bytes at the turn, its FLOPs and its time."""

    peak_bytes: int = 0
    peak_step: Instruction | None = None
    held_bytes: int = 0
    flops: int = 0
    nanoseconds: int = 0


def weigh(plan: Plan) -> Weight:
    """What `simulate` says in all, without a moment for every step.

    Raises:
        PlanError: a step reads what is not in memory.
    """
    machine = Machine(plan)
    memory = machine.memory
    peak, top, held = -1, None, None
    flops = nanoseconds = 0
    for step in machine.schedule:
        work, time = machine.advance(step)
        flops += work.flops
        nanoseconds += time
        if memory.most > peak:
            peak, top = memory.most, step
        if held is None and step.action == "loss":
            held = memory.live
    if top is None:
        return Weight()
    return Weight(peak, top, memory.live if held is None else held, flops, nanoseconds)


def course_names(plan: Plan) -> dict[str, str]:
    """For each node the name of the course that its memory takes under this plan: `invert+0+2`.

    The replay of a sum whose target nobody asks for stops before the sum, as if it were recomputed. The
    caller's inputs are always asked for, to see how far they drift.
    """
    names = {node.name: plan.decided(node.name) for node in plan.graph.nodes}
    for node in _stopping(plan):
        names[node.name] = names[node.name].replace("invert", "recompute")
    return names


def courses_of(plan: Plan) -> dict[str, Course]:
    """For each node, and the loss, how its memory runs under this plan; empty where that is not known."""
    found, loss = dict(plan.courses), plan.graph.loss
    for node in _stopping(plan):
        found[node.name] = course_of(node, plan.decided(node.name).replace("invert", "recompute"))
    if loss is not None:
        found[loss.name] = loss.cost.courses.get("keep", UNKNOWN)
    return found


def _stopping(plan: Plan) -> Iterator[Node]:
    """The sums whose replay stops before the sum."""
    graph = plan.graph
    for each in schedule(plan):
        if each.action == "invert" and not each.makes:
            node = graph.node[each.node]
            if node.additive and node.target not in graph.inputs:
                yield node


class Machine:
    """Takes steps; knows where every value, gradient and tape entry lies.

    What its `memory` logs, in order, is every storage of the training step. Without a log the events of nodes
    are followed in brief: bytes live after each step and the most in it are the same, and a planner weighs
    hundreds of plans of thousands of steps.
    """

    def __init__(self, plan: Plan, memory: Storages | None = None) -> None:
        self.graph: Graph = plan.graph
        self.memory = Storages() if memory is None else memory
        self.briefly = self.memory.log is None
        self.env: dict[str, int] = dict.fromkeys(self.graph.inputs, NOWHERE)
        self.tape: dict[str, int] = dict.fromkeys(self.graph.inputs, NOWHERE)
        self.rebuilt: dict[str, int] = {}
        self.gradients: dict[str, int] = {}
        self.labels: dict[str, dict[str, int]] = {}
        self.begun: set[str] = set()
        self.sums: dict[str, int] = {}
        self.same: dict[str, str] = {}
        self.courses = courses_of(plan)
        self.schedule = schedule(plan)
        self.position = 0
        self.states: dict[str, list[int]] = {}
        self.clock = plan.graph.worked_out(Clock, plan.profile)
        sites = plan.graph.worked_out(Sites)
        self.sites, self.own_bytes = sites.by_name, sites.own_bytes
        self.parts = _contributors(self.graph, sites.summing, self.courses)
        # Of nodes that no gradient reaches: who holds autograd's graph of them.
        self.graphs: dict[str, int] = {}

    def gradient_bytes(self) -> int:
        """The bytes of all gradients that have arrived and are not used yet."""
        return sum(self.memory.sizes[number] for number in set(self.gradients.values()))

    def take(self, step: Instruction) -> Moment:
        """Take the next step."""
        work, nanoseconds = self.advance(step)
        return Moment(step, self.memory.live, self.memory.most, work.flops, nanoseconds)

    def advance(self, step: Instruction) -> tuple[Work, int]:
        """Take the next step; its work and its time, for those that need no moment of it."""
        memory, action, name = self.memory, step.action, step.node
        memory.most = memory.live
        if action == "run":
            work = self._run(step)
            return work, self.clock.forward(name, work)
        if self.states:  # the forward is over, and what was noted for no replay goes
            for noted in self.states.keys() - self.schedule.last_at.keys():
                self._let_state_go(noted)
            memory.most = memory.live
        if action == "backward":
            work = self._backward(step)
            return work, self.clock.backward(name, work)
        if action == "free":
            for value in step.frees:
                memory.release(self.tape.pop(value))
            return NOTHING, 0
        if action == "loss":
            work = self._loss()
            return work, self.clock.forward(name, work)
        work = self._rebuild(step)
        return work, self.clock.forward(name, work) + self.clock.replay

    def _run(self, step: Instruction) -> Work:
        _, name, _, _, makes, stores, frees, _ = step
        site, course, memory, env = self.sites[name], self.courses[name], self.memory, self.env
        events, passing, _ = course.forward_in_brief if self.briefly else Brief(course.forward)
        self.labels[name] = labels = self._inputs(site, passing)
        self._follow(events, site, labels, makes, env)
        for value in makes:
            if value not in env:
                env[value] = NOWHERE  # by a node whose costs are not known
        for value in stores:
            self.tape[value] = memory.hold(env[value])
        if course.identities or not course.backward:
            self._note_graph(site.node, course)
        for value in frees:
            memory.release(env.pop(value, NOWHERE))
            if self.graphs:
                self._let_graph_go(self._maker(value))
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

    def _inputs(self, site: Site, passing: Collection[str] = NONE) -> dict[str, int]:
        """The storages of a node's inputs in the forward pass that it holds from now on."""
        env, holders = self.env, self.memory.holders
        labels = {label: env[name] for label, name in site.inputs if label not in passing}
        for number in labels.values():
            holders[number] += 1
        return labels

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
                site = self.sites[name]
                labels = self.labels.pop(name)
                self._follow(self.courses[name].release, site, labels)
                for number in labels.values():
                    self.memory.release(number)
                pending += self._makers(site.node)

    def _loss(self) -> Work:
        node = self.graph.loss
        if node is None:
            return Work()
        site, course = self.sites[node.name], self.courses[node.name]
        self.labels[node.name] = labels = self._inputs(site)
        self._follow(course.forward, site, labels, node.outputs, self.env)
        return course.forward_work

    def _backward(self, step: Instruction) -> Work:
        site = self.sites[step.node]
        if site.node is self.graph.loss:
            output = site.node.outputs[0]
            root = self.memory.born(self.memory.sizes[self.env[output]])
            self.gradients[output] = self.memory.hold(root)  # the caller of backward holds one, too
        if step.node not in self.begun:
            self._begin(site)
        labels = self.labels.pop(step.node)
        course = self.courses[step.node]
        events = course.after_in_brief.events if self.briefly else course.after_replay
        self._follow(events, site, labels)
        for number in labels.values():
            self.memory.release(number)
        return course.backward_work

    def _begin(self, site: Site) -> None:
        """What a node's backward does before it first asks for what it needs."""
        name, gradients = site.node.name, self.gradients
        self.begun.add(name)
        labels = self.labels[name]
        for label, value in site.gradients:
            if value in gradients:
                labels[label] = gradients.pop(value)
        course = self.courses[name]
        if course.replays:
            events = course.before_in_brief.events if self.briefly else course.before_replay
            self._follow(events, site, labels)

    def _rebuild(self, step: Instruction) -> Work:
        action, name, stage, reads, makes, _, frees, _ = step
        if stage not in self.begun:
            self._begin(self.sites[stage])
        site, memory, rebuilt, tape = self.sites[name], self.memory, self.rebuilt, self.tape
        captures, course = action in CAPTURING, self.courses[name]
        replays = captures and action != "recompute_and_keep" and course.replays
        if not replays:
            course = site.node.cost.courses.get(COURSES.get(action, action), UNKNOWN)
            if action == "recompute_and_keep":  # which from now on tells the node's backward
                self.courses[name] = course
        labels = self.labels.get(name, {}) if captures else {}
        events, passing, making = course.replay_in_brief if replays else course.forward_in_brief
        if (
            not self.briefly
            or (labels and not passing.isdisjoint(labels))
            or (making and not {site.value[label] for label in making}.issubset(makes))
        ):
            events, passing = (course.in_replay if replays else course.forward), NONE
        for label, value in site.ends:
            if value in reads and label not in passing:
                if value not in tape and value not in rebuilt:
                    raise _unsound(step, value)
                labels[label] = memory.hold(tape[value] if value in tape else rebuilt[value])
        self._follow(events, site, labels, makes, rebuilt)
        for value in makes:
            rebuilt.setdefault(value, NOWHERE)  # by a node whose costs are not known
        if captures:
            kept = self.courses[name].dropped_after_replay
            going = [label for label in labels if label not in kept and label.startswith(("in", "out"))]
            for label in going:
                memory.release(labels.pop(label))
        else:
            for number in labels.values():
                memory.release(number)
        for value in frees:
            memory.release((rebuilt if value in rebuilt else tape).pop(value))
        if self.states and self.schedule.last_at[name] == self.position:
            self._let_state_go(name)
        self.position += 1
        return course.replay_work if replays else course.forward_work

    def _let_state_go(self, name: str) -> None:
        """Let go of what a node's forward noted for replays."""
        for number in self.states.pop(name, ()):
            self.memory.release(number)

    def _follow(
        self,
        events: tuple[Event, ...],
        site: Site,
        labels: dict[str, int],
        makes: Collection[str] = (),
        place: dict[str, int] | None = None,
    ) -> None:
        """Take a node's events; storages of the values it makes are held at `place`, too.

        Most of a simulation's time goes by here, so what `Storages` does is written out, on local names.
        """
        memory = self.memory
        sizes, holders, log = memory.sizes, memory.holders, memory.log
        live, most = memory.live, memory.most
        for event in events:
            what = event[0]
            if what == "drop":
                if event[1] in labels:
                    number = labels.pop(event[1])
                    holders[number] = left = holders[number] - 1
                    if not left:
                        live -= sizes[number]
                        sizes[number] = 0
                        if log is not None:
                            log.append(("free", number))
            elif what == "use":
                _, peak, net = event
                if live + peak > most:
                    most = live + peak
                live += net
                if log is not None:
                    log.append(("use", peak, net, site.node.name))
            elif what == "grad" or what == "give":
                _, index, label = event
                inputs, gradients = site.node.inputs, self.gradients
                number = labels.get(label, NOWHERE)
                if what == "give" and number:
                    del labels[label]
                name = None if index >= len(inputs) or self.same else inputs[index]
                if name is not None and name not in gradients and name not in self.parts:
                    gradients[name] = number  # the first of an inner value, as most are
                    if what == "grad":
                        holders[number] += 1
                else:
                    memory.live, memory.most = live, most
                    self._gradient(index, site, number, what == "grad" and _passes_on(events, event))
                    if what == "give":
                        memory.release(number)
                    live, most = memory.live, memory.most
            elif what in BEGINNING:
                label = event[1]
                name = None if place is None else site.value.get(label)
                held_on = name is not None and name in makes
                if what == "same":
                    number = labels[event[2]]
                    holders[number] += 1
                elif what == "laid" and not held_on:
                    continue
                else:
                    number = len(sizes)
                    sizes.append(event[2])
                    holders.append(1)
                    if what == "born" or what == "laid":
                        live += event[2]
                        if live > most:
                            most = live
                        if log is not None:
                            log.append(("born", number, event[2]))
                if place is not None and name is not None and held_on:
                    place[name] = number
                    if what == "made":
                        continue
                    holders[number] += 1
                labels[label] = number
            elif what == "state":
                memory.live, memory.most = live, most
                self.states.setdefault(site.node.name, []).append(memory.born(event[1]))
                live, most = memory.live, memory.most
            elif what == "identity":
                source: str = site.node.inputs[event[2]]
                self.same[site.node.outputs[event[1]]] = self.same.get(source, source)
        memory.live, memory.most = live, most

    def _gradient(self, index: int, site: Site, number: int, passed_on: bool) -> None:
        """A gradient arrives for a value: the first is held as it is, a further one is added to a new sum."""
        inputs = site.node.inputs
        if index >= len(inputs):
            cost, place = site.node.cost, index - len(inputs)
            size = cost.shared_bytes[place] if cost.shared_bytes else 0
            self._parameter(cost.shared[place], number, size)
            return
        name = self.same.get(inputs[index], inputs[index])
        before, size = self.gradients.get(name), self.own_bytes[name]
        if before is None:
            self.gradients[name] = self.memory.hold(number)
        else:
            self.gradients[name] = self.memory.born(size)
            self.memory.release(before)
        if name in self.parts:
            self.parts[name] -= 1
            if not self.parts[name] and before is None and passed_on:
                self.memory.release(self.gradients[name])
                self.gradients[name] = self.memory.born(size)  # the caller's leaf takes a copy

    def _parameter(self, name: str, number: int, size: int) -> None:
        """A gradient of a parameter that several nodes use arrives; the last sum is the parameter's own, and
        no activation. One may be a scalar that was expanded, and a sum is not."""
        before = self.sums.pop(name, None)
        self.parts[name] -= 1
        if before is None:
            self.sums[name] = self.memory.hold(number)
        else:
            if self.parts[name]:
                self.sums[name] = self.memory.born(size or self.memory.sizes[number])
            self.memory.release(before)


def _unsound(step: Instruction, name: str) -> PlanError:
    return PlanError(
        f"the plan is not sound: {step.action} of {step.node!r} for the backward of {step.stage!r} reads "
        f"{name!r}, which is neither stored nor rebuilt by then"
    )


def _passes_on(events: tuple[Event, ...], event: Event) -> bool:
    """Whether a gradient that arrives by this event is that of an output, which its node holds on to."""
    after = events.index(event) + 1
    follows = events[after] if after < len(events) else None
    return event[2].startswith("go") and follows != ("drop", event[2])


class Site:
    """A node, and for its labels the values that they stand for: `ends` are those of inputs and outputs."""

    __slots__ = ("ends", "gradients", "inputs", "node", "value")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.inputs = [(f"in{index}", name) for index, name in enumerate(node.inputs)]
        self.ends = [*self.inputs, *((f"out{index}", name) for index, name in enumerate(node.outputs))]
        self.gradients = [(f"go{index}", name) for index, name in enumerate(node.outputs)]
        self.value = dict(self.ends)
        if node.target is not None:
            self.value["target"] = node.target


class Sites:
    """What of a graph every simulation asks for, made once for a graph and kept with it.

    `own_bytes` are those of values, `summing` the nodes that may give a gradient which is counted.
    """

    def __init__(self, graph: Graph) -> None:
        nodes = graph.nodes if graph.loss is None else (*graph.nodes, graph.loss)
        self.by_name = {node.name: Site(node) for node in nodes}
        self.own_bytes = {value.name: graph.own_bytes(value.name) for value in graph.values}
        renames = any(course.identities for node in graph.nodes for course in node.cost.courses.values())
        given = frozenset(graph.inputs)
        self.summing = [
            node for node in graph.nodes if renames or node.cost.shared or not given.isdisjoint(node.inputs)
        ]


def _contributors(graph: Graph, nodes: Iterable[Node], courses: Mapping[str, Course]) -> dict[str, int]:
    """How many gradients arrive at every input of the graph, and at every parameter that nodes share."""
    parts: dict[str, int] = dict.fromkeys(graph.inputs, 0)
    same: dict[str, str] = {}
    for node in nodes:
        course = courses[node.name]
        for output, source in course.identities:
            name = node.inputs[source]
            same[node.outputs[output]] = same.get(name, name)
        for index in course.gradients:
            if index < len(node.inputs):
                name = same.get(node.inputs[index], node.inputs[index])
                if name in parts:
                    parts[name] += 1
            else:
                name = node.cost.shared[index - len(node.inputs)]
                parts[name] = parts.get(name, 0) + 1
    return parts
