"""Drawings of graphs and plans, made with graphviz."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from revgraph.drawing.dot import Drawing, to_drawing
from revgraph.drawing.matrix import matrix
from revgraph.drawing.page import page
from revgraph.drawing.rendering import render
from revgraph.drawing.report import report
from revgraph.drawing.subject import subject
from revgraph.drawing.svg import finish
from revgraph.drawing.timeline import timeline
from revgraph.errors import GraphError
from revgraph.graph import Graph
from revgraph.planning.composing import compose
from revgraph.planning.plans import Plan

__all__ = ["SUFFIXES", "draw", "draw_svg"]

MOST_UNFOLDED = 400
"""Nodes up to which a report of a folded plan can be unfolded."""

SUFFIXES = (".dot", ".svg", ".png", ".html")
Picture = Literal["graph", "memory", "schedule"]
PICTURES: tuple[str, ...] = get_args(Picture)


def draw(
    graph_or_plan: Graph | Plan,
    path: str | os.PathLike[str],
    *,
    fold: bool | None = None,
    show: Picture = "graph",
    measured: Sequence[tuple[int, int]] = (),
) -> Path:
    """Draw a graph or a plan into the file `path`, and return that path.

    Streams run down in lanes, one node a row in the order of the forward pass. A coupling has round corners,
    a boundary sharp ones. A plan adds what becomes of every node (kept, inverted, recomputed), the values it
    stores with their bytes, dashed arrows where inversion runs, and the node at the peak. As `.html` a plan
    becomes a report, in which one steps through a training step with all pictures beside each other.

    Args:
        graph_or_plan: what to draw.
        path: the suffix chooses the form. `.svg` and `.html` follow the reader's preference for light or
            dark, `.png` is light, `.dot` needs no graphviz. Missing folders are made, and the file appears
            when it is complete.
        fold: draw repeated equal blocks once, with their number. None folds graphs of more than 32 nodes.
        show: of a plan, as `.svg`: "memory" is the timeline of live bytes by what holds them, "schedule" the
            matrix of nodes and steps. Neither needs graphviz.
        measured: bytes really live, as `rg.track` gives them, drawn as dots over the predicted ones where
            memory is shown.

    Raises:
        GraphError: it is neither a graph nor a plan; or graphviz is needed and is missing or fails.
        ValueError: the suffix is none of these, or does not fit what to show.

    >>> from revgraph.graph import Graph, Node, Value
    >>> x = Value("x", (4, 8), "float32", 128, "x")
    >>> graph = Graph((Node("x", "input", (), ("x",)), Node("y", "output", ("x",), ())), (x,))
    >>> import tempfile
    >>> draw(graph, tempfile.mkdtemp() + "/graph.dot").read_text().splitlines()[1]
    'digraph revgraph {'
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"cannot draw into {str(target)!r}: its suffix says no form that revgraph draws. "
            f"Use one of {', '.join(SUFFIXES)}."
        )
    if not isinstance(graph_or_plan, (Graph, Plan)):
        raise GraphError(
            f"cannot draw a {type(graph_or_plan).__name__}: give a Graph or a Plan, "
            "such as net.graph or net.plan"
        )
    if show != "graph":
        _write(target, _over_time(graph_or_plan, suffix, show, measured).encode())
        return target
    drawing = to_drawing(graph_or_plan, fold)
    if suffix == ".dot":
        content = drawing.source.encode()
    elif suffix == ".png":
        content = render(drawing.source, "png", drawing.size)
    else:
        content = _written(graph_or_plan, drawing, suffix, fold).encode()
    _write(target, content)
    return target


def draw_svg(graph_or_plan: Graph | Plan, fold: bool | None = None) -> str:
    """The drawing of a graph or a plan as SVG text.

    Raises:
        GraphError: graphviz is missing or fails.
    """
    drawing = to_drawing(graph_or_plan, fold)
    return finish(render(drawing.source, "svg", drawing.size), drawing)


def _over_time(drawn: Graph | Plan, suffix: str, show: Picture, measured: Sequence[tuple[int, int]]) -> str:
    """A picture of a plan's training step, as SVG."""
    if show not in PICTURES:
        raise ValueError(f"cannot show {show!r}: there are the pictures {', '.join(map(repr, PICTURES))}")
    if not isinstance(drawn, Plan):
        raise GraphError(f"only a plan has a {show} to show: give net.plan instead of net.graph")
    if suffix != ".svg":
        raise ValueError(
            f"the {show} of a plan is drawn as .svg, or with everything else as .html: not {suffix}"
        )
    composed = compose(drawn)
    if show == "memory":
        return timeline(drawn, composed, measured=measured)
    return matrix(drawn, [each.moment.step for each in composed])


def _written(drawn: Graph | Plan, drawing: Drawing, suffix: str, fold: bool | None) -> str:
    """The drawing as SVG, or as a page of its own: of a plan, the report."""
    svg = finish(render(drawing.source, "svg", drawing.size), drawing)
    if suffix == ".svg":
        return svg
    if not isinstance(drawn, Plan):
        return page(svg, drawing.title)
    about = subject(drawn, fold)
    also_whole = fold is None and about.blocks and len(about.full.nodes) <= MOST_UNFOLDED
    return report(drawn, [svg, draw_svg(drawn, fold=False)] if also_whole else [svg], about.shown)


def _write(target: Path, content: bytes) -> None:
    """Write a file that is either complete or not there: under another name beside it first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".unfinished-{os.getpid()}-{threading.get_ident()}-{target.name}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
