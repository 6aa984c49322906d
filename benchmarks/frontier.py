"""`python -m benchmarks.frontier`: memory against computation, revgraph beside what torch offers itself.

Measures every plan of the frontier of eight networks, ordinary autograd, torch's checkpoints and the
compiler's partitioner under memory budgets; then revgraph's plan within the peak of each of those. Prints
the tables, and writes frontier.json, frontier.md and, where matplotlib is installed, a chart each.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared import machine, write_json, write_text
from benchmarks.tradeoff.chart import draw
from benchmarks.tradeoff.networks import (
    Network,
    language_model,
    layers,
    random_dag,
    shipped,
    transformer,
    u_net,
    wide_chain,
)
from benchmarks.tradeoff.results import Result, study
from benchmarks.tradeoff.tables import page, section

RESULTS = Path(__file__).parent / "results"
BUDGETS = tuple(tenth / 10 for tenth in range(9, -1, -1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit status is 0, also where some contenders could not run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frontier", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="small networks and few budgets, to try it out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    parser.add_argument("--only", action="append", help="a network by name (all); may be given again")
    chosen = parser.parse_args(arguments)
    began = time.perf_counter()
    torch.set_num_threads(1)
    conditions = {"machine": machine("matplotlib"), "threads": 1, "load_average": [os.getloadavg()[0]]}
    budgets = BUDGETS[4::5] if chosen.quick else BUDGETS
    results: list[Result] = []
    for name, build in _networks(chosen.quick).items():
        if chosen.only is None or name in chosen.only:
            results.append(study(build(), budgets, _tell))
            print(section(results[-1]), end="\n\n", flush=True)
            conditions["load_average"][1:] = [os.getloadavg()[0]]
            _write(chosen.out, results, conditions)
    _tell(f"written to {chosen.out} after {time.perf_counter() - began:.0f} s")
    return 0


def _write(out: Path, results: Sequence[Result], conditions: dict[str, Any]) -> None:
    """The files with all results so far."""
    write_text(out / "frontier.md", page(results, conditions))
    write_json(out / "frontier.json", {**conditions, "networks": [each.as_data() for each in results]})
    if find_spec("matplotlib") is None:
        _tell("no chart, for matplotlib is not installed")
    else:
        write_text(out / f"frontier-{results[-1].network}.svg", draw(results[-1]))


def _networks(quick: bool) -> dict[str, Callable[[], Network]]:
    if quick:
        return {
            "transformer": lambda: transformer(blocks=2, batch=2, length=8, width=16),
            "random": lambda: random_dag(moves=8, streams=3, batch=16, width=8),
            "chain": lambda: wide_chain(blocks=2, batch=16, width=8),
        }
    return {
        "transformer": lambda: transformer(blocks=8, batch=4, length=32, width=64),
        "random": lambda: random_dag(moves=24, streams=3, batch=64, width=64),
        "chain": lambda: wide_chain(blocks=8, batch=120, width=64),
        "revnet-110": lambda: shipped("revnet-110", batch=4),
        "resnet-32": lambda: shipped("resnet-32", batch=4),
        "layers": lambda: layers(count=24, batch=64, width=64),
        "gpt": lambda: language_model(blocks=8, batch=4, length=32, width=64),
        "u-net": lambda: u_net(batch=2, width=8, size=32),
    }


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
