"""The pictures of `benchmarks.flows`: curves and bytes, and samples beside the data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.shared import svg_of, write_text

INK = "#808080"
BLUE, GREEN, RED = "#3f86c9", "#2f9a72", "#d9534a"
SHOWN = 40
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "revgraph", "font.size": 11} | dict.fromkeys(INKED, INK)


def draw_curves(
    plane: Sequence[float], images: Sequence[float], table: Mapping[int, Mapping[str, int]], path: Path
) -> None:
    """The losses of both flows, and peak bytes against depth."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.9), layout="constrained")
        losses, sizes = figure.subplots(1, 2)
        losses.plot(smoothed(plane), color=BLUE, label="RealNVP, two moons")
        losses.plot(smoothed(images), color=GREEN, linestyle="--", label="Glow-like, digits")
        losses.set(xlabel="step", ylabel="nats a dimension, mean of 50 steps")
        depths = list(table)
        for name, colour, marker in (("ordinary", RED, "s"), ("inverted", BLUE, "o")):
            sizes.plot(depths, [table[each][name] for each in depths], f"{marker}-", color=colour, label=name)
        sizes.set(xlabel="blocks", ylabel="peak activation bytes", xscale="log", yscale="log")
        sizes.set_xticks(depths, [str(each) for each in depths])
        sizes.minorticks_off()
        for axes in (losses, sizes):
            axes.grid(alpha=0.35)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False)
        save(figure, path, "training two flows")


def draw_samples(points: Tensor, drawn: Tensor, digits: Tensor, samples: Tensor, path: Path) -> None:
    """Data on the left, what the flows draw on the right."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 7.2), layout="constrained")
        grid = figure.subplots(2, 2, height_ratios=(1, 1.1))
        panels = (("two moons", points, BLUE), ("drawn from RealNVP", drawn, GREEN))
        for axes, (title, each, colour) in zip(grid[0], panels, strict=True):
            axes.scatter(each[:, 0], each[:, 1], s=4, color=colour)
            axes.set(title=title, xlim=(-1.6, 2.6), ylim=(-1.1, 1.6), aspect="equal")
            axes.spines[["top", "right"]].set_visible(False)
        for axes, title, each in zip(
            grid[1], ("digits", "drawn from the Glow-like flow"), (digits, samples), strict=True
        ):
            axes.imshow(tiled(each[:SHOWN]), cmap="gray", vmin=0, vmax=1)
            axes.set(title=title)
            axes.axis("off")
        save(figure, path, "samples of two flows")


def tiled(images: Tensor, columns: int = 8) -> Any:
    """Images [N, H, W] in rows, with a line between them."""
    from torch.nn import functional

    framed = functional.pad(images, (1, 1, 1, 1), value=0.5)
    count, height, width = framed.shape
    rows = count // columns
    kept = framed[: rows * columns].reshape(rows, columns, height, width)
    return kept.transpose(1, 2).reshape(rows * height, columns * width).numpy()


def smoothed(losses: Sequence[float], window: int = 50) -> list[float]:
    """The mean of the last `window` losses, at each step."""
    return [statistics.fmean(losses[max(0, end - window) : end]) for end in range(1, len(losses) + 1)]


def save(figure: Any, path: Path, title: str) -> None:
    """Write a picture with a title for screen readers, without a date."""
    write_text(path, svg_of(figure, title))
