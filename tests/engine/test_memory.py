"""What is held, and when it goes: by reference counts alone, with the garbage collector off."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from engine.samples import Chain, Pair, inverted, loss_of, normed
from torch import Tensor, nn

import revgraph as rg
from revgraph.storages import StorageTracker

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def net_and_input(f: Any = None, grad: bool = True) -> tuple[nn.Module, rg.ReversibleModule, Tensor]:
    torch.manual_seed(0)
    model = Chain(4, f or (lambda width: nn.Sequential(nn.Linear(width, width), nn.Tanh())), 16)
    x = torch.randn(8, 32, requires_grad=grad)
    return model, inverted(model, x), x


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    return [leaf.grad for leaf in (*model.parameters(), x) if leaf.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["inverted", "default", "kept", "recomputed"])
def test_nothing_but_the_outputs_is_held_after_backward(plan: str) -> None:
    model, net, x = net_and_input(normed)
    if plan != "inverted":
        net.plan = {
            "default": rg.plan(net.graph),
            "kept": rg.keep_all(net.graph),
            "recomputed": rg.decide(net.graph, {node.name: "recompute" for node in net.graph.planned}),
        }[plan]
    with StorageTracker([x, *net.parameters(), *net.buffers()]) as tracker:
        output = net(x)
        loss = output.pow(2).sum()
        loss.backward()
        assert tracker.live(without=gradients(model, x)) == output.nbytes + loss.nbytes
        del output, loss
        assert tracker.live(without=gradients(model, x)) == 0


@pytest.mark.slow
def test_what_is_held_before_backward_goes_with_the_loss() -> None:
    _model, net, x = net_and_input(normed)
    with StorageTracker([x, *net.parameters(), *net.buffers()]) as tracker:
        output = net(x)
        loss = output.pow(2).sum()
        del output, loss
        assert tracker.live() == 0


@pytest.mark.slow
def test_several_forwards_without_backward_leave_nothing() -> None:
    _model, net, x = net_and_input()
    with StorageTracker([x, *net.parameters()]) as tracker:
        for _ in range(3):
            net(x)
        assert tracker.live() == 0


@pytest.mark.slow
def test_after_a_partial_gradient_all_goes_with_the_loss() -> None:
    model, net, x = net_and_input()
    with StorageTracker([x, *net.parameters()]) as tracker:
        loss = net(x).pow(2).sum()
        (grad,) = torch.autograd.grad(loss, [model.blocks[2].f[0].weight], retain_graph=True)
        held = tracker.live(without=[grad])
        torch.autograd.grad(loss, [model.blocks[1].f[0].weight], retain_graph=True)
        assert tracker.live(without=[grad]) == held
        del loss
        assert tracker.live(without=[grad]) == 0


@pytest.mark.slow
def test_a_retained_backward_holds_no_more_than_the_forward() -> None:
    model, net, x = net_and_input()
    with StorageTracker([x, *net.parameters()]) as tracker:
        loss = net(x).pow(2).sum()
        before = tracker.live()
        loss.backward(retain_graph=True)
        assert tracker.live(without=gradients(model, x)) == before


@pytest.mark.slow
def test_after_double_backward_all_goes() -> None:
    _model, net, x = net_and_input()
    with StorageTracker([x, *net.parameters()]) as tracker:
        loss = net(x).pow(2).sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), x)
        del loss, first, second
        assert tracker.live() == 0


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise ZeroDivisionError


@pytest.mark.slow
def test_after_an_exception_in_backward_all_goes_with_the_loss() -> None:
    class Failing(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.linear = nn.Linear(width, width)
            self.fails = False

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.linear(x))
            return Fails.apply(y) if self.fails else y

    model, net, x = net_and_input(Failing)
    model.blocks[1].f.fails = True
    with StorageTracker([x, *net.parameters()]) as tracker:
        loss = net(x).pow(2).sum()
        try:
            loss.backward()
        except ZeroDivisionError:
            pass
        else:
            pytest.fail("the backward did not fail")
        del loss
        assert tracker.live(without=gradients(model, x)) == 0


@pytest.mark.slow
def test_after_an_exception_in_backward_a_held_graph_holds_no_more_than_before() -> None:
    class Failing(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.linear = nn.Linear(width, width)
            self.fails = False

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.linear(x))
            return Fails.apply(y) if self.fails else y

    model, net, x = net_and_input(Failing)
    model.blocks[1].f.fails = True
    with StorageTracker([x, *net.parameters()]) as tracker:
        loss = net(x).pow(2).sum()
        before = tracker.live()
        with contextlib.suppress(ZeroDivisionError):
            loss.backward(retain_graph=True)
        assert tracker.live(without=gradients(model, x)) <= before


@pytest.mark.slow
def test_an_exception_in_the_forward_leaves_nothing() -> None:
    class Breaks(rg.Boundary):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.linear = nn.Linear(width, width)
            self.breaks = False

        def forward(self, x: Tensor) -> Tensor:
            if self.breaks:
                raise ZeroDivisionError
            return self.linear(x)

    model, net, x = net_and_input(Breaks)
    model.blocks[3].g.breaks = True
    with StorageTracker([x, *net.parameters()]) as tracker:
        with contextlib.suppress(ZeroDivisionError):
            net(x)
        assert tracker.live() == 0


@pytest.mark.slow
def test_intermediate_values_die_in_the_forward() -> None:
    seen: list[weakref.ref[Tensor]] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            seen.append(weakref.ref(y))
            return torch.tanh(y)

    torch.manual_seed(0)
    model = Pair(Watching(), Watching())
    x1, x2 = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    net = inverted(model, x1, x2)
    seen.clear()
    outputs = net(x1, x2)
    assert len(seen) == 2 and all(each() is None for each in seen)
    loss_of(outputs).backward()
    assert len(seen) == 4 and all(each() is None for each in seen)


@pytest.mark.slow
def test_the_net_itself_goes_without_the_collector() -> None:
    _model, net, x = net_and_input()
    net(x).sum().backward()
    gone = weakref.ref(net)
    del net
    assert gone() is None


@pytest.mark.slow
def test_a_held_output_alone_holds_its_graph_and_detached_outputs_hold_nothing() -> None:
    _model, net, x = net_and_input()
    with StorageTracker([x, *net.parameters()]) as tracker:
        outputs = [net(x).detach() for _ in range(3)]
        assert tracker.live() == sum(output.nbytes for output in outputs)


@pytest.mark.slow
def test_a_form_that_is_traced_by_its_measurement_takes_what_it_takes_later() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = Chain(4, lambda width: nn.Sequential(nn.Linear(width, width), nn.Tanh()), 16)

        def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
            y = self.chain(x)
            return y.square().mean() if target is None else (y - target).square().mean()

    x = torch.randn(8, 32)
    net = rg.trace(Model(), x)
    first = rg.measure(net, x, x * 2)
    again = rg.trace(Model(), x, x * 2)
    assert (first.peak_bytes, first.held_bytes) == (again.plan.peak_bytes, again.plan.held_bytes)
    assert rg.measure(net, x, x * 2) == first
