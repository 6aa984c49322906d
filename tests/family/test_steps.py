"""One-function steps, bijections and wiring: inverse and gradients against plain autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revgraph as rg
from revgraph.blocks.recurrent import CellFunction

WIDTH, DEPTH = 6, 4


def function() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())


class Steps(nn.Module):
    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(make() for _ in range(DEPTH))

    def forward(self, a: Tensor, b: Tensor) -> Any:
        for step in self.steps:
            a, b = step(a, b)
        return a, b


def momentum(f: nn.Module, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = 0.75 * v + 0.25 * f(x)
    return x + v, v


def midpoint(f: nn.Module, before: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    return now, before + 2 * 0.3 * f(now)


def leapfrog(f: nn.Module, before: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    return now, 2 * now - before + 0.3**2 * f(now)


def dual_residual(f: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return f(x) + 0.75 * x + y, 0.5 * x


# Each step, and what it should compute, by the formula of its paper.
KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[..., tuple[Tensor, Tensor]]]] = {
    "momentum": (lambda: rg.Momentum(function(), gamma=0.75), momentum),
    "midpoint": (lambda: rg.Midpoint(function(), h=0.3), midpoint),
    "leapfrog": (lambda: rg.Leapfrog(function(), h=0.3), leapfrog),
    "dual residual": (lambda: rg.DualResidual(function(), alpha=0.75, beta=0.5), dual_residual),
}


def steps(name: str) -> tuple[Steps, rg.ReversibleModule, list[Tensor]]:
    torch.manual_seed(0)
    model = Steps(KINDS[name][0]).double()
    inputs = [torch.randn(3, WIDTH, dtype=torch.double, requires_grad=True) for _ in range(2)]
    return model, rg.trace(model, *inputs), inputs


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_step_is_its_papers_formula_with_its_gradients(name: str) -> None:
    model, net, inputs = steps(name)
    couplings = [node.name for node in net.graph.nodes if node.kind == "coupling"]
    net.plan = rg.decide(net.graph, dict.fromkeys(couplings, "invert"))
    a, b = inputs
    for step in model.steps:
        a, b = KINDS[name][1](step.f, a, b)
    leaves = [*inputs, *model.parameters()]
    loss: Callable[[Any], Tensor] = lambda pair: pair[0].square().sum() + pair[1].sin().sum()  # noqa: E731
    expected = torch.autograd.grad(loss((a, b)), leaves)
    found = torch.autograd.grad(loss(net(*inputs)), leaves)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_step_gives_back_its_inputs_and_knows_its_volume(name: str) -> None:
    model, net, inputs = steps(name)
    for one, two in zip(net.inverse(*net(*inputs)), inputs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8)
    _, log_det = net.with_log_det(*inputs)

    def outputs_of(both: Tensor) -> Tensor:
        return torch.cat(model(both[None, :WIDTH], both[None, WIDTH:]), 1)[0]

    both = torch.cat([each[0].detach() for each in inputs])
    jacobian = torch.autograd.functional.jacobian(outputs_of, both)
    assert log_det[0].item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-9)


def test_coefficients_are_saved_and_moved() -> None:
    block = rg.DualResidual(function(), alpha=1.0, beta=0.1)
    block.set(alpha=0.5, beta=0.3)
    other = rg.DualResidual(function())
    other.load_state_dict(block.state_dict())
    assert (other.alpha.item(), other.beta.item()) == pytest.approx((0.5, 0.3))


def test_coefficients_that_move_between_steps_are_those_of_the_forward() -> None:
    """A forward with one beta, then another, then the first's backward: it inverts with its own."""
    _, net, inputs = steps("dual residual")
    leaves = [*inputs, *net.parameters()]
    expected = torch.autograd.grad(net(*inputs)[0].square().sum(), leaves)
    loss = net(*inputs)[0].square().sum()
    for module in net.modules():
        if isinstance(module, rg.DualResidual):
            module.set(alpha=0.1, beta=0.9)
    try:
        found = torch.autograd.grad(loss, leaves)
    except rg.ReplayError as error:
        assert "changed" in str(error) or "differs" in str(error)
        return
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: rg.Scale(-0.3), (3, 4)),
        (lambda: rg.ActNorm(4), (3, 4)),
        (lambda: rg.ActNorm(4), (3, 4, 2, 2)),
        (lambda: rg.InvertibleConv1x1(4), (3, 4)),
        (lambda: rg.InvertibleConv1x1(4), (3, 4, 2, 3)),
    ],
)
def test_bijections_invert_and_know_their_volume(make: Callable[[], rg.Coupling], shape: Any) -> None:
    torch.manual_seed(0)
    module = make().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    x = torch.randn(shape, dtype=torch.double)
    y, log_det = module.couple_with_log_det(x, None)
    assert log_det is not None
    assert torch.equal(y, module(x))
    torch.testing.assert_close(module.uncouple(y, None), x)
    jacobian = torch.autograd.functional.jacobian(lambda each: module(each[None])[0].flatten(), x[0])
    volume = torch.linalg.slogdet(jacobian.reshape(x[0].numel(), -1)).logabsdet
    torch.testing.assert_close(log_det, volume.expand(3))


def test_a_1x1_convolution_is_torchs() -> None:
    module = rg.InvertibleConv1x1(4).double()
    x = torch.randn(2, 4, 3, 5, dtype=torch.double)
    torch.testing.assert_close(module(x), nn.functional.conv2d(x, module.weight[:, :, None, None]))


@pytest.mark.parametrize("make", [rg.Haar, lambda: rg.ShuffleChannels(3, seed=2)])
def test_wiring_is_undone_and_preserves_lengths(make: Callable[[], rg.Wiring]) -> None:
    module = make()
    x = torch.randn(2, 3, 4, 6, dtype=torch.double)
    y: Any = module(x)
    torch.testing.assert_close(y.norm(), x.norm())
    torch.testing.assert_close(module.inverse(y, shapes=[x.shape]), x)


def test_haar_is_the_average_and_the_differences_of_four_pixels() -> None:
    a, b, c, d = 1.0, 2.0, 4.0, 8.0
    y: Any = rg.Haar()(torch.tensor([[[[a, b], [c, d]]]]))
    expected = [(a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2]
    assert y.flatten().tolist() == expected


def test_shuffling_depends_on_the_seed_alone() -> None:
    one, two, other = (rg.ShuffleChannels(16, seed=seed).order for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_gated_step_is_its_formula_and_forgets_no_more_than_its_floor() -> None:
    torch.manual_seed(0)
    coupling = rg.Gated(CellFunction(3, 5), CellFunction(3, 5), floor=0.25).double()
    h1, h2, x = (torch.randn(2, size, dtype=torch.double) for size in (5, 5, 3))
    y1, y2 = coupling(h1, h2, x=x)
    gate, candidate = coupling.get_submodule("f")(h2, x=x).chunk(2, 1)
    z = 0.25 + 0.75 * gate.sigmoid()
    torch.testing.assert_close(y1, z * h1 + (1 - z) * candidate.tanh())
    net = rg.trace(coupling, h1, h2, x=x)
    back = net.inverse(y1, y2, **{"extras.x": x})
    torch.testing.assert_close(back[0], h1)
    torch.testing.assert_close(back[1], h2)
    assert z.min().item() >= 0.25


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rg.Momentum(function(), gamma=0), "gamma must be above 0 and at most 1, not 0"),
        (lambda: rg.DualResidual(function(), beta=0), "factor must be a number other than 0, not 0"),
        (lambda: rg.Scale(0), "factor must be a number other than 0, not 0"),
        (lambda: rg.Gated(function(), floor=0), "floor must be above 0 and at most 1, not 0"),
    ],
)
def test_what_cannot_be_undone_is_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
