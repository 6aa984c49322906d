"""`python -m benchmarks.step_profile`: where the seconds of a training step go, operator by operator.

Steps of plain autograd, of torch's checkpoint per block and of revgraph's default plan are taken in turns,
each under torch's profiler. Prints the tables, and writes step_profile.json and step_profile.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.comparison.contenders import contenders
from benchmarks.comparison.networks import Network, chain, revnet
from benchmarks.comparison.running import Candidate
from benchmarks.comparison.steps import clear_gradients, take_step
from benchmarks.comparison.tables import describe
from benchmarks.comparison.timing import WARM_UP
from benchmarks.shared import machine, markdown_table, write_json, write_text

RESULTS = Path(__file__).parent / "results"
CONVOLUTIONS, GRADIENTS, NORMS, NORM_GRADIENTS, OTHERS, BETWEEN = (
    "convolutions and products",
    "their gradients",
    "BatchNorm",
    "its gradients",
    "other operators",
    "between operators",
)
# Groups of ATen operators, by a word of their names; the first that fits. Gradients of products are products.
WORDS = {
    "convolution_backward": GRADIENTS,
    "batch_norm_backward": NORM_GRADIENTS,
    "conv": CONVOLUTIONS,
    "mm": CONVOLUTIONS,
    "batch_norm": NORMS,
}
GROUPS = (CONVOLUTIONS, GRADIENTS, NORMS, NORM_GRADIENTS, OTHERS, BETWEEN)
Groups = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_profile", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="small networks and few rounds, to try it out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    conditions = {"machine": machine(), "threads": chosen.threads, "load_average": [os.getloadavg()[0]]}
    found = {title: profiled(network) for title, network in _networks(chosen.quick).items()}
    conditions["load_average"].append(os.getloadavg()[0])
    text = _page(found, conditions)
    print(text)
    write_text(chosen.out / "step_profile.md", text)
    write_json(chosen.out / "step_profile.json", {**conditions, "networks": found})
    return 0


def profiled(network: Network) -> dict[str, dict[str, Any]]:
    """For each contender the milliseconds of a step by group, medians of interleaved rounds, and its calls.

    `between operators` is what of the step's time no operator took: Python, autograd and hooks.
    """
    candidates = {each.name: each.build(network, 1.0) for each in contenders() if not each.is_peer}
    taken: defaultdict[str, list[Groups]] = defaultdict(list)
    calls: dict[str, Counter[str]] = {}
    for number in range(WARM_UP + network.rounds):
        for name, candidate in candidates.items():
            clear_gradients(candidate, network.example)
            if number < WARM_UP:
                take_step(candidate, network.example)
                continue
            milliseconds, calls[name] = _profile(candidate, network.example)
            taken[name].append(milliseconds)
    return {
        name: {
            "milliseconds": {group: statistics.median(each[group] for each in rounds) for group in GROUPS},
            "step": statistics.median(sum(each.values()) for each in rounds),
            "calls": calls[name],
        }
        for name, rounds in taken.items()
    }


def _profile(candidate: Candidate, x: Tensor) -> tuple[Groups, Counter[str]]:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        began = time.perf_counter()
        take_step(candidate, x)
        step = 1000 * (time.perf_counter() - began)
    milliseconds, calls = dict.fromkeys(GROUPS, 0.0), Counter[str]()
    for operator in profiler.key_averages():
        if operator.key.startswith("aten::"):
            group = next((group for word, group in WORDS.items() if word in operator.key), OTHERS)
            milliseconds[group] += operator.self_cpu_time_total / 1000
            calls[operator.key] += operator.count
    milliseconds[BETWEEN] = step - sum(milliseconds.values())
    return milliseconds, calls


def _networks(quick: bool) -> dict[str, Network]:
    if quick:
        return {"chain of 3 blocks": chain(3, 2, 0), "RevNet-38, batch 2": revnet("revnet-38", 1, 0, 2)}
    return {
        "RevNet-38, batch 32": revnet("revnet-38", 15, 0, 32),
        "chain of 64 blocks, width 64, batch 32": chain(64, 30, 0),
    }


def _page(found: dict[str, dict[str, dict[str, Any]]], conditions: dict[str, Any]) -> str:
    parts = [
        f"{describe(conditions)} Milliseconds of a step under torch's profiler, which takes some itself: "
        "medians of interleaved rounds; in brackets what comes on top of plain autograd, in hundredths of "
        "its step. *Between operators* is what no operator took: Python, autograd and hooks."
    ]
    return "\n\n".join([*parts, *(f"## {title}\n\n{_table(each)}" for title, each in found.items())]) + "\n"


def _table(found: dict[str, dict[str, Any]]) -> str:
    first, *_ = found.values()
    shown = [group for group in GROUPS if any(each["milliseconds"][group] for each in found.values())]
    rows = [[group, *(_cell(each["milliseconds"][group], first["milliseconds"][group], first["step"])
                      for each in found.values())] for group in shown]  # fmt: skip
    rows.append(["the step", *(_cell(each["step"], first["step"], first["step"]) for each in found.values())])
    return markdown_table(["", *found], rows)


def _cell(milliseconds: float, plain: float, step: float) -> str:
    more = milliseconds - plain
    return f"{milliseconds:.1f} ({100 * more / step:+.1f})" if more else f"{milliseconds:.1f}"


if __name__ == "__main__":
    sys.exit(main())
