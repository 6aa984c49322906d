"""`python -m benchmarks.complexity`: activation bytes and FLOPs of a training step against depth.

The paper's Table 1, measured on RevNets of growing depth: ordinary autograd, checkpoints every root of the
depth, recursive checkpoints, and inverted. Prints the table, and writes complexity.csv, .md and .svg.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

import revgraph as rg
from benchmarks.paper.charts import LOOKS, chart, doublings, legend
from benchmarks.paper.checkpoints import recursive
from benchmarks.paper.networks import images, one_stage, plain
from benchmarks.shared import machine, markdown_table, write_csv, write_text
from benchmarks.tradeoff.contenders import every_root
from benchmarks.tradeoff.steps import measure_step

RESULTS = Path(__file__).parent / "results"
DEPTHS, BATCH = (4, 8, 16, 32, 64, 128), 8
ORDINARY, ROOT, RECURSIVE, REVERSIBLE = (
    "ordinary autograd",
    "checkpoints every sqrt(L)",
    "recursive checkpoints",
    "reversible",
)


@dataclass(frozen=True, slots=True)
class Law:
    """What the paper's Table 1 says: activation bytes and FLOPs, as text and as functions of the depth."""

    space: str
    bytes: Callable[[float], float]
    time: str
    flops: Callable[[float], float]


LAWS = {
    ORDINARY: Law("O(L)", lambda depth: depth, "O(L)", lambda depth: depth),
    ROOT: Law("O(sqrt L)", math.sqrt, "O(L)", lambda depth: depth),
    RECURSIVE: Law("O(log L)", math.log, "O(L log L)", lambda depth: depth * math.log(depth)),
    REVERSIBLE: Law("O(1)", lambda depth: 1.0, "O(L)", lambda depth: depth),
}


@dataclass(frozen=True, slots=True)
class Point:
    """A training step of one strategy at one depth; `flops_ratio` is over ordinary autograd's."""

    strategy: str
    depth: int
    peak_bytes: int
    held_bytes: int
    flops: int
    flops_ratio: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit status is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.complexity", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS, help="units, two depths or more")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"images a batch ({BATCH})")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    chosen = parser.parse_args(arguments)
    if len(set(chosen.depths)) < 2 or min(chosen.depths) < 2:
        parser.error("--depths takes two depths or more, of 2 units or more each")
    torch.set_num_threads(1)
    points: list[Point] = []
    for depth in sorted(set(chosen.depths)):
        points += measured(depth, chosen.batch)
        print(f"{depth} units measured", file=sys.stderr, flush=True)
    text = page(points, chosen.batch)
    write_csv(chosen.out / "complexity.csv", [asdict(point) for point in points])
    write_text(chosen.out / "complexity.md", text)
    draw(points, chosen.out / "complexity.svg")
    print(text)
    return 0


def measured(depth: int, batch: int) -> list[Point]:
    """All strategies on one network: the same modules, weights and images."""
    torch.manual_seed(0)
    net = rg.load(one_stage(depth, batch))
    net.plan = rg.decide(net.graph, {})
    model = plain(net, depth)
    runs = {ORDINARY: model, ROOT: every_root(model), RECURSIVE: recursive(model), REVERSIBLE: net}
    inputs = (images(net),)
    steps = {name: measure_step(run, model, inputs) for name, run in runs.items()}
    return [
        Point(name, depth, step.peak_bytes, step.held_bytes, step.flops, step.flops / steps[ORDINARY].flops)
        for name, step in steps.items()
    ]


def exponent(depths: Sequence[float], values: Sequence[float]) -> float:
    """The power of the depth by which values grow: the slope of their logarithms, by least squares.

    Example:
        >>> round(exponent([4, 8, 16], [3 * 4**2, 3 * 8**2, 3 * 16**2]), 6)
        2.0
    """
    return float(np.polyfit(np.log(depths), np.log(values), 1)[0])


def misfit(depths: Sequence[float], values: Sequence[float], law: Callable[[float], float]) -> float:
    """How far the best `a + b * law(depth)` is off, over the value, where it is farthest off.

    Example:
        >>> misfit([4, 8, 16], [7.0, 11.0, 19.0], lambda depth: depth) < 1e-12
        True
    """
    terms = np.array([[1.0, law(depth)] for depth in depths])
    found = np.asarray(values, dtype=float)
    # Relative errors are what is least, so that small depths count as much as large ones.
    factors = np.linalg.lstsq(terms / found[:, None], np.ones(len(found)), rcond=None)[0]
    return float(np.abs(terms @ factors / found - 1).max())


def page(points: Sequence[Point], batch: int) -> str:
    """The fitted exponents beside the paper's, and all that was measured."""
    depths = sorted({point.depth for point in points})
    fitted, figures = [], []
    for name, law in LAWS.items():
        mine = [point for point in points if point.strategy == name]
        row = [name]
        for said, values, rule in (
            (law.space, [each.peak_bytes for each in mine], law.bytes),
            (law.time, [each.flops for each in mine], law.flops),
        ):
            row += [said, _power(exponent(depths, [rule(depth) for depth in depths]))]
            row += [_power(exponent(depths, values)), f"{misfit(depths, values, rule):.1%}"]
        fitted.append(row)
        figures.append([name, *(f"{point.peak_bytes:,}" for point in mine)])
        figures.append(["", *(f"x{point.flops_ratio:.3f}" for point in mine)])
    described = machine()
    head = ["", *("bytes, paper", "as power", "measured", "misfit")]
    head += ["FLOPs, paper", "as power", "measured", "misfit"]
    return (
        f"RevNets of {', '.join(map(str, depths))} basic units (L), {batch} images; torch "
        f"{described['libraries']['torch']}. The powers of L by which the peak's activation bytes and a "
        f"step's FLOPs grow:\n\n{markdown_table(head, fitted)}\n\n"
        "Powers are fitted to all depths by least squares, those of the paper's laws as well, since over few "
        "depths a logarithm looks like a power. Stem and head are there at every depth, and so the misfit "
        "says how far the best a + b * law is off where it is farthest off.\n\n"
        "Bytes at the peak, and below them FLOPs over ordinary autograd's:\n\n"
        + markdown_table(["", *(f"L = {depth}" for depth in depths)], figures)
        + "\n"
    )


def _power(value: float) -> str:
    return f"L^{abs(value):.2f}" if abs(value) < 0.005 else f"L^{value:.2f}"


def draw(points: Sequence[Point], path: Path) -> None:
    """Bytes on the left, on two logarithmic axes; FLOPs over ordinary autograd's on the right."""
    depths = sorted({point.depth for point in points})
    with chart(path, "Activation bytes and FLOPs of a training step against depth") as figure:
        left, right = figure.subplots(1, 2)
        for name, (colour, shape) in zip(LAWS, (LOOKS[0], LOOKS[2], LOOKS[3], LOOKS[5]), strict=True):
            mine = [point for point in points if point.strategy == name]
            looks = {"color": colour, "marker": shape, "markersize": 7, "linewidth": 1.6}
            left.plot(depths, [each.peak_bytes / 2**20 for each in mine], label=name, **looks)
            right.plot(depths, [each.flops_ratio for each in mine], **looks)
        left.set(xscale="log", yscale="log", ylabel="activation bytes at the peak, MiB")
        left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        right.set(xscale="log", ylabel="FLOPs over ordinary autograd's", ylim=(0.9, None))
        for axes in (left, right):
            axes.set_xlabel("units, L")
            doublings(axes.xaxis, depths)
        legend(figure, 4)


if __name__ == "__main__":
    sys.exit(main())
