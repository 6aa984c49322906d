"""`python -m benchmarks.peers`: revgraph beside other reversible libraries, checkpoints and plain autograd.

Measures training steps of a chain of additive blocks at several depths and of RevNet-38, prints the tables,
and writes peers.json, peers.md and, where matplotlib is installed, peers.svg.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison.chart import draw
from benchmarks.comparison.contenders import contenders
from benchmarks.comparison.networks import Network, chain, revnet
from benchmarks.comparison.results import compare
from benchmarks.comparison.tables import page
from benchmarks.shared import machine, write_json, write_text

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit status is 0, also where some peers could not run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="small networks and one round, to try it out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    chosen = parser.parse_args(arguments)
    began = time.perf_counter()
    torch.set_num_threads(chosen.threads)
    conditions = {
        "machine": machine(*(each.distribution for each in contenders() if each.distribution is not None)),
        "threads": torch.get_num_threads(),
        "load_average": [os.getloadavg()[0]],
    }
    results = [compare(networks, contenders(), _tell) for networks in _networks(chosen.quick)]
    conditions["load_average"].append(os.getloadavg()[0])
    text = page(results, conditions)
    print(text)
    write_text(chosen.out / "peers.md", text)
    write_json(
        chosen.out / "peers.json", _finite({**conditions, "networks": [asdict(each) for each in results]})
    )
    if find_spec("matplotlib") is None:
        _tell("no chart, for matplotlib is not installed")
    else:
        write_text(chosen.out / "peers.svg", draw([each for each in results if each.network == "chain"]))
    _tell(f"written to {chosen.out} after {time.perf_counter() - began:.0f} s")
    return 0


def _networks(quick: bool) -> Iterator[list[Network]]:
    """Each network in several initializations."""
    seeds = range(1 if quick else 3)
    for depth, rounds in ((1, 1), (3, 1)) if quick else ((2, 200), (8, 100), (64, 60)):
        yield [chain(depth, rounds, seed) for seed in seeds]
    rounds, batch = (1, 2) if quick else (11, 32)
    yield [revnet("revnet-38", rounds, seed, batch) for seed in seeds]


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
