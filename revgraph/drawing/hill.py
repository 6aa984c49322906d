"""The memory hill: live bytes over the time of a training step, a plan's before ordinary training's."""

from __future__ import annotations

from collections.abc import Sequence

from revgraph.drawing.canvas import Canvas
from revgraph.drawing.lettering import TIMES, clean, width
from revgraph.drawing.timeline import ceiling
from revgraph.planning.deciding import keep_all
from revgraph.planning.plans import Plan, human_bytes
from revgraph.planning.simulating import Moment, simulate

WIDTH, HEIGHT = 640.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 74.0, 20.0, 64.0, 46.0
TEXT = 11.0

Point = tuple[float, float]


def hill(plan: Plan) -> str:
    """The hill as SVG: the most bytes of each instruction, over time by the plan's device profile."""
    ordinary = keep_all(plan.graph).noted(profile=plan.profile)
    ordinary.schedules.clear()
    theirs, ours = simulate(ordinary), simulate(plan)
    plain = _seconds(theirs)
    longest = max(plain, _seconds(ours), 1e-12)
    top, scale = ceiling(max(ordinary.peak_bytes, plan.peak_bytes, 1))
    name = clean(plan.graph.name) or "a network"
    saved = 1 - plan.peak_bytes / ordinary.peak_bytes if ordinary.peak_bytes else 0.0
    canvas = Canvas(
        LEFT + WIDTH + RIGHT,
        TOP + HEIGHT + BOTTOM,
        f"revgraph: memory over one training step of {name}",
        f"Ordinary training takes {human_bytes(ordinary.peak_bytes)} at its peak, the plan "
        f"{human_bytes(plan.peak_bytes)}, in {TIMES}{plan.time_ratio:.2f} of the time (estimated).",
    )

    def place(seconds: float, count: float) -> Point:
        return LEFT + WIDTH * seconds / longest, TOP + HEIGHT * (1 - count / top)

    for tick in range(round(top / scale) + 1):
        (left, y), (right, _) = place(0, tick * scale), place(longest, 0)
        canvas.line([(left, y), (right, y)], line="grid")
        canvas.text(left - 6, y + 3.5, human_bytes(round(tick * scale)), anchor="end")
    for moments, fill, line, about in (
        (theirs, "area-passing", "muted", "ordinary training"),
        (ours, "area-rebuilt", "ink", "this plan"),
    ):
        outline = _outline(moments)
        ground = [(outline[0][0], 0.0), *outline, (outline[-1][0], 0.0)]
        canvas.area([place(*point) for point in ground], fill=fill, about=about)
        canvas.line([place(*point) for point in outline], line=line)
    canvas.text(LEFT, 20, f"{name}: memory over one training step", size=14, role="ink", bold=True)
    words = [
        ("area-passing", f"ordinary training, {human_bytes(ordinary.peak_bytes)}"),
        (
            "area-rebuilt",
            f"this plan, {human_bytes(plan.peak_bytes)}: {abs(saved):.0%} {_more_or_less(saved)}",
        ),
    ]
    x = LEFT
    for fill, text in words:
        canvas.box(x, 34, 11, 11, fill=fill, line="plain-line")
        canvas.text(x + 16, 44, text, size=TEXT, role="ink")
        x += 16 + width(text, TEXT) + 24
    floor = TOP + HEIGHT
    for seconds, text in (
        (plain, "ordinary training ends"),
        (_seconds(ours), f"{TIMES}{plan.time_ratio:.2f}"),
    ):
        across, _ = place(seconds, 0)
        canvas.line([(across, floor), (across, floor + 6)], line="muted")
        canvas.text(across, floor + 18, text, anchor="end")
    canvas.text(LEFT, floor + 18, "forward, then backward")
    canvas.text(LEFT, floor + 36, f"time, estimated ({plan.profile.name})")
    return canvas.svg()


def _more_or_less(saved: float) -> str:
    return "more" if saved < 0 else "less"


def _seconds(moments: Sequence[Moment]) -> float:
    return sum(each.nanoseconds for each in moments) / 1e9


def _outline(moments: Sequence[Moment]) -> list[Point]:
    """Seconds and bytes: the most of an instruction, level from its beginning to its end."""
    found: list[Point] = [(0.0, 0.0)]
    now, most = 0.0, 0
    for each in moments:
        most = max(most, each.peak_bytes)
        if each.nanoseconds:  # what takes no time shows with what comes next
            found += [(now, most), (now := now + each.nanoseconds / 1e9, most)]
            most = 0
    return [*found, (now, moments[-1].live_bytes if moments else 0)]
