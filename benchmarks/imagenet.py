"""`python -m benchmarks.imagenet`: the activation bytes of ResNet-101 and RevNet-104, without allocating any.

Plans on shapes alone, at batches from 32 to 1,024: everything kept, couplings inverted, and the least peak;
and the whole frontier at one batch. Prints the tables, and writes imagenet.csv, .md and .svg.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import revgraph as rg
from benchmarks.paper.charts import LOOKS, chart, doublings, legend
from benchmarks.shared import machine, markdown_table, write_csv, write_text
from revgraph.planning import human_bytes

RESULTS = Path(__file__).parent / "results"
NETWORKS, BATCHES, FRONTIER_BATCH = ("resnet-101", "revnet-104"), (32, 64, 128, 256, 512, 1024), 256
KEPT, INVERTED, LEAST, FRONTIER = "all kept", "couplings inverted", "least peak", "frontier"


@dataclass(frozen=True, slots=True)
class Row:
    """One plan's prediction for a network at a batch."""

    network: str
    batch: int
    plan: str
    peak_bytes: int
    held_bytes: int
    flops_ratio: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan, print and write; the exit status is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.imagenet", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="a ResNet and a RevNet, or others")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="images (32 to 1,024)")
    parser.add_argument(
        "--frontier-batch", type=int, default=FRONTIER_BATCH, help=f"of the frontier ({FRONTIER_BATCH})"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in chosen.networks:
        for batch in sorted({*chosen.batches, chosen.frontier_batch}):
            rows += planned(name, batch, frontier=batch == chosen.frontier_batch)
            print(f"{name}, {batch} images: planned", file=sys.stderr, flush=True)
    text = page(rows)
    write_csv(chosen.out / "imagenet.csv", [asdict(row) for row in rows])
    write_text(chosen.out / "imagenet.md", text)
    draw(rows, chosen.out / "imagenet.svg")
    print(text)
    return 0


def planned(name: str, batch: int, frontier: bool = False) -> list[Row]:
    """The plans of one network at one batch; a network without couplings has none to invert."""
    with torch.device("meta"):
        graph = rg.load(name, batch=batch).graph
    plans = [(KEPT, rg.keep_all(graph)), (LEAST, rg.plan(graph, budget="least"))]
    if any(node.kind == "coupling" for node in graph.nodes):
        plans.insert(1, (INVERTED, rg.decide(graph, {})))
    if frontier:
        plans += [(FRONTIER, plan) for plan in rg.frontier(graph, cost="flops")]
    return [
        Row(Path(name).stem, batch, label, plan.peak_bytes, plan.held_bytes, plan.flops_ratio)
        for label, plan in plans
    ]


def page(rows: Sequence[Row]) -> str:
    """Bytes by batch, the frontiers, and what the prediction itself took."""
    batches = sorted({row.batch for row in rows})
    lines = []
    for network, plan in dict.fromkeys((row.network, row.plan) for row in rows if row.plan != FRONTIER):
        mine = [row for row in rows if (row.network, row.plan) == (network, plan)]
        ratios = dict.fromkeys(f"x{row.flops_ratio:.3f}" for row in mine)
        lines.append([network, plan, *(human_bytes(row.peak_bytes) for row in mine), _range(list(ratios))])
    frontiers = [
        [row.network, human_bytes(row.peak_bytes), human_bytes(row.held_bytes), f"x{row.flops_ratio:.3f}"]
        for row in rows
        if row.plan == FRONTIER
    ]
    batch = next(row.batch for row in rows if row.plan == FRONTIER)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    head = ["", "plan", *(f"batch {each:,}" for each in batches), "FLOPs"]
    return (
        "Activation bytes at the peak of a training step on 224 x 224 images in float32, predicted; torch "
        f"{machine()['libraries']['torch']}. FLOPs are over ordinary autograd's.\n\n"
        f"{markdown_table(head, lines)}\n\n"
        f"The frontiers at batch {batch:,}:\n\n"
        + markdown_table(["", "peak", "held", "FLOPs"], frontiers)
        + f"\n\nThe process that predicted all this had at most {human_bytes(resident)} resident, torch "
        "included.\n"
    )


def _range(ratios: Sequence[str]) -> str:
    return min(ratios) if len(ratios) == 1 else f"{min(ratios)} to {max(ratios)}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bytes against the batch on the left, the frontiers on the right."""
    networks = list(dict.fromkeys(row.network for row in rows))
    colours = dict(zip(networks, (LOOKS[2][0], LOOKS[5][0], LOOKS[3][0], LOOKS[4][0]), strict=False))
    styles = {KEPT: ("-", "o"), INVERTED: ("--", "s"), LEAST: (":", "*")}
    batch = next(row.batch for row in rows if row.plan == FRONTIER)
    with chart(path, f"Predicted activation bytes of {' and '.join(networks)}", (10.4, 5)) as figure:
        left, right = figure.subplots(1, 2)
        for network, colour in colours.items():
            for plan, (line, shape) in styles.items():
                mine = [row for row in rows if (row.network, row.plan) == (network, plan)]
                if mine:
                    points = [(row.batch, row.peak_bytes / 2**30) for row in mine]
                    looks = {"color": colour, "linestyle": line, "marker": shape, "linewidth": 1.6}
                    left.plot(*zip(*points, strict=True), label=f"{network}, {plan}", **looks)
            points = [
                (row.peak_bytes / 2**30, row.flops_ratio)
                for row in rows
                if (row.network, row.plan) == (network, FRONTIER)
            ]
            looks = {"color": colour, "marker": "o" if colour == LOOKS[2][0] else "D", "markersize": 6}
            looks |= {"drawstyle": "steps-post", "label": f"{network}, {FRONTIER} at {batch:,}"}
            right.plot(*zip(*points, strict=True), linewidth=1.6, **looks)
        left.set(xscale="log", yscale="log", xlabel="batch, images")
        left.set_ylabel("activation bytes at the peak, GiB, predicted")
        left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        doublings(left.xaxis, sorted({row.batch for row in rows}))
        right.set(xlabel=f"activation bytes at the peak, GiB, batch {batch:,}", xlim=(0, None))
        right.set_ylabel("FLOPs over ordinary autograd's")
        names = [handle for axes in (left, right) for handle in axes.get_legend_handles_labels()[0]]
        legend(figure, 3, names)


if __name__ == "__main__":
    sys.exit(main())
