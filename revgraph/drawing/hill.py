"""The memory hill: live bytes over the time of a training step, a plan's before ordinary training's."""

from __future__ import annotations

from collections.abc import Sequence

from revgraph.drawing.canvas import Canvas
from revgraph.drawing.lettering import TIMES, clean, shorten, width
from revgraph.drawing.timeline import ceiling
from revgraph.planning.deciding import keep_all
from revgraph.planning.plans import Plan, human_bytes
from revgraph.planning.simulating import Moment, simulate

# Narrow, so that its letters can be read where a phone makes it as wide as its screen.
WIDTH, HEIGHT = 368.0, 180.0
LEFT, RIGHT, TOP, BOTTOM = 76.0, 16.0, 74.0, 62.0
TITLE, TEXT = 14.0, 12.0

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
        canvas.text(left - 6, y + 4, human_bytes(round(tick * scale)), size=TEXT, anchor="end")
    for moments, fill, line, about in (
        (theirs, "area-passing", "muted", "ordinary training"),
        (ours, "area-rebuilt", "ink", "this plan"),
    ):
        outline = _outline(moments)
        ground = [(outline[0][0], 0.0), *outline, (outline[-1][0], 0.0)]
        canvas.area([place(*point) for point in ground], fill=fill, about=about)
        canvas.line([place(*point) for point in outline], line=line)
    title = shorten(f"{name}: memory over one training step", LEFT + WIDTH, TITLE, bold=True)
    canvas.text(RIGHT, 20, title, size=TITLE, role="ink", bold=True)
    words = [
        ("area-passing", f"ordinary training, {human_bytes(ordinary.peak_bytes)}"),
        (
            "area-rebuilt",
            f"this plan, {human_bytes(plan.peak_bytes)}: {abs(saved):.0%} {_more_or_less(saved)}",
        ),
    ]
    for row, (fill, text) in enumerate(words):
        canvas.box(RIGHT, 31 + 17 * row, 11, 11, fill=fill, line="plain-line")
        canvas.text(RIGHT + 17, 41 + 17 * row, text, size=TEXT, role="ink")
    floor = TOP + HEIGHT
    for row, (seconds, text) in enumerate(
        ((_seconds(ours), f"{TIMES}{plan.time_ratio:.2f}"), (plain, "ordinary training ends"))
    ):
        across, _ = place(seconds, 0)
        under = floor + 18 + 17 * row
        canvas.line([(across, floor), (across, under - 11)], line="muted")
        canvas.text(max(across, LEFT + width(text, TEXT)), under, text, size=TEXT, anchor="end")
    time = shorten(f"time, estimated ({plan.profile.name}): forward, then backward", WIDTH + LEFT, TEXT)
    canvas.text(RIGHT, floor + 54, time, size=TEXT)
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
