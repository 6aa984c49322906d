"""Titles of frames: each in the frame's top strip, where no line runs through it."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise

from revgraph.drawing.layout import Box
from revgraph.drawing.lettering import TIMES, Line, shorten
from revgraph.drawing.routes import Route
from revgraph.drawing.stages import Frame

STRIP = 22.0
"""Points that a title takes at the top of its frame."""

CLEAR = 7.0
"""Points between a title and what is beside it."""


def place_titles(frames: Mapping[Frame, Box], routes: Iterable[Route]) -> Mapping[Frame, Box]:
    """The box of each frame's title, shortened only where no gap between lines has room for it."""
    down = sorted(_vertical(routes), reverse=True)
    alive: list[tuple[float, float]] = []
    titles: dict[Frame, Box] = {}
    for frame, box in sorted(frames.items(), key=lambda item: (item[1].top, item[0].block)):
        while down and down[-1][0] < box.top + STRIP:
            _, bottom, x = down.pop()
            insort(alive, (bottom, x))
        while alive and alive[0][0] <= box.top:
            alive.pop(0)
        title = frame.name + (f" {TIMES}{frame.count}" if frame.block else "")
        line = Line(title, "muted", 10.0, bold=frame.block)
        titles[frame] = _between([x for _, x in alive if box.left < x < box.right], box, line)
    return titles


def _between(lines: Iterable[float], frame: Box, line: Line) -> Box:
    walls = [frame.left, *sorted(set(lines)), frame.right]
    gaps = [(left + CLEAR, right - left - 2 * CLEAR) for left, right in pairwise(walls)]
    left, room = next((gap for gap in gaps if gap[1] >= line.width), max(gaps, key=lambda gap: gap[1]))
    line = replace(line, text=shorten(line.text, room, line.size, bold=line.bold))
    return Box(left, frame.top, left + line.width, frame.top + STRIP, (line,))


def _vertical(routes: Iterable[Route]) -> Iterable[tuple[float, float, float]]:
    """Top, bottom and x of every vertical piece of the routes."""
    for route in routes:
        for (x, y), (next_x, next_y) in pairwise(route.points):
            if x == next_x:
                yield min(y, next_y), max(y, next_y), x
