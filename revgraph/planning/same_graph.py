"""Whether a plan made for one graph is a plan for another: they are the same in all that it depends on.

A plan names nodes and values, and its bytes and FLOPs follow from their shapes and costs. Not part of that
are the graph's name, the lines of code that made the nodes, the device, and estimates of drift: these differ
where a plan is made in one place and used in another (another folder, another process with its own GPU). Nor
are the names of laws and operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from revgraph.errors import PlanError
from revgraph.graph import Cost, Graph, Node, Value
from revgraph.planning.plans import Plan

LEFT_OUT: dict[type[Any], frozenset[str]] = {
    Value: frozenset({"device"}),
    Node: frozenset({"where", "cost", "others", "law"}),
    Cost: frozenset({"rounding", "growth", "heavy_names"}),
}
LONGEST = 60


def fitted(plan: Plan, graph: Graph) -> Plan:
    """The plan itself if it is for this very graph, else the same plan for `graph`.

    Raises:
        PlanError: the graphs differ in something that a plan depends on; the text says in what.
    """
    if plan.graph == graph:
        return plan
    found = difference(plan.graph, graph)
    if found:
        raise PlanError(
            f"this plan is for another graph ({plan.graph.name!r:.60}, {len(plan.graph.nodes)} nodes; the "
            f"net's is {graph.name!r:.60}, {len(graph.nodes)} nodes): {found}. Make one from net.graph."
        )
    return plan.noted(graph=graph)


def difference(planned: Graph, here: Graph) -> str:
    """The first thing in which two graphs differ that a plan depends on, in words; "" if there is none."""
    return (
        _names("node", planned.node, here.node)
        or _names("value", planned.value, here.value)
        or _of_values(planned, here)
        or _of_nodes(planned, here)
    )


def _names(what: str, planned: Mapping[str, object], here: Mapping[str, object]) -> str:
    for names, others, having in ((planned, here, "the plan's graph"), (here, planned, "the net's graph")):
        only = [name for name in names if name not in others]
        if only:
            more = f" and {len(only) - 1} more" if len(only) > 1 else ""
            return f"only {having} has a {what} {_short(only[0])}{more}"
    moved = [name for name, other in zip(planned, here, strict=True) if name != other]
    return f"the {what}s are in another order, from {_short(moved[0])} on" if moved else ""


def _of_values(planned: Graph, here: Graph) -> str:
    for name, value in planned.value.items():
        other = here.value[name]
        if (value.shape, value.dtype) != (other.shape, other.dtype):
            return (
                f"value {_short(name)} is {_form(value)} in the plan, and {_form(other)} in the net. A plan "
                "is for one batch size and one set of the network's parameters"
            )
        if found := _field(value, other):
            return f"value {_short(name)} has {found}"
    return ""


def _of_nodes(planned: Graph, here: Graph) -> str:
    for node, other in zip(_all(planned), _all(here), strict=False):
        if found := _field(node, other):
            return f"node {_short(node.name)} has {found}"
        if found := _field(node.cost, other.cost):
            return (
                f"node {_short(node.name)} has {found}. Costs are measured where a net is made, and differ "
                "with the module's settings, the device and the version of torch"
            )
    return "" if (planned.loss is None) == (here.loss is None) else "only one of them has a loss"


def _all(graph: Graph) -> Iterable[Node]:
    return graph.nodes if graph.loss is None else (*graph.nodes, graph.loss)


def _field(planned: Any, here: Any) -> str:
    """The first field in which two values, nodes or costs differ, with what both say."""
    left_out = LEFT_OUT[type(planned)]
    for field in fields(planned):
        before, now = getattr(planned, field.name), getattr(here, field.name)
        if field.name in left_out or before == now:
            continue
        if isinstance(now, Mapping):  # courses: too long to show, and nobody reads them
            return f"other {field.name} in the plan than in the net"
        return f"{field.name} {_short(before)} in the plan, and {_short(now)} in the net"
    return ""


def _form(value: Value) -> str:
    return f"{'x'.join(map(str, value.shape)) or 'scalar':.60} {value.dtype:.60}"


def _short(thing: object) -> str:
    text = repr(thing)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
