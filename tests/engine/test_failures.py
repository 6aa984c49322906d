"""Exceptions inside functions keep their type, gain the node's name, and leave the net usable."""

from __future__ import annotations

import pytest
import torch
from engine.samples import (
    Pair,
    assert_bitwise,
    assert_close,
    assert_same_buffers,
    batch,
    doubled,
    loss_of,
    mlp,
    random_streams,
    step,
)
from torch import Tensor, nn

import revgraph as rg

pytestmark = pytest.mark.usefixtures("device")


class Fuse(rg.Boundary):
    """Fails at the call that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3))
        self.fails_in = [-1]  # in a list, where nothing puts it back

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        self.fails_in[0] -= 1
        if self.fails_in[0] == 0:
            raise ZeroDivisionError("the fuse blew")
        return torch.sin(y)


def notes(error: pytest.ExceptionInfo[BaseException]) -> str:
    return "\n".join(getattr(error.value, "__notes__", []))


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["keep", "invert", "recompute"])
@pytest.mark.parametrize("grad", [True, False])
def test_an_exception_in_the_forward(choice: str, grad: bool) -> None:
    model, plain = doubled(lambda: Pair(mlp(), Fuse()))
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    net = rg.trace(model, x1, x2)
    net.plan = rg.decide(net.graph, {"f": choice, "g": choice})
    model.g.fails_in[0] = 1
    with torch.set_grad_enabled(grad), pytest.raises(ZeroDivisionError, match="the fuse blew") as caught:
        net(x1, x2)
    assert "node 'g'" in notes(caught)
    plain.g.inner(plain.f(x2) + x1)
    torch.manual_seed(0)
    found = step(net, model, x1, x2)
    torch.manual_seed(0)
    assert_close(found, step(plain, plain, x1, x2))
    assert_same_buffers(model, plain)


@pytest.mark.parametrize("choice", ["invert", "recompute"])
def test_an_exception_in_a_replay(choice: str) -> None:
    model, plain = doubled(lambda: Pair(mlp(), Fuse()))
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    net = rg.trace(model, x1, x2)
    net.plan = rg.decide(net.graph, {"f": choice, "g": choice})
    model.g.fails_in[0] = 2
    torch.manual_seed(0)
    loss = loss_of(net(x1, x2))
    streams = random_streams()
    buffers = [buffer.clone() for buffer in model.buffers()]
    with pytest.raises(ZeroDivisionError, match="the fuse blew") as caught:
        loss.backward()
    assert "replaying node 'g'" in notes(caught)
    assert_bitwise(streams, random_streams())
    assert all(torch.equal(one, two) for one, two in zip(buffers, model.buffers(), strict=True))
    assert all(module.training for module in model.modules())
    plain(x1, x2)
    model.zero_grad()
    torch.manual_seed(0)
    found = step(net, model, x1, x2)
    torch.manual_seed(0)
    assert_close(found, step(plain, plain, x1, x2))
    assert_same_buffers(model, plain)


def test_a_retained_graph_survives_an_exception_in_a_replay() -> None:
    model, plain = doubled(lambda: Pair(mlp(), Fuse()))
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    net = rg.trace(model, x1, x2)
    net.plan = rg.decide(net.graph, {})
    model.g.fails_in[0] = 2
    torch.manual_seed(0)
    loss = loss_of(net(x1, x2))
    with pytest.raises(ZeroDivisionError):
        loss.backward(retain_graph=True)
    found = torch.autograd.grad(loss, [*model.parameters(), x1, x2])
    torch.manual_seed(0)
    assert_close(found, step(plain, plain, x1, x2))


def test_a_wrong_shape_names_the_node_of_the_forward() -> None:
    model, _ = doubled(Pair)
    net = rg.trace(model, batch(3, 4), batch(3, 4))
    with pytest.raises(RuntimeError) as caught:
        net(batch(3, 4), batch(3, 5))
    assert "node 'f'" in notes(caught)
