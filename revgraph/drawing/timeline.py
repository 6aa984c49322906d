"""The memory timeline: live bytes over the steps of a training step, by what holds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from revgraph.drawing.axis import Axis, axis
from revgraph.drawing.canvas import Canvas
from revgraph.drawing.lettering import clean, width
from revgraph.planning.composing import PARTS, Composition
from revgraph.planning.plans import Plan, human_bytes

HEIGHT, BOTTOM, RIGHT = 240.0, 34.0, 18.0
LEGEND, ROW = 30.0, 15.0
TICKS = 4
DOT = "dot"
TEXT = 10.0
PEAK = {"mark": "peak"}
"""On what points out the peak, which a report may hide at first."""

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
    signs = _signs(on, [part for part in PARTS if any(each.parts[part] for each in composed)], bool(measured))
    floor = max(row for _, row, _, _ in signs) + ROW + 22 + HEIGHT
    canvas = Canvas(
        on.right + RIGHT,
        floor + BOTTOM,
        f"revgraph: memory of a training step of {clean(plan.graph.name) or 'a network'}",
        f"{len(composed)} steps. The peak of {human_bytes(at.peak_bytes)} is at step {peak + 1}, "
        f"{at.step.action} {at.step.node}; {human_bytes(plan.held_bytes)} are held at the turn.",
    )
    top, scale = ceiling(most)

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
    limit = None if budget is None else (y(budget), f"budget {human_bytes(budget)}")
    _peak_and_budget(canvas, on, (on.x(peak + 0.5), y(at.peak_bytes)), at.peak_bytes, limit)
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


@dataclass(frozen=True, slots=True)
class _Label:
    """A line of text that begins, or with the anchor "end" ends, at a point of its baseline."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    bold: bool = False

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Its left, top, right and bottom, with a little space around."""
        wide = width(self.text, TEXT, bold=self.bold)
        left = self.x - wide if self.anchor == "end" else self.x
        return left - 3, self.y - TEXT, left + wide + 3, self.y + 3

    def meets(self, other: _Label) -> bool:
        """Whether the two lie over each other."""
        left, top, right, bottom = self.box
        its_left, its_top, its_right, its_bottom = other.box
        return left < its_right and its_left < right and top < its_bottom and its_top < bottom

    def write(self, canvas: Canvas, data: Mapping[str, str] | None = None) -> None:
        place = {"anchor": self.anchor, "bold": self.bold, "data": data}
        canvas.text(self.x, self.y, self.text, size=TEXT, role="peak", halo=True, **place)


def _peak_and_budget(
    canvas: Canvas, on: Axis, peak: tuple[float, float], count: int, limit: tuple[float, str] | None
) -> None:
    """The mark of the peak and the line of the budget, with their texts apart from that line and each other.

    A budget that a plan uses up has its line just above the peak, where the peak's text would stand.
    """
    x, y = peak
    text = f"peak {human_bytes(count)}"
    beside = x + 8 + width(text, TEXT, bold=True) > on.right
    label = _Label(x - 8 if beside else x + 8, y - 5, text, "end" if beside else "start", bold=True)
    if limit is not None:
        line, words = limit
        _, top, _, bottom = label.box
        if top - 2 < line < bottom + 3:
            label = replace(label, y=line - 5)
        ends = ((on.left + 4, "start"), (on.right - 4, "end"))
        heights = (line - 5, line - TEXT - 9, line + TEXT + 3)
        places = [_Label(across, height, words, end) for height in heights for across, end in ends]
        canvas.line([(on.left, line), (on.right, line)], line="peak", width=1.4, dash="6 3")
        next((place for place in places if not place.meets(label)), places[-1]).write(canvas)
    canvas.disc(x, y, 3.2, fill="peak", data=PEAK)
    label.write(canvas, PEAK)


def _head(canvas: Canvas, on: Axis, plan: Plan, signs: Sequence[Sign]) -> None:
    title = f"{clean(plan.graph.name)}: live bytes, step by step"
    canvas.text(on.left, 18, title, size=13, role="ink", bold=True)
    for x, row, fill, meaning in signs:
        if fill == DOT:
            canvas.disc(x + 5, row + 5, 2.6, fill="ink", line="ground")
        elif fill:
            canvas.box(x, row, 10, 10, fill=fill, line="plain-line")
        else:
            canvas.line([(x, row + 5), (x + 10, row + 5)], line="ink")
        canvas.text(x + 14, row + 9, meaning)


def _signs(on: Axis, parts: Sequence[str], dots: bool) -> list[Sign]:
    """The legend of these parts: where each sign stands, its fill (none for the line and the dots), and what
    it means."""
    meanings = [
        *((f"area-{part}", MEANINGS[part]) for part in parts),
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


def ceiling(most: int) -> tuple[float, float]:
    """A round number of bytes from `most` on, and the distance of ticks, in binary units."""
    unit = 2.0 ** (10 * min(4, int(math.log2(most) // 10)))
    rough = most / unit / TICKS
    power = 10 ** math.floor(math.log10(rough))
    scale = next(each * power for each in (1, 2, 2.5, 5, 10) if each * power >= rough) * unit
    return math.ceil(most / scale) * scale, scale
