"""The head of a drawing: its title, its figures, and a legend of just the signs that it uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from revgraph.drawing.labels import headline, role, value_lines
from revgraph.drawing.layout import Box
from revgraph.drawing.lettering import Line
from revgraph.drawing.routes import Route
from revgraph.drawing.styles import Style, frame_style, line_style, node_style, tag_style
from revgraph.drawing.subject import Subject

SAMPLE = 26.0
ROW = 19.0
SPACE = 7.0
APART = 18.0
LEAST_WIDTH = 340.0


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign and what it means.

    `line` signs are drawn as an edge, which begins with a dot if it is a `tap`; the others as a node, smaller
    than a coupling's by `inset` points across and down on either side.
    """

    meaning: str
    style: Style
    line: bool = False
    tap: bool = False
    inset: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class PlacedSign:
    """A sign with the places of its sample and of its meaning."""

    sign: Sign
    sample: Box
    text: Box


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a drawing, which ends where the rest begins, at 0: its lines of text, then the legend."""

    title: Box
    signs: tuple[PlacedSign, ...]


def lay_out_head(subject: Subject, routes: Sequence[Route], left: float, right: float) -> Head:
    """The head of a drawing that reaches from `left` to `right`: in its middle, and wider if need be."""
    lines = headline(subject)
    signs = list(_signs(subject, routes))
    width = max(right - left, LEAST_WIDTH, max(line.width for line in lines) + 8)
    edge = (left + right - width) / 2
    columns = _columns(signs, width)
    rows = -(-len(signs) // len(columns))
    height = float(sum(line.height for line in lines))
    y = -(12.0 + rows * ROW + 16.0)
    title = Box(edge, y - height, edge + width, y, lines)
    first = edge + (width - sum(columns) - APART * (len(columns) - 1)) / 2
    placed: list[PlacedSign] = []
    for index, sign in enumerate(signs):
        row, column = divmod(index, len(columns))
        x = first + sum(columns[:column]) + APART * column
        top = y + 12.0 + row * ROW
        text = _text(sign)
        across, down = sign.inset
        sample = Box(x + across, top + 3 + down, x + SAMPLE - across, top + ROW - 3 - down)
        start = x + SAMPLE + SPACE
        placed.append(PlacedSign(sign, sample, Box(start, top, start + text.width, top + ROW, (text,))))
    return Head(title, tuple(placed))


def _signs(subject: Subject, routes: Sequence[Route]) -> Iterator[Sign]:
    graph, plan = subject.graph, subject.plan
    kinds = {node.kind for node in graph.nodes}
    if plan is None:
        for kind in ("coupling", "boundary"):
            if kind in kinds:
                yield Sign(kind, node_style(kind, kind))
    else:
        used = {(role(subject, node), node.kind) for node in graph.planned}
        meanings = {"keep": "internals kept", "invert": "inverted", "recompute": "recomputed"}
        for decision, meaning in meanings.items():
            found = [kind for kind in ("coupling", "boundary") if (decision, kind) in used]
            if found:
                yield Sign(meaning, node_style(decision, found[0]))
        if any(name in subject.stored for name in graph.value):
            yield Sign("value stored", tag_style(stored=True), inset=(0.0, 2.5))
        if subject.peak_nodes:
            yield Sign("at the peak", node_style("plain", "boundary", peak=True))
    lines = {route.kind for route in routes}
    for kind, meaning in (("stream", "stream"), ("other", "other input"), ("inversion", "inversion")):
        if kind in lines:
            taps = any(route.tap for route in routes if route.kind == kind)
            yield Sign(meaning, line_style(kind), line=True, tap=taps)
    if plan is not None and "coupling" in kinds:
        yield Sign("coupling", node_style("plain", "coupling"))
    if plan is not None and "boundary" in kinds:
        yield Sign("boundary", node_style("plain", "boundary"))
    if "wiring" in kinds:
        yield Sign("wiring", node_style("plain", "wiring"), inset=(0.0, 3.0))
    if kinds & {"input", "output"}:
        yield Sign("input or output", node_style("plain", "input"), inset=(5.0, 1.0))
    if plan is None and value_lines(subject):
        yield Sign("value of a new shape", tag_style(stored=False), inset=(0.0, 2.5))
    if subject.blocks:
        yield Sign("equal blocks drawn once", frame_style(block=True))


def _text(sign: Sign) -> Line:
    return Line(sign.meaning, "muted", 10.0)


def _columns(signs: Sequence[Sign], width: float) -> list[float]:
    """The widths of the legend's columns: as many as fit, the rows about equally long."""
    for rows in range(1, len(signs) + 1):
        count = -(-len(signs) // rows)
        columns = [
            max(SAMPLE + SPACE + _text(sign).width for sign in signs[column::count])
            for column in range(count)
        ]
        if sum(columns) + APART * (count - 1) <= width:
            return columns
    return [0.0]
