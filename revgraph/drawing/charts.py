"""Charts, drawn with matplotlib: plans on the axes of memory and computation, and the drift of values."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revgraph.drawing.lettering import TIMES
from revgraph.drawing.palette import PAINTS
from revgraph.drawing.writing import write
from revgraph.planning.budgets import knee
from revgraph.planning.plans import Plan, human_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHART_SUFFIXES = (".svg", ".png")
# Mid-tones, at least 3:1 against white and against near-black; and a shape each, for who cannot tell colours.
# No colour is 4.5:1 against both, so letters of an SVG are repainted for the ground that the reader prefers.
INK = "#808080"
LETTERS = f':is(text,tspan)[style*="{INK}"],g[style*="{INK}"] :is(text,tspan)'
FRONTIER, KNEE, BUDGET = "#3f86c9", "#2f9a72", "#d9534a"
MARKS = (("#c77d17", "*", 14), ("#a06fc4", "s", 9), ("#a5754a", "^", 9), ("#c9629b", "v", 9), (INK, "P", 9))
WORDS = {"time": "estimated time", "flops": "FLOPs"}
UNITS = (("B", 1), ("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30), ("TiB", 2**40))
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "revgraph", "font.size": 11}
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")


def chart_frontier(
    plans: Sequence[Plan], form: str, budget: int | None = None, beside: Mapping[str, Plan] | None = None
) -> bytes:
    """A frontier as an .svg or .png, by its suffix `form`.

    To the right are activation bytes at the peak, upwards FLOPs over ordinary autograd's. The frontier is a
    staircase, for a budget between two of its `plans` takes the cheaper one in bytes; its knee is marked, and
    so are the `budget` in bytes and the plans `beside` it by name. The ground is transparent, and the colours
    can be read on light and on dark.

    Raises:
        PlanError: there are no plans.
        ModuleNotFoundError: matplotlib is not installed.
    """
    turn = knee(plans)
    others = dict(beside or {})
    title = f"{plans[0].graph.name}: computing again against activation memory"
    picture = _picture(title, plans, turn, budget, others, form)
    if form == ".svg":
        picture = _described(picture, _description(plans, turn, budget, others))
    return picture


def chart_drift(
    drift: Mapping[str, float], path: str | os.PathLike[str], *, limit: float | None = None
) -> Path:
    """Draw the drift that `rg.check` reports into the file `path`, an .svg or .png, and return that path.

    To the right are the rebuilt values in the order in which backward rebuilds them, upwards their relative
    errors on a logarithmic scale; below the smallest error are those of none. A line marks the `limit`.

    Raises:
        ValueError: there are no values, or the suffix is neither of the two.
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    target = Path(path)
    form = target.suffix.lower()
    if form not in CHART_SUFFIXES:
        raise ValueError(f"cannot draw a chart into {str(target)!r}: use one of {', '.join(CHART_SUFFIXES)}")
    if not drift:
        raise ValueError("nothing was rebuilt, so there is no drift to draw: plan with inverted couplings")
    title = "drift of rebuilt values"
    least = min((error for error in drift.values() if 0 < error < math.inf), default=1e-8) / 10
    errors = [min(max(error, least), 1e30) if error == error else 1e30 for error in drift.values()]
    with rc_context(STYLE | dict.fromkeys(INKED, INK)):
        figure = Figure(figsize=(8.4, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.plot(range(1, len(errors) + 1), errors, "o-", color=FRONTIER, markersize=4, linewidth=1.2)
        if limit is not None:
            axes.axhline(limit, color=BUDGET, linestyle="--", linewidth=1.5, label=f"the limit, {limit:.2g}")
            figure.legend(loc="outside lower center", frameon=False)
        worst = max(drift, key=drift.__getitem__)
        axes.set(title=title, yscale="log", ylabel="error over the largest element")
        axes.set_xlabel(f"rebuilt values in backward order; the worst is {worst}, {drift[worst]:.2g}")
        axes.grid(alpha=0.35)
        axes.spines[["top", "right"]].set_visible(False)
        picture = _saved(figure, title, form)
    if form == ".svg":
        described = f"The drift of {len(drift)} rebuilt values, up to {drift[worst]:.2g} at {worst}."
        picture = _described(picture, described)
    write(target, picture)
    return target


def legible(svg: str) -> str:
    """A chart in `INK` whose letters are darker on light ground, and lighter where dark is preferred.

    A viewer without CSS shows them as they are.
    """
    paint = PAINTS["muted"]
    style = (
        f"<style>svg{{color-scheme:light dark}}{LETTERS}{{fill:{paint.light}!important}}"
        f"@media screen and (prefers-color-scheme:dark){{{LETTERS}{{fill:{paint.dark}!important}}}}</style>"
    )
    drawn, end, rest = svg.rpartition("</svg>")
    return f"{drawn}{style}\n{end}{rest}"


def _saved(figure: Figure, title: str, form: str) -> bytes:
    written = io.BytesIO()
    metadata = {"Date": None, "Title": title} if form == ".svg" else {"Title": title}
    figure.savefig(written, format=form[1:], dpi=144, transparent=True, metadata=metadata)
    return written.getvalue()


def _picture(
    title: str,
    plans: Sequence[Plan],
    turn: Plan,
    budget: int | None,
    others: Mapping[str, Plan],
    form: str,
) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    most = max(budget or 0, *(plan.peak_bytes for plan in (*plans, *others.values())))
    unit, size = max((each for each in UNITS if each[1] <= most), key=lambda each: each[1], default=UNITS[0])
    with rc_context(STYLE | dict.fromkeys(INKED, INK)):
        figure = Figure(figsize=(8.4, 5.2), layout="constrained")
        axes = figure.subplots()

        def point(plan: Plan, name: str, colour: str, shape: str, **looks: Any) -> None:
            x, y = plan.peak_bytes / size, plan.cost_ratio
            axes.plot([x], [y], shape, color=colour, linestyle="none", label=name, **looks)

        ends = [*((plan.peak_bytes / size, plan.cost_ratio) for plan in plans)]
        ends.append((most * 1.06 / size, plans[-1].cost_ratio))
        stairs = {"color": FRONTIER, "linewidth": 2, "drawstyle": "steps-post", "zorder": 1}
        axes.plot(*zip(*ends, strict=True), label="the frontier", **stairs)
        xs, ys = zip(*ends[:-1], strict=True)
        axes.plot(xs, ys, "o", color=FRONTIER, markersize=6, linestyle="none", label="the frontier's plans")
        point(turn, "its knee", KNEE, "D", markersize=11, markerfacecolor="none", markeredgewidth=2)
        for (name, plan), (colour, shape, size_) in zip(others.items(), cycle(MARKS), strict=False):
            point(plan, name, colour, shape, markersize=size_, zorder=4)
        if budget is not None:
            name = f"the budget, {human_bytes(budget)}"
            axes.axvline(budget / size, color=BUDGET, linestyle="--", linewidth=1.5, label=name)
        axes.set_title(title, color=INK)
        axes.set_xlabel(f"activation bytes at the peak, {unit}")
        axes.set_ylabel(f"{WORDS[plans[0].cost]} over ordinary autograd's")
        axes.set_xlim(0, most * 1.06 / size)
        axes.margins(y=0.08)
        axes.grid(alpha=0.35)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        return _saved(figure, title, form)


def _description(
    plans: Sequence[Plan],
    turn: Plan,
    budget: int | None,
    others: Mapping[str, Plan],
) -> str:
    """What the chart shows, in words."""
    parts = [f"A frontier of {len(plans)} plans from {_place(plans[0])} to {_place(plans[-1])}"]
    parts.append(f"its knee at {_place(turn)}")
    parts += [f"{name} at {_place(plan)}" for name, plan in others.items()]
    if budget is not None:
        parts.append(f"the budget of {human_bytes(budget)}")
    return "; ".join(parts) + "."


def _place(plan: Plan) -> str:
    return f"{human_bytes(plan.peak_bytes)} and {TIMES}{plan.cost_ratio:.3f} {WORDS[plan.cost]}"


def _described(svg: bytes, description: str) -> bytes:
    """The SVG with a description after its title, and told to screen readers as one picture."""
    text = svg.decode().replace("</title>", f"</title>\n <desc>{escape(description)}</desc>", 1)
    return legible(text.replace("<svg ", '<svg role="img" lang="en" ', 1)).encode()
