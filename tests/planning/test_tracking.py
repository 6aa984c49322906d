"""The bytes live along the forward pass, measured, are those that the simulator predicts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planning.test_prediction import SMALL, ThreeStreams

import revgraph as rg


@pytest.mark.parametrize("name", ["small", "three streams"])
def test_live_bytes_are_predicted_after_every_node(name: str) -> None:
    torch.manual_seed(0)
    if name == "small":
        inputs: Any = [torch.randn(2, 3, 8, 8)]
        net = rg.load(SMALL)
    else:
        inputs = list(torch.randn(3, 5, 8))
        net = rg.trace(ThreeStreams(), *inputs)
    for plan in [*rg.frontier(net.graph, points=4), rg.keep_all(net.graph), rg.decide(net.graph, {})]:
        net.plan = plan
        moments = rg.simulate(plan)
        tracked = rg.track(net, *inputs)
        forward = sum(each.step.action == "run" for each in moments)
        assert len(tracked) == forward - 1
        assert [live for _, live in tracked] == [moments[step].live_bytes for step, _ in tracked]


def test_tracking_leaves_gradients_and_buffers_alone() -> None:
    net = rg.load(SMALL)
    before = {name: value.clone() for name, value in net.named_buffers()}
    rg.track(net, torch.randn(2, 3, 8, 8))
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
