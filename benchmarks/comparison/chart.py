"""Held and peak bytes against depth, as an SVG that reads well on light and on dark pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.comparison.results import Result
from benchmarks.comparison.steps import Step
from benchmarks.shared import svg_of

# Mid-tones, at least 3:1 against white and against near-black; and a shape each, for who cannot tell colours.
INK = "#808080"
LOOKS = (
    (INK, "o"),
    ("#a5754a", "s"),
    ("#3f86c9", "^"),
    ("#a06fc4", "v"),
    ("#c77d17", "D"),
    ("#2f9a72", "P"),
    ("#c9629b", "X"),
    ("#d9534a", "*"),
)
# Contenders that agree to the byte would hide each other: each stands a little further right than the last.
SHIFT = 1.09
TITLE = "Activation bytes of a training step against depth"


def draw(results: Sequence[Result]) -> str:
    """The chart of networks that differ in depth alone. Words in it stay words, to select and to search."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    colours = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    style: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "revgraph", "font.size": 11}
    with rc_context(style | dict.fromkeys(colours, INK)):
        figure = Figure(figsize=(9.6, 5.4), layout="constrained")
        held, peak = figure.subplots(1, 2, sharey=True)
        _panel(held, results, "Held from forward to backward", lambda step: step.held_bytes)
        _panel(peak, results, "Peak of the step", lambda step: step.peak_bytes)
        handles, names = held.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
        return svg_of(figure, TITLE)


def _panel(axes: Any, results: Sequence[Result], title: str, read: Callable[[Step], int]) -> None:
    names = [row.contender for row in results[0].rows]
    for index, name in enumerate(names):
        points = [
            (result.depth * SHIFT ** (index - len(names) // 2), read(row.step))
            for result in results
            for row in result.rows
            if row.contender == name and row.step is not None
        ]
        if points:
            colour, shape = LOOKS[index % len(LOOKS)]
            axes.plot(*zip(*points, strict=True), color=colour, marker=shape, markersize=8, label=name)
    axes.set_title(title)
    axes.set_xlabel("additive blocks (points of one depth stand side by side)")
    axes.set_xscale("log")
    axes.set_yscale("log", base=4)
    axes.set_xticks([result.depth for result in results], labels=[str(result.depth) for result in results])
    axes.set_xticks([], minor=True)
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value / 1024:,.0f} KiB")
    axes.grid(axis="y", alpha=0.35)
    axes.spines[["top", "right"]].set_visible(False)
