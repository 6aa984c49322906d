"""Exact mode: streams on a fixed-point grid come back bit for bit, at any depth."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from engine.samples import drawn
from torch import Tensor, nn

import revgraph as rg
from revgraph.engine.observer import Observer
from revgraph.measuring import activation_bytes
from revgraph.rounding import largest, rounded
from revgraph.specs import build, example_inputs

pytestmark = pytest.mark.usefixtures("device")

BLOCKS = 1000  # of two half-steps each


class Chain(nn.Module):
    """Half-steps on two halves of what a stem makes; `gain` scales the functions' weights."""

    def __init__(self, depth: int, width: int = 8, gain: float = 1.0, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(width, 2 * width), nn.Linear(2 * width, 3)
        self.functions = nn.ModuleList(self._function(width, norm) for _ in range(depth))
        with torch.no_grad():
            for weight in self.functions.parameters():
                weight *= gain

    def _function(self, width: int, norm: bool) -> nn.Module:
        between = [nn.BatchNorm1d(width)] if norm else []
        return nn.Sequential(nn.Linear(width, width), *between, nn.Tanh(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.stem(x).chunk(2, 1)
        for step, function in enumerate(self.functions):
            if step % 2:
                x2 = x2 - function(x1) * 0.5
            else:
                x1 = x1 + function(x2)
        return self.head(torch.cat([x1, x2], 1))


class Watching(Observer):
    """Every value made in the forward, and every one rebuilt."""

    def __init__(self) -> None:
        self.made_values: dict[str, Tensor] = {}
        self.rebuilt_values: dict[str, Tensor] = {}

    def made(self, name: str, value: Tensor) -> None:
        self.made_values[name] = value.detach().clone()

    def rebuilt(self, name: str, value: Tensor) -> None:
        self.rebuilt_values[name] = value.detach().clone()


def gradients(net: nn.Module, x: Tensor, **autocast: Any) -> list[Tensor]:
    net.zero_grad()
    with torch.autocast(x.device.type, **autocast) if autocast else torch.enable_grad():
        loss = net(x).float().square().mean()
    loss.backward()
    return [weight.grad.clone() for weight in net.parameters() if weight.grad is not None]


def inverted(model: nn.Module, x: Tensor, exact: bool | float = True) -> rg.ReversibleModule:
    net = rg.trace(model, x, exact=exact)
    net.plan = rg.decide(net.graph, {})
    return net


def agree_bitwise(net: rg.ReversibleModule, x: Tensor, **autocast: Any) -> int:
    """Gradients and rebuilt values against those of stored activations; how many values were rebuilt."""
    watching, plan = Watching(), net.plan
    with net.watched_by(watching):
        found = gradients(net, x, **autocast)
    net.plan = rg.keep_all(net.graph)
    expected = gradients(net, x, **autocast)
    net.plan = plan
    assert len(found) == len(expected) > 0
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    for name, value in watching.rebuilt_values.items():
        assert torch.equal(value, watching.made_values[name]), name
    return len(watching.rebuilt_values)


@pytest.fixture
def deep(device: torch.device) -> tuple[rg.ReversibleModule, Tensor]:
    return deep_on(device)


@cache
def deep_on(_: torch.device) -> tuple[rg.ReversibleModule, Tensor]:
    x = drawn(4, 8)
    return inverted(Chain(2 * BLOCKS, gain=0.5), x), x


@pytest.mark.slow
def test_exact_mode_is_bitwise_at_a_thousand_blocks(deep: tuple[rg.ReversibleModule, Tensor]) -> None:
    net, x = deep
    assert agree_bitwise(net, x) == 2 * BLOCKS - 1
    report = rg.check(net, x)
    assert report.angle_degrees == 0
    assert set(report.drift.values()) == {0}


@pytest.mark.slow
def test_exact_mode_is_bitwise_with_functions_in_bfloat16(deep: tuple[rg.ReversibleModule, Tensor]) -> None:
    net, x = deep
    assert agree_bitwise(net, x, dtype=torch.bfloat16) == 2 * BLOCKS - 1


@pytest.mark.slow
def test_exact_mode_is_bitwise_where_floating_point_returns_garbage() -> None:
    x = drawn(4, 8)
    assert rg.check(inverted(Chain(64, gain=4), x, exact=False), x).max_relative_error > 1e-2
    assert agree_bitwise(inverted(Chain(64, gain=4), x), x) == 63


@pytest.mark.slow
def test_exact_mode_with_batchnorm_and_any_plan() -> None:
    x = drawn(6, 8)
    net = rg.trace(Chain(6, norm=True), x, exact=True)
    for plan in [*rg.frontier(net.graph, points=5), rg.decide(net.graph, {})]:
        net.plan = plan
        agree_bitwise(net, x)
        # Peaks are those of rebuilt values that lie as in the forward; here some are views, and copied.
        assert activation_bytes(net, x)[1] == plan.held_bytes


@pytest.mark.slow
def test_exact_mode_is_bitwise_on_convolutions_with_batchnorm() -> None:
    """RevNet-38: convolutions round otherwise on other layouts, and streams are halves of one tensor."""
    net = rg.load("revnet-38", batch=4, exact=True)
    x = drawn(4, 3, 32, 32)
    for plan in (rg.decide(net.graph, {}), rg.plan(net.graph)):
        net.plan = plan
        assert agree_bitwise(net, x) > 0
        assert activation_bytes(net, x) == (plan.peak_bytes, plan.held_bytes)


def test_exact_mode_in_float64_and_on_inputs() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = rg.Additive(nn.Linear(4, 4), nn.Linear(4, 4))

        def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
            return self.block(x1, x2)

    inputs = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    net = rg.trace(Block().double(), *inputs, exact=2.0**-30)
    net.plan = rg.decide(net.graph, {})
    outputs = net(*inputs)
    assert all(torch.equal(each, rounded(each, 2.0**-30)) for each in outputs)
    back = net.inverse(*outputs)
    assert all(torch.equal(one, rounded(two, 2.0**-30)) for one, two in zip(back, inputs, strict=True))
    assert rg.check(net, *inputs).angle_degrees == 0


@pytest.mark.slow
def test_exact_mode_stays_within_its_resolution_of_the_plain_model() -> None:
    """Rounding moves the outputs no further than its own size times the depth allows."""
    x = drawn(4, 8)
    model = Chain(8)
    plain = model(x)
    errors = [
        (rg.trace(model, x, exact=resolution)(x) - plain).abs().max().item()
        for resolution in (2.0**-6, 2.0**-10, 2.0**-14)
    ]
    assert errors[0] > 4 * errors[1] > 16 * errors[2] > 0
    assert errors[2] < 8 * 2.0**-14


def test_rounding_lets_gradients_straight_through() -> None:
    x = torch.tensor([0.3, -1.2], requires_grad=True)
    y = rounded(x, 0.25)
    assert y.tolist() == [0.25, -1.25]
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert gradient.tolist() == [0.5, -2.5]
    (gradient,) = torch.autograd.grad(rounded(x, 0.25).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert second.tolist() == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e4, float("nan"), float("inf")])
def test_numbers_beyond_the_range_name_their_node(scale: float) -> None:
    x = drawn(4, 8)
    model = Chain(6)
    net = inverted(model, x)
    with torch.no_grad():
        model.functions[3][2].bias.fill_(scale)
    assert largest(2.0**-14, torch.float32) == 1024
    with pytest.raises(rg.DriftError, match=r"node 'functions.3' makes .* up to 1024 .*exact=0.0001221"):
        net(x)
    with torch.no_grad():
        model.functions[3][2].bias.fill_(0)
    net(x).sum().backward()


@pytest.mark.slow
def test_exact_mode_refuses_what_it_cannot_make_exact() -> None:
    x = torch.randn(2, 4), torch.randn(2, 4)
    affine = rg.Affine(nn.Linear(4, 8))
    with pytest.raises(rg.TraceError, match="neither"):
        rg.trace(affine, *x, exact=True)
    half = [each.bfloat16() for each in x]
    with pytest.raises(rg.TraceError, match="bfloat16"):
        rg.trace(rg.Additive(nn.Linear(4, 4).bfloat16()), *half, exact=True)
    for resolution in (0.3, 0, -1.0, float("inf"), 3):
        with pytest.raises(rg.TraceError, match="power of two"):
            rg.trace(rg.Additive(nn.Linear(4, 4)), *x, exact=resolution)


def test_a_specification_asks_for_exact_mode() -> None:
    text = """
    name: small
    exact: true
    inputs: {x: [8]}
    layers:
      - streams: {Split: 2, out: [x1, x2]}
      - block: {Additive: {f: {Linear: [4, 4]}, g: {Linear: [4, 4]}}, in: [x1, x2], out: [x1, x2]}
      - joined: {Concatenate: {}, in: [x1, x2]}
    """
    built = build(text, batch=3)
    assert built.exact is True
    (x,) = example_inputs(built)
    net = rg.load(text, batch=3)
    assert torch.equal(net(x), rounded(net(x), 2.0**-14))
    assert not torch.equal(rg.load(text, batch=3, exact=False)(x), net(x))
    assert build(text.replace("true", "0.25"), batch=3).exact == 0.25
    with pytest.raises(rg.SpecError, match="`exact` is true, false, or a resolution"):
        build(text.replace("true", "0.3"), batch=3)
