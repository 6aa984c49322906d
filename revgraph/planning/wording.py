"""Wording: a plan as `print(plan)` tells it: a summary, and a table in which repeated blocks are one row.

The table's bytes are whole numbers, so that whoever adds them up gets the bytes of the summary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from revgraph.folding import Fold, find_folds, span
from revgraph.graph import Node, table
from revgraph.planning.accounting import CALLER, Holding, holdings
from revgraph.planning.plans import DECISIONS, Plan, human_bytes

WIDTH = 80
LABEL = 19
"""Columns of what a line of the summary is about."""
ROWS = 16
"""Rows of the folded table, so that it has 30 lines with the summary; those that hold least are one row."""
HEAD = ("node", "", "kind", "decision", "held bytes", "what is held")
KIND = 12
"""The most columns of a node's kind, where a line has no more than `WIDTH`."""
DECIDED = dict(zip(DECISIONS, ("kept", "inverted", "recomputed"), strict=True))
MADE = {
    "by hand": "made by hand",
    "file": "read from a file",
    "default": "best found that runs no function more than twice",
    "least": "best found: the least peak",
    "budget": "best found within the budget",
    "frontier": "best found in so many bytes",
}
BACKWARD = {
    "backward": "is differentiated",
    "invert": "is inverted",
    "invert_again": "is inverted",
    "invert_wiring": "is undone",
}
AGAIN = "runs again"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the folded table: `nodes` nodes alike, which stand in `count` repeated blocks."""

    name: str
    count: int
    nodes: int
    kind: str
    decision: str
    nbytes: int
    what: str

    def cells(self) -> tuple[str, ...]:
        count = f"x{self.count}" if self.count > 1 else ""
        return self.name, count, self.kind, self.decision, f"{self.nbytes:,}", self.what


def text(plan: Plan, width: int = WIDTH) -> str:
    """The summary, and below it the folded table; no line is longer than `width`."""
    return f"{summary(plan, width)}\n\n{folded(plan, width)}"


def summary(plan: Plan, width: int = WIDTH) -> str:
    """At most ten lines: what ordinary training takes, what this plan takes, where, and how it was found."""
    room = width - LABEL
    share = _saving(plan)
    ratio = f"x{plan.time_ratio:.3f} of ordinary training's, estimated (profile: "
    lines = [
        ("ordinary training", f"{human_bytes(plan.ordinary_bytes)} at the peak"),
        ("this plan", f"{human_bytes(plan.peak_bytes)} at the peak" + (f", {share}" if share else "")),
        ("peak", where_peak(plan.peak_at, room=room)),
        ("held", f"{_exactly(plan.held_bytes)} between forward and backward"),
        ("FLOPs", f"x{plan.flops_ratio:.3f} of ordinary training's"),
        ("time", ratio + clipped(plan.profile.name, room - len(ratio) - 1) + ")"),
        ("nodes", _counts(plan)),
    ]
    if plan.anchors:
        lines.append(("anchors", anchors(plan)))
    lines.append(("status", status(plan)))
    head = clipped(f"{_named(plan)}: plan of a training step", width)
    return "\n".join([head, *(clipped(f"{name:{LABEL}}{said}", width) for name, said in lines)])


def folded(plan: Plan, width: int = WIDTH) -> str:
    """Every node's decision and what it holds; repeated blocks are listed once, and the sum is last."""
    return _table([row.cells() for row in rows(plan)], width)


def rows(plan: Plan) -> list[Row]:
    """The rows of the folded table, with the caller's and the sum at the end."""
    held = holdings(plan)
    found = _fewest(_joined(_folded(plan, held)))
    found.append(Row("outputs and loss", 1, 0, "", "", held[-1].nbytes, held[-1].what))
    return [*found, Row("total", 1, 0, "", "", sum(row.nbytes for row in found), "")]


def status(plan: Plan) -> str:
    """How the plan came about. No search proves that there is no better one."""
    decided = set(plan.decisions.values())
    if plan.made == "by hand" and decided == {"keep"}:
        return "ordinary training: every node is kept"
    natural = all(
        plan.decisions[node.name] == ("invert" if node.kind == "coupling" else "keep")
        for node in plan.graph.planned
    )
    if plan.made == "by hand" and decided and natural and not (plan.holds or plan.results or plan.anchors):
        return "made by hand: every coupling is inverted, every boundary kept"
    within = "" if plan.budget_bytes is None else f" of {human_bytes(plan.budget_bytes)}"
    return MADE[plan.made] + within


def anchors(plan: Plan) -> str:
    """How many anchors a plan has, and what they hold."""
    count = len(plan.anchors)
    return f"{count} {'holds' if count == 1 else 'hold'} {human_bytes(plan.anchor_bytes)}"


def where_peak(peak_at: str, spoken: str = "", room: int = 10**6) -> str:
    """Where a plan's peak is, in words: the phase of the step, and the node, as it is `spoken` of."""
    action, of, node = peak_at.partition(" of ")
    node = spoken or node
    if not of:
        return clipped(peak_at, room) or "nowhere: nothing is counted"
    if action == "free":
        return "between forward and backward"
    if action == "loss":
        return "in the loss, between forward and backward"
    phase, does = "in the forward pass", "runs"
    if action != "run":
        phase, does = "in the backward pass", BACKWARD.get(action, AGAIN)
    before, after = f"{phase}, while ", f" {does}"
    return before + clipped(node, room - len(before) - len(after)) + after


def clipped(name: str, room: int) -> str:
    """Text in so many columns, cut in the middle, for names differ at their ends.

    >>> clipped("encoder.layers.11.attention", 17)
    'encoder...tention'
    """
    if len(name) <= room:
        return name
    end = max(0, room - 3) // 2
    return name[: max(0, room - 3 - end)] + "..." + (name[-end:] if end else "")


def kind_of(node: Node) -> str:
    """What a node is: a boundary, wiring, or a coupling by its law."""
    if node.kind != "coupling":
        return node.kind
    return node.law or ("additive" if node.additive else "coupling")


def _named(plan: Plan) -> str:
    return plan.graph.name or "a network"


def _exactly(count: int) -> str:
    return f"{count} bytes" if count < 1024 else f"{human_bytes(count)} ({count:,} bytes)"


def _saving(plan: Plan) -> str:
    """By how much the peak is below that of ordinary training."""
    if not plan.ordinary_bytes:
        return ""
    share = 100 * (1 - plan.peak_bytes / plan.ordinary_bytes)
    if not share:
        return "as ordinary training"
    return f"{abs(share):.1f} % {'less' if share > 0 else 'more'}"


def _counts(plan: Plan) -> str:
    count: Counter[str] = Counter(plan.decisions.values())
    said = ", ".join(f"{count[decision]} {word}" for decision, word in DECIDED.items())
    unknown = sum(not node.cost.courses for node in plan.graph.planned)
    return said + (f"; {unknown} of unknown cost" if unknown else "")


def _folded(plan: Plan, held: Sequence[Holding]) -> list[Row]:
    """The folded rows of all nodes that are decided on or hold something."""
    graph, of = plan.graph, {each.node: each for each in held if each.node != CALLER}
    looks = {
        name: (
            plan.decisions.get(name),
            kind_of(graph.node[name]),
            each.stored_bytes,
            each.own_bytes,
            each.what,
        )
        for name, each in of.items()
    }
    found: list[Row] = []
    place = 0
    for fold in (*find_folds(graph, looks, frozenset(plan.stored)), Fold(len(graph.nodes), 0, 0)):
        found += [_row(plan, of, [node]) for node in graph.nodes[place : fold.start] if node.name in of]
        for offset in range(fold.period):
            alike = graph.nodes[fold.start + offset : fold.end : fold.period]
            if alike[0].name in of:
                found.append(_row(plan, of, alike))
        place = fold.end
    return found


def _row(plan: Plan, held: dict[str, Holding], alike: Sequence[Node]) -> Row:
    first, last = alike[0], alike[-1]
    return Row(
        span(first.name, last.name) if last is not first else first.name,
        len(alike),
        len(alike),
        kind_of(first),
        plan.decisions.get(first.name, ""),
        sum(held[node.name].nbytes for node in alike),
        held[first.name].what,
    )


def _joined(rows: list[Row]) -> list[Row]:
    """The rows with neighbours as one that say the same of nodes of one block: `block2.f,g`."""
    joined: list[Row] = []
    for row in rows:
        before = joined[-1] if joined else None
        scope, dot, name = row.name.rpartition(".")
        if (
            before is not None
            and dot
            and before.name.startswith(scope + dot)
            and "." not in before.name[len(scope) + 1 :]
            and replace(row, name="", nodes=0, nbytes=0) == replace(before, name="", nodes=0, nbytes=0)
            and row.nbytes * before.nodes == before.nbytes * row.nodes
        ):
            joined[-1] = replace(
                before,
                name=f"{before.name},{name}",
                nodes=before.nodes + row.nodes,
                nbytes=before.nbytes + row.nbytes,
            )
        else:
            joined.append(row)
    return joined


def _fewest(rows: list[Row]) -> list[Row]:
    """At most `ROWS` rows: those that hold most, in their order, and the sum of the others."""
    if len(rows) <= ROWS:
        return rows
    places = sorted(range(len(rows)), key=lambda place: (-rows[place].nbytes, place))
    shown = sorted(places[: ROWS - 1])
    others = [rows[place] for place in places[ROWS - 1 :]]
    count = sum(row.nodes for row in others)
    rest = Row(
        f"{count} other nodes",
        1,
        count,
        "",
        "",
        sum(row.nbytes for row in others),
        "--table, or plan.table()",
    )
    return [*(rows[place] for place in shown), rest]


def _table(rows: list[tuple[str, ...]], width: int) -> str:
    columns = list(zip(HEAD, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    widths[2] = min(widths[2], KIND) if width <= WIDTH else widths[2]
    room = width - sum(widths[1:5]) - 2 * (len(HEAD) - 1)
    widths[0] = min(widths[0], max(room // 2, room - widths[5]))
    widths[5] = min(widths[5], room - widths[0])
    cells = [
        (clipped(row[0], widths[0]), row[1], _cut(row[2], widths[2]), *row[3:5], _cut(row[5], widths[5]))
        for row in (HEAD, *rows)
    ]
    head, *rest = [(*row[:4], row[4].rjust(widths[4]), row[5]) for row in cells]
    return table(head, rest)


def _cut(cell: str, room: int) -> str:
    return cell if len(cell) <= room else cell[: room - 3] + "..."
