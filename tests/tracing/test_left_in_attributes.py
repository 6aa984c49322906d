"""What a node leaves in its attributes is no result: to the code around it, it would have no gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revgraph as rg


class Noting(nn.Module):
    """Notes a loss besides, as routers do to balance their experts."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(8, 8)
        self.aux: Tensor | None = None
        self.losses: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.f(x)
        self.aux = y.square().mean()
        self.losses.append(self.aux)
        return y


class Routing(Noting):
    """The sizes of what its experts get hang on numbers: it is traced on real tensors."""

    def forward(self, x: Tensor) -> Tensor:
        rows = (x[:, 0] > 0).nonzero()[:, 0]
        y = super().forward(x)
        return y.index_add(0, rows, x[rows])


class Streams(nn.Module):
    def __init__(self, block: Callable[[], Noting], count: int, read: Callable[[Any], Any]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(count))
        self.read = read

    def forward(self, a: Tensor, b: Tensor) -> Any:
        for block in self.blocks:
            a, b = b, a + block(b)
        return a, b, self.read(self.blocks)


READ: dict[str, Callable[[Any], Any]] = {
    "summed": lambda blocks: sum(each.aux for each in blocks),
    "as it is": lambda blocks: blocks[0].aux,
    "from a list": lambda blocks: blocks[-1].losses[-1],
    "stacked": lambda blocks: torch.stack([each.losses[-1] for each in blocks]).sum(),
}


@pytest.mark.slow
@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("block", [Noting, Routing])
def test_read_in_the_same_call_it_is_refused_by_name(block: type[Noting], count: int, read: str) -> None:
    model = Streams(block, count, READ[read])
    with pytest.raises(rg.TraceError, match=r"put tensors into attributes \(blocks\.0\.aux.*return them"):
        rg.trace(model, *torch.randn(2, 4, 8))
    assert model.blocks[0].aux is None and not model.blocks[0].losses


@pytest.mark.parametrize("block", [Noting, Routing])
def test_read_after_the_call_it_has_its_gradient(block: type[Noting]) -> None:
    model, inputs = Streams(block, 3, lambda _: None).double(), torch.randn(2, 4, 8).double()
    plain = copy.deepcopy(model)
    net = rg.trace(model, *inputs)
    net.plan = rg.keep_all(net.graph)
    for each, run in ((model, net), (plain, plain)):
        a, b, _ = run(*inputs)
        (a.sum() + b.square().sum() + sum(block.aux for block in each.blocks)).backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-12)


class AsksAutograd(nn.Module):
    def __init__(self, ask: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.f = nn.Linear(8, 8)
        self.ask = ask

    def forward(self, x: Tensor) -> Tensor:
        h = self.f(x)
        self.ask(h)
        return h.tanh()


def _doubled_if_it_can(h: Tensor) -> None:
    if h.requires_grad:
        h.register_hook(lambda gradient: gradient * 2)


def test_a_module_that_asks_whether_it_has_a_gradient_is_one_node() -> None:
    model, x = nn.Sequential(AsksAutograd(_doubled_if_it_can), nn.Linear(8, 8)).double(), torch.randn(4, 8)
    plain, x = copy.deepcopy(model), x.double()
    net = rg.trace(model, x)
    for plan in (net.plan, rg.plan(net.graph, "least"), rg.keep_all(net.graph)):
        net.plan = plan
        for run in (net, plain):
            run.zero_grad()
            run(x).square().sum().backward()
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-12)


def test_in_the_models_own_forward_that_is_refused_when_traced() -> None:
    with pytest.raises(rg.TraceError, match="asks for requires_grad of a tensor that it has computed"):
        rg.trace(AsksAutograd(_doubled_if_it_can), torch.randn(4, 8))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    "ask", [lambda h: h.register_hook(lambda gradient: gradient * 2), lambda h: h.retain_grad()]
)
def test_hooks_on_computed_tensors_are_refused(ask: Callable[[Tensor], Any], inside: bool) -> None:
    model = nn.Sequential(AsksAutograd(ask)) if inside else AsksAutograd(ask)
    with pytest.raises(rg.TraceError, match="Put a full backward hook on a module instead"):
        rg.trace(model, torch.randn(4, 8))


class Keyed(nn.Module):
    """Looks up by a shape, which is a `torch.Size` where it is asked for, and a tuple in a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(8, 8)
        self.factors = {(4, 8): 2.0, (3, 8): 3.0}

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x) * self.factors[x.shape]


def test_a_shape_may_be_a_key() -> None:
    model = Keyed()
    net = rg.trace(model, torch.randn(4, 8))
    for rows in (4, 3):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(net(x), model(x), rtol=0, atol=0)


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(8, 8)

    def forward(self, x: Tensor, factor: Any) -> Tensor:
        return self.f(x) * factor


@pytest.mark.parametrize("first", ["number", "tensor"])
def test_a_number_for_a_tensor_is_another_form(first: str) -> None:
    model, x = Product(), torch.randn(4, 8)
    factors = {"number": 3.0, "tensor": torch.tensor(3.0, requires_grad=True)}
    net = rg.trace(model, x, factors[first])
    for factor in factors.values():
        torch.testing.assert_close(net(x, factor), model(x, factor), rtol=0, atol=0)
    net(x, factors["tensor"]).sum().backward()
    torch.testing.assert_close(factors["tensor"].grad, model.f(x).sum().detach())


def test_what_the_model_itself_cannot_take_is_told_as_its_own_fault() -> None:
    model = nn.Bilinear(8, 8, 8)
    net = rg.trace(model, *torch.randn(2, 4, 8))
    with pytest.raises(rg.TraceError, match="fails on the example input"):
        net(torch.randn(4, 8), 3)
