"""The schedule of a plan: a training step as a list of what is run, stored, rebuilt and freed, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from revgraph.errors import PlanError
from revgraph.graph import Node
from revgraph.planning.plans import Plan
from revgraph.planning.sources import needs, rule_needs
from revgraph.planning.uses import clients_of, reached_from, uses_of

Action = Literal[
    "run", "free", "loss", "invert", "recompute", "hold", "again", "rerun", "rewire", "wire", "backward"
]
EVALUATING: tuple[Action, ...] = ("run", "invert", "recompute", "hold", "again", "rerun")
"""Actions in which a node's function runs."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens in a training step.

    `run` is a node's forward, `free` lets go of what was stored for nothing, `loss` is the loss and the turn,
    `backward` a node's backward. In between, `invert`
    and `recompute` replay a node and capture its internals, as `hold` does to run it again besides; `again`
    inverts a node once more and `rerun` runs it again without capturing; `rewire` and `wire`
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


Rule = tuple[str, Node]  # "own" or how a source works, and the node


class _Scheduling:
    """What a backward pass has at hand, as the engine's `Pass` keeps it."""

    def __init__(self, plan: Plan) -> None:
        graph = plan.graph
        self.plan = plan
        self.done: list[Step] = []
        self.captured: set[str] = set()
        self.counted: set[tuple[str, str]] = set()
        self.rebuilt: set[str] = set()
        silent = [node.name for node in graph.planned if node.cost.courses and not plan.course(node).replays]
        self.uses = uses_of(graph, plan.decisions, plan.sources, silent)
        self.clients = clients_of(graph, plan.sources, plan.drops)
        self.reached = reached_from(graph, plan.decisions, plan.sources, silent)
        self.stored = {name for name in plan.stored if name in self.reached} | set(graph.inputs)
        self.drops = [
            (node.name, plan.drops[node.name]) for node in reversed(graph.nodes) if node.name in plan.drops
        ]
        self.place = {node.name: index for index, node in enumerate(graph.nodes)}

    def steps(self) -> list[Step]:
        graph, plan = self.plan.graph, self.plan
        run = [node for node in graph.nodes if node.kind not in ("input", "output")]
        for node in run:
            stores = tuple(name for name in node.outputs if name in plan.stored)
            self.done.append(Step("run", node.name, "", node.inputs, node.outputs, stores, node.cost.frees))
        unread = tuple(name for name in plan.stored if name not in self.stored)
        if unread:
            self.done.append(Step("free", "", frees=unread))
        if graph.loss is not None:
            name = graph.loss.name
            self.done += [Step("loss", name, "", graph.loss.inputs), Step("backward", name, name)]
        for node in reversed(run):
            course = plan.course(node)
            known = bool(node.cost.courses)
            if known and not course.backward:
                continue
            decided = plan.decisions.get(node.name, "keep")
            if decided != "keep" and node.name not in self.captured and (course.replays or not known):
                self._replay(node)
            self.done.append(Step("backward", node.name, node.name))
        return self.done

    def _replay(self, node: Node) -> None:
        """A node's own replay: its stage, in which all that it reads is derived first."""
        dropped = []
        while self.drops and self.place[self.drops[0][0]] > self.place[node.name]:
            dropped += [name for name in self.drops.pop(0)[1] if name in self.rebuilt]
        order = self._order(("own", node))
        last = {name: index for index, rule in enumerate(order) for name in self._reads(rule)}
        drops = self.plan.drops.get(node.name, ())
        derived: set[str] = set()
        for index, rule in enumerate(order):
            makes = tuple(
                name
                for name in self._gives(rule)
                if last.get(name, -1) > index or (name not in drops and self.uses[name] > 0)
                if name not in self.stored and name not in self.rebuilt
            )
            action = self._action(rule, node)
            self._count(rule, action)
            self.rebuilt.update(makes)
            derived.update(makes)
            frees, dropped = dropped, []
            for name in dict.fromkeys(self._reads(rule)):
                if last[name] == index:
                    if self.uses[name] <= 0:
                        frees += self._let_go(name)
                    elif name in derived and name in drops and name in self.rebuilt:
                        frees.append(name)
            if rule[0] == "own" and rule[1] is node:
                frees += [name for name in drops if name in self.rebuilt and name not in frees]
            self.rebuilt.difference_update(frees)
            self.done.append(
                Step(
                    action, rule[1].name, node.name, self._reads(rule), makes, (), tuple(dict.fromkeys(frees))
                )
            )

    def _order(self, own: Rule) -> list[Rule]:
        """What to do so that a replay finds all it needs, itself at the end."""
        order: list[Rule] = []
        placed: set[tuple[str, str]] = set()
        pending = [own]
        while pending:
            rule = pending[-1]
            makers = [self._maker(name) for name in self._reads(rule) if not self._has(name)]
            missing = [maker for maker in makers if (maker[0], maker[1].name) not in placed]
            if missing:
                pending += missing
                continue
            pending.pop()
            if (rule[0], rule[1].name) not in placed:
                placed.add((rule[0], rule[1].name))
                order.append(rule)
        return order

    def _has(self, name: str) -> bool:
        return name in self.stored or name in self.rebuilt

    def _maker(self, name: str) -> Rule:
        source = self.plan.sources[name]
        if source.how == "stored":
            raise PlanError(f"the plan is not sound: value {name!r} is asked for after it was freed")
        return "own" if source.how == "inverted" else source.how, self.plan.graph.node[source.node]

    def _reads(self, rule: Rule) -> tuple[str, ...]:
        how, node = rule
        if how == "own":
            return needs(node, self.plan.decisions[node.name])
        return node.outputs if how == "rewired" else tuple(dict.fromkeys(node.inputs))

    def _gives(self, rule: Rule) -> tuple[str, ...]:
        """The values that come back by a rule, as far as replays ask for them."""
        how, node = rule
        names = node.inputs if how == "rewired" else node.outputs
        if how == "own":
            inverted = self.plan.decisions[node.name] == "invert" and node.target is not None
            names = (node.target or "",) if inverted else ()
        return tuple(name for name in dict.fromkeys(names) if name in self.reached)

    def _action(self, rule: Rule, stage: Node) -> Action:
        how, node = rule
        if how == "own":
            captures = node is stage or node.name not in self.captured
            action = "invert" if self.plan.decisions[node.name] == "invert" else "recompute"
            return action if captures else "again"
        if how == "recomputed":
            held = self.plan.holds.get(node.name) == stage.name and node.name not in self.captured
            return "hold" if held and (not node.cost.courses or self.plan.course(node).replays) else "rerun"
        return "rewire" if how == "rewired" else "wire"

    def _count(self, rule: Rule, action: Action) -> None:
        """Note that values were read; only the first time of each replay and wiring counts."""
        how, node = rule
        if action in ("rerun", "again"):
            return
        if action in ("invert", "recompute", "hold"):
            self.captured.add(node.name)
            how = "own"
        if (how, node.name) not in self.counted:
            self.counted.add((how, node.name))
            self.uses.subtract(self._reads((how, node)))

    def _let_go(self, name: str) -> list[str]:
        """What goes when no counted reader is left for a value."""
        gone = [name] if name in self.rebuilt else []
        if name not in self.clients:
            released = [name] if name in self.stored and name not in self.plan.graph.inputs else []
        else:
            below = [each for each in self._stored_below(name) if self.uses[each] <= 0]
            released = [each for each in below if not self._is_derived_from(each, gone)]
        self.stored.difference_update(released)
        return gone + [each for each in released if each not in gone]

    def _stored_below(self, name: str) -> list[str]:
        """The stored values that a value is derived from, or itself."""
        found: list[str] = []
        seen: set[str] = set()
        pending = [name]
        while pending:
            each = pending.pop()
            if each not in seen:
                seen.add(each)
                if each in self.stored:
                    found.append(each)
                else:
                    pending += rule_needs(self.plan.graph, self.plan.sources[each])
        return [each for each in found if each not in self.plan.graph.inputs]

    def _is_derived_from(self, name: str, gone: list[str]) -> bool:
        """Whether a value that is yet to be read may have to be derived from this one."""
        seen = {name}
        pending = [name]
        while pending:
            for made in self.clients[pending.pop()]:
                if made in seen:
                    continue
                seen.add(made)
                lasts = made not in self.clients and made in self.rebuilt and made not in gone
                if self.uses[made] > 0 and not lasts:
                    return True
                if made in self.clients:
                    pending.append(made)
        return False
