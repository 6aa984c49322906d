"""The memory timeline: live bytes over the steps of a training step, by what holds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from revgraph.drawing.axis import Axis, axis
from revgraph.drawing.canvas import Canvas
from revgraph.drawing.lettering import clean, width
from revgraph.planning.composing import PARTS, Composition
from revgraph.planning.plans import Plan, human_bytes

HEIGHT, BOTTOM, RIGHT = 240.0, 34.0, 18.0
LEGEND, ROW = 30.0, 15.0
TICKS = 4
DOT = "dot"
Sign = tuple[float, float, str, str]
MEANINGS = {
    "stored": "stored for the backward",
    "rebuilt": "rebuilt in the backward",
    "internals": "internals of nodes",
    "gradients": "gradients",
    "passing": "passing, and the caller's",
}


def timeline(
    plan: Plan,
    composed: Sequence[Composition],
    budget: int | None = None,
    measured: Sequence[tuple[int, int]] = (),
) -> str:
    """The timeline as SVG: bytes after each step, stacked, and the most during each as a line above.

    `measured` are bytes really live, drawn as dots: pairs of a step's index and a number.
    """
    on = axis([each.moment.step for each in composed])
    most = max([each.moment.peak_bytes for each in composed] + [budget or 0, 1])
    peak = max(range(len(composed)), key=lambda index: composed[index].moment.peak_bytes)
    at = composed[peak].moment
    signs = _signs(on, bool(measured))
    floor = max(row for _, row, _, _ in signs) + ROW + 22 + HEIGHT
    canvas = Canvas(
        on.right + RIGHT,
        floor + BOTTOM,
        f"revgraph: memory of a training step of {clean(plan.graph.name) or 'a network'}",
        f"{len(composed)} steps. The peak of {human_bytes(at.peak_bytes)} is at step {peak + 1}, "
        f"{at.step.action} {at.step.node}; {human_bytes(plan.held_bytes)} are held at the turn.",
    )
    top, scale = _ceiling(most)

    def y(count: float) -> float:
        return floor - HEIGHT * count / top

    _grid(canvas, on, y, top, scale)
    _areas(canvas, on, y, composed)
    spikes = [
        (on.x(index + side), y(each.moment.peak_bytes))
        for index, each in enumerate(composed)
        for side in (0, 1)
    ]
    canvas.line(spikes, line="ink", width=1.0)
    for index, count in measured:
        canvas.disc(on.x(index + 0.5), y(count), min(2.6, on.step / 3), fill="ink", line="ground")
    if budget is not None:
        canvas.line([(on.left, y(budget)), (on.right, y(budget))], line="peak", width=1.4, dash="6 3")
        canvas.text(on.left + 4, y(budget) - 4, f"budget {human_bytes(budget)}", role="peak")
    _peak(canvas, on, y, peak, at.peak_bytes)
    _head(canvas, on, plan, signs)
    return canvas.svg()


def _areas(canvas: Canvas, on: Axis, y: Callable[[float], float], composed: Sequence[Composition]) -> None:
    below = [0] * len(composed)
    for part in PARTS:
        above = [base + each.parts[part] for base, each in zip(below, composed, strict=True)]
        if above != below:
            upper = [(on.x(index + side), y(count)) for index, count in enumerate(above) for side in (0, 1)]
            lower = [(on.x(index + side), y(count)) for index, count in enumerate(below) for side in (0, 1)]
            canvas.area([*upper, *reversed(lower)], fill=f"area-{part}", about=MEANINGS[part])
        below = above


def _grid(canvas: Canvas, on: Axis, y: Callable[[float], float], top: float, scale: float) -> None:
    for tick in range(round(top / scale) + 1):
        canvas.line([(on.left, y(tick * scale)), (on.right, y(tick * scale))], line="grid")
        canvas.text(on.left - 6, y(tick * scale) + 3.5, human_bytes(round(tick * scale)), anchor="end")
    if 0 < on.turn < on.count:
        x = on.x(on.turn)
        canvas.line([(x, y(top) - 6), (x, y(0) + 6)], line="muted", dash="2 3")
        canvas.text(x - 6, y(0) + 18, "forward", anchor="end")
        canvas.text(x + 6, y(0) + 18, "backward")


def _peak(canvas: Canvas, on: Axis, y: Callable[[float], float], index: int, count: int) -> None:
    x, text = on.x(index + 0.5), f"peak {human_bytes(count)}"
    canvas.disc(x, y(count), 3.2, fill="peak")
    beside = x + 8 + width(text, 10.0, bold=True) > on.right
    canvas.text(
        x - 8 if beside else x + 8,
        y(count) - 5,
        text,
        role="peak",
        bold=True,
        anchor="end" if beside else "start",
        halo=True,
    )


def _head(canvas: Canvas, on: Axis, plan: Plan, signs: Sequence[Sign]) -> None:
    title = f"{clean(plan.graph.name)}: live bytes, step by step"
    canvas.text(on.left, 18, title, size=13, role="ink", bold=True)
    for x, row, fill, meaning in signs:
        if fill == DOT:
            canvas.disc(x + 5, row + 5, 2.6, fill="ink")
        elif fill:
            canvas.box(x, row, 10, 10, fill=fill, line="plain-line")
        else:
            canvas.line([(x, row + 5), (x + 10, row + 5)], line="ink")
        canvas.text(x + 14, row + 9, meaning)


def _signs(on: Axis, dots: bool) -> list[Sign]:
    """The legend: where each sign stands, its fill (none for the line and the dots), and what it means."""
    meanings = [
        *((f"area-{part}", meaning) for part, meaning in MEANINGS.items()),
        ("", "the most during a step"),
    ]
    if dots:
        meanings.append((DOT, "measured"))
    signs: list[Sign] = []
    x, row = on.left, LEGEND
    for fill, meaning in meanings:
        wide = 14 + width(meaning, 10.0)
        if x > on.left and x + wide > on.right:
            x, row = on.left, row + ROW
        signs.append((x, row, fill, meaning))
        x += wide + 16
    return signs


def _ceiling(most: int) -> tuple[float, float]:
    """A round number of bytes from `most` on, and the distance of ticks, in binary units."""
    unit = 2.0 ** (10 * min(4, int(math.log2(most) // 10)))
    rough = most / unit / TICKS
    power = 10 ** math.floor(math.log10(rough))
    scale = next(each * power for each in (1, 2, 2.5, 5, 10) if each * power >= rough) * unit
    return math.ceil(most / scale) * scale, scale
