"""Couplings: inverses, Jacobians, safety for huge values, and arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revgraph as rg


class Joined(nn.Module):
    """A function of several streams; `parts` outputs a channel."""

    def __init__(self, inputs: int, parts: int = 1, width: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs * width, 7), nn.Tanh(), nn.Linear(7, parts * width))

    def forward(self, *streams: Tensor, **extras: Any) -> Tensor:
        return self.net(torch.cat(streams, 1)) + sum(extras.values())


class Scaled(rg.Coupling):
    """A coupling of one's own, with a parameter of its own."""

    def __init__(self, *functions: nn.Module) -> None:
        super().__init__(*functions)
        self.log_scale = nn.Parameter(torch.linspace(-1, 1, 4))

    def couple(self, x: Tensor, term: Any) -> Tensor:
        y = x * self.log_scale.exp()
        return y if term is None else y - term

    def uncouple(self, y: Tensor, term: Any) -> Tensor:
        y = y if term is None else y + term
        return y * (-self.log_scale).exp()


def made(kind: type[rg.Coupling], functions: int) -> rg.Coupling:
    torch.manual_seed(functions)
    others = max(functions - 1, 1)
    parts = 2 if kind is rg.Affine else 1
    return kind(*(Joined(others, parts) for _ in range(functions))).double()


def streams(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 4, generator=generator, dtype=torch.double) for _ in range(count)]


CASES = [
    (kind, functions)
    for kind in (rg.Additive, rg.Affine, Scaled)
    for functions in (1, 2, 3)
] + [(Scaled, 0)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "functions"), CASES)
def test_traced_coupling_gives_its_input_back(kind: type[rg.Coupling], functions: int) -> None:
    coupling = made(kind, functions)
    x = streams(max(functions, 2) if functions else 1)
    net = rg.trace(coupling, *x)
    with torch.no_grad():
        y = net(*x)
        assert all(not torch.equal(one, two) for one, two in zip(_tuple(y), x, strict=False))
        known = {} if functions != 1 else {net.graph.inputs[1]: x[1]}
        back = net.inverse(*_tuple(y), **known)
    for one, two in zip(_tuple(back), x, strict=False):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "functions"), CASES)
def test_half_steps_are_undone_last_first(kind: type[rg.Coupling], functions: int) -> None:
    """The inverse written out by hand with `uncouple`."""
    coupling = made(kind, functions)
    x = streams(max(functions, 2) if functions else 1)
    with torch.no_grad():
        y = list(_tuple(coupling(*x)))
        if functions == 0:
            y[0] = coupling.uncouple(y[0], None)
        elif functions == 1:
            y[0] = coupling.uncouple(y[0], coupling.get_submodule("f")(x[1]))
        else:
            for index in reversed(range(functions)):
                function = coupling.get_submodule(coupling.names[index])
                y[index] = coupling.uncouple(y[index], function(*y[:index], *y[index + 1 :]))
    for one, two in zip(y, x, strict=False):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def _tuple(tree: Any) -> tuple[Tensor, ...]:
    return tree if isinstance(tree, tuple) else (tree,)


def test_additive_block_is_the_papers_equations() -> None:
    f, g = Joined(1).double(), Joined(1).double()
    x1, x2 = streams(2)
    y1, y2 = rg.Additive(f, g)(x1, x2)
    assert torch.equal(y1, x1 + f(x2))
    assert torch.equal(y2, x2 + g(y1))


def test_additive_has_unit_jacobian_determinant() -> None:
    assert _log_det(made(rg.Additive, 2)) == pytest.approx(0, abs=1e-12)


def test_affine_jacobian_determinant_is_the_sum_of_its_log_scales() -> None:
    coupling = made(rg.Affine, 1)
    assert isinstance(coupling, rg.Affine)
    x1, x2 = (each[:1] for each in streams(2))
    jacobian = torch.autograd.functional.jacobian(lambda x: coupling(x, x2), x1).reshape(4, 4)
    s, _ = coupling.get_submodule("f")(x2).chunk(2, 1)
    expected = (2.0 * torch.tanh(s / 2.0)).sum()
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, expected, rtol=1e-12, atol=1e-12)
    assert torch.linalg.slogdet(jacobian).sign == 1


def _log_det(coupling: rg.Coupling) -> float:
    x = torch.cat([each[:1] for each in streams(2)], 1)
    run = lambda x: torch.cat(coupling(*x.chunk(2, 1)), 1)  # noqa: E731
    return torch.linalg.slogdet(torch.autograd.functional.jacobian(run, x).reshape(8, 8)).logabsdet.item()


@pytest.mark.parametrize("raw", [1e4, -1e4, 3e38, -3e38, 0.0])
def test_affine_is_finite_and_invertible_for_huge_raw_scales(raw: float) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 0 + raw, x * 0

    coupling = rg.Affine(Constant())
    x, other = torch.randn(3, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    y = coupling(x, other)
    assert y.isfinite().all()
    assert (y.abs() <= x.abs() * torch.tensor(2.0).exp() * 1.00001).all()
    back = coupling.uncouple(y, Constant()(other))
    torch.testing.assert_close(back, x)
    for gradient in torch.autograd.grad(y.square().sum(), [x, other]):
        assert gradient.isfinite().all()


def test_affine_takes_halves_along_a_dimension_or_a_pair() -> None:
    x1, x2 = streams(2)
    f = Joined(1, 2).double()
    s, t = f(x2).chunk(2, 1)

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return s, t

    assert torch.equal(rg.Affine(f)(x1, x2), rg.Affine(Pair())(x1, x2))
    torch.testing.assert_close(
        rg.Affine(f)(x1, x2), x1 * torch.exp(2 * torch.tanh(s / 2)) + t, rtol=1e-12, atol=1e-12
    )


def test_affine_with_an_odd_number_of_channels_is_an_error() -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"3|half|halves|pair|size"):
        rg.Affine(nn.Linear(3, 3))(torch.randn(2, 3), torch.randn(2, 3))


@pytest.mark.parametrize("bound", [0, -1, float("nan")])
def test_affine_bound_must_be_positive(bound: float) -> None:
    with pytest.raises(ValueError, match="bound"):
        rg.Affine(nn.Identity(), bound=bound)


@pytest.mark.parametrize("function", [torch.sin, None, "f", 3])
def test_functions_must_be_modules(function: Any) -> None:
    with pytest.raises(TypeError, match="Additive takes modules as functions"):
        rg.Additive(function)


def test_abstract_coupling_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        rg.Coupling(nn.Identity())  # pyright: ignore


@pytest.mark.parametrize("count", [0, 1, 3])
def test_wrong_number_of_streams_is_a_clear_error(count: int) -> None:
    with pytest.raises(ValueError, match="2 functions"):
        made(rg.Additive, 2)(*streams(count))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_streams_for_one_function_is_a_clear_error(count: int) -> None:
    with pytest.raises((ValueError, TypeError), match=r"stream|Additive|argument"):
        rg.Additive(nn.Identity())(*streams(count))


def test_coupling_that_broadcasts_its_target_is_a_boundary() -> None:
    """y must have x's shape, or x is not what comes back."""
    coupling = rg.Additive(nn.Tanh())
    x = torch.randn(1, 4, dtype=torch.double, requires_grad=True)
    other = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
    with pytest.warns(rg.TraceWarning, match=r"makes \[3, 4\] of a target of shape \[1, 4\]"):
        net = rg.trace(coupling, x, other)
    net.plan = rg.decide(net.graph, {})
    for node in net.graph.nodes:
        assert node.target is None or net.graph.value[node.target].shape == (3, 4)
    ours = torch.autograd.grad(net(x, other).square().sum(), [x, other])
    theirs = torch.autograd.grad(coupling(x, other).square().sum(), [x, other])
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_keyword_arguments_go_to_every_function() -> None:
    x = streams(3)
    coupling = made(rg.Additive, 3)
    plain, shifted = coupling(*x), coupling(*x, shift=1.0)
    torch.testing.assert_close(shifted[0], plain[0] + 1.0, rtol=1e-12, atol=1e-12)


def test_functions_are_named_by_their_number() -> None:
    assert made(rg.Additive, 1).names == ("f",)
    assert made(rg.Additive, 2).names == ("f", "g")
    assert made(rg.Additive, 3).names == ("f1", "f2", "f3")
