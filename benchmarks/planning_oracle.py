"""`python -m benchmarks.planning_oracle`: the planner's pool against an exhaustive search over all schedules.

Random planning problems of up to 6 nodes, each at its least peak and at budgets between that and ordinary
training. The search and the problems are those of the tests, whose folder has to be on the path. Prints the
table, and writes planning_oracle.json and planning_oracle.md. Everything is counted: no figure hangs on the
machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from planning.evaluating import judge_of
from planning.oracle import least_cost
from planning.problems import branching, revnet_like

from benchmarks.shared import markdown_table, write_json, write_text
from revgraph.planning.solver import Effort, Problem, search

RESULTS = Path(__file__).parent / "results"
KINDS: dict[str, Callable[[Random, int], Problem]] = {
    "branching, boundaries and couplings": branching,
    "chains of couplings": revnet_like,
}
EFFORTS: tuple[Effort, ...] = ("quick", "normal")
MOST = 6


@dataclass
class Tally:
    """What was seen at all budgets; excess in shares of a step's cost, where there was any."""

    kind: str
    effort: str
    budgets: int = 0
    equal: int = 0
    excess: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planning_oracle", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--problems", type=int, default=100, help="random problems of each kind (100)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    chosen = parser.parse_args(arguments)
    tallies = [each for kind in KINDS for each in compared(kind, chosen.problems)]
    write_text(chosen.out / "planning_oracle.md", page(tallies))
    write_json(chosen.out / "planning_oracle.json", [asdict(each) for each in tallies])
    print(page(tallies))
    return 0


def compared(kind: str, count: int) -> list[Tally]:
    """One kind of problems, at every effort."""
    rng, tallies = Random(0), [Tally(kind, effort) for effort in EFFORTS]
    for _ in range(count):
        problem = KINDS[kind](rng, rng.randint(2, MOST))
        pools = [search(problem, judge_of(problem), tally.effort) for tally in tallies]
        lowest = min(pool.every.least.peak_bytes for pool in pools)
        while least_cost(problem, lowest - 1) is not None:
            lowest -= 1
        most = max(pool.every.solutions[-1].peak_bytes for pool in pools)
        budgets = {pools[-1].every.least.peak_bytes, (3 * lowest + most) // 4, (lowest + most) // 2}
        best = {budget: least_cost(problem, budget) for budget in sorted(budgets)}
        for tally, pool in zip(tallies, pools, strict=True):
            tally.peaks.append(pool.every.least.peak_bytes / lowest - 1)
            for budget, cost in best.items():
                found = pool.every.within(budget)
                if found is None or cost is None:
                    continue  # counted with the peaks
                tally.budgets += 1
                tally.equal += found.cost == cost
                if found.cost > cost:
                    tally.excess.append((found.cost - cost) / (problem.plain_cost + cost))
    return tallies


def page(tallies: Sequence[Tally]) -> str:
    head = [
        "graphs of up to 6 nodes",
        "effort",
        "budgets",
        "nothing better",
        "dearer, on average",
        "least peak",
    ]
    rows = [
        [
            each.kind,
            each.effort,
            str(each.budgets),
            f"{each.equal} ({each.equal / each.budgets:.1%})",
            f"{sum(each.excess) / len(each.excess):.1%} of a step" if each.excess else "",
            f"{sum(each.peaks) / len(each.peaks):.2%} above",
        ]
        for each in tallies
    ]
    return (
        f"{markdown_table(head, rows)}\n\nNothing better: no schedule at all takes less within the budget. "
        "Dearer: by how much the others are, in shares of a training step. Least peak: how far the pool's is "
        "above that of all schedules, on average.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
