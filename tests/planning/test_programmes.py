"""Programmes over segments: sharing rows changes nothing, and schedules cost what tables foresee; filling."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import pytest
import torch
from planning.evaluating import evaluate, judge_of
from planning.problems import branching, revnet_like
from torch import nn

import revgraph as rg
from revgraph.planning.posing import pose
from revgraph.planning.profiles import profile_of
from revgraph.planning.solver.filling import BudgetFilling
from revgraph.planning.solver.line import Line
from revgraph.planning.solver.once_programme import OnceProgramme, stretches_of
from revgraph.planning.solver.pool import Pool
from revgraph.planning.solver.problem import Problem
from revgraph.planning.solver.segment_programme import SegmentProgramme, Step
from revgraph.planning.solver.segments import Segment, cuts_of, segments_of
from revgraph.planning.solver.textbook import keep_all, textbook_segments

SLOTS = 120


def posed(model: nn.Module, *inputs: torch.Tensor) -> Problem:
    return pose(rg.trace(model, *inputs).graph, "flops", profile_of("flops")).problem


def equal_layers(count: int = 8) -> Problem:
    layers = (nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(count))
    return posed(nn.Sequential(*layers), torch.zeros(4, 16))


class Blocks(nn.ModuleList):
    def forward(self, x1: torch.Tensor, x2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for block in self:
            x1, x2 = block(x1, x2)
        return x1, x2


def equal_blocks(count: int = 6) -> Problem:
    def function() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8))

    blocks = Blocks(rg.Additive(function(), function()) for _ in range(count))
    return posed(blocks, torch.zeros(4, 8), torch.zeros(4, 8))


class Joining(nn.Module):
    """Layers that each join what they make to what they are given, as a DenseNet's do."""

    def __init__(self, count: int, width: int = 8, growth: int = 4) -> None:
        super().__init__()
        sizes = range(width, width + count * growth, growth)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(size), nn.GELU(), nn.Linear(size, growth)) for size in sizes
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sin(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], -1)
        return x


def joined_layers(count: int = 5) -> Problem:
    return posed(Joining(count), torch.zeros(4, 8))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "equal layers": equal_layers,
    "equal blocks": equal_blocks,
    "joined layers": joined_layers,
    **{f"branching {seed}": lambda seed=seed: branching(Random(seed), 12) for seed in range(4)},
    **{f"revnet-like {seed}": lambda seed=seed: revnet_like(Random(seed), 12) for seed in range(4)},
}


class EachAlone(SegmentProgramme):
    """In which every stretch has a row of its own."""

    def _numbers(self) -> np.ndarray:
        count = self.count + 1
        return np.arange(count * count).reshape(count, count)


def line_of(name: str) -> tuple[Line, int]:
    """The line of a problem, and more bytes than any plan of it takes."""
    problem = PROBLEMS[name]()
    line = Line(problem)
    held = sum(max((each.held_bytes for each in item.options), default=0) for item in problem.items)
    return line, 2 * (held + sum(problem.storage_bytes))


def cost_of(segments: list[Segment], schedule: list[Step]) -> float:
    """What a schedule computes again, added up action by action."""
    cost, turned = 0.0, False
    for what, *arguments in schedule:
        if what == "turn":
            turned = True
            continue
        segment = segments[arguments[0]]
        if turned and what in ("run", "capture", "invert"):
            cost += segment.cost
        if what == "run and keep":
            (kept,) = (each for each in segment.results if each.option == arguments[1])
            cost -= kept.saved_cost
        if what == "stored back":
            cost += segment.storing[arguments[1]].cost
        if what == "undo":
            cost += segment.undoing[arguments[1]].cost
        if what == "at once":
            assert segment.at_once is not None
            cost += segment.at_once[0]
    return cost


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("most", [5, 100])
def test_stretches_that_look_alike_are_solved_once_and_right(name: str, most: int) -> None:
    line, top = line_of(name)
    segments = segments_of(line, cuts_of(line, most))
    shared, alone = (kind(line, segments, top, SLOTS) for kind in (SegmentProgramme, EachAlone))
    assert np.array_equal(shared.costs, alone.costs)
    assert np.isfinite(shared.costs[-1])
    for slots in np.flatnonzero(np.isfinite(shared.costs)).tolist()[::7]:
        assert shared.schedule(slots) == alone.schedule(slots)


@pytest.mark.slow
@pytest.mark.parametrize("make", [equal_layers, equal_blocks])
def test_rows_of_repeated_blocks_grow_with_their_number_alone(make: Callable[[int], Problem]) -> None:
    def rows(count: int) -> int:
        line = Line(make(count))
        segments = segments_of(line, range(line.count + 1))
        return int(SegmentProgramme(line, segments, 10**6, 20).numbers.max()) + 1

    assert rows(20) - rows(16) == rows(16) - rows(12)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("most", [5, 100])
def test_schedules_cost_what_the_programme_foresees(name: str, most: int) -> None:
    line, top = line_of(name)
    segments = segments_of(line, cuts_of(line, most))
    programme = SegmentProgramme(line, segments, top, SLOTS)
    finite = np.flatnonzero(np.isfinite(programme.costs)).tolist()
    assert all(np.diff(programme.costs[finite]) <= 0)
    for slots in finite[::5]:
        assert cost_of(segments, programme.schedule(slots)) == pytest.approx(
            float(programme.costs[slots]), rel=1e-5, abs=1e-3
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("returning", [False, True])
def test_schedules_without_repeated_reruns_cost_what_is_foreseen(name: str, returning: bool) -> None:
    line, top = line_of(name)
    nodes = segments_of(line, range(line.count + 1))
    programme = OnceProgramme(line, nodes, stretches_of(line, nodes), top, 400, returning=returning)
    finite = np.flatnonzero(np.isfinite(programme.costs)).tolist()
    assert all(np.diff(programme.costs[finite]) <= 0)
    for slots in finite[::20]:
        assert cost_of(nodes, programme.schedule(slots)) == pytest.approx(
            float(programme.costs[slots]), rel=1e-5, abs=1e-3
        )


def test_states_that_come_back_over_wiring_need_not_be_held() -> None:
    line, top = line_of("joined layers")
    assert line.comes_back
    assert not line_of("equal layers")[0].comes_back
    nodes = segments_of(line, range(line.count + 1))
    stretches = stretches_of(line, nodes)
    without, returning = (
        OnceProgramme(line, nodes, stretches, top, 400, returning=each).costs for each in (False, True)
    )
    assert (returning <= without).all()
    assert np.isfinite(returning).sum() >= np.isfinite(without).sum()
    assert (returning < without).any()


@pytest.mark.slow
@pytest.mark.parametrize("make", [branching, revnet_like])
def test_bytes_left_over_are_spent_on_less_cost(make: Callable[[Random, int], Problem]) -> None:
    cheaper = 0
    for seed in range(40):
        problem = make(Random(seed), 12)
        pool = Pool(judge_of(problem))
        pool.add(keep_all(problem))
        top = pool.every.least.peak_bytes
        line = Line(problem)
        for solution in textbook_segments(line):
            pool.add(solution)
        for share in (0.6, 0.75, 0.9):
            before = pool.every.within(share * top)
            BudgetFilling(line, pool).fill(int(share * top))
            after = pool.every.within(share * top)
            if before is not None and after is not None:
                assert after.peak_bytes <= share * top
                assert after.cost <= before.cost
                found = evaluate(problem, after)
                assert (found.peak_bytes, found.cost) == (after.peak_bytes, after.cost)
                cheaper += after.cost < before.cost
    assert cheaper >= 10
