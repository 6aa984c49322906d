"""A sum is a coupling where it moves a stream on; what lies inside its function stays inside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import agree, equal_runs, linear, mlp, randn

import revgraph as rg

DEPTH = 4


class Deep(nn.Module):
    """Half-steps in a loop, each with a term of its own kind."""

    def __init__(self, term: Callable[..., Any], depth: int = DEPTH, width: int = 4) -> None:
        super().__init__()
        self.term = term
        self.a = nn.ModuleList(linear(width, seed=index) for index in range(depth))
        self.b = nn.ModuleList(linear(width, seed=index + 50) for index in range(depth))
        self.both = nn.ModuleList(linear(width, 2 * width, seed=index + 90) for index in range(depth))

    def forward(self, x1: Tensor, x2: Tensor, cond: Tensor) -> Any:
        for a, b, both in zip(self.a, self.b, self.both, strict=True):
            x1, x2 = x2, self.term(x1, x2, cond, a, b, both)
        return x1, x2


def scale_and_shift(x1: Tensor, x2: Tensor, both: nn.Module, how: Callable[..., Tensor]) -> Tensor:
    s, t = both(x2).chunk(2, -1)
    return how(x1, torch.tanh(s), t)


def guarded(x1: Tensor, x2: Tensor, a: Any) -> Tensor:
    h = a(x2)
    if h.dtype != a.weight.dtype or h.shape[-1] != a.out_features:
        h = h.to(a.weight.dtype)
    return x1 + torch.tanh(h)


def two_branches(h: Tensor, a: Any, b: Any) -> Tensor:
    return torch.tanh(h) + b(h + b.bias + a.bias)


def residual(h: Tensor, a: nn.Module) -> Tensor:
    h = h + torch.tanh(a(h))
    return h + torch.sin(h)


def attention(h: Tensor, bias: Tensor) -> Tensor:
    return torch.softmax(h @ h.transpose(-1, -2) + bias.mean() + bias.sum(), -1) @ h


TERMS: dict[str, Callable[..., Tensor]] = {
    "condition added": lambda x1, x2, c, a, b, both: x1 + torch.tanh(a(x2) + b(c)),
    "condition added first": lambda x1, x2, c, a, b, both: x1 + torch.tanh(a(x2 + b(c))),
    "condition as it is": lambda x1, x2, c, a, b, both: x1 + torch.tanh(a(x2) + c),
    "conditions added first": lambda x1, x2, c, a, b, both: x1 + torch.tanh(a(x2 + c + b(c))),
    "conditions added one by one": lambda x1, x2, c, a, b, both: x1 + torch.tanh(a(x2 + b(c) + torch.sin(c))),
    "parameters added first": lambda x1, x2, c, a, b, both: x1 + torch.tanh(a(x2 + a.bias + b.bias)),
    "three added first": lambda x1, x2, c, a, b, both: x1 + b(torch.tanh(x2 + a.bias + b.bias + a.weight[0])),
    "added and subtracted first": lambda x1, x2, c, a, b, both: x1 + torch.tanh(b.bias - (x2 - a.bias) - c),
    "added behind a scaled stream": lambda x1, x2, c, a, b, both: x1 + a(0.9 * x2 + a.bias + b.bias),
    "added first and last": lambda x1, x2, c, a, b, both: (
        x1 + (torch.tanh(a(x2 + a.bias + b.bias)) + a.bias + b.bias)
    ),
    "added before two branches": lambda x1, x2, c, a, b, both: x1 + two_branches(x2 + a.bias, a, b),
    "added before an inner residual": lambda x1, x2, c, a, b, both: x1 + residual(x2 + a.bias + b.bias, a),
    "added before an attention": lambda x1, x2, c, a, b, both: x1 + attention(x2 + a.bias + b.bias, a.bias),
    "added before a view": lambda x1, x2, c, a, b, both: x1 + a((x2 + b.bias).view(-1, 4) + a.bias),
    "condition multiplied": lambda x1, x2, c, a, b, both: x1 + torch.tanh(a(x2) * b(c)),
    "condition subtracted": lambda x1, x2, c, a, b, both: x1 - torch.tanh(a(x2) - b(c)),
    "two branches": lambda x1, x2, c, a, b, both: x1 + (a(x2) + b(x2)),
    "inner residual": lambda x1, x2, c, a, b, both: x1 + (b(torch.tanh(a(x2))) + torch.tanh(a(x2))),
    "scaled stream": lambda x1, x2, c, a, b, both: 0.9 * x1 + torch.tanh(a(x2)),
    "scaled behind": lambda x1, x2, c, a, b, both: (x1 + torch.tanh(a(x2))) / 2**0.5,
    "scaled and subtracted": lambda x1, x2, c, a, b, both: torch.tanh(a(x2)) - x1 * 0.5,
    "scaled term": lambda x1, x2, c, a, b, both: x1 + 0.1 * torch.tanh(a(x2)),
    "both scaled": lambda x1, x2, c, a, b, both: 0.9 * x1 + 0.1 * torch.tanh(a(x2)),
    "negative": lambda x1, x2, c, a, b, both: torch.tanh(a(x2)) + x1 * -1.5,
    "affine": lambda x1, x2, c, a, b, both: scale_and_shift(
        x1, x2, both, lambda x, s, t: torch.exp(s) * x + t
    ),
    "affine, shifted first": lambda x1, x2, c, a, b, both: scale_and_shift(
        x1, x2, both, lambda x, s, t: (x - t) * torch.exp(-s)
    ),
    "affine, divided": lambda x1, x2, c, a, b, both: scale_and_shift(
        x1, x2, both, lambda x, s, t: (x - t) / s.exp()
    ),
    "scale alone": lambda x1, x2, c, a, b, both: x1 * torch.exp(torch.tanh(a(x2))),
    "product in one call": lambda x1, x2, c, a, b, both: torch.addcmul(x1, a(x2), torch.sin(x2), value=0.5),
    "quotient in one call": lambda x1, x2, c, a, b, both: torch.addcdiv(x1, a(x2), 2 + torch.sin(b(x2))),
    "product, scaled stream": lambda x1, x2, c, a, b, both: torch.addcmul(0.9 * x1, a(x2), b.bias),
    "guards on the form": lambda x1, x2, c, a, b, both: guarded(x1, x2, a),
}  # fmt: skip


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return randn(3, 4, seed=1), randn(3, 4, seed=2), randn(3, 4, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TERMS)
def test_half_steps_in_a_loop_are_all_that_is_left(kind: str) -> None:
    model = Deep(TERMS[kind])
    net = agree(model, *inputs(), couplings=DEPTH)
    assert {node.kind for node in net.graph.nodes} == {"input", "coupling", "output"}, str(net.graph)
    equal_runs(net, model, randn(5, 4, seed=4), randn(5, 4, seed=5), randn(5, 4, seed=6))


@pytest.mark.slow
@pytest.mark.parametrize("kind", TERMS)
def test_held_bytes_do_not_grow_with_depth(kind: str) -> None:
    held: list[int] = []
    for depth in (2, 8):
        x1, x2, cond = inputs()
        net = rg.trace(Deep(TERMS[kind], depth), x1, x2, cond)
        net.plan = rg.decide(net.graph, {})
        found = rg.measure(net, x1, x2, cond)
        assert found.held_bytes == net.plan.held_bytes
        held.append(found.held_bytes)
    assert held[0] == held[1]


# Half-steps of two terms, which are two couplings in a row.
ROWS: dict[str, Callable[..., Tensor]] = {
    "two functions": lambda x1, x2, c, a, b, both: x1 + torch.tanh(a(x2)) + b(x2),
    "two functions of sums": lambda x1, x2, c, a, b, both: (
        x1 + torch.tanh(a(x2 + a.bias + c)) + b(x2 - b.bias + a.bias)
    ),
    "a function and a parameter": lambda x1, x2, c, a, b, both: x1 + torch.tanh(a(x2)) + b.bias,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
def test_sums_of_several_functions_stay_couplings_in_a_row(kind: str) -> None:
    agree(Deep(ROWS[kind]), *inputs(), couplings=2 * DEPTH)
    held: list[int] = []
    for depth in (2, 8):
        net = rg.trace(Deep(ROWS[kind], depth), *inputs())
        net.plan = rg.decide(net.graph, {})
        held.append(rg.measure(net, *inputs()).held_bytes)
    assert held[0] == held[1]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["mean", "cat", "sum"])
@pytest.mark.parametrize("kind", ["conditions added first", "parameters added first"])
def test_streams_that_end_in_a_head_have_no_other_couplings(kind: str, end: str) -> None:
    class Ended(Deep):
        def forward(self, x1: Tensor, x2: Tensor, cond: Tensor) -> Any:
            x1, x2 = super().forward(x1, x2, cond)
            if end == "mean":
                return self.a[0](x1).mean(), self.a[0](x2).mean()
            return self.a[0](torch.cat([x1, x2]) if end == "cat" else x1 * x2)

    agree(Ended(TERMS[kind]), *inputs(), couplings=DEPTH)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TERMS)
def test_inverse_gives_the_inputs_back(kind: str) -> None:
    x1, x2, cond = inputs()
    net = rg.trace(Deep(TERMS[kind]), x1, x2, cond)
    with torch.no_grad():
        y1, y2 = net(x1, x2, cond)
        back = net.inverse(y1, y2, cond=cond)
    torch.testing.assert_close(back, (x1, x2), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in TERMS if "scale" in kind or "affine" in kind])
def test_log_determinant_is_that_of_the_jacobian(kind: str) -> None:
    x1, x2, cond = inputs()
    model = Deep(TERMS[kind])
    net = rg.trace(model, x1, x2, cond)
    _, found = net.with_log_det(x1, x2, cond)
    for index in range(len(x1)):
        one = cond[index : index + 1]

        def whole(x: Tensor, one: Tensor = one) -> Tensor:
            return torch.cat(model(*x.chunk(2, 1), one), 1)[0]

        jacobian = torch.autograd.functional.jacobian(whole, torch.cat([x1, x2], 1)[index : index + 1])
        expected = torch.linalg.slogdet(jacobian[:, 0])[1]
        torch.testing.assert_close(found[index], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("factor", [0.0, 1e-6, float("inf")])
def test_factor_that_forgets_is_no_part_of_a_coupling(factor: float) -> None:
    model = Deep(lambda x1, x2, c, a, b, both: x1.clamp(-9, 9) * factor + torch.tanh(a(x2)), depth=1)
    net = rg.trace(model, *inputs())
    assert "mul" in [node.expression.split("(")[0] for node in net.graph.nodes if node.kind == "boundary"]


def test_gate_that_may_close_is_no_coupling() -> None:
    agree(Deep(lambda x1, x2, c, a, b, both: x1 * torch.sigmoid(a(x2))), *inputs(), couplings=0)


def test_exact_mode_takes_no_product_into_a_coupling() -> None:
    x1, x2, cond = (each.float() for each in inputs())
    net = rg.trace(Deep(TERMS["scaled stream"]).float(), x1, x2, cond, exact=True)
    assert sum(node.expression.startswith("mul(") for node in net.graph.nodes) == DEPTH
    one, two = (module(x1, x2, cond) for module in (net, net._model))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = linear(4, 12, seed=5), linear(seed=6)

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor) -> Any:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) / 2
        scores = scores + bias + mask
        weights = scores.softmax(-1)
        return self.out(weights @ v), weights


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(), mlp(seed=9)

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
        y, _ = self.attention(x, mask, bias)
        x = y + x
        return self.mlp(x) + x


class Transformer(nn.Module):
    """Sums of every kind around, none of which is a coupling."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.kind = nn.Embedding(9, 4).double(), nn.Embedding(2, 4).double()
        self.place, self.bias = nn.Parameter(randn(1, 5, 4)), nn.Parameter(randn(1, 5, 5))
        self.layers, self.norm = nn.ModuleList(Layer() for _ in range(3)), nn.LayerNorm(4).double()

    def forward(self, ids: Tensor, kinds: Tensor, seen: Tensor) -> Tensor:
        x = self.word(ids) + self.kind(kinds) + self.place
        mask = (1.0 - seen[:, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        bias = self.bias + torch.zeros_like(mask)
        for layer in self.layers:
            x = layer(x, mask, bias)
        return self.norm(x)


def test_sums_of_a_transformer_are_no_couplings() -> None:
    ids = torch.arange(10).view(2, 5) % 9
    seen = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    net = agree(Transformer(), ids, ids % 2, seen, couplings=0)
    parts = [node.module for node in net.graph.nodes if node.module.startswith("layers.1")]
    assert parts == ["layers.1.attention", *(f"layers.1.mlp.{index}" for index in range(3))]


def test_streams_that_begin_with_a_residual_block_are_found() -> None:
    """The midpoint rule: the second stream begins with what was computed from the first."""

    class Midpoint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.f = linear(seed=30), nn.ModuleList(mlp(seed=index) for index in range(5))

        def forward(self, x: Tensor) -> Tensor:
            before = self.stem(x)
            now = before + self.f[0](before)
            for f in self.f[1:]:
                before, now = now, before + 2 * f(now)
            return torch.tanh(now)

    agree(Midpoint(), randn(3, 4), couplings=4)


def test_momentum_in_plain_code_is_found() -> None:
    class Momentum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.ModuleList(mlp(seed=index) for index in range(4))

        def forward(self, x: Tensor) -> Tensor:
            v = torch.zeros_like(x)
            for f in self.f:
                v = 0.9 * v + 0.1 * f(x)
                x = x + v
            return torch.tanh(x)

    agree(Momentum(), randn(3, 4), couplings=7)  # the first speed is zero and gains nothing


def test_losses_added_up_are_no_stream() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.ModuleList(mlp(seed=index) for index in range(4))

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            total = 0.0
            for f in self.f:
                x1, x2 = x2, x1 + f(x2)
                total = total + x2.square().mean()
            return x1, x2, total

    agree(Sums(), randn(3, 4), randn(3, 4, seed=2), couplings=4)


class Squash(nn.Module):
    """A layer of a flow: what it makes, and its log determinant."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.f = linear(seed=seed)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(self.f(x))
        return y, torch.log1p(-y * y).sum(-1)


class Squashes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Squash(seed) for seed in range(DEPTH))
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.double))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(x).sum(-1)
        for layer in self.layers:
            x = x * self.scale
            total = total + torch.log(torch.abs(self.scale)).sum()
            x, log_det = layer(x)
            total = total + log_det
        return x, total


def test_log_determinants_added_up_are_no_stream() -> None:
    """One function of all of them would hold what each is made of to the end."""
    model = Squashes()
    net = rg.trace(model, randn(3, 4))
    sums = [node for node in net.graph.nodes if node.computes.startswith("add(")]
    assert len(sums) == 2 * DEPTH and all(len(node.inputs) <= 2 for node in sums)
    equal_runs(net, model, randn(3, 4))


class Moved(NamedTuple):
    by: Tensor
    loss: Tensor


class WithLoss(nn.Module):
    """A function that returns what moves the stream, and a loss, in one form or another."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.form = linear(), form

    def forward(self, x: Tensor) -> Any:
        gate = torch.tanh(self.layer(x))
        return self.form(gate * x, gate.square().mean())


class AddsLosses(nn.Module):
    def __init__(self, form: Callable[[Tensor, Tensor], Any], depth: int) -> None:
        super().__init__()
        self.functions = nn.ModuleList(WithLoss(form) for _ in range(depth))

    def forward(self, a: Tensor, b: Tensor) -> Any:
        total = torch.zeros((), dtype=a.dtype)
        for function in self.functions:
            made = function(b)
            by, loss = (made["by"], made["loss"]) if isinstance(made, dict) else made
            a, b, total = b, a + by, total + loss
        return a, b, total


@pytest.mark.parametrize(
    "form", [lambda by, loss: (by, loss), Moved, lambda by, loss: {"by": by, "loss": loss}]
)
def test_functions_that_return_a_loss_besides_hold_nothing(form: Callable[[Tensor, Tensor], Any]) -> None:
    held = []
    for depth in (2, 6):
        pair = randn(3, 4), randn(3, 4, seed=1)
        net = agree(AddsLosses(form, depth), *pair)
        net.plan = rg.decide(net.graph, {})
        assert sum(node.kind == "coupling" for node in net.graph.nodes) == depth
        held.append(rg.measure(net, *pair).held_bytes)
    assert held[0] == held[1]


def test_module_that_scales_a_sum_stays_a_call() -> None:
    class Scale(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.scale = mlp(), Scale()

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return self.scale(x1 + self.f(x2)), x2

    net = agree(Net(), randn(3, 4), randn(3, 4, seed=2), couplings=1)
    assert "scale" in [node.module for node in net.graph.nodes]


class Taps(nn.Module):
    """A chain whose values are read on the way, and added up; every function draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.taps = (
            nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.4)) for _ in range(4)) for _ in range(2)
        )

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
        total = torch.zeros_like(x1)
        for step, tap in zip(self.steps, self.taps, strict=True):
            x1, x2 = x2, x1 + step(x2)
            total = total + tap(x2)
        return x1, x2, total


def test_random_numbers_are_drawn_in_the_order_of_the_code() -> None:
    """A sum of all taps is no coupling whose function would run them after the chain."""
    torch.manual_seed(0)
    model = Taps()
    plain = copy.deepcopy(model)
    inputs = torch.randn(2, 6, 4)
    net = rg.trace(model, *inputs)
    torch.manual_seed(1)
    expected = plain(*inputs)
    torch.manual_seed(1)
    for one, two in zip(net(*inputs), expected, strict=True):
        assert torch.equal(one, two)
