"""What notebooks show: the picture of a graph or a plan, the table of a measurement or report."""

from __future__ import annotations

from html import escape
from typing import Any

from revgraph.drawing import draw_svg
from revgraph.errors import GraphError
from revgraph.graph import Graph
from revgraph.planning import Plan
from revgraph.reporting import Report, report


def picture(drawn: Graph | Plan) -> str | None:
    """The drawing; None, and so the plain text, where graphviz is missing."""
    try:
        return draw_svg(drawn)
    except GraphError:
        return None


def table(told: Any) -> str:
    """The report as an HTML table, in the notebook's own colours."""
    made = told if isinstance(told, Report) else report(told)
    sides = ["right" if name in made.right else "left" for name in made.head]
    rows = "".join(_row("td", row, sides) for row in made.rows)
    return f"<table><caption>{escape(made.title)}</caption>{_row('th', made.head, sides)}{rows}</table>"


def _row(tag: str, cells: tuple[str, ...], sides: list[str]) -> str:
    inside = "".join(
        f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>'
        for cell, side in zip(cells, sides, strict=True)
    )
    return f"<tr>{inside}</tr>"
