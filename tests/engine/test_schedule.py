"""The engine does what the schedule says: evaluations, FLOPs, bytes; on the careful path and the lean one."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from engine.random_nets import BATCH, WIDTH, RandomNet, recipes
from engine.random_plans import random_plan
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import revgraph as rg
from revgraph.engine.observer import Observer
from revgraph.measuring import activation_bytes
from revgraph.trials import loss_of

SETTINGS = settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)


class Counts(Observer):
    """How often each node is evaluated; who watches a step keeps it on the careful path."""

    compares = False

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def evaluated(self, node: str) -> None:
        self.calls[node] += 1


def flops_of(net: rg.ReversibleModule, inputs: list[torch.Tensor]) -> int:
    with net.comparing(False), FlopCounterMode(display=False) as counter:
        loss_of(net(*inputs)).backward()
    return counter.get_total_flops()


def gradients(net: rg.ReversibleModule, inputs: list[torch.Tensor]) -> list[torch.Tensor | None]:
    leaves = [each for each in (*inputs, *net.parameters()) if each.requires_grad]
    with net.comparing(False):
        return [*torch.autograd.grad(loss_of(net(*inputs)), leaves, allow_unused=True)]


def assert_paths_agree(net: rg.ReversibleModule, inputs: list[torch.Tensor]) -> None:
    """The careful path and the lean one give the same gradients, to the bit."""
    lean = gradients(net, inputs)
    with net.watched_by(Counts()):
        careful = gradients(net, inputs)
    for one, two in zip(lean, careful, strict=True):
        assert one is two is None or (one is not None and two is not None and torch.equal(one, two))


def assert_as_scheduled(net: rg.ReversibleModule, inputs: list[torch.Tensor]) -> None:
    plan, moments = net.plan, rg.simulate(net.plan)
    flops = sum(moment.flops for moment in moments)
    planned = Counter(each.step.node for each in moments if each.step.action in rg.planning.EVALUATING)
    assert flops_of(net, inputs) == flops
    assert activation_bytes(net, *inputs) == (plan.peak_bytes, plan.held_bytes)
    counts = Counts()
    with net.watched_by(counts):
        assert flops_of(net, inputs) == flops
    assert counts.calls == planned
    with net.watched_by(Counts()):
        assert activation_bytes(net, *inputs) == (plan.peak_bytes, plan.held_bytes)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_random_plans_of_random_graphs_run_as_scheduled(number: int) -> None:
    seen: Counter[str] = Counter()

    @seed(number)
    @SETTINGS
    @given(recipes(), st.integers(0, 10**6))
    def run(recipe: Any, drawn: int) -> None:
        pick = random.Random(drawn)
        model = RandomNet(*recipe)
        inputs = [torch.randn(BATCH, WIDTH) for _ in range(recipe[0])]
        for tensor in (*inputs, *model.parameters()):
            tensor.requires_grad_(pick.random() < 0.9)
        net = rg.trace(model, *inputs)
        if net.graph.loss is None:
            return
        net.plan = random_plan(pick, net.graph)
        assert_as_scheduled(net, inputs)
        assert_paths_agree(net, inputs)
        seen.update(each.step.action for each in rg.simulate(net.plan))

    run()
    assert {"invert", "recompute", "invert_again", "rerun"} <= seen.keys()
