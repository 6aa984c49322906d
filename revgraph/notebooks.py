"""Notebooks: graphs and plans show themselves as pictures there, measurements and reports as tables."""

from __future__ import annotations

from html import escape
from typing import Any

from revgraph.checking import GradientReport
from revgraph.drawing import draw_svg
from revgraph.errors import GraphError
from revgraph.graph import Graph
from revgraph.measuring import Measurement
from revgraph.planning import Plan
from revgraph.reporting import Report, report
from revgraph.saved_table import SavedTable


def attach() -> None:
    """Give the classes the methods that IPython looks for."""
    for kind in (Graph, Plan):
        kind._repr_svg_ = _picture  # pyright: ignore[reportAttributeAccessIssue]
    for kind in (Measurement, GradientReport, SavedTable, Report):
        kind._repr_html_ = _table  # pyright: ignore[reportAttributeAccessIssue]


def _picture(drawn: Graph | Plan) -> str | None:
    """The drawing; None, and so the plain text, where graphviz is missing."""
    try:
        return draw_svg(drawn)
    except GraphError:
        return None


def _table(told: Any) -> str:
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
