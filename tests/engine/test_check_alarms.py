"""`rg.check` on gradients that are zero by symmetry: no alarm, and still one where a gradient is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from engine.kinds import Weave, gradients, made_twice, two_streams
from torch import Tensor, nn
from torch.nn import functional

import revgraph as rg

LIMIT = {torch.float32: 1e-3, torch.float64: 1e-8}


class Normed(nn.Module):
    """A bias in front of a normalization that takes the mean away."""

    def __init__(self, norm: Callable[[], nn.Module], layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layer, self.norm = layer(), norm()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.layer(x)))


class Shifted(nn.Module):
    """A number that is added to all logits of a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.shift = nn.Linear(4, 4), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.linear(x) + self.shift, -1)


class KeyBias(nn.Module):
    """Attention whose keys have a bias of their own: it shifts each row of scores by one number."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))


class Centred(nn.Module):
    """A shift that layer normalization takes away."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.shift = nn.Linear(4, 4), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(functional.layer_norm(self.linear(x) + self.shift, (4,)))


class Radial(nn.Module):
    """A gain that a normalization of length takes away."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gain = nn.Linear(4, 4), nn.Parameter(torch.tensor(1.3))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.linear(x) * self.gain, dim=-1)


class Dead(nn.Module):
    """A layer whose gradient is exactly zero: nothing passes its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        nn.init.constant_(self.one.bias, -100.0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.two(torch.relu(self.one(x)) + x))


SYMMETRIC: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "bias before batch norm": (lambda: Normed(lambda: nn.BatchNorm1d(4), lambda: nn.Linear(4, 4)), (8, 4)),
    "bias before batch norm of images": (
        lambda: Normed(lambda: nn.BatchNorm2d(2), lambda: nn.Conv2d(2, 2, 3, padding=1)),
        (4, 2, 6, 6),
    ),
    "bias before instance norm": (
        lambda: Normed(lambda: nn.InstanceNorm2d(2), lambda: nn.Conv2d(2, 2, 3, padding=1)),
        (4, 2, 6, 6),
    ),
    "bias before group norm of one": (
        lambda: Normed(lambda: nn.GroupNorm(4, 4), lambda: nn.Conv1d(4, 4, 1)),
        (3, 4, 6),
    ),
    "shift of a softmax": (Shifted, (8, 4)),
    "bias of keys": (KeyBias, (2, 5, 4)),
    "shift before layer norm": (Centred, (8, 4)),
    "gain before a normalized length": (Radial, (8, 4)),
    "nothing passes": (Dead, (8, 4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SYMMETRIC)
def test_a_gradient_that_is_zero_by_symmetry_is_no_alarm(name: str, dtype: torch.dtype) -> None:
    function, shape = SYMMETRIC[name]
    model, _ = made_twice(lambda: Weave(function, 4), dtype)
    inputs = two_streams(*shape, dtype=dtype)
    net = rg.trace(model, *inputs)
    net.plan = rg.decide(net.graph, {})
    report = rg.check(net, *inputs)
    assert report.max_relative_error < LIMIT[dtype]
    assert report.angle_degrees < 0.1


@pytest.mark.parametrize("name", ["bias before batch norm", "shift of a softmax", "bias of keys"])
def test_a_net_of_such_functions_trains_as_the_plain_model(name: str) -> None:
    """The gradients that were compared above are indeed zero but for rounding."""
    function, shape = SYMMETRIC[name]
    model, plain = made_twice(lambda: Weave(function, 4))
    inputs = two_streams(*shape)
    net = rg.trace(model, *inputs)
    net.plan = rg.decide(net.graph, {})
    found, expected = gradients(net, model, *inputs), gradients(plain, plain, *inputs)
    sizes = [float(each.abs().max()) for each in expected if each is not None]
    assert min(sizes) < 1e-12 * max(sizes)
    assert max(float((one - two).abs().max()) for one, two in zip(found, expected, strict=True)) < 1e-9


def steep() -> nn.Module:
    f = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    for parameter in f.parameters():
        parameter.data *= 4
    return f


class Scaled(nn.Module):
    """A steep net whose outputs, and with them all gradients, are tiny; beside it may be an ordinary one."""

    def __init__(self, scale: float, beside: bool) -> None:
        super().__init__()
        self.steep, self.scale = Weave(steep, 40), scale
        self.calm = Weave(Shifted, 2) if beside else None

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        tiny = tuple(each * self.scale for each in self.steep(a, b))
        return tiny if self.calm is None else (*tiny, *self.calm(a, b))


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside an ordinary net"])
@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_a_gradient_that_is_wrong_is_an_alarm_however_small(size: float, beside: bool) -> None:
    """Drift makes the steep half's gradients wrong, and they are small on purpose, not by symmetry."""
    a, b = two_streams(8, 4, dtype=torch.float32)
    torch.manual_seed(0)
    grown = max(float(each.detach().abs().max()) for each in Weave(steep, 40)(a, b))
    model, _ = made_twice(lambda: Scaled(size / grown, beside), None)
    net = rg.trace(model, a, b)
    net.plan = rg.decide(net.graph, {})
    report = rg.check(net, a, b)
    assert report.max_relative_error > 0.1
    assert max(report.drift.values()) > 0.1


def test_checking_a_kept_plan_finds_nothing() -> None:
    model, _ = made_twice(lambda: Weave(SYMMETRIC["bias before batch norm"][0], 4), torch.float32)
    inputs = two_streams(8, 4, dtype=torch.float32)
    net = rg.trace(model, *inputs)
    net.plan = rg.keep_all(net.graph)
    report = rg.check(net, *inputs)
    assert report.max_relative_error == 0 and report.angle_degrees == 0 and not report.drift


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_checking_leaves_gradients_buffers_and_random_numbers(dtype: torch.dtype) -> None:
    model, plain = made_twice(lambda: Weave(SYMMETRIC["bias before batch norm"][0], 4), dtype)
    inputs = two_streams(8, 4, dtype=dtype)
    net = rg.trace(model, *inputs)
    net.plan = rg.decide(net.graph, {})
    state = torch.get_rng_state()
    rg.check(net, *inputs)
    assert torch.equal(state, torch.get_rng_state())
    assert all(leaf.grad is None for leaf in (*net.parameters(), *inputs))
    assert all(torch.equal(one, two) for one, two in zip(net.buffers(), plain.buffers(), strict=True))
