"""How good planned schedules are: against the best of all schedules, found by exhaustive search."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from planning.evaluating import evaluate, judge_of
from planning.oracle import least_flops
from planning.problems import branching, revnet_like

from revgraph.planning.chain_schedules import chain_schedule
from revgraph.planning.chain_views import chain_of
from revgraph.planning.chains import ChainProgramme
from revgraph.planning.planner import Planner

SECONDS = 10.0


@pytest.mark.parametrize("number", range(4))
def test_chain_programme_is_optimal_on_revnet_like_chains(number: int) -> None:
    """At every number of bytes: its curve is that of the exhaustive search, and its schedules keep to it."""
    rng = Random(number)
    compared = 0
    for _ in range(100):
        problem = revnet_like(rng, rng.randint(2, 7))
        view = chain_of(problem)
        assert view is not None
        programme = ChainProgramme(view.chain)
        sizes, costs = map(list, programme.whole)
        assert least_flops(problem, sizes[0] - 1) is None
        for size, after, cost in zip(sizes, [*sizes[1:], sizes[-1] + 5], costs, strict=True):
            found = evaluate(problem, view.solution(chain_schedule(programme, size)))
            assert found.peak_bytes <= size
            assert found.flops <= cost
            assert least_flops(problem, after - 1, below=cost) is None
            compared += 1
    assert compared > 300


def test_mixed_integer_programme_against_all_schedules() -> None:
    """Never better, never over its budget; mostly equal, and elsewhere a step's FLOPs are within 10 %."""
    rng = Random(0)
    seen: Counter[str] = Counter()
    excess: list[float] = []
    for _ in range(200):
        problem = branching(rng, rng.randint(2, 6))
        planner = Planner(problem, judge_of(problem))
        least, most = planner.least(SECONDS).peak_bytes, planner.kept.peak_bytes
        for budget in {least, (3 * least + most) // 4, (least + most) // 2}:
            solution, best = planner.within(budget, SECONDS), least_flops(problem, budget)
            assert solution is not None
            assert best is not None
            found = evaluate(problem, solution)
            assert (found.peak_bytes, found.flops) == (solution.peak_bytes, solution.flops)
            assert solution.peak_bytes <= budget
            assert solution.bound <= solution.flops
            assert solution.flops >= best
            seen["equal" if solution.flops == best else "dearer"] += 1
            if solution.flops > best:
                excess.append((solution.flops - best) / (problem.plain_flops + best))
    assert seen["equal"] >= 0.95 * seen.total()
    assert sum(excess) <= 0.1 * len(excess)


@pytest.mark.parametrize("number", range(4))
def test_more_memory_never_costs_more(number: int) -> None:
    rng = Random(number)
    for _ in range(5):
        problem = branching(rng, rng.randint(4, 9))
        planner = Planner(problem, judge_of(problem))
        least, most = planner.least(SECONDS).peak_bytes, planner.kept.peak_bytes
        costs = []
        for budget in range(least, most + 1):
            solution = planner.within(budget, SECONDS)
            assert solution is not None
            assert solution.peak_bytes <= budget
            costs.append(solution.flops)
        assert all(one >= two for one, two in pairwise(costs))
        assert costs[-1] == 0


def test_what_the_solver_prints_is_not_in_standard_output() -> None:
    """HiGHS prints to C's standard output, which a command's JSON goes to."""
    code = (
        "import ctypes\n"
        "from revgraph.planning.quieting import quieted\n"
        "libc = ctypes.CDLL(None)\n"
        "print('before')\n"
        "with quieted():\n"
        "    libc.printf(b'chatter\\n')\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "before\nafter\n"
    assert done.stderr == "chatter\n"
