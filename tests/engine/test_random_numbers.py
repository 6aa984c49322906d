"""Dropout: the same mask on replay, and the global random stream as plain autograd leaves it."""

from __future__ import annotations

import pytest
import torch
from engine.samples import (
    Chain,
    assert_bitwise,
    assert_close,
    batch,
    doubled,
    dropping,
    inverted,
    random_streams,
    step,
)
from torch import Tensor, nn
from torch.nn import functional

import revgraph as rg

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("choice", ["keep", "invert", "recompute"])
def test_dropout_replays_the_same_mask(choice: str) -> None:
    x = batch()
    model, plain = doubled(lambda: Chain(f=dropping))
    net = rg.trace(model, x)
    net.plan = rg.decide(net.graph, {node.name: choice for node in net.graph.planned})
    torch.manual_seed(5)
    found = step(net, model, x)
    streams = random_streams()
    torch.manual_seed(5)
    expected = step(plain, plain, x)
    assert_close(found, expected)
    assert_bitwise(streams, random_streams())


def test_the_random_stream_between_forward_and_backward_is_the_plain_one() -> None:
    x = batch()
    model, plain = doubled(lambda: Chain(f=dropping))
    net = inverted(model, x)
    states = []
    for run in (net, plain):
        torch.manual_seed(5)
        loss = run(x).sum()
        states.append(random_streams())
        torch.rand(3)
        loss.backward()
        states[-1] += random_streams()
    assert_bitwise(*states)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_toggled_between_forward_and_backward(training: bool) -> None:
    x = batch()
    model, plain = doubled(lambda: Chain(f=dropping))
    net = inverted(model, x)
    results = []
    for run, leaves in ((net, model), (plain, plain)):
        run.train(training)
        torch.manual_seed(3)
        loss = (run(x) ** 2).sum()
        run.train(not training)
        results.append(torch.autograd.grad(loss, [x, *leaves.parameters()]))
    assert_close(*results)
    assert all(module.training is not training for module in net.modules())


class Functional(nn.Module):
    """Dropout as a function that reads the module's own training flag."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = x1 + functional.dropout(torch.tanh(self.f(x2)), 0.4, self.training)
        return y1, x2 + functional.dropout(torch.tanh(self.g(y1)), 0.4, self.training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("toggled", [True, False])
def test_functional_dropout_follows_the_training_flag(training: bool, toggled: bool) -> None:
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    model, plain = doubled(Functional)
    net = inverted(model, x1, x2)
    results = []
    for run, leaves in ((net, model), (plain, plain)):
        run.train(training)
        torch.manual_seed(3)
        loss = sum((output**2).sum() for output in run(x1, x2))
        if toggled:
            run.train(not training)
        results.append(torch.autograd.grad(loss, [x1, x2, *leaves.parameters()]))
    assert_close(*results)


def test_dropout_with_two_forwards_and_backward_twice() -> None:
    x = batch()
    model, plain = doubled(lambda: Chain(f=dropping))
    net = inverted(model, x)
    results = []
    for run, leaves in ((net, model), (plain, plain)):
        torch.manual_seed(3)
        losses = [(run(x) ** 2).sum(), (run(x) ** 3).sum()]
        grads = []
        for loss in (*losses, losses[0]):
            grads += torch.autograd.grad(loss, [x, *leaves.parameters()], retain_graph=True)
        results.append([*grads, *random_streams()])
    assert_close(*results)


def test_a_node_that_starts_to_draw_is_noticed() -> None:
    x = batch()
    model, plain = doubled(lambda: Chain(f=dropping))
    net = inverted(model, x)
    net.eval(), plain.eval()
    step(net, model, x), step(plain, plain, x)
    net.train(), plain.train()
    torch.manual_seed(2)
    found = step(net, model, x)
    torch.manual_seed(2)
    assert_close(found, step(plain, plain, x))


def test_tracing_measuring_and_checking_leave_the_random_stream() -> None:
    x = batch()
    model, _ = doubled(lambda: Chain(f=dropping))
    before = random_streams()
    net = inverted(model, x)
    rg.measure(net, x)
    rg.check(net, x)
    assert_bitwise(before, random_streams())


class ForeignNoise(nn.Module):
    """Draws from a generator that no replay can restore; the shapes of what it saves do not tell."""

    generator = torch.Generator()

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(4, generator=self.generator, dtype=x.dtype, device="cpu").to(x.device)
        return torch.tanh(self.linear(x) * noise)
