"""`python -m benchmarks.pictures`: the pictures and reports that docs/pictures.md and docs/concepts.md show.

RevNet-38 and a net of three streams with a skip, each as drawing, memory timeline, schedule, frontier and
report; the report of the paper's block, for the start page; and a small net with all kinds of nodes and
decisions.
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
FUNCTION = {"f": {"DenseFunction": [32, 32, 64]}}
RING = {"a": "b", "b": "c", "c": "a"}


def _half_step(name: str, target: str, others: str) -> dict[str, Any]:
    return {name: {"Additive": FUNCTION, "target": target, "others": others}}


# Three rounds in which each stream reads the next; a boundary with a skip around it; and two half-steps more.
STREAMS: dict[str, Any] = {
    "name": "three-streams",
    "batch": 32,
    "inputs": {"x": [96]},
    "layers": [
        {"parts": {"Split": 3, "out": list(RING)}},
        *(_half_step(f"{target}{turn}", target, read) for turn in (1, 2, 3) for target, read in RING.items()),
        {"bend": {"Linear": [32, 32], "in": "a", "out": "bent"}},
        {"skip": {"Sum": [], "in": ["bent", "b"], "out": "a"}},
        _half_step("b4", "b", "a"),
        _half_step("c4", "c", "b"),
        {"joined": {"Concatenate": 1, "in": list(RING)}},
        {"head": {"Linear": [96, 10]}},
    ],
}
# With every kind of node, and planned by hand so that every decision is there.
CONCEPTS: dict[str, Any] = {
    "name": "a small RevNet",
    "batch": BATCH,
    "inputs": {"image": [3, 16, 16]},
    "layers": [
        {"stem": {"Stem": {"in_channels": 3, "out_channels": 16}}},
        {"split": {"Split": 2}},
        {"block": {"Additive": {"f": {"BasicFunction": 8}, "g": {"BasicFunction": 8}}, "repeat": 2}},
        {"join": "Concatenate"},
        {"head": {"Head": {"channels": 16, "classes": 10}}},
    ],
}
HIDDEN = {"DenseFunction": [64, 64, 128]}
# The block of the paper: two half-steps on two streams.
BLOCK: dict[str, Any] = {
    "name": "the paper's block",
    "batch": 32,
    "inputs": {"x1": [64], "x2": [64]},
    "layers": [
        {"block": {"Additive": {"f": HIDDEN, "g": HIDDEN}, "in": ["x1", "x2"]}},
    ],
}
DECISIONS: dict[str, Any] = {"stem": "keep", "block1.g": "recompute", "head": "keep"}


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
        plans, stored = rg.frontier(net.graph), rg.keep_all(net.graph)
        budget = int(plans[0].peak_bytes * 1.1)
        net.plan = rg.plan(net.graph, budget=budget)
        dots = rg.track(net, *inputs[name])
        beside = {"ordinary autograd": stored}
        shown: dict[str, Any] = {"measured": dots, "budget": budget}
        rg.draw(net.plan, chosen.out / f"{name}-plan.svg")
        rg.draw(net.plan, chosen.out / f"{name}-memory.svg", show="memory", **shown)
        rg.draw(net.plan, chosen.out / f"{name}-schedule.svg", show="schedule")
        marked = {"the plan above": net.plan, **beside}
        rg.draw(plans, chosen.out / f"{name}-frontier.svg", budget=budget, beside=marked)
        print(rg.draw(net.plan, chosen.out / f"{name}.html", frontier=plans, beside=beside, **shown))
    block = rg.load(BLOCK).graph
    print(rg.draw(rg.decide(block, {}), chosen.out / "block.html", question=True))
    graph = rg.load(CONCEPTS).graph
    print(rg.draw(rg.decide(graph, DECISIONS), chosen.out / "concepts.svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
