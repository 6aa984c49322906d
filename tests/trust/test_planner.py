"""What the planner can be trusted with: all budgets, against what is known, alike in every run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import revgraph as rg
from benchmarks import planning_alike
from benchmarks.planning_networks import DenseNet, equal, random_graph, u_net, unequal
from benchmarks.planning_quality import broken_promises
from benchmarks.tradeoff.networks import transformer
from revgraph.planning.judging import Judge
from revgraph.planning.posing import pose
from revgraph.planning.solver.line import Line
from revgraph.planning.solver.textbook import textbook_segments


def dense() -> rg.Graph:
    return rg.trace(DenseNet((2, 3), growth=8), torch.zeros(2, 3, 16, 16)).graph


GRAPHS: dict[str, Callable[[], rg.Graph]] = {
    "24 unequal layers": lambda: unequal(24),
    "48 equal layers": lambda: equal(48),
    "U-Net": u_net,
    "DenseNet": dense,
    "random graph of 20 moves": lambda: random_graph(20),
    "reversible transformer": lambda: transformer(4, 2, 8, 16).net.graph,
    "revnet-38": lambda: rg.load("revnet-38", batch=2).graph,
    "reversible-lm": lambda: rg.load("reversible-lm", batch=2).graph,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_nothing_that_fits_is_refused_and_nothing_known_is_cheaper(name: str) -> None:
    graph = GRAPHS[name]()
    posed = pose(graph, "flops")
    judge = Judge(posed)
    judged = filter(None, map(judge, textbook_segments(Line(posed.problem))))
    textbook = [judge.plan(each) for each in judged]
    assert textbook
    assert broken_promises(graph, rg.frontier(graph, points=10**6, cost="flops"), textbook) == []


@pytest.mark.slow
def test_plans_are_the_same_in_every_process_beside_busy_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert planning_alike.main(["--runs", "2", "--busy", "2", "--only", "U-Net"]) == 0
    (*_, last) = capsys.readouterr().out.strip().splitlines()
    assert [cell.strip() for cell in last.split("|")[2:5]] == ["2", "4", "4"]
