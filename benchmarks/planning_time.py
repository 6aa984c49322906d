"""`python -m benchmarks.planning_time`: seconds of CPU time to trace, cost and plan networks of growing size.

Every network has a process of its own, on one thread, whose largest resident memory is part of the result.
Prints the table, and writes planning_time.json and planning_time.md.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import random
import resource
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.shared import (
    cpu_seconds,
    loop_seconds,
    machine,
    markdown_table,
    told_by,
    write_json,
    write_text,
)

RESULTS = Path(__file__).parent / "results"
SECONDS_EACH = 900
STAGES = ("trace", "cost", "default", "budget", "frontier")
# Seconds that a plan may take, by the number of nodes.
TARGETS = {30: 1.0, 100: 3.0, 1000: 20.0, 5000: 90.0}
NETWORKS = {
    "chain-10": lambda: _chain(5),
    "chain-100": lambda: _chain(50),
    "chain-1000": lambda: _chain(500),
    "unequal-30": lambda: _unequal(15),
    "unequal-100": lambda: _unequal(50),
    "unequal-1000": lambda: _unequal(500),
    "unequal-5000": lambda: _unequal(2500),
    "random-10": lambda: _random(10),
    "random-100": lambda: _random(100),
    "random-1000": lambda: _random(1000),
    "revnet-110": lambda: _shipped("revnet-110", 100),
    "revnet-164": lambda: _shipped("revnet-164", 100),
    "revnet-104": lambda: _shipped("revnet-104", 256),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit status is 0, also where a network fails or takes too long."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planning_time", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="the two smallest networks, to try it out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    parser.add_argument("--only", action="append", choices=NETWORKS, help="a network (all); may be repeated")
    parser.add_argument("--seconds", type=int, default=SECONDS_EACH, help=f"limit a network ({SECONDS_EACH})")
    parser.add_argument("--one", choices=NETWORKS, help=argparse.SUPPRESS)
    parser.add_argument("--profile", choices=NETWORKS, help="profile this network's stages and write nothing")
    chosen = parser.parse_args(arguments)
    if chosen.one or chosen.profile:
        return _alone(chosen.one or chosen.profile, profiled=bool(chosen.profile))
    names = chosen.only or (["chain-10", "random-10"] if chosen.quick else list(NETWORKS))
    conditions = {
        "machine": machine(),
        "loop_seconds": loop_seconds(),
        "threads": 1,
        "load_average": [os.getloadavg()[0]],
    }
    rows: list[dict[str, Any]] = []
    for name in names:
        rows.append(_in_a_process(name, chosen.seconds))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        conditions["load_average"][1:] = [os.getloadavg()[0]]
        write_text(chosen.out / "planning_time.md", _page(rows, conditions))
        write_json(chosen.out / "planning_time.json", {**conditions, "networks": rows})
    print(_page(rows, conditions))
    return 0


def _in_a_process(name: str, limit: int) -> dict[str, Any]:
    """A network's row, with what was done before the limit or the failure, if one came."""
    found, problem = told_by(["-m", "benchmarks.planning_time", "--one", name], limit)
    row: dict[str, Any] = {"network": name, "problem": problem}
    for line in found:
        row.update(line)
    return row


def _alone(name: str, profiled: bool = False) -> int:
    """The stages in this process: a line of JSON after each, the seconds so far and the memory."""
    import torch

    import revgraph as rg
    from revgraph.costs import with_costs
    from revgraph.tracing import trace

    torch.set_num_threads(1)
    timer = _Profiled() if profiled else _Timed()
    timer.take("first", _planned_once)
    model, inputs = NETWORKS[name]()
    program = timer.take("trace", lambda: trace(model, inputs, {}, name))
    graph = timer.take("cost", lambda: with_costs(program, model))
    timer.tell(nodes=len(graph.planned))
    least = timer.take("default", lambda: rg.plan(graph))
    kept = rg.keep_all(graph)
    timer.tell(least_peak_bytes=least.peak_bytes, keep_all_peak_bytes=kept.peak_bytes)
    budget = (least.peak_bytes + kept.peak_bytes) // 2
    plan = timer.take("budget", lambda: rg.plan(graph, budget=budget))
    timer.tell(budget=budget, budget_flops_ratio=plan.flops_ratio)
    plans = timer.take("frontier", lambda: rg.frontier(graph))
    timer.tell(frontier_plans=len(plans))
    return 0


def _planned_once() -> None:
    """What the first network of a process pays for all: imports, torch's own caches, the solver's process."""
    import revgraph as rg
    from revgraph.planning.solver.linear_model import LinearModel

    model, inputs = _chain(1)
    rg.frontier(rg.trace(model, *inputs).graph)
    programme = LinearModel()
    programme.minimise({programme.column(): 1.0}, upper={}, nodes=1, gap=0)


class _Timed:
    """CPU seconds that each stage takes, those of the solver's process too, told as they are known."""

    def take(self, stage: str, run: Callable[[], Any]) -> Any:
        began = cpu_seconds()
        result = run()
        self.tell(**{f"{stage}_seconds": round(cpu_seconds() - began, 3)})
        return result

    def tell(self, **found: Any) -> None:
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**found, "resident_bytes": resident}), flush=True)


class _Profiled(_Timed):
    """The functions in which each stage spent its time."""

    def take(self, stage: str, run: Callable[[], Any]) -> Any:
        with cProfile.Profile() as profile:
            result = super().take(stage, run)
        pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(15)
        return result


def _chain(blocks: int) -> Any:
    import torch
    from torch import nn

    import revgraph as rg

    class Chain(nn.ModuleList):
        def forward(self, x1: Any, x2: Any) -> Any:
            for block in self:
                x1, x2 = block(x1, x2)
            return x1, x2

    def function() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    model = Chain(rg.Additive(function(), function()) for _ in range(blocks))
    return model, (torch.zeros(4, 8), torch.zeros(4, 8))


def _unequal(layers: int) -> Any:
    """An ordinary chain of layers of different widths, of which no two are alike; each is two nodes."""
    import torch
    from torch import nn

    rng = random.Random(1)
    widths = [rng.randrange(16, 64) for _ in range(layers + 1)]
    model = nn.Sequential(*(nn.Sequential(nn.Linear(*pair), nn.GELU()) for pair in pairwise(widths)))
    return model, (torch.zeros(64, widths[0]),)


def _random(moves: int) -> Any:
    import torch

    from benchmarks.tradeoff.networks import Fold, random_moves

    model = Fold(random_moves(moves, 4, 8, random.Random(0)))
    return model, tuple(torch.zeros(4, 8) for _ in range(4))


def _shipped(name: str, batch: int) -> Any:
    """A shipped network; its example inputs have no memory."""
    from revgraph.specs import build, example_inputs

    built = build(name, batch=batch)
    return built.module, example_inputs(built)


def _page(rows: Sequence[dict[str, Any]], conditions: dict[str, Any]) -> str:
    head = ["", "nodes", *(f"{stage}, s" for stage in STAGES), "resident", "budget's plan", ""]
    table = markdown_table(head, [_cells(row) for row in rows])
    described = conditions["machine"]
    before, after = conditions["load_average"]
    once = [row["first_seconds"] for row in rows if "first_seconds" in row]
    return (
        f"{described['cpu']}, {described['cores']} cores; Python {described['python']}, torch "
        f"{described['libraries']['torch']} on one thread; load average {before:.2f} at the beginning, "
        f"{after:.2f} at the end. Ten million additions in a loop of Python take "
        f"{conditions['loop_seconds']} s on it.\n\n{table}\n\n"
        "Seconds are of CPU time, the solver's process included. What a process does once, with its first "
        "network - imports, caches of torch's own, the start of the solver's process - takes "
        f"{min(once, default=0):.1f} to {max(once, default=0):.1f} s and is not in them. Nodes are those "
        "that are decided on. The default plan comes first, and makes the pool from which one budget halfway "
        "between it and ordinary autograd's peak, and the whole "
        "frontier, are then served. Resident is the process's high-water mark, torch included; activations "
        "are never allocated. Targets, for the default: "
        + ", ".join(f"{nodes:,} nodes in {seconds:.0f} s" for nodes, seconds in TARGETS.items())
        + ".\n"
    )


def _cells(row: dict[str, Any]) -> list[str]:
    seconds = [row.get(f"{stage}_seconds") for stage in STAGES]
    resident = row.get("resident_bytes")
    return [
        row["network"],
        f"{row['nodes']:,}" if "nodes" in row else "",
        *(f"{each:.2f}" if each is not None else "" for each in seconds),
        f"{resident / 2**20:,.0f} MiB" if resident else "",
        f"x{row['budget_flops_ratio']:.3f}" if "budget_flops_ratio" in row else "",
        row["problem"] or _verdict(row),
    ]


def _verdict(row: dict[str, Any]) -> str:
    """Whether the pool took no longer than the target for so many nodes."""
    limit = next(
        (seconds for nodes, seconds in sorted(TARGETS.items()) if row.get("nodes", 0) <= nodes), None
    )
    if limit is None:
        return ""
    return "in time" if row["default_seconds"] <= limit else f"over {limit:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
