"""What is given in the place of a net, a graph or a plan is refused by its name, with what to give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import revgraph as rg

OF_NETS: dict[str, Callable[[Any], Any]] = {
    "rg.check": lambda net: rg.check(net, torch.ones(2, 4)),
    "rg.compile": rg.compile,
    "rg.estimate_drift": lambda net: rg.estimate_drift(net, torch.ones(2, 4)),
    "rg.initialize": lambda net: rg.initialize(net, torch.ones(2, 4)),
    "rg.measure": lambda net: rg.measure(net, torch.ones(2, 4)),
    "rg.profile": lambda net: rg.profile(net, torch.ones(2, 4)),
    "rg.track": lambda net: rg.track(net, torch.ones(2, 4)),
}


def net() -> rg.ReversibleModule:
    return rg.trace(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.ones(2, 4))


@pytest.mark.parametrize("function", OF_NETS)
def test_a_model_that_was_not_traced_is_refused(function: str) -> None:
    for wrong in (nn.Linear(4, 4), None, "revnet-38", 3, nn.Linear):
        with pytest.raises(rg.TraceError, match=rf"^{function} takes a net .* {type(wrong).__name__}"):
            OF_NETS[function](wrong)
    with pytest.raises(rg.TraceError, match=r"trace it first, net = rg\.trace\("):
        OF_NETS[function](nn.Linear(4, 4))
    with pytest.raises(rg.TraceError, match=r"a DataParallel: give its \.module"):
        OF_NETS[function](nn.DataParallel(net()))


def test_a_net_in_the_place_of_its_graph_or_plan_is_refused() -> None:
    for function, error, hint in (
        (rg.plan, rg.PlanError, "graph"),
        (rg.verify, rg.GraphError, "graph"),
        (rg.simulate, rg.PlanError, "plan"),
    ):
        with pytest.raises(error, match=rf"this is a Sequential: give its \.{hint}$"):
            function(net())  # pyright: ignore[reportArgumentType]
        with pytest.raises(error, match=r"this is a NoneType$"):
            function(None)  # pyright: ignore[reportArgumentType]


def test_of_a_net_its_model_is_traced() -> None:
    one = net()
    two = rg.trace(one, torch.ones(3, 4))
    assert two.graph.nodes[0].name == one.graph.nodes[0].name
    assert two.graph.value["input"].shape == (3, 4)
    assert [*two.parameters()] == [*one.parameters()]


@pytest.mark.parametrize("wrong", ["a", None, 3])
def test_a_call_without_a_tensor_says_that_there_was_one(wrong: Any) -> None:
    with pytest.raises(rg.TraceError, match=r"argument '?input'? was a tensor.*cannot be traced: "):
        net()(wrong)
