"""Paths in graphviz's form: the curve through the corners of a route, and its two ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from revgraph.drawing.routes import Point
from revgraph.drawing.styles import ARROW

ROUND = 7.0
"""The radius of a corner, in points."""


def path(points: Sequence[Point], place: Callable[[Point], str], *, arrow: bool, tap: bool) -> str:
    """The curve through `points` with round corners.

    An `arrow` ends it, its tip on the last point; where it is a `tap`, a dot begins it, its middle on the
    first point. `place` writes a point in the drawing's coordinates.
    """
    ends: list[str] = []
    line = list(points)
    if tap:
        radius = ARROW * 4
        ends.append("s," + place(_towards(line[0], line[1], -radius - 0.3)))
        line[0] = _towards(line[0], line[1], radius)
    if arrow:
        ends.append("e," + place(line[-1]))
        line[-1] = _towards(line[-1], line[-2], ARROW * 10)
    curve = [line[0]]
    for before, corner, after in zip(line, line[1:], line[2:], strict=False):
        reach = min(ROUND, _distance(before, corner) / 2, _distance(corner, after) / 2)
        _add_line(curve, _towards(corner, before, reach))
        curve += [corner, corner, _towards(corner, after, reach)]
    _add_line(curve, line[-1])
    return " ".join([*ends, *map(place, curve)])


def pair(x: float, y: float) -> str:
    """A point as graphviz writes it, to a hundredth.

    >>> pair(12.0, -0.001)
    '12,0'
    """
    return ",".join(f"{round(value, 2) + 0.0:g}" if abs(value) < 1e4 else f"{value:.1f}" for value in (x, y))


def _add_line(curve: list[Point], end: Point) -> None:
    (x, y), (end_x, end_y) = curve[-1], end
    across, down = (end_x - x) / 3, (end_y - y) / 3
    curve += [(x + across, y + down), (end_x - across, end_y - down), end]


def _towards(start: Point, end: Point, distance: float) -> Point:
    length = _distance(start, end) or 1.0
    return (
        start[0] + (end[0] - start[0]) * distance / length,
        start[1] + (end[1] - start[1]) * distance / length,
    )


def _distance(one: Point, two: Point) -> float:
    """The way along the axes: every piece of a route runs along one."""
    return abs(one[0] - two[0]) + abs(one[1] - two[1])
