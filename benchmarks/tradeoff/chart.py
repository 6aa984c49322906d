"""Bytes against FLOPs of one network, as an SVG that reads well on light and on dark pages."""

from __future__ import annotations

from typing import Any

from benchmarks.comparison.chart import INK
from benchmarks.shared import svg_of
from benchmarks.tradeoff.results import COMPILED, EVERY_ROOT, OURS, PER_BLOCK, Result

# Mid-tones, at least 3:1 against white and against near-black; a shape each, for who cannot tell colours.
LOOKS = {
    PER_BLOCK: ("#a5754a", "s"),
    EVERY_ROOT: ("#3f86c9", "^"),
    COMPILED: ("#c77d17", "D"),
}
PLAIN_LOOK, OUR_LOOK = (INK, "o"), ("#d9534a", "*")


def draw(result: Result) -> str:
    """The chart: left is less memory, down is less computation. Words in it stay words."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    colours = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    style: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "revgraph", "font.size": 11}
    with rc_context(style | dict.fromkeys(colours, INK)):
        figure = Figure(figsize=(8.4, 5.2), layout="constrained")
        axes = figure.subplots()
        _plot(axes, result)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        return svg_of(figure, f"Memory against computation: {result.title}")


def _plot(axes: Any, result: Result) -> None:
    for contender, (colour, shape) in LOOKS.items():
        points = [
            (each.peak_bytes / 2**20, each.flops_ratio)
            for each in result.others
            if each.contender == contender and each.peak_bytes is not None
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), color=colour, marker=shape, s=55, label=contender)
    colour, shape = PLAIN_LOOK
    axes.scatter(
        [(result.plain.peak_bytes or 0) / 2**20],
        [1.0],
        color=colour,
        marker=shape,
        s=80,
        label="ordinary autograd",
    )
    ours = [((each.measured.peak_bytes or 0) / 2**20, each.measured.flops_ratio) for each in result.frontier]
    colour, shape = OUR_LOOK
    axes.plot(*zip(*ours, strict=True), color=colour, marker=shape, markersize=10, label=OURS)
    axes.set_title(result.title, fontsize=11)
    axes.set_xlabel("peak activation memory, MiB, measured")
    axes.set_ylabel("FLOPs over ordinary autograd's, measured")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.35)
    axes.spines[["top", "right"]].set_visible(False)
