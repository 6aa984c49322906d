"""A plan made by hand does in the engine what its schedule says: evaluations, FLOPs, order and bytes."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from engine.kinds import made_twice, two_streams
from engine.random_nets import COUPLINGS, RandomNet
from engine.random_nets import Move as Instruction
from engine.samples import assert_close
from torch import Tensor, nn

import revgraph as rg


class Braid(nn.Module):
    """A block between streams, a sum of its results, and an affine coupling."""

    def __init__(self) -> None:
        super().__init__()
        self.block = rg.Additive(nn.Linear(4, 4), nn.Linear(4, 4))
        self.affine = rg.Affine(nn.Linear(4, 8))

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        one, two = self.block(c, a * 1.5)
        return a, b, self.affine(one + two, b)


def three_streams() -> tuple[Tensor, ...]:
    return (*two_streams(3, 4), two_streams(3, 4, seed=2)[0])


def random_net(seed: int) -> nn.Module:
    choose = random.Random(seed)
    moves = tuple(
        Instruction(
            choose.choice((*COUPLINGS, "boundary", "functional", "merge", "product")),
            choose.randrange(3),
            tuple(choose.sample(range(3 + index), choose.randint(1, 2))),
        )
        for index in range(choose.randint(3, 7))
    )
    return RandomNet(3, moves, ())


def random_plan(graph: rg.Graph, choose: random.Random) -> rg.Plan | None:
    """A legal plan with reruns, held nodes, dropped values and kept results; None where these do not fit."""
    nodes = [node for node in graph.nodes if node.kind in ("coupling", "boundary")]
    decisions: dict[str, Any] = {
        node.name: choose.choice(
            ("keep", "invert", "recompute") if node.kind == "coupling" else ("keep", "recompute")
        )
        for node in nodes
    }
    replayed = [node for node in nodes if decisions[node.name] != "keep"]
    reruns = [node.name for node in replayed if choose.random() < 0.3]
    holds = {}
    for name in reruns:
        later = [node.name for node in replayed if nodes.index(node) > nodes.index(graph.node[name])]
        if later and choose.random() < 0.4:
            holds[name] = choose.choice(later)
    results = {
        node.name: tuple(sorted(choose.sample(range(node.cost.heavy_results), 1)))
        for node in replayed
        if node.cost.heavy_results and node.name not in holds and choose.random() < 0.3
    }
    try:
        plan = rg.decide(graph, decisions, reruns=reruns, holds=holds, results=results)
        rebuilt = [value.name for value in graph.values if value.name not in {*plan.stored, *graph.inputs}]
        drops = {
            choose.choice(replayed).name: choose.sample(rebuilt, min(2, len(rebuilt)))
            for _ in range(choose.randint(0, 2) if replayed and rebuilt else 0)
        }
        return rg.decide(graph, decisions, reruns=reruns, holds=holds, results=results, drops=drops)
    except rg.PlanError:
        return None


def assert_as_planned(net: rg.ReversibleModule, plain: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    measured = rg.measure(net, *inputs)
    assert measured.flops_ratio == pytest.approx(net.plan.flops_ratio)
    assert (measured.peak_bytes, measured.held_bytes) == (net.plan.peak_bytes, net.plan.held_bytes)
    rg.track(net, *inputs)
    found, expected = (
        torch.autograd.grad(
            sum(each.pow(2).sum() for each in run(*inputs)), [*run.parameters(), *inputs], allow_unused=True
        )
        for run in (net, plain)
    )
    assert_close(found, expected, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "drops", [{}, {"add": ["block.f", "add"]}, {"add": ["block.f"]}, {"affine.f": ["add"]}]
)
@pytest.mark.parametrize("reruns", [(), ("affine.f",), ("mul", "affine.f")])
def test_drops_and_reruns_together(reruns: tuple[str, ...], drops: dict[str, list[str]]) -> None:
    model, plain = made_twice(Braid)
    inputs = three_streams()
    net = rg.trace(model, *inputs)
    try:
        net.plan = rg.decide(net.graph, {"mul": "recompute", "block.g": "keep"}, reruns=reruns, drops=drops)
    except rg.PlanError as error:
        assert "'" in str(error)  # refused by name, before anything runs
        return
    assert_as_planned(net, plain, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("seed", (0, 1, 2, 3, 5, 8, 10, 11))
def test_random_plans_on_random_nets(seed: int) -> None:
    model, plain = made_twice(lambda: random_net(seed))
    inputs = three_streams()
    net = rg.trace(model, *inputs)
    choose = random.Random(seed)
    chosen = [plan for plan in (random_plan(net.graph, choose) for _ in range(6)) if plan is not None]
    for plan in chosen[:3]:
        net.plan = plan
        assert_as_planned(net, plain, inputs)
