"""A drawing as graphviz's DOT text, with the place of everything in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from revgraph.drawing.labels import description, node_text, role, value_text
from revgraph.drawing.layout import Box, Layout, lay_out
from revgraph.drawing.legend import lay_out_head
from revgraph.drawing.lettering import clean, html_label
from revgraph.drawing.palette import light
from revgraph.drawing.paths import pair, path
from revgraph.drawing.routes import Point, Route, find_routes
from revgraph.drawing.stages import Frame, nested
from revgraph.drawing.styles import ARROW, Style, frame_style, line_style, node_style, tag_style
from revgraph.drawing.subject import Subject, subject
from revgraph.drawing.titles import place_titles
from revgraph.graph import Graph
from revgraph.planning.plans import Plan

MARGIN = 18.0
if TYPE_CHECKING:
    import graphviz

_SAFE = re.compile(r"[A-Za-z0-9_.]{1,80}")


@dataclass(frozen=True, slots=True)
class Caption:
    """What an element of the drawing stands for: the name of a node or value, and a text about it."""

    text: str
    node: str | None = None
    value: str | None = None


@dataclass(frozen=True)
class Drawing:
    """DOT text, with a title and description of the whole and, by element id, captions of its parts.

    `size` is its width and height in points.
    """

    source: str
    title: str
    description: str
    captions: Mapping[str, Caption]
    size: tuple[float, float]


def to_drawing(drawn: Graph | Plan, fold: bool | None = None) -> Drawing:
    """The drawing of a graph or a plan, equal for equal input.

    Its positions are part of the text: `neato -n2` draws it as it is meant, `dot` makes its own layout.
    """
    about = subject(drawn, fold)
    layout = lay_out(about)
    return _Writer(about, layout, find_routes(about, layout)).drawing()


class _Writer:
    """Writes one drawing, from the ground up: head, frames, nodes and their tags, lines."""

    def __init__(self, about: Subject, layout: Layout, routes: Sequence[Route]) -> None:
        boxes = [*layout.nodes.values(), *layout.tags.values(), *layout.frames.values()]
        across = [x for route in routes for x, _ in route.points]
        across += [x for box in boxes for x in (box.left, box.right)] or [0.0]
        self._head = lay_out_head(about, routes, min(across), max(across))
        title = self._head.title
        self._left, self._bottom = title.left, max((box.bottom for box in boxes), default=0.0)
        self._width, self._height = title.right - title.left, self._bottom - title.top
        self._about, self._layout, self._routes = about, layout, routes
        self._titles = place_titles(layout.frames, routes)
        self._captions: dict[str, Caption] = {}
        self._keys = {
            node.name: node.name if _SAFE.fullmatch(node.name) else f"node {index}"
            for index, node in enumerate(about.graph.nodes)
        }
        self._tag_keys = {name: f"value {index}" for index, name in enumerate(layout.tags)}
        import graphviz  # takes a while to import, and few need it

        self._dot = graphviz.Digraph(
            "revgraph",
            comment="The positions are part of this: neato -n2 keeps them, dot makes a layout of its own.",
            graph_attr={
                "bb": f"0,0,{pair(self._width, self._height)}",
                "bgcolor": light("ground"),
                "fontname": "Helvetica",
                "notranslate": "true",
                "outputorder": "edgesfirst",
                "pad": f"{MARGIN / 72:g}",
                "splines": "true",
            },
            node_attr={"fontname": "Helvetica", "shape": "box", "fixedsize": "true", "label": ""},
            edge_attr={"arrowsize": f"{ARROW:g}"},
        )

    def _part(self, name: str, style: dict[str, str]) -> graphviz.Digraph:
        """A subgraph of this drawing, to be filled."""
        return type(self._dot)(name, graph_attr=style)

    def drawing(self) -> Drawing:
        """The finished drawing."""
        self._write_head()
        framed: set[str] = set()
        for number, (frame, inside) in enumerate(nested(self._layout.frames).items()):
            framed |= self._write_frame(self._dot, frame, f"{number}", inside)
        for node in self._about.graph.nodes:
            if node.name not in framed:
                self._write_node(self._dot, node.name)
        for route in self._routes:
            self._write_route(route)
        what = "plan of" if self._about.plan is not None else "graph of"
        return Drawing(
            source=self._dot.source,
            title=f"revgraph: {what} {clean(self._about.full.name) or 'a network'}",
            description=description(self._about),
            captions=self._captions,
            size=(self._width + 2 * MARGIN, self._height + 2 * MARGIN),
        )

    def _write_head(self) -> None:
        title = self._head.title
        self._dot.attr("graph", label=html_label(*title.lines), lp=self._place(title.middle), labelloc="t")
        part = self._part("cluster_legend", {"style": "invis", "label": ""})
        column: list[tuple[str, Point, str, Point]] = []
        for index, placed in enumerate(self._head.signs):
            key, box, style = f"legend {index}", placed.sample, placed.sign.style
            if placed.sign.line:
                ends = (box.left, box.middle[1]), (box.right, box.middle[1])
                keys = key, f"{key} end"
                for end_key, (x, y) in zip(keys, ends, strict=True):
                    self._write_box(part, end_key, Box(x, y, x, y), {"shape": "point", "style": "invis"})
                if placed.sign.tap:
                    style = {**style, "dir": "both", "arrowtail": "dot"}
                part.edge(*keys, pos=path(ends, self._place, arrow=True, tap=placed.sign.tap), **style)
            else:
                self._write_box(part, key, box, style)
            self._write_box(part, f"{key} text", placed.text, {"shape": "plaintext"})
            column.append((key, box.middle, f"{key} text", placed.text.middle))
        for above, below in pairwise(column):
            self._write_order(part, above[:2], below[:2])
            self._write_order(part, above[2:], below[2:])
        self._dot.subgraph(part)

    def _write_order(self, dot: graphviz.Digraph, above: tuple[str, Point], below: tuple[str, Point]) -> None:
        """Write an unseen edge, which keeps the legend together where dot makes a layout of its own."""
        pos = path((above[1], below[1]), self._place, arrow=False, tap=False)
        dot.edge(above[0], below[0], pos=pos, style="invis")

    def _write_frame(
        self, dot: graphviz.Digraph, frame: Frame, key: str, inside: Sequence[Frame] = ()
    ) -> set[str]:
        """Write a frame with all in it; the nodes that were written."""
        box, title = self._layout.frames[frame], self._titles[frame]
        text = f"{frame.name}: {frame.count} equal blocks, drawn once" if frame.block else frame.name
        style = {
            **frame_style(block=frame.block),
            "bb": f"{self._place((box.left, box.bottom))},{self._place((box.right, box.top))}",
            "id": self._identity(Caption(clean(text))),
            "label": html_label(*title.lines),
            "labeljust": "l",
            "lp": self._place(title.middle),
        }
        part = self._part(f"cluster_{key}", style)
        written: set[str] = set()
        for number, each in enumerate(inside):
            written |= self._write_frame(part, each, f"{key}_{number}")
        for node in self._about.graph.nodes[frame.first : frame.last + 1]:
            if node.name not in written:
                self._write_node(part, node.name)
                written.add(node.name)
        dot.subgraph(part)
        return written

    def _write_node(self, dot: graphviz.Digraph, name: str) -> None:
        about, node = self._about, self._about.graph.node[name]
        painted, peak = role(about, node), name in about.peak_nodes
        style = {
            **node_style(painted, node.kind, peak=peak),
            "class": " ".join(dict.fromkeys((node.kind, painted, "peak" if peak else painted))),
            "id": self._identity(Caption(node_text(about, node), node=name)),
        }
        self._write_box(dot, self._keys[name], self._layout.nodes[name], style)
        for value in node.outputs:
            if value in self._layout.tags:
                stored = about.plan is not None
                style = {
                    **tag_style(stored=stored),
                    "class": "value stored" if stored else "value",
                    "id": self._identity(Caption(value_text(about, value), value=value)),
                }
                self._write_box(dot, self._tag_keys[value], self._layout.tags[value], style)

    def _write_box(self, dot: graphviz.Digraph, key: str, box: Box, style: Style) -> None:
        label = {"label": html_label(*box.lines)} if box.lines else {}
        width, height = (f"{size / 72:.4f}" for size in (box.right - box.left, box.bottom - box.top))
        dot.node(key, pos=self._place(box.middle), width=width, height=height, **label, **style)

    def _write_route(self, route: Route) -> None:
        style = {
            **line_style(route.kind),
            "class": route.kind,
            "id": self._identity(Caption(clean(self._route_text(route)), value=route.value)),
            "pos": path(route.points, self._place, arrow=route.arrow, tap=route.tap),
        }
        if route.tap:
            style |= {"dir": "both", "arrowtail": "dot"}
        if not route.arrow:
            style |= {"dir": "none"}
        if route.kind == "inversion":
            style |= {"constraint": "false"}
        tail = (self._tag_keys if route.tail_tag else self._keys)[route.tail]
        head = (self._tag_keys if route.head_tag else self._keys)[route.head]
        self._dot.edge(tail, head, **style)

    def _route_text(self, route: Route) -> str:
        if route.head_tag:
            return value_text(self._about, route.value)
        if route.kind == "inversion":
            return f"{route.tail} gives {route.value} back in the backward pass"
        return f"{route.head} {'goes on from' if route.kind == 'stream' else 'reads'} {route.value}"

    def _identity(self, caption: Caption) -> str:
        """A new element id, under which the caption is kept."""
        identity = f"part{len(self._captions)}"
        self._captions[identity] = caption
        return identity

    def _place(self, point: Point) -> str:
        """A point in graphviz's coordinates, which begin at the bottom left."""
        return pair(point[0] - self._left, self._bottom - point[1])
