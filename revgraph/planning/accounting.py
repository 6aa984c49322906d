"""Accounting: whose the bytes are that are held between forward and backward, to the last one.

The simulator goes through the forward. What is alive at the turn is given to the nodes, each storage once: to
the node that made a value which is stored, then to the first node that holds it among its internals, then to
the caller, who has the outputs and the loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass

from revgraph.courses import Event, own_bytes
from revgraph.errors import PlanError
from revgraph.graph import Node
from revgraph.planning.holding import Storages
from revgraph.planning.plans import TERM, Plan, result_name
from revgraph.planning.schedule import schedule
from revgraph.planning.simulating import Machine, Site

CALLER = ""
"""Among holdings, in the place of a node: the caller, who holds the outputs and the loss."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What one node holds between forward and backward: bytes of stored values that it made, and its own.

    `values` are those values by name; a view of what is counted already has 0 bytes. The node's own bytes are
    internals, kept results, or notes to run again; `what` says in words what all of it is.
    """

    node: str
    values: tuple[tuple[str, int], ...]
    own_bytes: int
    what: str

    @property
    def stored_bytes(self) -> int:
        return sum(size for _, size in self.values)

    @property
    def nbytes(self) -> int:
        return self.stored_bytes + self.own_bytes


def holdings(plan: Plan) -> tuple[Holding, ...]:
    """What every node holds under a plan that holds anything or that is decided on, in the graph's order.

    The last is what the caller holds. All bytes together are the plan's `held_bytes`.
    """
    machine = _Ledger(plan)
    with suppress(
        PlanError
    ):  # that a plan is not sound is said where it is carried out, not where it is shown
        for step in schedule(plan):
            if step.action == "backward":
                break
            machine.take(step)
            if step.action == "loss":
                break
    graph, counted = plan.graph, set[int]()

    def bytes_of(numbers: Iterable[int]) -> int:
        new = set(numbers) - counted
        counted.update(new)
        return sum(machine.memory.sizes[number] for number in new)

    stored = {name: bytes_of([machine.tape[name]]) for name in plan.stored if name in machine.tape}
    found: list[Holding] = []
    for node in graph.nodes:
        labels = machine.labels.get(node.name, {})
        own = bytes_of([*labels.values(), *machine.states.get(node.name, ())]) + machine.own[node.name]
        made = [name for name in node.outputs if name in stored]
        if made or own or node.name in plan.decisions:
            what = _stored(plan, node, made, stored) if made else ""
            if own or plan.results.get(node.name):
                what += (", " if made else "") + _own(plan, node, own, bool(made))
            found.append(Holding(node.name, tuple((name, stored[name]) for name in made), own, what))
    loss = "" if graph.loss is None else graph.loss.name
    rest = bytes_of(range(len(machine.memory.sizes))) + machine.own[loss]
    return (*found, Holding(CALLER, (), rest, "for you"))


class _Ledger(Machine):
    """A machine that notes the bytes that nodes hold of storages which nothing else can hold."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, Storages(log=[]))  # with a log, for it follows every single event then
        self.own: Counter[str] = Counter()

    def _follow(
        self,
        events: tuple[Event, ...],
        site: Site,
        labels: dict[str, int],
        makes: Collection[str] = (),
        place: dict[str, int] | None = None,
    ) -> None:
        self.own[site.node.name] += own_bytes(events)
        super()._follow(events, site, labels, makes, place)


def _stored(plan: Plan, node: Node, made: list[str], stored: dict[str, int]) -> str:
    count = len(node.outputs)
    said = "its output" if count == 1 else f"{len(made)} of {count} outputs"
    if len(made) == count > 1:
        said = f"its {count} outputs"
    if any(name in plan.anchors for name in made):
        said += " (anchor)"
    return said if any(stored[name] for name in made) else f"{said} (a view)"


def _own(plan: Plan, node: Node, own: int, briefly: bool) -> str:
    if plan.decisions.get(node.name, "keep") == "keep":
        keep = node.cost.courses.get("keep")
        # What it reads, and nothing else holds, is counted here, too.
        return "internals" if keep is None or own <= keep.held_bytes else "internals, inputs"
    results = plan.results.get(node.name, ())
    if len(results) > 1 and TERM not in results:
        names = [result_name(node, index).removeprefix("output of ") for index in results]
        return "outputs of " + ", ".join(names)
    return ", ".join(result_name(node, index) for index in results) or (
        "notes" if briefly else "notes to run it again"
    )
