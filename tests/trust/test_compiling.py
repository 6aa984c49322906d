"""torch.compile inside a net's functions, and around the whole net."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from engine.samples import (
    Chain,
    assert_close,
    assert_same_buffers,
    batch,
    doubled,
    dropping,
    inverted,
    mlp,
    normed,
    step,
)
from torch import Tensor, nn

import revgraph as rg

# The compiler uses what is deprecated, and looks at gradients of tensors that it hands on at a graph break.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute"),
    pytest.mark.usefixtures("device"),
]

BACKENDS = ["eager", "aot_eager"]


@pytest.fixture(autouse=True)
def compiler_reset() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["invert", "recompute", "keep"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_functions_inside(backend: str, choice: str) -> None:
    model, plain = doubled(lambda: Chain(2, normed))
    for block in model.blocks:
        block.f.compile(backend=backend)
        block.g = torch.compile(block.g, backend=backend)
    x = batch()
    net = rg.trace(model, x)
    net.plan = rg.decide(net.graph, {name: choice for name in net.plan.decisions})
    for _ in range(3):
        assert_close(step(net, model, x), step(plain, plain, x))
        assert_same_buffers(model, plain)


@pytest.mark.slow
@pytest.mark.parametrize("f", [mlp, normed, dropping])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_whole_net_under_torch_compile(backend: str, f: Any) -> None:
    model, plain = doubled(lambda: Chain(2, f))
    x = batch()
    net = inverted(model, x)
    compiled = torch.compile(net, backend=backend)
    for _ in range(3):
        torch.manual_seed(0)
        found = step(compiled, model, x)
        torch.manual_seed(0)
        assert_close(found, step(plain, plain, x))
        assert_same_buffers(model, plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_net_inside_a_compiled_model(backend: str) -> None:
    class Around(nn.Module):
        def __init__(self, middle: nn.Module) -> None:
            super().__init__()
            self.before, self.middle, self.after = nn.Linear(8, 8), middle, nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(torch.tanh(self.middle(torch.tanh(self.before(x)))))

    whole, plain = doubled(lambda: Around(Chain(2)))
    x = batch()
    whole.middle = inverted(whole.middle, x)
    compiled = torch.compile(whole, backend=backend)
    assert_close(step(compiled, whole, x), step(plain, plain, x))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_training_step(backend: str) -> None:
    model, plain = doubled(lambda: Chain(2))
    x = batch()
    net = inverted(model, x)

    def train(run: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss = run(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    losses: list[list[Tensor]] = []
    for run, way in ((net, torch.compile(train, backend=backend)), (plain, train)):
        optimizer = torch.optim.SGD(run.parameters(), lr=0.1)
        losses.append([way(run, optimizer).clone() for _ in range(4)])
    assert_close(*losses)


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["invert", "recompute", "keep"])
@pytest.mark.parametrize("f", [mlp, normed])
def test_a_compiled_step(f: Any, choice: str, device: torch.device) -> None:
    """On the CPU by operators; what torch's compiler makes there is tested in the folder `compiling`."""
    for backend in ("aot", "inductor") if device.type == "cuda" else ("aot",):
        model, plain = doubled(lambda: Chain(2, f))
        x = batch()
        net = rg.trace(model, x)
        decisions: Any = {node.name: choice for node in net.graph.planned if node.kind == "coupling"}
        net.plan = rg.decide(net.graph, decisions)
        compiled = rg.compile(net, backend)  # pyright: ignore[reportArgumentType]
        for _ in range(2):
            assert_close(step(compiled, model, x), step(plain, plain, x), tolerance=1e-9)
            assert_same_buffers_nearly(model, plain)


def assert_same_buffers_nearly(one: nn.Module, two: nn.Module) -> None:
    assert_close(list(one.buffers()), list(two.buffers()), tolerance=1e-9)


def test_fullgraph_is_refused_and_leaves_the_net_usable() -> None:
    model, plain = doubled(lambda: Chain(2))
    x = batch()
    net = inverted(model, x)
    with pytest.raises(Exception, match=r"(?i)disable|graph break|skip"):
        torch.compile(net, backend="eager", fullgraph=True)(x)
    torch._dynamo.reset()
    assert_close(step(net, model, x), step(plain, plain, x))


def test_a_compiled_net_holds_no_more_than_the_net() -> None:
    torch.manual_seed(0)
    model = Chain(8, mlp, 16)
    x = torch.randn(8, 32)
    net = inverted(model, x)
    held: list[int] = []
    for run in (net, torch.compile(copy.copy(net), backend="eager")):
        saved: list[int] = []

        def count(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            run(x)
        held.append(sum(saved))
    assert held[0] == held[1]
