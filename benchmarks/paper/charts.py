"""The common form of the paper's charts: SVGs that read well on light and on dark pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.shared import svg_of, write_text
from revgraph.drawing.charts import INK, INKED, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Mid-tones, at least 3:1 against white and against near-black; and a shape each, for who cannot tell colours.
LOOKS = ((INK, "o"), ("#a5754a", "s"), ("#3f86c9", "^"), ("#c77d17", "D"), ("#2f9a72", "P"), ("#d9534a", "*"))


@contextmanager
def chart(
    path: Path, title: str, size: tuple[float, float] = (9.6, 4.6), grid: Literal["both", "x"] = "both"
) -> Iterator[Figure]:
    """A figure to draw on, written to `path` at the end; `title` is for those who hear the picture.

    `grid` has the axes whose ticks get lines, which run below what is drawn.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE | dict.fromkeys(INKED, INK)):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        for axes in figure.axes:
            axes.set_axisbelow(True)
            axes.grid(axis=grid, alpha=0.35)
            axes.spines[["top", "right"]].set_visible(False)
        svg = svg_of(figure, title)
    described = f'<svg role="img" lang="en" aria-label="{escape(title)}" '
    write_text(path, svg.replace("<svg ", described, 1))


def legend(figure: Figure, columns: int, handles: Sequence[Any] | None = None) -> None:
    """One legend for the whole figure, below it, of its first axes' names unless given."""
    if handles is None:
        handles, _ = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def doublings(axis: Any, values: Sequence[int]) -> None:
    """Ticks of a logarithmic axis at these values alone, written out."""
    axis.set_ticks(list(values), labels=[f"{value:,}" for value in values])
    axis.set_ticks([], minor=True)
