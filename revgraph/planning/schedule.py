"""The schedule of a plan: a training step as a list of what is run, stored, rebuilt and freed, in order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from revgraph.graph import Node
from revgraph.planning.plans import Plan, Source
from revgraph.planning.sources import needs, rule_needs
from revgraph.planning.uses import uses_of

Action = Literal["run", "free", "loss", "invert", "recompute", "rerun", "rewire", "wire", "backward"]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens in a training step.

    `run` is a node's forward, `free` lets go of what was stored for nothing, `loss` is the loss and the turn,
    `backward` a node's backward. In between, `invert`
    and `recompute` replay a node and capture its internals, `rerun` does it without, `rewire` and `wire`
    run a wiring backwards or forwards. `stage` is the node whose backward asks for it. `reads` must be in
    memory, `makes` are rebuilt values that are held on, `stores` go on the tape, `frees` go afterwards.
    """

    action: Action
    node: str
    stage: str = ""
    reads: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    frees: tuple[str, ...] = ()


def schedule(plan: Plan) -> list[Step]:
    """The steps of a plan, in the order in which the engine takes them in one whole backward pass."""
    return _Scheduling(plan).steps()


@dataclass
class _Scheduling:
    """What a backward pass has at hand, as the engine's `Pass` keeps it."""

    plan: Plan
    done: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        graph, sources = self.plan.graph, self.plan.sources
        self.captured: set[str] = set()
        self.rebuilt: set[str] = set()
        self.stored = {*self.plan.stored, *graph.inputs}
        silent = [node.name for node in graph.planned if node.cost.courses and not self.plan.course(node).replays]
        self.uses = uses_of(graph, self.plan.decisions, sources, silent)
        self.stored -= {name for name in self.plan.stored if not self.uses[name]}
        self.counted: set[tuple[str, str]] = set()

    def steps(self) -> list[Step]:
        graph, plan = self.plan.graph, self.plan
        run = [node for node in graph.nodes if node.kind not in ("input", "output")]
        for node in run:
            stores = tuple(name for name in node.outputs if name in plan.stored)
            self.done.append(
                Step("run", node.name, "", node.inputs, node.outputs, stores, node.cost.frees)
            )
        if graph.loss is not None:
            name = graph.loss.name
            unread = tuple(value for value in plan.stored if value not in self.stored)
            if unread:
                self.done.append(Step("free", "", frees=unread))
            self.done += [Step("loss", name, "", graph.loss.inputs), Step("backward", name, name)]
        for node in reversed(run):
            course = plan.course(node)
            known = bool(node.cost.courses)
            if known and not course.backward:
                continue
            if (course.replays or not known) and plan.decisions.get(node.name, "keep") != "keep" and node.name not in self.captured:
                self._replay(node)
            self.done.append(Step("backward", node.name, node.name))
        return self.done

    def _replay(self, node: Node) -> None:
        """The steps that a node's own replay takes: what is missing first, then itself."""
        wanted = needs(node, self.plan.decisions[node.name])
        order = self._derivations(wanted, node.name)
        last: dict[str, int] = dict.fromkeys(wanted, len(order))
        for index, (_, _, reads, _) in reversed(list(enumerate(order))):
            for name in reads:
                last.setdefault(name, index)
        drops = self.plan.drops.get(node.name, ())
        for index, (action, other, reads, makes) in enumerate(order):
            passing = [name for name in dict.fromkeys((*reads, *makes)) if last.get(name, index) <= index]
            passing = tuple(name for name in passing if name in drops)
            self._take(action, other, node.name, reads, makes, passing, tuple(last))
        if node.name not in self.captured:
            decision = self.plan.decisions[node.name]
            action = "invert" if decision == "invert" else "recompute"
            makes = self._gives(node, "inverted") if decision == "invert" else ()
            self._take(action, node, node.name, wanted, makes, drops)

    def _derivations(
        self, wanted: tuple[str, ...], stage: str
    ) -> list[tuple[Action, Node, tuple[str, ...], tuple[str, ...]]]:
        """What must be done, in order, so that the wanted values are at hand."""
        order: list[tuple[Action, Node, tuple[str, ...], tuple[str, ...]]] = []
        at_hand = self.stored | self.rebuilt
        pending = list(wanted)
        while pending:
            if pending[-1] in at_hand:
                pending.pop()
                continue
            source = self.plan.sources[pending[-1]]
            reads = rule_needs(self.plan.graph, source)
            missing = [name for name in reads if name not in at_hand]
            if missing:
                pending += missing
                continue
            node = self.plan.graph.node[source.node]
            action = self._action(source, stage)
            makes = self._gives(node, source.how)
            order.append((action, node, reads, makes))
            at_hand.update(name for name in makes if self.uses[name] > 0 or name == pending[-1])
        return order

    def _action(self, source: Source, stage: str) -> Action:
        if source.how == "recomputed":
            return "recompute" if self.plan.holds.get(source.node) == stage else "rerun"
        return "invert" if source.how == "inverted" else "rewire" if source.how == "rewired" else "wire"

    def _gives(self, node: Node, how: str) -> tuple[str, ...]:
        """The values that a node gives in this way."""
        names = (node.target,) if how == "inverted" else node.inputs if how == "rewired" else node.outputs
        return tuple(name for name in names if name is not None)

    def _take(
        self,
        action: Action,
        node: Node,
        stage: str,
        reads: tuple[str, ...],
        makes: tuple[str, ...],
        drops: tuple[str, ...],
        wanted: tuple[str, ...] = (),
    ) -> None:
        """One derivation or replay, and what goes after it."""
        at_hand = self.stored | self.rebuilt
        makes = tuple(name for name in makes if name not in at_hand and (self.uses[name] > 0 or name in wanted))
        self.rebuilt.update(makes)
        frees: list[str] = []
        first = (action, node.name) not in self.counted
        self.counted.add((action, node.name))
        for name in dict.fromkeys(reads):
            self.uses[name] -= 1 if first and action != "rerun" else 0
            if self.uses[name] <= 0 and name in self.rebuilt | self.stored:
                frees.append(name)
        frees += [name for name in drops if name in self.rebuilt and name not in frees]
        self.rebuilt.difference_update(frees)
        self.stored.difference_update(name for name in frees if name not in drops)
        if action in ("invert", "recompute"):
            self.captured.add(node.name)
        self.done.append(Step(action, node.name, stage, reads, makes, (), tuple(frees)))
