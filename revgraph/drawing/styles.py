"""Styles: how nodes, tags and lines look, as graphviz attributes; every difference shows without colour."""

from __future__ import annotations

from collections.abc import Mapping

from revgraph.drawing.palette import light

Style = Mapping[str, str]
ARROW = 0.6
"""The size of arrowheads, in graphviz's unit of 10 points."""


def node_style(role: str, kind: str, *, peak: bool = False) -> Style:
    """Round corners for couplings, sharp ones for boundaries; recompute dashed; the peak's border thick."""
    words = ["filled"]
    if kind in ("coupling", "input", "output"):
        words.append("rounded")
    if role == "recompute":
        words.append("dashed")
    return {
        "style": ",".join(words),
        "fillcolor": light(role),
        "color": light("peak" if peak else f"{role}-line"),
        "penwidth": "2.6" if peak else "0.8" if role == "plain" else "1.2",
    }


def tag_style(*, stored: bool) -> Style:
    """A pill on a lane: filled where the value is stored, open where it is only named."""
    role, line = ("stored", "stored") if stored else ("plain", "plain-line")
    return {"style": "filled,rounded", "fillcolor": light(role), "color": light(line), "penwidth": "0.8"}


def frame_style(*, block: bool) -> Style:
    """A quiet ground around a stage, with a solid border around a folded block."""
    role = "block" if block else "stage"
    return {
        "style": "filled,rounded",
        "fillcolor": light(role),
        "color": light(f"{role}-line"),
        "penwidth": "1",
    }


def line_style(kind: str) -> Style:
    """Bold for streams, thin for other readings, dashed for inversions."""
    if kind == "stream":
        return {"color": light("stream"), "penwidth": "2.2"}
    if kind == "other":
        return {"color": light("other"), "penwidth": "1.1"}
    return {"color": light("invert-line"), "penwidth": "1.2", "style": "dashed", "arrowhead": "vee"}
