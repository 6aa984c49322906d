"""What the functions of couplings may do inside, and tools of torch that swap what they read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.samples import Chain, Pair, assert_close, batch, doubled, inverted, loss_of, mlp, step
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import revgraph as rg


def both(make: Any, x: Tensor) -> tuple[list[Tensor | None], list[Tensor | None]]:
    model, plain = doubled(make)
    return step(inverted(model, x), model, x), step(plain, plain, x)


class Product(torch.autograd.Function):
    """Reads its saved tensors in two accesses, as many Functions do."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a = ctx.saved_tensors[0]
        b = ctx.saved_tensors[1]
        return grads[0] * b, grads[0] * a


class Custom(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return Product.apply(self.linear(x), torch.tanh(x))


def test_a_custom_function_that_reads_its_saved_tensors_twice_is_right_or_a_clear_error() -> None:
    try:
        found, expected = both(lambda: Chain(f=Custom), batch())
    except rg.ReplayError as error:
        assert "asked for twice in one backward pass" in str(error)
    else:
        assert_close(found, expected)


class Slope(nn.Module):
    """A function that is itself a gradient, as in Hamiltonian networks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(torch.tanh(self.linear(x)).sum(), x, create_graph=True)[0]


def test_a_function_that_differentiates_inside_is_right_or_a_clear_error() -> None:
    try:
        found, expected = both(lambda: Chain(f=Slope), batch())
    except rg.RevgraphError as error:
        assert "blocks.0.f" in str(error)
    else:
        assert_close(found, expected)


class Checkpointed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, torch.tanh(x), use_reentrant=False)


def test_torch_checkpoint_inside_a_function() -> None:
    assert_close(*both(lambda: Chain(f=Checkpointed), batch()))


@pytest.mark.parametrize("reentrant", [True, False])
def test_torch_checkpoint_around_the_net(reentrant: bool) -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    results = []
    for run, leaves in ((net, model), (plain, plain)):
        x.grad = None
        output = checkpoint(net, x, use_reentrant=reentrant) if run is net else run(x)
        loss_of(output).backward()
        results.append([x.grad, *(parameter.grad for parameter in leaves.parameters())])
    assert_close(*results)


class Nested(nn.Module):
    """A function that is a reversible module itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = inverted(Chain(depth=2, width=width // 2), torch.zeros(3, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x))


@pytest.mark.slow
def test_a_reversible_module_inside_a_function() -> None:
    assert_close(*both(lambda: Chain(f=Nested), batch()))


class Auxiliary(nn.Module):
    """Leaves a second loss behind, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        self.loss = (y**3).sum()
        return y


def test_an_auxiliary_loss_left_on_a_module_gets_its_gradient() -> None:
    model, plain = doubled(lambda: Pair(Auxiliary(), Auxiliary()))
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    net = inverted(model, x1, x2)
    results = []
    for run, leaves in ((net, model), (plain, plain)):
        loss = loss_of(run(x1, x2)) + leaves.f.loss + leaves.g.loss
        results.append(torch.autograd.grad(loss, [x1, x2, *leaves.parameters()]))
    assert_close(*results)


class EditsWhatWasSaved(nn.Module):
    """Plain autograd refuses this: the sigmoid's result is edited after it was saved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.sigmoid(self.linear(x))
        b = a * 1.5
        a += 1
        return a + b


def test_an_edit_of_an_internal_saved_tensor_is_an_error_as_in_plain_autograd() -> None:
    model, plain = doubled(lambda: Chain(f=EditsWhatWasSaved))
    x = batch()
    with pytest.raises(RuntimeError, match="inplace operation"):
        step(plain, plain, x)
    net = inverted(model, x)
    with pytest.raises((rg.ReplayError, RuntimeError)):
        step(net, model, x)


class Shift(nn.Module):
    """Its parameter is not among the tensors that autograd saves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x + self.bias)


@pytest.mark.parametrize("f", [mlp, Shift])
def test_functional_call_with_other_parameters_is_right_or_a_clear_error(f: Any) -> None:
    model, plain = doubled(lambda: Chain(f=f))
    x = batch(4, 8)
    net = inverted(model, x)
    others = {
        name: (parameter.detach() + 0.5).requires_grad_() for name, parameter in model.named_parameters()
    }
    leaves = [x, *others.values()]
    expected = torch.autograd.grad(loss_of(functional_call(plain, others, (x,))), leaves)
    loss = loss_of(functional_call(net, others, (x,)))
    try:
        found = torch.autograd.grad(loss, leaves)
    except rg.ReplayError as error:
        assert "functional_call" in str(error) or "parameter" in str(error)
    else:
        assert_close(found, expected)


def test_parametrized_and_weight_normed_functions() -> None:
    def function(width: int) -> nn.Module:
        return nn.Sequential(
            parametrizations.weight_norm(nn.Linear(width, width)),
            nn.Tanh(),
            parametrizations.orthogonal(nn.Linear(width, width)),
        )

    assert_close(*both(lambda: Chain(f=function), batch()))


def test_plain_tensor_attributes_of_the_root() -> None:
    class Masked(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.mask = torch.full((4,), 0.5, dtype=torch.double)
            self.scale = 0.7

        def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
            y1 = x1 + self.f(x2 * self.mask) * self.scale
            return y1, x2 + self.g(y1)

    model, plain = doubled(Masked)
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    assert_close(step(inverted(model, x1, x2), model, x1, x2), step(plain, plain, x1, x2))


class OwnInPlace(rg.Coupling):
    """A user's coupling whose inverse works in place."""

    def couple(self, x: Tensor, term: Tensor) -> Tensor:
        return x + term

    def uncouple(self, y: Tensor, term: Tensor) -> Tensor:
        return y.sub_(term)


def test_an_uncouple_that_works_in_place_is_right_or_an_error() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = OwnInPlace(mlp(), mlp())

        def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
            return self.block(x1, x2)

    model, plain = doubled(Net)
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    net = inverted(model, x1, x2)
    outputs = net(x1, x2)
    before = [output.detach().clone() for output in outputs]
    try:
        found = torch.autograd.grad(loss_of(outputs), [x1, x2, *model.parameters()])
    except rg.RevgraphError as error:
        assert "edits the output in place" in str(error) and "block" in str(error)
        return
    assert_close(found, torch.autograd.grad(loss_of(plain(x1, x2)), [x1, x2, *plain.parameters()]))
    assert all(torch.equal(one, two) for one, two in zip(outputs, before, strict=True))
