"""Drawings of graphs, plans and frontiers, and exports of plans to other tools.

`draw` takes what to draw and a file, whose suffix chooses the form. The picture of a graph or a plan goes
subject, layout, routes, dot, rendering (graphviz), svg; what runs over time (timeline, hill, matrix) and
charts are drawn on canvases of their own; report puts all of them on one page. traces and snapshots write no
pictures: they give the simulated step to viewers of traces and of PyTorch's memory. All of them read the
plan's schedule and its simulation, and nothing else says what happens in a step.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from revgraph.drawing.charts import CHART_SUFFIXES, chart_frontier
from revgraph.drawing.dot import to_drawing
from revgraph.drawing.hill import hill
from revgraph.drawing.matrix import matrix
from revgraph.drawing.page import page
from revgraph.drawing.rendering import render
from revgraph.drawing.report import Extras, report
from revgraph.drawing.snapshots import snapshot
from revgraph.drawing.subject import subject
from revgraph.drawing.svg import finish
from revgraph.drawing.timeline import timeline
from revgraph.drawing.traces import trace
from revgraph.drawing.writing import write
from revgraph.errors import GraphError
from revgraph.graph import Graph
from revgraph.planning.budgets import parse_bytes
from revgraph.planning.composing import compose
from revgraph.planning.plans import Plan

__all__ = ["CHART_SUFFIXES", "SUFFIXES", "draw", "draw_svg", "suffix_of"]

MOST_UNFOLDED = 400
"""Nodes up to which a report of a folded plan can be unfolded."""

EXPORTS = (".trace.json", ".pickle")
SUFFIXES = (".dot", ".svg", ".png", ".html", *EXPORTS)
Picture = Literal["graph", "memory", "hill", "schedule"]
PICTURES: tuple[str, ...] = get_args(Picture)


def draw(
    drawn: Graph | Plan | Sequence[Plan],
    path: str | os.PathLike[str],
    *,
    fold: bool | None = None,
    show: Picture = "graph",
    measured: Sequence[tuple[int, int]] = (),
    budget: int | str | None = None,
    frontier: Sequence[Plan] = (),
    beside: Mapping[str, Plan] | None = None,
    question: bool = False,
) -> Path:
    """Draw a graph, a plan or a frontier into the file `path`, and return that path.

    Streams run down in lanes, one node a row in the order of the forward pass. A coupling has round corners,
    a boundary sharp ones. A plan adds what becomes of every node (kept, inverted, recomputed), the values it
    stores with their bytes, dashed arrows where inversion runs, and the node at the peak. As `.html` a plan
    becomes a report, in which one steps through a training step with all pictures beside each other. A
    frontier becomes a chart of bytes and FLOPs with its knee. Two forms are for other tools: `.trace.json` is
    a plan's training step for Perfetto or Chrome's tracing page, `.pickle` its predicted allocations for
    PyTorch's memory viewer (pytorch.org/memory_viz).

    Args:
        drawn: a graph, a plan, or a list of plans such as `rg.frontier` gives.
        path: the suffix chooses the form. `.svg` and `.html` follow the reader's preference for light or
            dark, `.png` is light, `.dot` needs no graphviz. Charts of frontiers are `.svg` or `.png`, on a
            transparent ground. `.trace.json` and `.pickle` take plans alone and need no graphviz. Missing
            folders are made, and the file appears when it is complete.
        fold: draw repeated equal blocks once, with their number. None folds graphs of more than 32 nodes.
        show: of a plan, as `.svg`: "memory" is the timeline of live bytes by what holds them, "hill" the
            live bytes over estimated time with ordinary training's behind, "schedule" the matrix of nodes and
            steps. None of these needs graphviz.
        measured: bytes really live, as `rg.track` gives them, drawn as dots over the predicted ones where
            memory is shown; in a `.trace.json` they are a counter of their own.
        budget: bytes, as for `rg.plan`, drawn as a line where memory or a frontier is shown.
        frontier: plans to show as a chart in the report, with the plan itself among them.
        beside: further plans by name, marked in the chart of a frontier.
        question: let the report ask first which step is the peak, which it marks when the reader has answered
            or asks for the answer.

    Raises:
        GraphError: it is none of these; or graphviz is needed and is missing or fails.
        ValueError: the suffix is none of these, or does not fit what to show.
        PlanError: the budget cannot be read.
        ModuleNotFoundError: a frontier is drawn, and matplotlib is not installed.

    >>> from revgraph.graph import Graph, Node, Value
    >>> x = Value("x", (4, 8), "float32", 128, "x")
    >>> graph = Graph((Node("x", "input", (), ("x",)), Node("y", "output", ("x",), ())), (x,))
    >>> import tempfile
    >>> draw(graph, tempfile.mkdtemp() + "/graph.dot").read_text().splitlines()[1]
    'digraph revgraph {'
    """
    target = Path(path)
    suffix = suffix_of(target)
    limit = None if budget is None else parse_bytes(budget)
    extras = Extras(measured, limit, frontier, beside or {}, question)
    if isinstance(drawn, (Graph, Plan)):
        _check_suffix(target, suffix, SUFFIXES)
        _check_fitting(drawn, suffix, show, extras)
        content = _content(drawn, suffix, fold, show, extras)
    elif drawn and isinstance(drawn, Sequence) and all(isinstance(each, Plan) for each in drawn):
        _check_suffix(target, suffix, CHART_SUFFIXES)
        content = chart_frontier(drawn, suffix, extras.budget, extras.beside)
    else:
        raise GraphError(
            f"cannot draw {_described(drawn)}: give a Graph, a Plan or a list of plans, such as net.graph, "
            "net.plan or rg.frontier(net.graph)"
        )
    write(target, content)
    return target


def suffix_of(path: str | os.PathLike[str]) -> str:
    """The end of a file's name that chooses its form, in small letters: one of `SUFFIXES`, or the usual one.

    >>> suffix_of("runs/plan.Trace.json"), suffix_of("plan.json")
    ('.trace.json', '.json')
    """
    target = Path(path)
    name = target.name.lower()
    found = (known for known in EXPORTS if name.endswith(known) and name != known)
    return next(found, target.suffix.lower())


def draw_svg(graph_or_plan: Graph | Plan, fold: bool | None = None) -> str:
    """The drawing of a graph or a plan as SVG text.

    Raises:
        GraphError: graphviz is missing or fails.
    """
    drawing = to_drawing(graph_or_plan, fold)
    return finish(render(drawing.source, "svg", drawing.size), drawing)


def _content(drawn: Graph | Plan, suffix: str, fold: bool | None, show: Picture, extras: Extras) -> bytes:
    if suffix == ".html" and isinstance(drawn, Plan):
        return report(drawn, *_unfolded(drawn, fold), extras).encode()
    if suffix == ".trace.json" and isinstance(drawn, Plan):
        return trace(drawn, extras.measured, extras.budget)
    if suffix == ".pickle" and isinstance(drawn, Plan):
        return snapshot(drawn)
    if show == "hill" and isinstance(drawn, Plan):
        return hill(drawn).encode()
    if show != "graph" and isinstance(drawn, Plan):
        composed = compose(drawn)
        if show == "memory":
            return timeline(drawn, composed, extras.budget, extras.measured).encode()
        return matrix(drawn, [each.moment.step for each in composed]).encode()
    drawing = to_drawing(drawn, fold)
    if suffix == ".dot":
        return drawing.source.encode()
    if suffix == ".png":
        return render(drawing.source, "png", drawing.size)
    svg = finish(render(drawing.source, "svg", drawing.size), drawing)
    return (svg if suffix == ".svg" else page(svg, drawing.title)).encode()


def _unfolded(plan: Plan, fold: bool | None) -> tuple[list[str], Mapping[str, str]]:
    """The drawing for the report, with that of all nodes where it is folded; and where each node is drawn."""
    about = subject(plan, fold)
    also_whole = fold is None and about.blocks and len(about.full.nodes) <= MOST_UNFOLDED
    folds = (fold, False) if also_whole else (fold,)
    return [draw_svg(plan, each) for each in folds], about.shown


def _check_suffix(target: Path, suffix: str, known: Sequence[str]) -> None:
    if suffix not in known:
        raise ValueError(
            f"cannot draw into {str(target)!r}: its suffix says no form that revgraph draws. "
            f"Use one of {', '.join(known)}."
        )


def _check_fitting(drawn: Graph | Plan, suffix: str, show: str, extras: Extras) -> None:
    """Refuse what is asked of a drawing that cannot show it."""
    if show not in PICTURES:
        raise ValueError(f"cannot show {show!r}: there are the pictures {', '.join(map(repr, PICTURES))}")
    if suffix in EXPORTS and isinstance(drawn, Graph):
        raise GraphError(
            f"only a plan has a training step to write as {suffix}: give net.plan instead of net.graph"
        )
    if show != "graph" and isinstance(drawn, Graph):
        raise GraphError(f"only a plan has a {show} to show: give net.plan instead of net.graph")
    if show == "hill" and suffix != ".svg":
        raise ValueError(f"the hill of a plan is drawn as .svg: not {suffix}")
    if show != "graph" and suffix not in (".svg", ".html"):
        raise ValueError(
            f"the {show} of a plan is drawn as .svg, or with everything else as .html: not {suffix}"
        )
    if extras.frontier and (suffix != ".html" or isinstance(drawn, Graph)):
        raise ValueError("a frontier beside a plan is shown in its report: draw the plan into an .html file")
    if extras.question and (suffix != ".html" or isinstance(drawn, Graph)):
        raise ValueError("a question is asked in the report of a plan: draw the plan into an .html file")


def _described(drawn: object) -> str:
    empty = "an empty" if isinstance(drawn, (list, tuple)) and not drawn else "a"
    return f"{empty} {type(drawn).__name__}"
