"""Buffers that a forward changes: they move once a step, bitwise as in plain autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.samples import (
    Chain,
    assert_bitwise,
    assert_close,
    assert_same_buffers,
    batch,
    doubled,
    inverted,
    loss_of,
    normed,
    step,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import revgraph as rg

pytestmark = pytest.mark.usefixtures("device")


def pair_of_nets(make: Any, x: Tensor) -> tuple[nn.Module, nn.Module, rg.ReversibleModule]:
    model, plain = doubled(make)
    return model, plain, inverted(model, x)


def test_batchnorm_counts_one_step() -> None:
    x = batch()
    model, plain, net = pair_of_nets(lambda: Chain(f=normed), x)
    for _ in range(3):
        assert_close(step(net, model, x), step(plain, plain, x))
        assert_same_buffers(model, plain)
    assert int(model.blocks[0].f[1].num_batches_tracked) == 3


def test_tracing_and_measuring_leave_batchnorm_as_it_was() -> None:
    x = batch()
    model, plain, net = pair_of_nets(lambda: Chain(f=normed), x)
    rg.measure(net, x)
    rg.check(net, x)
    assert_same_buffers(model, plain)


def test_batchnorm_with_two_forwards_before_one_backward() -> None:
    one, two = batch(seed=1), batch(seed=2)
    model, plain, net = pair_of_nets(lambda: Chain(f=normed), one)
    found, expected = [], []
    for run, leaves, out in ((net, model, found), (plain, plain, expected)):
        first, second = run(one), run(two)
        (loss_of(first) + loss_of(second)).backward()
        out += [parameter.grad for parameter in leaves.parameters()] + [one.grad, two.grad]
        one.grad = two.grad = None
    assert_close(found, expected)
    assert_same_buffers(model, plain)


def test_batchnorm_with_interleaved_backward_passes() -> None:
    one, two = batch(seed=1), batch(seed=2)
    model, plain, net = pair_of_nets(lambda: Chain(f=normed), one)
    found, expected = [], []
    for run, leaves, out in ((net, model, found), (plain, plain, expected)):
        first = run(one)
        second = run(two)
        loss_of(first).backward()
        loss_of(second).backward()
        out += [parameter.grad for parameter in leaves.parameters()] + [one.grad, two.grad]
        one.grad = two.grad = None
    assert_close(found, expected)
    assert_same_buffers(model, plain)


class SharedNorm(nn.Module):
    """One normalization inside the functions of two half-steps."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = x1 + torch.tanh(self.f(self.norm(x2)))
        y2 = x2 + torch.tanh(self.g(self.norm(y1)))
        return y1, y2


def test_a_batchnorm_shared_by_two_nodes_counts_two() -> None:
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    model, plain = doubled(SharedNorm)
    net = inverted(model, x1, x2)
    assert_close(step(net, model, x1, x2), step(plain, plain, x1, x2))
    assert_same_buffers(model, plain)
    assert int(model.norm.num_batches_tracked) == 2


def test_batchnorm_in_eval_uses_its_statistics_and_leaves_them() -> None:
    x = batch()
    model, plain, net = pair_of_nets(lambda: Chain(f=normed), x)
    step(net, model, x)
    step(plain, plain, x)
    net.eval()
    plain.eval()
    assert_close(step(net, model, x), step(plain, plain, x))
    assert_same_buffers(model, plain)


def test_batchnorm_toggled_to_eval_between_forward_and_backward() -> None:
    x = batch()
    model, plain, net = pair_of_nets(lambda: Chain(f=normed), x)
    found, expected = [], []
    for run, leaves, out in ((net, model, found), (plain, plain, expected)):
        run.train()
        loss = loss_of(run(x))
        run.eval()
        out += torch.autograd.grad(loss, [x, *leaves.parameters()])
        assert not any(module.training for module in run.modules())
    assert_close(found, expected)
    assert_same_buffers(model, plain)


@pytest.mark.slow
def test_batchnorm_momentum_none_and_without_tracking() -> None:
    x = batch()

    def function(width: int) -> nn.Module:
        return nn.Sequential(
            nn.BatchNorm1d(width, momentum=None),
            nn.Linear(width, width),
            nn.BatchNorm1d(width, track_running_stats=False),
        )

    model, plain, net = pair_of_nets(lambda: Chain(f=function), x)
    for _ in range(2):
        assert_close(step(net, model, x), step(plain, plain, x))
    assert_same_buffers(model, plain)


def spectral(width: int) -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(width, width)), nn.Tanh())


@pytest.mark.slow
def test_spectral_norm_replays_from_the_earlier_vectors() -> None:
    x = batch()
    model, plain, net = pair_of_nets(lambda: Chain(f=spectral), x)
    for _ in range(3):
        assert_close(step(net, model, x), step(plain, plain, x))
        assert_same_buffers(model, plain)


@pytest.mark.slow
def test_spectral_norm_with_two_forwards_before_one_backward() -> None:
    one, two = batch(seed=1), batch(seed=2)
    model, plain, net = pair_of_nets(lambda: Chain(f=spectral), one)
    found, expected = [], []
    for run, leaves, out in ((net, model, found), (plain, plain, expected)):
        loss = loss_of(run(one)) + loss_of(run(two))
        out += torch.autograd.grad(loss, [*leaves.parameters(), one, two])
    assert_close(found, expected)
    assert_same_buffers(model, plain)


class ByRunningVariance(nn.BatchNorm1d):
    """A normalization that reads its running variance in training, before it moves it."""

    def forward(self, x: Tensor) -> Tensor:
        y = (x - x.mean(0)) / (self.running_var + 0.1).sqrt()
        if self.training:
            with torch.no_grad():
                self.running_var.lerp_(x.var(0), 0.5)
        return y


def test_a_user_batchnorm_that_reads_its_statistics_replays_from_the_earlier_ones() -> None:
    x = batch()

    def function(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, width), ByRunningVariance(width), nn.Tanh())

    model, plain, net = pair_of_nets(lambda: Chain(f=function), x)
    assert_close(step(net, model, x), step(plain, plain, x))
    assert_same_buffers(model, plain)


class Averaging(nn.Module):
    """Replaces a buffer by a new tensor at each forward, and reads it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.linear(x) - self.mean)
        self.mean = 0.5 * self.mean + x.detach().mean(0)
        return y


def test_a_buffer_that_is_replaced_moves_once() -> None:
    x = batch()
    model, plain, net = pair_of_nets(lambda: Chain(f=Averaging), x)
    for _ in range(2):
        assert_close(step(net, model, x), step(plain, plain, x))
    assert_same_buffers(model, plain)


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["keep", "recompute"])
def test_batchnorm_in_boundaries_counts_one_step(choice: str) -> None:
    x = batch()
    model, plain = doubled(lambda: nn.Sequential(normed(8), Chain(f=normed), normed(8)))
    net = rg.trace(model, x)
    net.plan = rg.decide(net.graph, {node.name: choice for node in net.graph.planned})
    assert_close(step(net, model, x), step(plain, plain, x))
    assert_same_buffers(model, plain)


def test_buffers_keep_their_identity() -> None:
    x = batch()
    model, _, net = pair_of_nets(lambda: Chain(f=normed), x)
    before = list(model.buffers())
    step(net, model, x)
    assert all(one is two for one, two in zip(model.buffers(), before, strict=True))
    assert_bitwise(list(net.buffers()), before)
