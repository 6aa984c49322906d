"""`python -m benchmarks.step_times`: how long plans take, as estimated and as measured.

For each network, steps under plans along the frontiers by time and by FLOPs are taken in turns, and timed in
CPU seconds. Estimates are those of FLOPs alone, of general device profiles, and of a profile of this machine
that `revgraph.profile` measured. Prints the tables, and writes step_times.json and step_times.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import revgraph as rg
from benchmarks.comparison.tables import describe
from benchmarks.shared import machine, markdown_table, write_json, write_text
from benchmarks.tradeoff.networks import transformer
from revgraph.planning.deciding import finished

RESULTS = Path(__file__).parent / "results"
WARM_UP = 2
# Pairs of plans count as told apart where their measured times differ by this much of ordinary autograd's.
APART = 0.02
POINTS = {"time": 6, "flops": 4}
ESTIMATES = ("FLOPs", "generic", "cpu-core", "measured")


def main(arguments: Sequence[str] | None = None) -> int:
    """Time, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_times", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="a small chain, two rounds, to try it out")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that are timed (9)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    conditions = {"machine": machine(), "threads": chosen.threads, "load_average": [os.getloadavg()[0]]}
    found = {}
    for name, made in (QUICK if chosen.quick else NETWORKS).items():
        print(name, file=sys.stderr, flush=True)
        found[name] = timed(*made(), 2 if chosen.quick else chosen.rounds)
    conditions["load_average"].append(os.getloadavg()[0])
    text = _page(found, conditions)
    print(text)
    write_text(chosen.out / "step_times.md", text)
    write_json(chosen.out / "step_times.json", {**conditions, "networks": found})
    return 0


def timed(net: rg.ReversibleModule, inputs: tuple[Tensor, ...], rounds: int) -> list[dict[str, Any]]:
    """For each plan its bytes, the ratios that are estimated, and the one that is measured."""
    here = rg.profile(net, *inputs)
    plans = _plans(net.graph)
    seconds: list[list[float]] = [[] for _ in plans]
    for number in range(WARM_UP + rounds):
        for place in range(len(plans)):
            place = (place + number) % len(plans)
            net.plan = plans[place]
            _step(net, inputs)  # makes what is made once for a plan
            taken = _step(net, inputs)
            if number >= WARM_UP:
                seconds[place].append(taken)
    return [
        {
            "peak_bytes": plan.peak_bytes,
            "FLOPs": plan.flops_ratio,
            "generic": _under(plan, rg.PROFILES["generic"]).time_ratio,
            "cpu-core": _under(plan, rg.PROFILES["cpu-core"]).time_ratio,
            "measured": _under(plan, here).time_ratio,
            "step": statistics.median(
                one / ordinary for one, ordinary in zip(taken, seconds[0], strict=True)
            ),
        }
        for plan, taken in zip(plans, seconds, strict=True)
    ]


def order_differs(rows: Sequence[dict[str, Any]], estimate: str) -> tuple[int, int]:
    """Of the pairs of plans that measuring tells apart, how many an estimate has in the other order."""
    pairs = [(one, two) for one, two in combinations(rows, 2) if abs(one["step"] - two["step"]) > APART]
    wrong = sum((one["step"] - two["step"]) * (one[estimate] - two[estimate]) < 0 for one, two in pairs)
    return wrong, len(pairs)


def _plans(graph: rg.Graph) -> list[rg.Plan]:
    """Ordinary autograd, then plans along both frontiers, each once."""
    frontiers = (rg.frontier(graph, points=points, cost=cost) for cost, points in POINTS.items())
    found: list[rg.Plan] = []
    for plan in chain([rg.keep_all(graph)], *frontiers):
        generic = _under(plan, rg.PROFILES["generic"])
        if generic not in found:
            found.append(generic)
    return found


def _under(plan: rg.Plan, profile: rg.DeviceProfile) -> rg.Plan:
    """The same plan, its time told by a profile."""
    return finished(plan.noted(profile=profile, cost="time", reasons={}))


def _step(net: rg.ReversibleModule, inputs: tuple[Tensor, ...]) -> float:
    """CPU seconds of a training step."""
    net.zero_grad()
    began = time.process_time()
    outputs = net(*inputs)
    made = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.stack([each.square().mean() for each in made]).sum().backward()
    return time.process_time() - began


def _chain(layers: int, width: int, batch: int) -> tuple[rg.ReversibleModule, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(layers)))
    x = torch.randn(batch, width)
    return rg.trace(model, x), (x,)


def _shipped(name: str, batch: int) -> tuple[rg.ReversibleModule, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    net = rg.load(name, batch=batch)
    return net, (torch.randn(net.graph.value[net.graph.inputs[0]].shape),)


def _transformer() -> tuple[rg.ReversibleModule, tuple[Tensor, ...]]:
    network = transformer(8, 4, 128, 128)
    return network.net, network.inputs


Made = Callable[[], tuple[rg.ReversibleModule, tuple[Tensor, ...]]]
QUICK: dict[str, Made] = {"chain of 6 layers": lambda: _chain(6, 32, 16)}
NETWORKS: dict[str, Made] = {
    "RevNet-38, batch 32": lambda: _shipped("revnet-38", 32),
    "ResNet-32, batch 32": lambda: _shipped("resnet-32", 32),
    "reversible transformer, 8 blocks, width 128, 4 x 128 tokens": _transformer,
    "chain of 24 layers, width 256, batch 512": lambda: _chain(24, 256, 512),
}


def _page(found: dict[str, list[dict[str, Any]]], conditions: dict[str, Any]) -> str:
    summary = [
        [name, *(f"{wrong} of {pairs}" for wrong, pairs in (order_differs(rows, e) for e in ESTIMATES))]
        for name, rows in found.items()
    ]
    parts = [
        f"{describe(conditions)} Times are CPU seconds of a step over those of ordinary autograd (the median "
        "of interleaved rounds). Of the pairs of plans whose measured times differ by more than "
        f"{APART:.0%}, so many are in the other order by an estimate:",
        markdown_table(["network", *ESTIMATES], summary),
    ]
    for name, rows in found.items():
        head = ["peak, MiB", "measured step", *(f"by {each}" for each in ESTIMATES)]
        cells = [
            [f"{row['peak_bytes'] / 2**20:.1f}", *(f"x{row[each]:.3f}" for each in ("step", *ESTIMATES))]
            for row in sorted(rows, key=lambda row: row["peak_bytes"])
        ]
        parts += [f"### {name}", markdown_table(head, cells, left=0)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
