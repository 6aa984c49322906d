"""Reports as tables, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from textwrap import fill, wrap
from typing import TYPE_CHECKING, Any, cast

from revgraph.displays import ShownAsTable
from revgraph.graph import Graph, Node
from revgraph.graph import table as plain_table
from revgraph.planning import DECISIONS, EVALUATING, Moment, Plan, human_bytes, knee
from revgraph.planning.accounting import holdings
from revgraph.planning.plans import result_name
from revgraph.planning.schedule import schedule
from revgraph.planning.wording import kind_of
from revgraph.reporting.kinds import Compared, Held, Measured, Reportable, all_are, unknown

if TYPE_CHECKING:
    from rich.table import Table

READABLE = 24
"""The fewest columns in which a cell's text is broken into lines."""


@dataclass(frozen=True, slots=True)
class Report(ShownAsTable):
    """A table as data: a title, a head, rows of text, and the columns whose text stands at the right."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[str] = frozenset()

    def __str__(self) -> str:
        head, *rows = (_aligned(self, row) for row in (self.head, *self.rows))
        return self.title + "\n" + plain_table(head, rows)

    def within(self, width: float) -> str:
        """The table in lines of `width` columns.

        Its last column is broken between words if the others leave it room; else every row is a list.
        """
        aligned = str(self)
        if max(map(len, aligned.splitlines()[1:])) <= width:
            return aligned
        width = int(width)
        room = width - sum(max(map(len, column)) + 2 for column in list(self._columns())[:-1])
        if room < READABLE:
            return "\n\n".join([self.title, *(self._listed(row, width) for row in self.rows)])
        rows = [
            (*first, part)
            for *cells, last in self.rows
            for first, part in zip_longest([cells], wrap(last, room) or [""], fillvalue=[""] * len(cells))
        ]
        return str(replace(self, rows=tuple(rows)))

    def _columns(self) -> Iterator[tuple[str, ...]]:
        return zip(self.head, *self.rows, strict=True)

    def _listed(self, row: tuple[str, ...], width: int) -> str:
        """The first cell, and below it the others that say something, each after its column's name."""
        column = max(map(len, self.head)) + 4
        cells = [
            fill(
                cell,
                max(width, 2 * column),
                initial_indent=f"  {name}".ljust(column),
                subsequent_indent=" " * column,
            )
            for name, cell in zip(self.head[1:], row[1:], strict=True)
            if cell
        ]
        return "\n".join([row[0], *cells])


def report(reportable: Reportable | Sequence[Plan], chosen: Plan | None = None) -> Report:
    """The table of a graph, a plan, a frontier, a simulation, measurements, gradients or saved tensors.

    A frontier is a list of plans, a simulation a list of moments; measurements are one, or several by name;
    gradients are what `rg.check` returned, and saved tensors what `rg.saved` did. On a frontier the plan
    `chosen` is marked; it has a row of its own where it is none of the frontier's.

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
    if all_are(Plan, reportable) or (chosen is not None and reportable == []):
        return _of_frontier(cast("Sequence[Plan]", reportable), chosen)
    if all_are(Moment, reportable):
        return _of_simulation(cast("Sequence[Moment]", reportable))
    if isinstance(reportable, Measured):
        return _of_measurements({"measured": reportable})
    if isinstance(reportable, Compared):
        return _of_comparison(reportable)
    if isinstance(reportable, Held):
        return _of_held(reportable)
    raise TypeError(unknown(reportable))


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


def _of_graph(graph: Graph) -> Report:
    head, *_ = str(graph).splitlines()
    rows = tuple(
        (
            node.name,
            node.kind,
            node.computes,
            ", ".join("x".join(map(str, graph.value[name].shape)) or "scalar" for name in node.outputs),
            human_bytes(node.cost.saved_bytes),
        )
        for node in graph.nodes
        if node.kind not in ("input", "output")
    )
    return Report(head, ("node", "kind", "computes", "shape", "internals"), rows, frozenset({"internals"}))


def _of_plan(plan: Plan) -> Report:
    again = _reruns(plan)
    held = holdings(plan)
    nodes = [plan.graph.node[each.node] for each in held[:-1]]
    columns = {
        "node": [node.name for node in nodes],
        "kind": [kind_of(node) for node in nodes],
        "decision": [str(plan.decisions.get(node.name, "")) for node in nodes],
        "held bytes": [f"{each.nbytes:,}" for each in held[:-1]],
        "what is held": [each.what for each in held[:-1]],
        "internals": [human_bytes(node.cost.saved_bytes) for node in nodes],
        "stored inputs": [", ".join(name for name in node.inputs if name in plan.stored) for node in nodes],
        "kept results": [_results(plan, node) for node in nodes],
        "rerun": [
            f"held from {plan.holds[node.name]}"
            if node.name in plan.holds
            else "rerun" * (node.name in again)
            for node in nodes
        ],
        "drops after": [", ".join(plan.drops.get(node.name, ())) for node in nodes],
        "why": [plan.reasons.get(node.name, "") for node in nodes],
    }
    for name in ("kept results", "rerun", "drops after"):
        if not any(columns[name]):
            del columns[name]
    head = tuple(columns)
    last = {"node": "outputs and loss", "held bytes": f"{held[-1].nbytes:,}", "what is held": held[-1].what}
    total = {"node": "total", "held bytes": f"{sum(each.nbytes for each in held):,}"}
    ends = (tuple(row.get(name, "") for name in head) for row in (last, total))
    title = f"{plan.graph.name}: every node under the plan"
    rows = (*zip(*columns.values(), strict=True), *ends)
    return Report(title, head, rows, frozenset({"held bytes", "internals"}))


def _of_frontier(plans: Sequence[Plan], chosen: Plan | None) -> Report:
    turn = knee(plans) if plans else None
    place = next((each for each in plans if each is chosen), None)
    place = place or next((each for each in plans if each == chosen), None)
    marked = chosen if place is None else place
    shown = list(plans)
    if chosen is not None and place is None:
        shown.insert(sum(each.peak_bytes <= chosen.peak_bytes for each in plans), chosen)
    rows = tuple(
        (
            human_bytes(plan.peak_bytes),
            f"x{plan.flops_ratio:.3f}",
            f"x{plan.time_ratio:.3f}",
            *(f"{sum(each == word for each in plan.decisions.values())}" for word in DECISIONS),
            f"{sum(map(len, plan.results.values()))}",
            f"{len(_reruns(plan))}",
            f"{most_runs(plan)}",
            " ".join(["chosen"] * (plan is marked) + ["knee"] * (plan is turn)),
        )
        for plan in shown
    )
    head = ("peak", "FLOPs", "time", *DECISIONS, "results", "rerun", "runs", "")
    first = shown[0]
    title = f"{first.graph.name}: the frontier, predicted (time by the profile {first.profile.name!r})"
    return Report(title, head, rows, frozenset(head[:-1]))


def _of_simulation(moments: Sequence[Moment]) -> Report:
    rows = tuple(
        (
            moment.step.action,
            moment.step.node,
            moment.step.stage if moment.step.stage != moment.step.node else "",
            human_bytes(moment.live_bytes),
            human_bytes(moment.peak_bytes),
            f"{moment.flops:,}",
        )
        for moment in moments
    )
    title = f"a training step, simulated: peak {human_bytes(max(moment.peak_bytes for moment in moments))}"
    head = ("step", "node", "for", "live after", "peak", "FLOPs")
    return Report(title, head, rows, frozenset({"live after", "peak", "FLOPs"}))


def most_runs(plan: Plan) -> int:
    """How often one node's function runs at most in a step."""
    return max(Counter(each.node for each in schedule(plan) if each.action in EVALUATING).values(), default=0)


def _reruns(plan: Plan) -> set[str]:
    """The nodes that run again to give values back."""
    return {source.node for source in plan.sources.values() if source.how == "recomputed"}


def _results(plan: Plan, node: Node) -> str:
    """The kept results of a node, as a plan by hand names them, and in words."""
    return ", ".join(f"{index}: {result_name(node, index)}" for index in plan.results.get(node.name, ()))


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
            raise TypeError(unknown(each))
    rows = [(name, *(show(each) for each in measured.values())) for name, show in _QUANTITIES]
    seconds = [getattr(each, "seconds", None) for each in measured.values()]
    if any(each is not None for each in seconds):
        rows.append(("seconds", *("" if each is None else f"{each:.3f}" for each in seconds)))
    return Report("one training step", ("quantity", *measured), tuple(rows), frozenset(measured))


def _of_comparison(compared: Compared) -> Report:
    rows = [
        ("gradients: largest relative error", f"{compared.max_relative_error:.2e}"),
        ("gradients: angle in degrees", f"{compared.angle_degrees:.2e}"),
        ("gradients: verdict", compared.verdict),
    ]
    if compared.begins_at is not None:
        rows.append(("gradients: wrong from node", compared.begins_at))
    rows += [(f"flipped choices in {node}", f"{count:,}") for node, count in compared.flips.items()]
    drift = sorted(compared.drift.items(), key=lambda item: (-item[1], item[0]))
    rows += [(f"drift of {name}", f"{error:.2e}") for name, error in drift]
    title = "against stored activations"
    return Report(title, ("quantity", "difference"), tuple(rows), frozenset({"difference"}))


def _of_held(held: Held) -> Report:
    head, *rows = held.cells()
    title = ". ".join((held.summary, *held.notes))
    return Report(title, head, tuple(rows), frozenset({"bytes", "%"}))


def _aligned(made: Report, row: tuple[str, ...]) -> tuple[str, ...]:
    widths = (max(map(len, column)) for column in made._columns())
    return tuple(
        cell.rjust(width) if name in made.right else cell
        for name, cell, width in zip(made.head, row, widths, strict=True)
    )
