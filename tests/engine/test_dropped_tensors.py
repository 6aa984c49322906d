"""What autograd saves and then drops: masks, choices, detached branches, results that nobody uses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from engine.kinds import BOTH, PLANS, Weave, assert_follows, bytes_of_a_step, gradients, plans, two_streams
from engine.samples import assert_close, doubled
from torch import Tensor, nn

import revgraph as rg


class Function(nn.Module):
    """Two layers; the subclasses compute beside them what leaves no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def main(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


class MaskFirst(Function):
    def forward(self, x: Tensor) -> Tensor:
        mask = (x * x).sum(-1, keepdim=True) > 0.1
        return self.main(x) * mask


class MaskLast(Function):
    def forward(self, x: Tensor) -> Tensor:
        y = self.main(x)
        return y * ((y * y).sum(-1, keepdim=True) > 0.05)


class Where(Function):
    def forward(self, x: Tensor) -> Tensor:
        y = self.main(x)
        return torch.where(torch.exp(y) > 1, y, 0.1 * y)


class Argmax(Function):
    def forward(self, x: Tensor) -> Tensor:
        choice = torch.softmax(self.one(x), -1).argmax(-1)
        return self.main(x) * nn.functional.one_hot(choice, 4)


class Argsort(Function):
    def forward(self, x: Tensor) -> Tensor:
        order = (torch.exp(x) * x).argsort(-1)
        return self.main(x).gather(-1, order)


class Topk(Function):
    def forward(self, x: Tensor) -> Tensor:
        _, best = torch.sigmoid(self.one(x)).topk(2, -1)
        return self.main(x).scatter(-1, best, 0.0)


class Searched(Function):
    def forward(self, x: Tensor) -> Tensor:
        place = torch.bucketize(torch.exp(x), torch.tensor([0.5, 1.0, 2.0], dtype=x.dtype))
        return self.main(x) * place


class Detached(Function):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.one(x)) * torch.sigmoid(self.two(x)).detach()


class DetachedInput(Function):
    def forward(self, x: Tensor) -> Tensor:
        still = x.detach()
        return self.main(x) * torch.exp(-(still * still))


class StraightThrough(Function):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.one(x))
        return self.two(y + (torch.round(4 * y) / 4 - y).detach())


class IntegerTable(Function):
    def forward(self, x: Tensor) -> Tensor:
        index = (4 * torch.sigmoid(x.sum(-1))).long().clamp(0, 3)
        return self.main(x) + self.one.weight[index]


class ValuesOfSort(Function):
    def forward(self, x: Tensor) -> Tensor:
        values, _ = self.one(x).sort(-1)
        return self.two(values)


class OneOfTwo(Function):
    def forward(self, x: Tensor) -> Tensor:
        variance, _ = torch.var_mean(torch.sin(self.one(x)), -1, keepdim=True)
        return self.main(x) * variance


class UnusedParts(Function):
    def forward(self, x: Tensor) -> Tensor:
        first, *_ = torch.sigmoid(self.one(x)).unbind(-1)
        return self.main(x) * first.unsqueeze(-1)


class Decomposed(Function):
    def forward(self, x: Tensor) -> Tensor:
        _, triangle = torch.linalg.qr(self.one.weight + torch.eye(4, dtype=x.dtype))
        return torch.tanh(x @ triangle)


class WithoutGradFirst(Function):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = torch.sigmoid(self.two(x)).mean()
        return self.main(x) * scale


class WithoutGradMiddle(Function):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.one(x))
        with torch.no_grad():
            norm = torch.linalg.vector_norm(y * y)
        return self.two(y / (1 + norm))


class WithoutGradLast(Function):
    def forward(self, x: Tensor) -> Tensor:
        y = self.main(x)
        with torch.no_grad():
            self.seen = torch.exp(y).mean()
        return y


class ForNothing(Function):
    """Computes and forgets, before, between and after."""

    def forward(self, x: Tensor) -> Tensor:
        _ = torch.exp(self.one(x))
        y = torch.tanh(self.one(x))
        _ = torch.sin(y) * y
        z = self.two(y)
        _ = torch.softmax(z, -1) * z
        return z


class Several(Function):
    """A mask, a choice, a detached branch and a block without gradients in one function."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.exp(x).sum(-1, keepdim=True) > 4
        order = torch.sigmoid(self.one(x)).argsort(-1)
        with torch.no_grad():
            scale = torch.sigmoid(self.two(x)).mean()
        y = torch.tanh(self.one(x)).gather(-1, order) * mask
        still = torch.sigmoid(self.two(y)).detach()
        z = self.two(y) * still * scale
        return z * (z.exp() > 0.9)


class OnlyDetached(Function):
    """Leaves no gradient at all."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.one(x)).detach()


class OnlySign(Function):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(self.main(x)).round()


class InPlaceAfter(Function):
    """An edit in place drops what the first version would have saved."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x) * 2
        y[:, 0] = 0.5
        y[:, 1:].mul_(0.5)
        return self.two(y)


FUNCTIONS: tuple[type[Function], ...] = (
    MaskFirst, MaskLast, Where, Argmax, Argsort, Topk, Searched, Detached, DetachedInput, StraightThrough,
    IntegerTable, ValuesOfSort, OneOfTwo, UnusedParts, Decomposed, WithoutGradFirst, WithoutGradMiddle,
    WithoutGradLast, ForNothing, Several, OnlyDetached, OnlySign, InPlaceAfter,
)  # fmt: skip


class Dropping(Function):
    """Saves tensors and drops them at the places that are asked for: before, in the middle, at the end."""

    def __init__(self, places: str) -> None:
        super().__init__()
        self.places = places

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        if "f" in self.places:
            y = self.one(x * ((x.exp() * x.sin()).sum() < 1e6))
        y = torch.tanh(y)
        if "m" in self.places:
            y = y * ((y.exp() * y.sin()).sum() < 1e6)
        y = self.two(y)
        return y * ((y.exp() * y.sin()).sum() < 1e6) if "l" in self.places else y


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_autograd_drops_changes_no_gradient(function: type[Function]) -> None:
    assert_follows(lambda: Weave(function), *two_streams(), under=BOTH, forwards=10)


@pytest.mark.slow
@pytest.mark.parametrize("function", [MaskFirst, Several])
def test_every_plan_with_dropped_tensors(function: type[Function]) -> None:
    assert_follows(lambda: Weave(function), *two_streams(), under=PLANS)


@pytest.mark.slow
@pytest.mark.parametrize("places", ["f", "m", "l", "fm", "fl", "ml", "fml"])
def test_saved_tensors_dropped_at_any_place(places: str) -> None:
    assert_follows(lambda: Weave(lambda: Dropping(places)), *two_streams(), under=BOTH)


def test_one_function_after_another_that_drops_something_else() -> None:
    def make() -> nn.Module:
        functions = iter(FUNCTIONS)
        return Weave(lambda: next(functions)(), 7)

    assert_follows(make, *two_streams(), under=("default", "inverted", "mixed"), forwards=9)


class MaskInTheNet(nn.Module):
    """The mask is made beside the functions, from the stream that they read."""

    def __init__(self, outside: bool) -> None:
        super().__init__()
        self.fs = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.outside = outside

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for f in self.fs:
            mask = (b * b).sum(-1, keepdim=True) > 0.1
            term = torch.tanh(f(b))
            a, b = b, torch.where(mask, a + term, a - term) if self.outside else a + term * mask
        return a, b


@pytest.mark.slow
@pytest.mark.parametrize("outside", [True, False])
def test_a_mask_made_in_the_net(outside: bool) -> None:
    assert_follows(lambda: MaskInTheNet(outside), *two_streams(), under=PLANS)


class Opaque(rg.Boundary, Several):
    """The same in a function that is not looked into."""


def test_what_is_dropped_in_a_function_that_is_not_looked_into() -> None:
    assert_follows(lambda: Weave(Opaque), *two_streams(), under=("inverted", "mixed"))


class MaskedSum(rg.Coupling):
    """A coupling whose sum itself makes a mask, from the term."""

    def couple(self, x: Tensor, term: Tensor) -> Tensor:
        return x + term * (term.exp() > 0.9)

    def uncouple(self, y: Tensor, term: Tensor) -> Tensor:
        return y - term * (term.exp() > 0.9)


class MaskedSums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MaskedSum(MaskFirst(), MaskLast()) for _ in range(2))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            a, b = block(a, b)
        return a, b


def test_a_mask_made_where_a_coupling_joins() -> None:
    assert_follows(MaskedSums, *two_streams(), under=PLANS)


@pytest.mark.slow
@pytest.mark.parametrize("function", [MaskFirst, Detached, Several, OnlyDetached])
@pytest.mark.parametrize("plan", ["default", "inverted"])
def test_gradients_of_a_few_leaves_alone(function: type[Function], plan: str) -> None:
    model, plain = doubled(lambda: Weave(function))
    a, b = two_streams()
    net = rg.trace(model, a, b)
    (net.plan,) = plans(net, plan)
    for of in (lambda m: [a], lambda m: [m.fs[0].two.weight], lambda m: [m.fs[2].one.weight, b]):
        found, expected = (
            torch.autograd.grad(sum(run(a, b)).pow(2).sum(), of(run), allow_unused=True)
            for run in (net, plain)
        )
        assert_close(found, expected, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("function", [MaskFirst, Several])
@pytest.mark.parametrize("frozen", ["one", "two", "both"])
def test_frozen_parameters_drop_other_tensors(function: type[Function], frozen: str) -> None:
    def make() -> nn.Module:
        model = Weave(function)
        for f in model.fs:
            for name in ("one", "two") if frozen == "both" else (frozen,):
                f.get_submodule(name).requires_grad_(False)
        return model

    assert_follows(make, *two_streams())


@pytest.mark.slow
@pytest.mark.parametrize("function", [MaskFirst, Detached, Several, OnlyDetached])
def test_a_graph_that_is_kept_gives_the_same_again(function: type[Function]) -> None:
    model, plain = doubled(lambda: Weave(function))
    a, b = two_streams()
    net = rg.trace(model, a, b)
    net.plan = rg.decide(net.graph, {})
    loss = sum(net(a, b)).pow(2).sum()
    leaves = [a, b, *model.parameters()]
    expected = torch.autograd.grad(
        sum(plain(a, b)).pow(2).sum(), [a, b, *plain.parameters()], allow_unused=True
    )
    for keep in (True, True, False):
        found = torch.autograd.grad(loss, leaves, retain_graph=keep, allow_unused=True)
        assert_close(found, expected, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("function", [MaskFirst, Detached, WithoutGradLast, Several, OnlyDetached])
def test_bytes_do_not_grow_with_the_depth(function: Callable[[], nn.Module]) -> None:
    a, b = two_streams(64, 4)
    held, after = [], []
    for depth in (2, 6):
        model, _ = doubled(lambda depth=depth: Weave(function, depth))
        net = rg.trace(model, a, b)
        net.plan = rg.decide(net.graph, {})
        one, _, last = bytes_of_a_step(net, a, b)
        held.append(one)
        after.append(last)
    slack = 8 * 6 if function is WithoutGradLast else 0  # what that function notes on its module
    assert held[1] - held[0] <= slack
    assert max(after) <= slack


@pytest.mark.slow
def test_second_derivatives_through_what_is_dropped() -> None:
    model, plain = doubled(lambda: Weave(Several))
    a, b = two_streams()
    net = rg.trace(model, a, b)
    net.plan = rg.decide(net.graph, {})
    results = []
    for run in (net, plain):
        (first,) = torch.autograd.grad(sum(run(a, b)).pow(2).sum(), a, create_graph=True)
        results.append(torch.autograd.grad(first.pow(2).sum(), [a, b, *run.parameters()], allow_unused=True))
    assert_close(*results, 1e-9)


@pytest.mark.slow
def test_a_step_in_evaluation_between_two_in_training() -> None:
    model, plain = doubled(lambda: Weave(Several))
    a, b = two_streams()
    net = rg.trace(model, a, b)
    for number in range(12):
        net.train(number % 3 != 0), plain.train(number % 3 != 0)
        assert_close(gradients(net, model, a, b), gradients(plain, plain, a, b), 1e-9)
