"""`python -m benchmarks.planning_alike`: whether one graph has one plan, run after run and on a busy machine.

Each run is a process of its own, with its own hash seed and number of threads, beside processes that do
nothing but keep the machine busy. Prints for each network how many different plans (their JSON) came up at
budgets of several kinds. Exit status 1 if there is more than one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import revgraph as rg
from benchmarks.planning_networks import NETWORKS
from benchmarks.shared import markdown_table

ROOT = Path(__file__).parents[1]
CHOSEN = (
    "24 unequal layers",
    "100 unequal layers",
    "U-Net",
    "DenseNet-121, 64 x 64, batch 4",
    "revnet-38, batch 32",
    "random graph of 100 moves",
)
BUDGETS = (None, "least", "50%", "75%")
# Ends with the process that began it, however that ends.
BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(10**6))"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, compare and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planning_alike", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--runs", type=int, default=10, help="processes that plan, one after another (10)")
    parser.add_argument("--busy", type=int, default=3, help="processes that keep the machine busy (3)")
    parser.add_argument("--only", action="append", choices=NETWORKS, help="a network; may be repeated")
    parser.add_argument("--digests", action="store_true", help="print this process's plans, and no more")
    chosen = parser.parse_args(arguments)
    names = chosen.only or list(CHOSEN)
    if chosen.digests:
        print(json.dumps({name: digests(name) for name in names}))
        return 0
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(chosen.busy)]
    try:
        seen: defaultdict[str, set[str]] = defaultdict(set)
        for run in range(chosen.runs):
            for name, found in _elsewhere(names, run).items():
                seen[name].update(found)
            print(f"run {run + 1} of {chosen.runs}", file=sys.stderr, flush=True)
    finally:
        for each in busy:
            each.kill()
            each.wait()
    rows = [[name, str(chosen.runs), str(len(BUDGETS)), str(len(seen[name]))] for name in names]
    print(markdown_table(["network", "runs", "budgets", "different plans"], rows))
    return int(any(len(found) > len(BUDGETS) for found in seen.values()))


def digests(name: str) -> list[str]:
    """Of the network's plans, as JSON, by budget."""
    graph = NETWORKS[name]()
    texts = (rg.plan(graph, budget).to_json() for budget in BUDGETS)
    return [
        f"{budget} {hashlib.sha256(text.encode()).hexdigest()}"
        for budget, text in zip(BUDGETS, texts, strict=True)
    ]


def _elsewhere(names: Sequence[str], run: int) -> dict[str, list[str]]:
    command = [sys.executable, "-m", "benchmarks.planning_alike", "--digests"]
    for name in names:
        command += ["--only", name]
    environment = {**os.environ, "PYTHONHASHSEED": str(run), "OMP_NUM_THREADS": str(1 + run % 2)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
