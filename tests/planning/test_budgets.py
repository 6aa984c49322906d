"""Budgets: plans that fit, the frontier and its knee, errors that say how many bytes would do."""

from __future__ import annotations

import copy
import dataclasses
import gc
import itertools
import pickle
import re
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import revgraph as rg
from revgraph.planning import budgets, known_pools, parse_bytes
from revgraph.planning.solver import search
from revgraph.storages import StorageTracker

MIB = 2**20


class Net(nn.Module):
    """A stem, reversible blocks and a head, wide enough that choices differ."""

    def __init__(self, depth: int = 4, width: int = 16) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(width, 2 * width), nn.Linear(2 * width, 3)
        self.blocks = nn.ModuleList(
            rg.Additive(self._function(width), self._function(width)) for _ in range(depth)
        )

    def _function(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, 4 * width), nn.Tanh(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.stem(x).chunk(2, 1)
        for block in self.blocks:
            x1, x2 = block(x1, x2)
        return self.head(torch.cat([x1, x2], 1))


@pytest.fixture(scope="module")
def graph() -> rg.Graph:
    return rg.trace(Net(), torch.randn(32, 16)).graph


@pytest.fixture(scope="module")
def frontier(graph: rg.Graph) -> list[rg.Plan]:
    return rg.frontier(graph)


def test_frontier_rises_in_bytes_and_falls_strictly_in_cost(frontier: list[rg.Plan]) -> None:
    assert len(frontier) > 3
    for before, after in itertools.pairwise(frontier):
        assert before.peak_bytes < after.peak_bytes
        assert before.cost_ratio > after.cost_ratio
    assert frontier[-1].flops_ratio == frontier[-1].time_ratio == 1.0


def test_frontier_begins_at_the_least_peak(graph: rg.Graph, frontier: list[rg.Plan]) -> None:
    assert frontier[0].peak_bytes == rg.plan(graph, budget="least").peak_bytes


def test_cost_never_rises_with_the_budget(graph: rg.Graph, frontier: list[rg.Plan]) -> None:
    low, high = frontier[0].peak_bytes, rg.keep_all(graph).peak_bytes
    budgets = [low + (high - low) * step // 12 for step in range(13)]
    plans = [rg.plan(graph, budget=budget) for budget in budgets]
    for budget, plan in zip(budgets, plans, strict=True):
        assert plan.peak_bytes <= budget
    ratios = [plan.cost_ratio for plan in plans]
    assert ratios == sorted(ratios, reverse=True)


def test_plan_within_a_frontier_points_bytes_is_no_dearer(graph: rg.Graph, frontier: list[rg.Plan]) -> None:
    for point in frontier:
        assert rg.plan(graph, budget=point.peak_bytes).cost_ratio <= point.cost_ratio


def test_knee_is_on_the_frontier(frontier: list[rg.Plan]) -> None:
    assert rg.knee(frontier) in frontier
    with pytest.raises(rg.PlanError, match="a frontier without plans has no knee"):
        rg.knee([])


def test_large_budget_keeps_everything(graph: rg.Graph) -> None:
    plan = rg.plan(graph, budget="1 GiB")
    assert set(plan.decisions.values()) == {"keep"}


def test_impossible_budget_names_the_least_bytes_and_the_node(graph: rg.Graph) -> None:
    with pytest.raises(
        rg.BudgetError, match=r"no plan fits 1.0 KiB \(1,024 bytes\): the least peak found is"
    ) as caught:
        rg.plan(graph, budget=1024)
    assert caught.value.least_bytes == rg.plan(graph, budget="least").peak_bytes
    assert caught.value.node in {node.name for node in graph.nodes} | {"the loss"}
    assert rg.plan(graph, budget=caught.value.least_bytes).peak_bytes <= caught.value.least_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (1, 1), ("1 B", 1), ("1e8", 10**8), ("1.5e+9", 1_500_000_000), ("120M", 120 * MIB),
        ("300 MiB", 300 * MIB), ("1.5 GB", 1_500_000_000), ("2kb", 2000),
        (" 4 KiB ", 4096), ("1,024 B", 1024), (".5 gib", 2**29), (np.int64(5000), 5000), (1e8, 10**8),
    ],
)  # fmt: skip
def test_bytes_are_read(text: float | str, count: int) -> None:
    assert parse_bytes(text) == count


def test_least_is_read_in_any_case(graph: rg.Graph) -> None:
    assert rg.plan(graph, " Least") == rg.plan(graph, "least")


@pytest.mark.parametrize("ask", [rg.plan, rg.frontier, rg.keep_all, lambda graph: rg.decide(graph, {})])
def test_what_is_no_graph_is_an_error(ask: Callable[[Any], Any]) -> None:
    net = rg.trace(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(
        rg.PlanError, match=r"made for a revgraph\.Graph, and this is a Linear: give its \.graph"
    ):
        ask(net)
    with pytest.raises(rg.PlanError, match=r"made for a revgraph\.Graph, and this is a NoneType$"):
        ask(None)


def test_decisions_without_names_are_an_error(graph: rg.Graph) -> None:
    with pytest.raises(rg.PlanError, match="decisions are given by name"):
        rg.decide(graph, ["keep"])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "wrong",
    [
        0,
        -1,
        True,
        1.5,
        None,
        "",
        "MiB",
        "3 parsecs",
        "1e400",
        "-3 MB",
        "0 B",
        [1],
        "0%",
        np.float64(5.5),
        float("inf"),
    ],
)
def test_wrong_budget_is_an_error(wrong: Any) -> None:
    with pytest.raises(rg.PlanError, match="is no budget: give bytes as a whole number above 0"):
        parse_bytes(wrong)


@pytest.mark.parametrize("text", ["120", " 1.5 ", "9,999", "1e3"])
def test_small_number_without_a_unit_is_asked_back(text: str) -> None:
    number = text.strip().replace(",", "")
    with pytest.raises(rg.PlanError, match=re.escape(f"did you mean '{number} MiB'?")):
        parse_bytes(text)


def test_anchors_are_stored(graph: rg.Graph) -> None:
    name = next(node.outputs[0] for node in graph.planned if node.kind == "coupling")
    assert name in rg.plan(graph, anchors=[name]).stored
    with pytest.raises(rg.PlanError, match="anchor 'ghost' is no value of the graph"):
        rg.plan(graph, anchors=["ghost"])


def test_explain_names_what_is_kept_and_computed_again(graph: rg.Graph) -> None:
    plan = rg.plan(graph)
    for node in graph.planned:
        assert plan.explain(node.name).startswith(f"{node.name}: {plan.decisions[node.name]}, ")


def test_simulation_agrees_with_the_plan(graph: rg.Graph, frontier: list[rg.Plan]) -> None:
    for plan in frontier:
        moments = rg.simulate(plan)
        assert max(moment.peak_bytes for moment in moments) == plan.peak_bytes
        assert next(m.live_bytes for m in moments if m.step.action == "loss") == plan.held_bytes
        ran = [moment.step.node for moment in moments if moment.step.action == "run"]
        turned = [moment.step.node for moment in moments if moment.step.action == "backward"]
        assert [name for name in reversed(turned) if name in ran] == [name for name in ran if name in turned]


def test_every_plan_of_the_frontier_gives_the_gradients_of_ordinary_autograd() -> None:
    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(8, 16, dtype=torch.double)
    net = rg.trace(model, x)
    model(x).pow(2).mean().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    for plan in rg.frontier(net.graph):
        net.plan = plan
        model.zero_grad()
        net(x).pow(2).mean().backward()
        found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_a_share_is_one_of_ordinary_training(graph: rg.Graph) -> None:
    whole = rg.keep_all(graph).peak_bytes
    assert rg.plan(graph, budget="50%") == rg.plan(graph, budget=whole // 2)
    assert set(rg.plan(graph, budget=" 100 % ").decisions.values()) == {"keep"}
    with pytest.raises(rg.BudgetError):
        rg.plan(graph, budget="1%")


@pytest.mark.slow
def test_every_effort_has_plans_that_fit_and_more_effort_is_no_worse(graph: rg.Graph) -> None:
    budget = rg.keep_all(graph).peak_bytes // 2
    quick, normal, thorough = (
        rg.plan(graph, budget=budget, effort=each) for each in ("quick", "normal", "thorough")
    )
    assert max(plan.peak_bytes for plan in (quick, normal, thorough)) <= budget
    assert quick.cost_ratio >= normal.cost_ratio >= thorough.cost_ratio
    with pytest.raises(rg.PlanError, match="'hard' is no effort; efforts are quick, normal, thorough"):
        rg.plan(graph, effort="hard")  # pyright: ignore


@pytest.mark.parametrize(("seconds", "effort"), [(0.2, "quick"), (1.5, "normal"), (60, "thorough")])
def test_seconds_are_out_of_use_and_become_an_effort(graph: rg.Graph, seconds: float, effort: Any) -> None:
    with pytest.warns(DeprecationWarning, match=f"is taken as effort='{effort}'") as told:
        plan = rg.plan(graph, budget="50%", seconds=seconds)
    assert plan == rg.plan(graph, budget="50%", effort=effort)
    assert told[0].filename == __file__


def test_plans_hang_on_the_graph_alone_not_on_calls_before(graph: rg.Graph) -> None:
    """Another graph of the same content, asked for other budgets first, has the same plans."""
    other = rg.Graph.from_json(graph.to_json())
    known_pools.forget()
    whole = rg.keep_all(graph).peak_bytes
    budgets = [whole * share // 100 for share in (35, 90, 50, 70)]
    first = {budget: rg.plan(graph, budget=budget) for budget in budgets}
    for budget in reversed(budgets):
        assert rg.plan(other, budget=budget) == first[budget]
    assert rg.frontier(other) == rg.frontier(graph)


@pytest.mark.slow
def test_a_graph_that_is_the_same_to_plans_is_not_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[int] = []

    def counted(problem: Any, *rest: Any) -> Any:
        searches.append(len(problem.items))
        return search(problem, *rest)

    def graph_of(depth: int, batch: int = 4) -> rg.Graph:
        return rg.trace(Net(depth, 4), torch.randn(batch, 4)).graph

    def planned(graph: rg.Graph, **options: Any) -> rg.Plan:
        return rg.plan(graph, **{"effort": "quick", **options})

    known_pools.forget()
    monkeypatch.setattr(budgets, "search", counted)
    once, again = graph_of(1), graph_of(1)
    renamed = dataclasses.replace(again, name="another")
    assert planned(once).decisions == planned(again).decisions == planned(renamed).decisions
    assert rg.frontier(renamed, effort="quick")[0].graph is renamed
    assert len(searches) == 1
    for other in ({"cost": "flops"}, {"effort": "normal"}, {"anchors": once.outputs}, {"cost": "t4"}):
        planned(again, **other)
    planned(graph_of(1, batch=5))
    planned(graph_of(1))
    assert len(searches) == 6
    for depth in range(2, known_pools.MOST + 2):
        planned(graph_of(depth))
    planned(graph_of(1))  # that was too long ago
    assert len(searches) == 6 + known_pools.MOST + 1 and searches[0] == searches[-1]


@pytest.mark.slow
def test_a_graph_lets_go_of_its_plans_and_does_not_hand_them_on() -> None:
    graph = rg.trace(Net(2), torch.randn(4, 16)).graph
    size = len(pickle.dumps(graph))
    rg.plan(graph)
    assert len(pickle.dumps(graph)) < 2 * size
    assert copy.deepcopy(graph) == graph
    gone = weakref.ref(graph)
    del graph
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("collects", [True, False])
def test_planning_leaves_the_collector_as_it_was(collects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def failing(*_: Any) -> Any:
        seen.append(gc.isenabled())
        raise KeyboardInterrupt

    graph, before = rg.trace(Net(1), torch.randn(3, 16)).graph, gc.isenabled()
    known_pools.forget()
    monkeypatch.setattr(budgets, "search", failing)
    (gc.enable if collects else gc.disable)()
    try:
        with pytest.raises(KeyboardInterrupt):
            rg.plan(graph)
        assert seen == [False] and gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()


class Residual(nn.Module):
    """Blocks of two residual layers in plain code, in stretches that torch may checkpoint."""

    def __init__(self, blocks: int, stretches: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stretches = stretches
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU()) for _ in range(2 * blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        def run(x: Tensor, first: int, last: int) -> Tensor:
            for layer in self.layers[first:last]:
                x = x + layer(x)
            return x

        bounds = [round(place * len(self.layers) / max(1, self.stretches)) for place in range(self.stretches)]
        for first, last in itertools.pairwise([*bounds, len(self.layers)]):
            x = checkpoint(run, x, first, last, use_reentrant=False)
        return x if self.stretches else run(x, 0, len(self.layers))


def taken(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Peak bytes and FLOPs of a step."""
    with StorageTracker([x, *model.parameters()]) as tracker:
        model(x).square().mean().backward()
    peak = tracker.peak(without=[each.grad for each in model.parameters() if each.grad is not None])
    with FlopCounterMode(display=False) as counter:
        model(x).square().mean().backward()
    return peak, counter.get_total_flops()


@pytest.mark.slow
def test_residual_blocks_in_plain_code_take_no_more_than_torchs_checkpoints() -> None:
    """Their additions save nothing, and stretches are run again with them."""
    x = torch.randn(64, 16)
    net = rg.trace(Residual(12), x)
    assert sum(node.cost.courses["keep"].held_bytes == 0 for node in net.graph.planned) >= 24
    _, plain = taken(Residual(12), x)
    for stretches in (3, 4, 6):
        peak, flops = taken(Residual(12, stretches), x)
        plan = rg.plan(net.graph, budget=peak, cost="flops")
        assert plan.flops_ratio <= flops / plain
        net.plan = plan
        assert rg.measure(net, x).peak_bytes == plan.peak_bytes <= peak
    reference = copy.deepcopy(net)
    reference.plan = rg.keep_all(net.graph)
    for each in (net, reference):
        each(x).square().mean().backward()
    for one, two in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)  # pyright: ignore


class Joining(nn.Module):
    """Layers of two convolutions that each join what they make to what they are given, as a DenseNet's do."""

    def __init__(self, layers: int, width: int = 16, growth: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = range(width, width + layers * growth, growth)
        self.layers = nn.ModuleList(
            nn.Sequential(
                *(nn.BatchNorm2d(size), nn.ReLU(), nn.Conv2d(size, 2 * growth, 1, bias=False)),
                *(nn.BatchNorm2d(2 * growth), nn.ReLU(), nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False)),
            )
            for size in sizes
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


@pytest.mark.slow
def test_joined_layers_need_no_flop_more_in_two_fifths_of_the_bytes() -> None:
    """Joined values come back from the last of them, and norms from these: only convolutions are stored.

    After Pleiss et al. 2017, "Memory-efficient implementation of DenseNets".
    """
    x = torch.randn(4, 16, 8, 8)
    net = rg.trace(Joining(12), x)
    plan = net.plan = rg.plan(net.graph, "40%", cost="flops")
    assert plan.flops_ratio == 1
    assert any(source.how == "rewired" for source in plan.sources.values())
    assert rg.measure(net, x).peak_bytes == plan.peak_bytes <= 0.4 * plan.ordinary_bytes
    assert rg.check(net, x).max_relative_error < 1e-6
