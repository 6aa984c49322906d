"""Copies of the buffers that a forward writes are held until the node's last replay, and no longer."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revgraph as rg

BLOCKS = 4


class Centred(nn.Module):
    """Takes a running mean away; saves nothing itself, or with `bent` its result."""

    mean: Tensor

    def __init__(self, bent: bool) -> None:
        super().__init__()
        self.bent = bent
        self.register_buffer("mean", torch.zeros(6, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return torch.tanh(x - self.mean) if self.bent else x - self.mean


class Chain(nn.Module):
    def __init__(self, bent: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6, dtype=torch.float64) for _ in range(BLOCKS))
        self.centres = nn.ModuleList(Centred(bent) for _ in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        for layer, centre in zip(self.layers, self.centres, strict=True):
            x = layer(centre(x))
        return x


class Branches(nn.Module):
    """Two chains from one input, so that one can be differentiated before the other."""

    def __init__(self, bent: bool) -> None:
        super().__init__()
        self.one, self.two = Chain(bent), Chain(bent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ends: list[Tensor] = []
        for chain in (self.one, self.two):
            y = x
            for layer, centre in zip(chain.layers, chain.centres, strict=True):
                y = layer(centre(y))
            ends.append(y)
        return ends[0], ends[1]


def traced(model: nn.Module) -> tuple[rg.ReversibleModule, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(5, 6, dtype=torch.float64)
    return rg.trace(model, x), x


def plans(graph: rg.Graph) -> dict[str, rg.Plan]:
    names = [node.name for node in graph.planned]
    once = dict.fromkeys(names, "recompute")
    segment = rg.decide(graph, once, stored=[names[3]], reruns=names)
    return {
        "one by one": rg.decide(graph, once),
        "segments": segment,
        "all again": rg.decide(graph, once, stored=[], reruns=names),
        "half kept": rg.decide(graph, {**once, **dict.fromkeys(names[4:], "keep")}),
    }


PLANS = ("one by one", "segments", "all again", "half kept")


@pytest.mark.slow
@pytest.mark.parametrize("bent", [True, False])
@pytest.mark.parametrize("name", PLANS)
def test_bytes_are_those_predicted_at_every_moment(name: str, bent: bool) -> None:
    net, x = traced(Chain(bent))
    plan = net.plan = plans(net.graph)[name]
    moments = rg.simulate(plan)
    for step, live in rg.track(net, x):
        assert live == moments[step].peak_bytes, moments[step].step
    measured = rg.measure(net, x)
    assert (measured.peak_bytes, measured.held_bytes) == (plan.peak_bytes, plan.held_bytes)


@pytest.mark.slow
def test_copies_are_let_go_of_one_by_one() -> None:
    net, x = traced(Chain(bent=True))
    net.plan = plans(net.graph)["one by one"]
    held: list[int] = []
    collects = gc.isenabled()
    gc.disable()
    before = {id(each) for each in tapes()}  # of tests before
    try:
        loss = net(x).pow(2).sum()
        (tape,) = (each for each in tapes() if id(each) not in before)
        for layer in reversed(net.layers):
            layer.weight.register_hook(lambda _: held.append(copies_in(tape)))
        loss.backward()
    finally:
        if collects:
            gc.enable()
    # That of the first block, which no gradient passes, has gone with the forward.
    assert held == [3, 2, 1, 0]


def tapes() -> list[Any]:
    return [each for each in gc.get_objects() if type(each).__name__ == "Tape"]


def copies_in(tape: Any) -> int:
    return sum(name.endswith("(mean)") for name, _ in tape.held_for_backward())


@pytest.mark.slow
@pytest.mark.parametrize("bent", [True, False])
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("first", [0, 1])
def test_stages_passed_over_find_their_copies(name: str, bent: bool, first: int) -> None:
    model = Branches(bent)
    plain = copy.deepcopy(model)
    net, x = traced(model)
    net.plan = plans(net.graph)[name]
    for _ in range(2):
        for each in (net, plain):
            outputs = each(x)
            for place in (first, 1 - first):
                outputs[place].pow(2).sum().backward()
    for one, two in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-10, atol=1e-12)
    for one, two in zip(net.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_graph_that_is_retained_keeps_its_copies(name: str) -> None:
    model = Chain(bent=True)
    plain = copy.deepcopy(model)
    net, x = traced(model)
    net.plan = plans(net.graph)[name]
    for each in (net, plain):
        loss = each(x).pow(2).sum()
        loss.backward(retain_graph=True)
        loss.backward()
    for one, two in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-10, atol=1e-12)
