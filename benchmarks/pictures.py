"""`python -m benchmarks.pictures`: the pictures and reports of two plans that docs/pictures.md shows.

RevNet-38 and a net of three streams with a skip, each as drawing, memory timeline, schedule and report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import revgraph as rg

RESULTS = Path(__file__).parent / "results" / "pictures"
BATCH = 8
STREAMS: dict[str, Any] = {
    "name": "three-streams",
    "batch": 32,
    "inputs": {"x": [96]},
    "layers": [
        {"parts": {"Split": 3, "out": ["a", "b", "c"]}},
        {"first": {"Additive": {"f": {"DenseFunction": [32, 32, 64]}}, "target": "a", "others": "b"}},
        {"second": {"Additive": {"f": {"DenseFunction": [32, 32, 64]}}, "target": "b", "others": "c"}},
        {"third": {"Additive": {"f": {"DenseFunction": [32, 32, 64]}}, "target": "c", "others": "a"}},
        {"bend": {"Linear": [32, 32], "in": "a", "out": "bent"}},
        {"skip": {"Sum": [], "in": ["bent", "b"], "out": "a"}},
        {"fourth": {"Additive": {"f": {"DenseFunction": [32, 32, 64]}}, "target": "b", "others": "a"}},
        {"fifth": {"Additive": {"f": {"DenseFunction": [32, 32, 64]}}, "target": "c", "others": "b"}},
        {"joined": {"Concatenate": 1, "in": ["a", "b", "c"]}},
        {"head": {"Linear": [96, 10]}},
    ],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw all; the exit status is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pictures", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    chosen = parser.parse_args(arguments)
    nets = {"revnet-38": rg.load("revnet-38", batch=BATCH), "three-streams": rg.load(STREAMS)}
    inputs = {"revnet-38": [torch.randn(BATCH, 3, 32, 32)], "three-streams": [torch.randn(32, 96)]}
    for name, net in nets.items():
        rg.draw(net.plan, chosen.out / f"{name}-plan.svg")
        dots = rg.track(net, *inputs[name])
        rg.draw(net.plan, chosen.out / f"{name}-memory.svg", show="memory", measured=dots)
        rg.draw(net.plan, chosen.out / f"{name}-schedule.svg", show="schedule")
        print(rg.draw(net.plan, chosen.out / f"{name}.html"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
