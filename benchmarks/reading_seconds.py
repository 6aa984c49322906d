"""`python -m benchmarks.reading_seconds`: how long a step of RevNet-110 takes, for the README's first line.

Steps of ordinary training and of the default plan are taken in turns, on one thread, and timed in CPU
seconds, which count what other processes take less than a clock does. Writes reading-seconds.json, which
`benchmarks.reading` puts into the line.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import revgraph as rg
from benchmarks.reading import BATCH, NETWORK, RESULTS, SECONDS
from benchmarks.shared import machine, write_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Time, print and write; the exit status is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reading_seconds", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds that are timed, after one that is not (5)"
    )
    parser.add_argument("--batch", type=int, default=BATCH, help=f"images in a batch ({BATCH})")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    load = [os.getloadavg()[0]]
    net = rg.load(NETWORK, batch=chosen.batch)
    images = torch.randn(chosen.batch, 3, 32, 32)
    labels = torch.randint(10, (chosen.batch,))
    plans = {"ordinary": rg.keep_all(net.graph), "plan": rg.plan(net.graph)}
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for number in range(chosen.rounds + 1):
        for name, plan in plans.items():
            net.plan = plan
            taken = _step(net, images, labels)
            print(f"{name}: {taken:.2f} s", file=sys.stderr, flush=True)
            if number:  # the first step makes and allocates what later ones use again
                seconds[name].append(taken)
    ratios = [one / other for one, other in zip(seconds["plan"], seconds["ordinary"], strict=True)]
    ordinary, planned = (statistics.median(seconds[name]) for name in plans)
    found = {
        "machine": machine(),
        "load_average": [*load, os.getloadavg()[0]],
        "network": NETWORK,
        "batch": chosen.batch,
        "rounds": chosen.rounds,
        "ordinary_seconds": ordinary,
        "plan_seconds": planned,
        "ratio": planned / ordinary,
        "ratios": sorted(ratios),
        "estimated": plans["plan"].time_ratio,
    }
    write_json(chosen.out / SECONDS, found)
    print(f"ordinary training {ordinary:.2f} s, this plan {planned:.2f} s: x{planned / ordinary:.3f}")
    print(
        f"round by round x{min(ratios):.3f} to x{max(ratios):.3f}, estimated x{plans['plan'].time_ratio:.3f}"
    )
    return 0


def _step(net: rg.ReversibleModule, images: Tensor, labels: Tensor) -> float:
    """CPU seconds of a training step."""
    net.zero_grad()
    began = time.process_time()
    functional.cross_entropy(net(images), labels).backward()
    return time.process_time() - began


if __name__ == "__main__":
    sys.exit(main())
