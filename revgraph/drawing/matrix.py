"""The schedule matrix: what happens to which node at which step."""

from __future__ import annotations

from collections.abc import Sequence

from revgraph.drawing.axis import LONGEST_NAME, SIZE, Axis, axis
from revgraph.drawing.canvas import Canvas
from revgraph.drawing.lettering import clean, shorten, width
from revgraph.planning.plans import Plan
from revgraph.planning.schedule import Instruction

LOWEST, HIGHEST = 3.0, 14.0
HEIGHT, TOP, BOTTOM, RIGHT = 620.0, 62.0, 28.0, 18.0
LABELS_APART = 10.5
RERUNS = ("recompute", "recompute_and_keep", "invert_again", "rerun")
SIGNS = {
    "run": "run",
    "invert": "inverted",
    "recompute": "run again",
    "wire": "wiring",
    "backward": "backward",
}
LINES = {"stored": (2.4, "stored"), "invert-line": (1.2, "rebuilt, waiting")}
"""The lines of what lies on the tape: how wide, and what they mean."""


def matrix(plan: Plan, steps: Sequence[Instruction]) -> str:
    """The matrix as SVG: a row a node in the forward's order, a column a step.

    Lines along the rows are values that wait on the tape: stored from the forward on, or rebuilt.
    """
    on = axis(steps)
    rows = {node.name: index for index, node in enumerate(n for n in plan.graph.nodes if n.kind != "output")}
    for step in steps:
        if step.node:
            rows.setdefault(step.node, len(rows))
    height = min(HIGHEST, max(LOWEST, HEIGHT / max(len(rows), 1)))
    canvas = Canvas(
        on.right + RIGHT,
        TOP + height * len(rows) + BOTTOM,
        f"revgraph: schedule of a training step of {clean(plan.graph.name) or 'a network'}",
        f"{len(steps)} steps over {len(rows)} nodes: what runs, is inverted and differentiated.",
    )
    _names(canvas, on, rows, height)
    lines = _lives(canvas, on, plan, steps, rows, height)
    radius = max(1.2, min(height, on.step) / 2 - 0.6)
    for index, step in enumerate(steps):
        if step.node:
            _mark(canvas, step, on.x(index + 0.5), TOP + (rows[step.node] + 0.5) * height, radius, str(index))
    if 0 < on.turn < on.count:
        x, bottom = on.x(on.turn), TOP + height * len(rows)
        canvas.line([(x, TOP - 6), (x, bottom + 6)], line="muted", dash="2 3")
        canvas.text(x - 6, bottom + 18, "forward", anchor="end")
        canvas.text(x + 6, bottom + 18, "backward")
    _head(canvas, on, plan, {_sign(step.action) for step in steps if step.node}, lines)
    return canvas.svg()


def _mark(canvas: Canvas, step: Instruction, x: float, y: float, radius: float, index: str) -> None:
    data = {"node": step.node, "step": index}
    if step.action == "invert":
        canvas.diamond(x, y, radius * 1.2, fill="invert", line="invert-line", data=data)
    elif step.action in RERUNS:
        canvas.disc(x, y, radius, fill="recompute", line="recompute-line", data=data)
    elif step.action in ("wire", "invert_wiring"):
        canvas.disc(x, y, radius * 0.6, fill="plain", line="plain-line", data=data)
    else:
        fill, line = ("stream", "") if step.action == "backward" else ("plain", "plain-line")
        canvas.box(x - radius, y - radius, 2 * radius, 2 * radius, fill=fill, line=line, data=data)


def _lives(
    canvas: Canvas, on: Axis, plan: Plan, steps: Sequence[Instruction], rows: dict[str, int], height: float
) -> set[str]:
    """A line for each time that a value spends on the tape, in the row of the node that made it.

    Returns which kinds of line there are.
    """
    makers = {name: node.name for node in plan.graph.nodes for name in node.outputs}
    begun: dict[str, tuple[int, bool]] = {}
    drawn: set[str] = set()

    def draw(name: str, end: float) -> None:
        start, stored = begun.pop(name)
        row = rows.get(makers.get(name, ""))
        if row is not None:
            y = TOP + (row + 0.5) * height
            line = "stored" if stored else "invert-line"
            canvas.line([(on.x(start + 0.5), y), (on.x(end), y)], line=line, width=LINES[line][0])
            drawn.add(line)

    for index, step in enumerate(steps):
        for name in step.stores:
            begun[name] = index, True
        for name in step.makes if step.stage else ():
            begun.setdefault(name, (index, False))
        for name in step.frees if step.stage or step.action == "free" else ():
            if name in begun:
                draw(name, index + 0.5)
    for name in list(begun):
        draw(name, len(steps))
    return drawn


def _names(canvas: Canvas, on: Axis, rows: dict[str, int], height: float) -> None:
    every = max(1, -(-int(LABELS_APART * 10) // max(1, int(height * 10))))
    for name, row in rows.items():
        y = TOP + (row + 0.5) * height
        if row % every == 0:
            canvas.line([(on.left, y), (on.right, y)], line="grid", width=0.6)
            canvas.text(on.left - 8, y + 3, shorten(name, LONGEST_NAME, SIZE), size=SIZE, anchor="end")


def _sign(action: str) -> str:
    """The action in the legend that has the same sign as this one."""
    if action in RERUNS:
        return "recompute"
    if action in ("wire", "invert_wiring"):
        return "wire"
    return action if action in SIGNS else "run"


def _head(canvas: Canvas, on: Axis, plan: Plan, actions: set[str], lines: set[str]) -> None:
    """The title, and a legend of the signs and lines that there are."""
    canvas.text(on.left, 18, f"{clean(plan.graph.name)}: the schedule", size=13, role="ink", bold=True)
    x = on.left
    for action, meaning in SIGNS.items():
        if action not in actions:
            continue
        _mark(canvas, Instruction(action, ""), x + 5, 37, 4.5, "")  # pyright: ignore[reportArgumentType]
        canvas.text(x + 14, 40.5, meaning)
        x += 30 + width(meaning, 10.0)
    for line, (wide, meaning) in LINES.items():
        if line not in lines:
            continue
        canvas.line([(x, 37), (x + 16, 37)], line=line, width=wide)
        canvas.text(x + 21, 40.5, meaning)
        x += 38 + width(meaning, 10.0)
