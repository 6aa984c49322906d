"""Parameters and tensors of unusual kinds: subclasses, ties, views, parametrizations, late shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine.kinds import (
    BOTH,
    PLANS,
    REST,
    Weave,
    assert_follows,
    follow,
    loss_of,
    made_twice,
    plans,
    right_or_refused,
    two_streams,
)
from engine.samples import assert_close
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

import revgraph as rg


class Scaled(nn.Parameter):
    """A subclass of Parameter, as libraries have for metadata."""

    def __new__(cls, data: Tensor, requires_grad: bool = True) -> Scaled:
        return torch.Tensor._make_subclass(cls, data, requires_grad)  # pyright: ignore


class Tagged(Tensor):
    """A tensor subclass that stays one through every function."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


class Doubling(Tensor):
    """A tensor subclass with a law of its own: sums with it count twice."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            return result * 2 if func in (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__) else result


class Packed(Tensor):
    """A weight kept in another form, as quantized ones are: operators see what it stands for."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Packed:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)  # pyright: ignore

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner.detach().half()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return Packed(args[0].inner.to(args[0].dtype))
        if func is torch.ops.aten._to_copy.default:
            return Packed(args[0].inner.to(kwargs.get("dtype") or args[0].dtype))
        full = torch.utils._pytree.tree_map(
            lambda x: x.inner.to(x.dtype) if isinstance(x, Packed) else x, args
        )
        return func(*full, **(kwargs or {}))


class Function(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


class ParameterSubclass(Function):
    def __init__(self) -> None:
        super().__init__()
        self.linear.weight = Scaled(self.linear.weight.detach().clone())


class PackedWeight(Function):
    """A frozen packed weight with a small trained one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Parameter(Packed(torch.randn(4, 4)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.linear(x, self.packed))


class SubclassAsBuffer(Function):
    def __init__(self, kind: type[Tensor] = Doubling) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(0.5, 1, 4).as_subclass(kind))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class SubclassInside(Function):
    def forward(self, x: Tensor) -> Tensor:
        tagged = x.as_subclass(Tagged)
        return (super().forward(tagged) * tagged.sigmoid()).as_subclass(Tensor)


class LawInside(Function):
    def forward(self, x: Tensor) -> Tensor:
        return (torch.sigmoid(x).as_subclass(Doubling) * super().forward(x)).as_subclass(Tensor)


class TwoOfOne(Function):
    """One weight under two names, and once transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(4, 4)
        self.other.weight = self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.other(super().forward(x)) @ self.linear.weight.t())


class FlatViews(nn.Module):
    """All weights are views of one parameter, cut at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Parameter(torch.linspace(-1, 1, 40))

    def forward(self, x: Tensor) -> Tensor:
        one, two, bias = self.flat[:16].view(4, 4), self.flat[16:32].view(4, 4), self.flat[32:36]
        return torch.tanh(functional.linear(torch.tanh(x @ one), two.t(), bias))


class SharedMemory(Function):
    """Two parameters whose memory is one tensor's."""

    def __init__(self) -> None:
        super().__init__()
        memory = torch.linspace(-1, 1, 20)
        self.linear.weight = nn.Parameter(memory[:16].view(4, 4))
        self.linear.bias = nn.Parameter(memory[16:])


class Strided(Function):
    """A weight that is no contiguous tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear.weight = nn.Parameter(torch.randn(4, 8).t()[::2])


class ScalarAndEmpty(Function):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.nothing = nn.Parameter(torch.empty(0, 4))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x, self.nothing])) * self.gain


class Complex(nn.Module):
    """Parameters and internals of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, dtype=torch.cdouble))
        self.pairs = nn.Parameter(torch.randn(3, 2, dtype=torch.double))

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.fft.rfft(x) @ self.weight * torch.view_as_complex(self.pairs)
        return torch.fft.irfft(torch.tanh(mixed), n=x.shape[-1])


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(4, 4), torch.randn(4)])
        self.table = nn.ParameterDict({"gain": torch.ones(4)})

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weights[0] + self.weights[1]) * self.table["gain"]


class Half(nn.Module):
    """Some parameters frozen, one of them in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.layers[2].requires_grad_(False)
        self.layers[4].bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).t()


class Parametrized(Function):
    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.linear, "weight", Symmetric())


class Used(Function):
    """A parametrized weight used twice, once directly."""

    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.linear, "weight", Symmetric())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ self.linear.weight


class Orthogonal(Function):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.orthogonal(self.linear)


class Generated(Function):
    """Weights made by another layer from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = nn.Linear(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.tanh(self.maker(x)).view(-1, 4, 4)
        return torch.einsum("ni,nij->nj", super().forward(x), weights)


FUNCTIONS: tuple[Callable[[], nn.Module], ...] = (
    ParameterSubclass, TwoOfOne, FlatViews, SharedMemory, Strided, ScalarAndEmpty, Listed, Half, Parametrized,
    Used, Orthogonal, Generated,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_of_odd_parameters(function: Callable[[], nn.Module]) -> None:
    assert_follows(lambda: Weave(function), *two_streams(), under=BOTH)


def test_complex_parameters() -> None:
    assert_follows(lambda: Weave(Complex), *two_streams(), under=BOTH, dtype=None)


@pytest.mark.slow
@pytest.mark.parametrize("function", [ParameterSubclass, Used])
def test_gradients_of_odd_parameters_under_every_plan(function: Callable[[], nn.Module]) -> None:
    assert_follows(lambda: Weave(function), *two_streams(), under=REST)


@pytest.mark.slow
@pytest.mark.parametrize("function", [SubclassAsBuffer, SubclassInside, LawInside, PackedWeight])
def test_tensor_subclasses_are_right_or_refused(function: Callable[[], nn.Module]) -> None:
    assert_follows(
        lambda: Weave(function),
        *two_streams(),
        under=BOTH,
        refusal=lambda: right_or_refused("'fs.", "scale", "Doubling", "Tagged", "Packed"),
    )


@pytest.mark.parametrize("kind", [Tagged, Doubling])
@pytest.mark.parametrize("traced_with", ["plain", "subclass"])
def test_a_subclass_as_an_input_is_right_or_refused(kind: type[Tensor], traced_with: str) -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fs = nn.ModuleList(Function() for _ in range(3))

        def forward(self, a: Tensor, b: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
            for f in self.fs:
                a, b = b, a + (f(b) * scale).as_subclass(Tensor)
            return a, b

    model, plain = made_twice(Conditioned)
    a, b = two_streams()
    scale = torch.linspace(0.5, 1, 4, dtype=a.dtype)
    given = scale.as_subclass(kind)
    with right_or_refused("scale", kind.__name__, "'fs."):
        net = rg.trace(model, a, b, given if traced_with == "subclass" else scale)
        net.plan = rg.decide(net.graph, {})
        follow(net, plain, (a, b, given))


def test_one_layer_in_every_function() -> None:
    def make() -> nn.Module:
        shared = nn.Linear(4, 4)
        return Weave(lambda: nn.Sequential(shared, nn.Tanh(), nn.Linear(4, 4)))

    assert_follows(make, *two_streams(), under=PLANS)


def test_a_weight_tied_between_a_boundary_and_the_functions() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.weave, self.head = nn.Linear(4, 4), Weave(Function), nn.Linear(4, 4, bias=False)
            for f in self.weave.fs:
                f.linear.weight = self.stem.weight
            self.head.weight = self.stem.weight

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            a, b = self.weave(self.stem(a), b)
            return self.head(a) + b

    assert_follows(Tied, *two_streams(), under=BOTH)


@pytest.mark.parametrize("materialized", [True, False])
def test_lazy_layers_before_and_after_their_first_call(materialized: bool) -> None:
    def make() -> nn.Module:
        return Weave(lambda: nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(4)))

    a, b = two_streams()
    torch.manual_seed(0)
    model = make().double()
    if materialized:
        model(a, b)
    with right_or_refused("fs.", says="(?i)lazy|uninitialized"):
        net = rg.trace(model, a, b)
        net(a, b)
        plain = make().double()
        plain(a, b)
        plain.load_state_dict(model.state_dict())
        net.plan = rg.decide(net.graph, {})
        follow(net, plain, (a, b))


class Hidden(nn.Module):
    """Trains a tensor that is no registered parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.hidden = [torch.linspace(-1, 1, 16, dtype=torch.double).view(4, 4).requires_grad_()]

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x) @ self.hidden[0])


@pytest.mark.parametrize("plan", ["default", "inverted", "recomputed"])
def test_a_leaf_that_is_not_registered_gets_its_gradient(plan: str) -> None:
    model, plain = made_twice(lambda: Weave(Hidden))
    a, b = two_streams()
    net = rg.trace(model, a, b)
    (net.plan,) = plans(net, plan)
    for _ in range(10):
        results = []
        for run, owner in ((net, model), (plain, plain)):
            leaves = [a, b, *run.parameters(), *(f.hidden[0] for f in owner.fs)]
            results.append(torch.autograd.grad(loss_of(run(a, b)), leaves))
        assert_close(*results, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["default", "inverted"])
def test_parameters_replaced_between_steps(plan: str) -> None:
    """Data swapped, objects replaced and flags switched after ten steps, none before a backward."""
    model, plain = made_twice(lambda: Weave(Function))
    a, b = two_streams()
    net = rg.trace(model, a, b)
    (net.plan,) = plans(net, plan)
    follow(net, plain, (a, b), 10)
    for run in (model, plain):
        with torch.no_grad():
            run.fs[0].linear.weight.data = run.fs[0].linear.weight * 0.5
            run.fs[1].linear.weight = nn.Parameter(run.fs[1].linear.weight * 0.5)
        run.fs[2].linear.weight.requires_grad_(False)
        run.fs[0].linear.bias.requires_grad_(False)
    follow(net, plain, (a, b), 4)
    for run in (model, plain):
        run.requires_grad_(True)
        run.fs[1].linear = nn.Linear(4, 4, bias=False, dtype=torch.double)
        nn.init.eye_(run.fs[1].linear.weight)
    with right_or_refused("fs.1"):
        follow(net, plain, (a, b), 10)
