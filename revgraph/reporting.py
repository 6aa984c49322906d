"""Reports: graphs, plans and measurements as tables for people and as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from revgraph.graph import Graph
from revgraph.graph import table as plain_table
from revgraph.planning.plans import DECISIONS, Plan, human_bytes

if TYPE_CHECKING:
    from rich.table import Table


@runtime_checkable
class Measured(Protocol):
    """What `rg.measure` returns; `seconds` may come besides."""

    @property
    def peak_bytes(self) -> int: ...
    @property
    def held_bytes(self) -> int: ...
    @property
    def flops(self) -> int: ...
    @property
    def flops_ratio(self) -> float: ...
    @property
    def calls(self) -> Mapping[str, int]: ...


@runtime_checkable
class Compared(Protocol):
    """What `rg.check` returns."""

    @property
    def max_relative_error(self) -> float: ...
    @property
    def angle_degrees(self) -> float: ...
    @property
    def drift(self) -> Mapping[str, float]: ...


Reportable = Graph | Plan | Measured | Compared | Mapping[str, Measured]


@dataclass(frozen=True, slots=True)
class Report:
    """A table as data: a title, a head, rows of text, and the columns whose text stands at the right."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[str] = frozenset()

    def __str__(self) -> str:
        head, *rows = (_aligned(self, row) for row in (self.head, *self.rows))
        return self.title + "\n" + plain_table(head, rows)


def as_json(reportable: Reportable) -> dict[str, Any]:
    """What a report says, in types that `json` writes; numbers that JSON lacks (nan, inf) are None.

    - Graph: the content of `graph.to_json()`: `revgraph` (the format's number), `name`, `nodes`, `values`.
    - Plan: `network`, `decisions` (node to word), `stored` (names), `peak_bytes`, `peak_at`, `held_bytes`,
      `flops_ratio`, `status`, `bound`, `reasons` (node to text).
    - Measurement: `peak_bytes`, `held_bytes`, `flops`, `flops_ratio`, `calls` (node to number), and `seconds`
      where they were measured.
    - GradientReport: `max_relative_error`, `angle_degrees`, `drift` (value to number).
    - A mapping of names to measurements: the same names to what is above.

    Keys may be added in later versions; none of these goes away or changes its meaning.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(reportable, Graph):
        return json.loads(reportable.to_json())
    if isinstance(reportable, Plan):
        return _finite(_plan_json(reportable))
    if isinstance(reportable, Mapping):
        return {name: as_json(each) for name, each in reportable.items()}
    if isinstance(reportable, Measured):
        names = ("peak_bytes", "held_bytes", "flops", "flops_ratio", "calls")
    elif isinstance(reportable, Compared):
        names = ("max_relative_error", "angle_degrees", "drift")
    else:
        raise TypeError(_unknown(reportable))
    seconds = getattr(reportable, "seconds", None)
    data = {name: getattr(reportable, name) for name in names}
    return _finite(data if seconds is None else {**data, "seconds": seconds})


def report(reportable: Reportable) -> Report:
    """The table of a graph, a plan, a measurement or several by name, or a gradient report.

    Raises:
        TypeError: it is none of these.

    >>> from revgraph.graph import Graph, Node, Value
    >>> x, y = (Value(name, (4, 8), "float32", 128, name) for name in "xy")
    >>> f = Node("f", "boundary", ("x",), ("y",), expression="f(x)")
    >>> print(report(Graph((Node("x", "input", (), ("x",)), f), (x, y), "net")))
    net: 0 couplings, 1 boundaries, 0 wirings
    node  kind      computes  shape  internals
    f     boundary  f(x)      4x8          0 B
    """
    if isinstance(reportable, Graph):
        return _of_graph(reportable)
    if isinstance(reportable, Plan):
        return _of_plan(reportable)
    if isinstance(reportable, Mapping):
        return _of_measurements(reportable)
    if isinstance(reportable, Measured):
        return _of_measurements({"measured": reportable})
    if isinstance(reportable, Compared):
        return _of_comparison(reportable)
    raise TypeError(_unknown(reportable))


def table(reportable: Reportable) -> Table | str:
    """The report as a table of rich, for `rich.print`; as plain text where rich is not installed.

    Raises:
        TypeError: there is no report of this.
    """
    made = report(reportable)
    try:
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return str(made)
    drawn = Table(title=Text(made.title), title_justify="left")
    for name in made.head:
        drawn.add_column(Text(name), justify="right" if name in made.right else "left", overflow="fold")
    for row in made.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


def _plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "network": plan.graph.name,
        "decisions": dict(plan.decisions),
        "stored": list(plan.stored),
        "peak_bytes": plan.peak_bytes,
        "peak_at": plan.peak_at,
        "held_bytes": plan.held_bytes,
        "flops_ratio": plan.flops_ratio,
        "status": plan.status,
        "bound": plan.bound,
        "reasons": dict(plan.reasons),
    }


def _of_graph(graph: Graph) -> Report:
    head, *_ = str(graph).splitlines()
    rows = tuple(
        (
            node.name,
            node.kind,
            node.expression,
            ", ".join("x".join(map(str, graph.value[name].shape)) or "scalar" for name in node.outputs),
            human_bytes(node.cost.saved_bytes),
        )
        for node in graph.nodes
        if node.kind not in ("input", "output")
    )
    return Report(head, ("node", "kind", "computes", "shape", "internals"), rows, frozenset({"internals"}))


def _of_plan(plan: Plan) -> Report:
    decided: list[str] = list(plan.decisions.values())
    counts = ", ".join(f"{decided.count(word)} {word}" for word in DECISIONS)
    title = (
        f"{plan.graph.name}: {counts}; predicted peak {human_bytes(plan.peak_bytes)} ({plan.peak_at}), "
        f"held {human_bytes(plan.held_bytes)}, FLOPs x{plan.flops_ratio:.3f}, {plan.status}"
    )
    stored = set(plan.stored)
    rows = tuple(
        (
            node.name,
            plan.decisions[node.name],
            human_bytes(node.cost.saved_bytes),
            ", ".join(name for name in node.inputs if name in stored),
            plan.reasons.get(node.name, ""),
        )
        for node in plan.graph.planned
    )
    head = ("node", "decision", "internals", "stored inputs", "why")
    return Report(title, head, rows, frozenset({"internals"}))


_QUANTITIES: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("activation bytes at the peak", lambda measured: human_bytes(measured.peak_bytes)),
    ("activation bytes held for the backward pass", lambda measured: human_bytes(measured.held_bytes)),
    ("FLOPs", lambda measured: f"{measured.flops:,}"),
    ("FLOPs over ordinary autograd's", lambda measured: f"{measured.flops_ratio:.3f}"),
    ("evaluations, most of one node", lambda measured: f"{max(measured.calls.values(), default=0)}"),
    ("evaluations, all nodes", lambda measured: f"{sum(measured.calls.values())}"),
)


def _of_measurements(measured: Mapping[str, Measured]) -> Report:
    for each in measured.values():
        if not isinstance(each, Measured):
            raise TypeError(_unknown(each))
    rows = [(name, *(show(each) for each in measured.values())) for name, show in _QUANTITIES]
    seconds = [getattr(each, "seconds", None) for each in measured.values()]
    if any(each is not None for each in seconds):
        rows.append(("seconds", *("" if each is None else f"{each:.3f}" for each in seconds)))
    return Report("one training step", ("quantity", *measured), tuple(rows), frozenset(measured))


def _of_comparison(compared: Compared) -> Report:
    rows = [
        ("gradients: largest relative error", f"{compared.max_relative_error:.2e}"),
        ("gradients: angle in degrees", f"{compared.angle_degrees:.2e}"),
    ]
    drift = sorted(compared.drift.items(), key=lambda item: (-item[1], item[0]))
    rows += [(f"drift of {name}", f"{error:.2e}") for name, error in drift]
    title = "against stored activations"
    return Report(title, ("quantity", "difference"), tuple(rows), frozenset({"difference"}))


def _aligned(made: Report, row: tuple[str, ...]) -> tuple[str, ...]:
    widths = (max(map(len, column)) for column in zip(made.head, *made.rows, strict=True))
    return tuple(
        cell.rjust(width) if name in made.right else cell
        for name, cell, width in zip(made.head, row, widths, strict=True)
    )


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list) else data


def _unknown(given: object) -> str:
    return (
        f"cannot report a {type(given).__name__}: give a Graph, a Plan, what rg.measure or rg.check "
        "returned, or a mapping of names to measurements"
    )
