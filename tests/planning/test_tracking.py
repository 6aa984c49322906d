"""The bytes live along a training step, measured, are those that the simulator predicts, to the byte."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from planning.test_prediction import SMALL, ThreeStreams, Transformer

import revgraph as rg


def predicted(plan: rg.Plan) -> list[int]:
    """The most that is live from each evaluation to the next."""
    moments = rg.simulate(plan)
    runs = ("run", "invert", "recompute", "recompute_and_keep", "invert_again", "rerun")
    starts = [index for index, each in enumerate(moments) if each.step.action in runs]
    return [max(each.peak_bytes for each in moments[a:b]) for a, b in pairwise([*starts, len(moments)])]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "three streams", "transformer"])
def test_the_most_live_bytes_are_predicted_between_any_two_evaluations(name: str) -> None:
    torch.manual_seed(0)
    if name == "small":
        inputs: Any = [torch.randn(2, 3, 8, 8)]
        net = rg.load(SMALL)
    elif name == "transformer":
        inputs = [torch.randint(50, (3, 10))]
        net = rg.trace(Transformer(), *inputs)
    else:
        inputs = list(torch.randn(3, 5, 8))
        net = rg.trace(ThreeStreams(), *inputs)
    for plan in [*rg.frontier(net.graph, points=4), rg.keep_all(net.graph), rg.decide(net.graph, {})]:
        net.plan = plan
        moments = rg.simulate(plan)
        tracked = rg.track(net, *inputs)
        assert [most for _, most in tracked] == predicted(plan)
        assert all(moments[step].peak_bytes == most for step, most in tracked)
        assert max(most for _, most in tracked) == rg.measure(net, *inputs).peak_bytes == plan.peak_bytes


def test_a_coupling_that_is_captured_ahead_of_its_backward_is_recomputed() -> None:
    """Whether it was to be inverted or not: nothing of it is left to invert, and bytes are those measured."""
    torch.manual_seed(0)
    images, net = torch.randn(2, 3, 8, 8), rg.load(SMALL)
    kept = dict.fromkeys(("unit1.f", "unit1.g", "head"), "keep")
    for stored, again in (((), ("stem", "unit0.f")), (("stem",), ("unit0.f",))):
        for decision in ("invert", "recompute"):
            net.plan = plan = rg.decide(
                net.graph,
                {"stem": "recompute", "unit0.f": decision, "unit0.g": "recompute", **kept},
                stored=stored,
                reruns=again,
                holds={"unit0.f": "unit0.g"},
            )
            assert plan.decisions["unit0.f"] == "recompute"
            assert [most for _, most in rg.track(net, images)] == predicted(plan)


def test_tracking_leaves_gradients_buffers_and_the_random_state_alone() -> None:
    net = rg.load(SMALL)
    before = {name: value.clone() for name, value in net.named_buffers()}
    images = torch.randn(2, 3, 8, 8)
    state = torch.get_rng_state()
    rg.track(net, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())


def test_a_net_without_gradients_has_nothing_to_track() -> None:
    net = rg.load(SMALL).requires_grad_(False)
    with pytest.raises(rg.GraphError, match="no output of the net depends"):
        rg.track(net, torch.randn(2, 3, 8, 8))


def test_a_step_that_goes_otherwise_than_planned_is_refused() -> None:
    net = rg.load(SMALL)
    net.plan = rg.decide(net.graph, {"stem": "recompute"})
    rg.track(net, torch.randn(2, 3, 8, 8))
    net.get_submodule("stem").requires_grad_(False)
    with pytest.raises(rg.PlanError, match="make the net again"):
        rg.track(net, torch.randn(2, 3, 8, 8))
