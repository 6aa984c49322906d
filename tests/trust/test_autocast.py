"""Autocast: functions see the forward's precision on replay, and gradients are plain autocast's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from engine.samples import Chain, assert_bitwise, loss_of
from torch import Tensor, nn

import revgraph as rg

BF16 = torch.bfloat16


class Watched(nn.Module):
    """Notes the precision of all that passes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.norm, self.two = (
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.Linear(width, width),
        )
        self.seen: list[tuple[torch.dtype, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        a = self.one(x)
        b = self.norm(a)
        self.seen.append((x.dtype, a.dtype, b.dtype))  # a replay may end at what is saved last
        return self.two(torch.tanh(b))


class Apart(Watched, rg.Boundary):
    """The same as a node of its own, which tracing does not look into."""


def gradients(run: nn.Module, x: Tensor, inside: bool) -> list[Tensor]:
    leaves = [x, *run.parameters()]
    with torch.autocast(x.device.type, BF16):
        loss = loss_of(run(x))
        if inside:
            return list(torch.autograd.grad(loss, leaves))
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.slow
@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
@pytest.mark.parametrize("choice", ["keep", "recompute", "invert"])
def test_a_replay_under_autocast_has_the_forwards_precision(
    choice: str, inside: bool, device: torch.device
) -> None:
    torch.manual_seed(0)
    model = Chain(3, Apart, 16).to(device)
    plain = copy.deepcopy(model)
    x = torch.randn(8, 32, device=device, requires_grad=True)
    net = rg.trace(model, x)
    net.plan = rg.decide(net.graph, {name: choice for name in net.plan.decisions})
    functions: list[Any] = [module for module in model.modules() if isinstance(module, Watched)]
    for each in functions:
        each.seen.clear()
    found, expected = gradients(net, x, inside), gradients(plain, x, inside)
    times = 1 if choice == "keep" else 2
    references: list[Any] = [module for module in plain.modules() if isinstance(module, Watched)]
    for each, reference in zip(functions, references, strict=True):
        assert each.seen == reference.seen * times
        assert each.seen[0][:2] == (torch.float32, BF16)
    if choice == "invert":
        # What comes back by subtraction is off by float32's rounding, which may tip a bfloat16 by one digit.
        for one, two in zip(found, expected, strict=True):
            assert (one - two).abs().max() <= 2e-2 * two.abs().max()
    else:
        assert_bitwise(found, expected)


def test_inversion_that_is_exact_gives_autocasts_gradient_bitwise() -> None:
    """Streams and terms on a grid of 2^-6 come back to the bit, so nothing is left to differ."""

    class OnGrid(Apart):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x).float()
            return y + (torch.round(y * 64) / 64 - y).detach()

    torch.manual_seed(0)
    model = Chain(3, OnGrid, 16)
    plain = copy.deepcopy(model)
    x = (torch.round(torch.randn(8, 32) * 64) / 64).requires_grad_()
    net = rg.trace(model, x)
    net.plan = rg.decide(net.graph, {})
    assert rg.check(net, x).drift and max(rg.check(net, x).drift.values()) == 0
    for inside in (True, False):
        assert_bitwise(gradients(net, x, inside), gradients(plain, x, inside))


def test_a_net_that_is_traced_under_autocast_runs_without_and_the_other_way_round() -> None:
    torch.manual_seed(0)
    model = Chain(2, Apart, 16)
    plain = copy.deepcopy(model)
    x = torch.randn(8, 32, requires_grad=True)
    with torch.autocast("cpu", BF16):
        net = rg.trace(model, x)
    net.plan = rg.decide(net.graph, {name: "recompute" for name in net.plan.decisions})
    leaves = [x, *model.parameters()], [x, *plain.parameters()]
    found, expected = (
        torch.autograd.grad(loss_of(run(x)), each) for run, each in zip((net, plain), leaves, strict=True)
    )
    assert_bitwise(found, expected)
    assert_bitwise(gradients(net, x, False), gradients(plain, x, False))
