"""A model is planned as finely as it is worth, wherever in other modules it sits."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import checkpoint
from tracing.agreement import agree, equal_runs, equal_trees, linear, mlp, randn

import revgraph as rg


class Block(nn.Module):
    """One unit: a block whose layers are side by side."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.f, self.h = linear(seed=seed), linear(seed=seed + 20)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.f(x)) * self.h(x) + x.sin()


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Wide(seed) for seed in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Wide(Block):
    """A block with several layers, so that its encoder has several parts worth a plan each."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.g = linear(seed=seed + 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.g(super().forward(x))


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, linear(seed=77)

    def forward(self, *args: Any) -> Any:
        return self.head(self.inner(*args))


def modules_of(net: rg.ReversibleModule) -> list[str]:
    return [node.module for node in net.graph.nodes if node.module]


@pytest.mark.slow
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_layers_of_a_wrapped_encoder_are_planned_one_by_one(depth: int) -> None:
    model: nn.Module = Encoder()
    for _ in range(depth):
        model = Around(model)
    net = agree(model, randn(3, 4), couplings=0)
    prefix = "inner." * depth
    assert modules_of(net)[:4] == [f"{prefix}blocks.{index}" for index in range(4)]


@pytest.mark.slow
def test_wrapping_costs_the_plan_nothing() -> None:
    x = randn(64, 4)
    alone, wrapped = (
        rg.plan(rg.trace(model, x).graph, cost="flops") for model in (Encoder(), Around(Encoder()))
    )
    whole = rg.keep_all(rg.trace(Around(Encoder()), x).graph)
    assert wrapped.peak_bytes < 0.7 * whole.peak_bytes
    assert wrapped.peak_bytes <= alone.peak_bytes + 4 * x.numel() * x.element_size()


@pytest.mark.slow
def test_layers_of_torchs_own_encoder_are_planned_one_by_one() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 3), nn.Linear(8, 2)).double()
    net = agree(model, randn(2, 5, 4), couplings=0)
    assert modules_of(net) == ["0", "1.layers.0", "1.layers.1", "1.layers.2", "2"]


def test_block_with_an_attention_and_a_perceptron_is_planned_in_two() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(4).double(), nn.LayerNorm(4).double()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True).double()
            self.mlp = nn.Sequential(linear(4, 8, 3), nn.GELU(), linear(8, 4, 5))

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm1(x)
            x = x + self.attention(h, h, h, need_weights=False)[0]
            return x + self.mlp(self.norm2(x))

    net = agree(nn.Sequential(Layer(), Layer()), randn(2, 5, 4), couplings=0)
    assert [path for path in modules_of(net) if "norm" not in path] == [
        *("0.attention", "0.mlp.0", "0.mlp.1", "0.mlp.2"), *("1.attention", "1.mlp.0", "1.mlp.1", "1.mlp.2"),
    ]  # fmt: skip


def test_shared_layer_is_several_parts() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Wide()

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.layer(x)
            return x

    assert modules_of(agree(Around(Shared()), randn(3, 4))) == ["inner.layer"] * 3 + ["head"]


def test_block_of_layers_side_by_side_stays_whole() -> None:
    assert modules_of(agree(nn.ModuleList([Around(Block())])[0], randn(3, 4))) == ["inner", "head"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "parts"),
    [
        ([linear(), nn.GELU()], ["0.0", "0.1"]),
        ([linear(), nn.ReLU(), linear(seed=1)], ["0.0", "0.1", "0.2"]),
        ([linear(), nn.LayerNorm(4).double(), nn.Tanh()], ["0.0", "0.1", "0.2"]),
        ([linear(), nn.ReLU()], ["0"]),
        ([linear(), nn.Dropout(0.0), nn.Sigmoid(), nn.Identity()], ["0"]),
    ],
)
def test_row_of_layers_is_opened_where_that_saves_memory(layers: list[nn.Module], parts: list[str]) -> None:
    """What an activation returns is what its backward reads: nothing before it is worth storing."""
    net = agree(nn.Sequential(nn.Sequential(*layers), linear(seed=9)), randn(3, 4), couplings=0)
    assert modules_of(net) == [*parts, "1"]


def test_row_in_code_is_opened_as_one_of_modules() -> None:
    class Perceptron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand, self.shrink = linear(4, 8, 1), linear(8, 4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.shrink(nn.functional.gelu(self.expand(x)))

    net = agree(Around(Perceptron()), randn(3, 4), couplings=0)
    assert [node.name for node in net.graph.planned] == [
        *("inner.expand", "inner.gelu", "inner.shrink"), "head",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("order", ["x first", "x last", "something else"])
def test_row_that_is_joined_to_what_was_given_is_opened(order: str) -> None:
    """As layers of a DenseNet: the joined value gives back the one before it, and the norm that."""

    class Joined(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(width).double(), linear(width, 2, seed=width)

        def forward(self, x: Tensor) -> Tensor:
            made = self.linear(nn.functional.gelu(self.norm(x)))
            given = {"x first": [x, made], "x last": [made, x], "something else": [x.sin(), made]}[order]
            return torch.cat(given, -1)

    net = agree(nn.Sequential(Joined(4), Joined(6), linear(8, 4)), randn(3, 4), couplings=0)
    planned = [node.name for node in net.graph.planned]
    if order == "something else":
        assert planned == ["0", "1", "2"]
        return
    assert planned == ["0.norm", "0.gelu", "0.linear", "1.norm", "1.gelu", "1.linear", "2"]
    decisions = dict.fromkeys(planned, "recompute")
    net.plan = rg.decide(net.graph, decisions, reruns=[name for name in planned if "linear" not in name])
    x, again = (randn(3, 4).requires_grad_() for _ in range(2))
    net(x).square().sum().backward()
    net.plan = rg.keep_all(net.graph)
    net(again).square().sum().backward()
    assert x.grad is not None and again.grad is not None
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_opened_row_keeps_linear_results_and_repeats_activations_for_nothing() -> None:
    x = randn(64, 16)
    layers = [nn.Sequential(linear(16, 16, seed), nn.GELU()) for seed in range(8)]
    net = rg.trace(nn.Sequential(*layers), x)
    plain = rg.keep_all(net.graph)
    plan = rg.plan(net.graph, budget=int(0.7 * plain.peak_bytes), cost="flops")
    assert plan.flops_ratio == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("decision", ["keep", "recompute"])
def test_layers_that_edit_in_place_are_planned_like_others(decision: Any) -> None:
    model = nn.Sequential(
        linear(), nn.LayerNorm(4).double(), nn.ReLU(inplace=True), linear(seed=1), nn.ELU(inplace=True)
    )
    net = agree(model, randn(3, 4), couplings=0)
    assert [node.name for node in net.graph.planned] == ["0", "1", "2", "3", "4"]
    x, again = (randn(3, 4).requires_grad_() for _ in range(2))
    net.plan = rg.decide(net.graph, {node.name: decision for node in net.graph.planned})
    net(x).square().sum().backward()
    model(again).square().sum().backward()
    assert x.grad is not None and again.grad is not None
    torch.testing.assert_close(x.grad, again.grad)


@pytest.mark.slow
def test_function_of_a_coupling_stays_whole_whatever_its_parts() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = Encoder()

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return x1 + self.f(x2), x2

    net = agree(Half(), randn(3, 4), randn(3, 4, seed=2), couplings=1)
    assert modules_of(net) == ["f"]


class Attend(nn.Module):
    """A function with results besides the one that a block uses."""

    def __init__(self, how: str, seed: int) -> None:
        super().__init__()
        self.how, self.q, self.o = how, linear(seed=seed), linear(seed=seed + 9)

    def forward(self, x: Tensor) -> Any:
        p = torch.softmax(self.q(x), -1)
        y = self.o(p * x)
        return {"tuple": (y, p), "dict": {"y": y, "p": p}, "nested": ((y, None), {"p": [p]})}[self.how]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["tuple", "dict", "nested"])
def test_results_that_nothing_reads_do_not_end_a_function(how: str) -> None:
    class Net(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.f = nn.ModuleList(Attend(how, index) for index in range(depth))

        def forward(self, a: Tensor, b: Tensor) -> Any:
            for f in self.f:
                r = f(b)
                a, b = b, a + (r["y"] if how == "dict" else r[0][0] if how == "nested" else r[0])
            return a, b

    held: list[int] = []
    for depth in (2, 6):
        net = agree(Net(depth), randn(3, 4), randn(3, 4, seed=2), couplings=depth)
        held.append(rg.measure(net, randn(3, 4), randn(3, 4, seed=2)).held_bytes)
    assert held[0] == held[1]


class Loss(nn.Module):
    """A function with a loss beside its result, and a map of its size."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.q, self.o = linear(seed=seed), linear(seed=seed + 9)

    def forward(self, x: Tensor) -> Any:
        p = torch.softmax(self.q(x), -1)
        return self.o(p * x), {"loss": (p * p).mean(), "map": p}


class Losses(nn.Module):
    def __init__(self, depth: int, reads: str = "loss") -> None:
        super().__init__()
        self.reads, self.f = reads, nn.ModuleList(Loss(index) for index in range(depth))

    def forward(self, a: Tensor, b: Tensor) -> Any:
        total: Any = 0.0
        for f in self.f:
            r, besides = f(b)
            total = total + (besides["loss"] if self.reads == "loss" else besides["map"].square().mean())
            a, b = b, a + r
        return a, b, total


@pytest.mark.slow
@pytest.mark.parametrize("decision", ["invert", "recompute", "keep"])
def test_loss_that_a_function_returns_besides_leaves_the_coupling(decision: Any) -> None:
    held: list[int] = []
    for depth in (2, 6):
        a, b = randn(3, 4), randn(3, 4, seed=2)
        net = agree(Losses(depth), a, b, couplings=depth)
        names = [node.name for node in net.graph.nodes if node.kind == "coupling"]
        net.plan = rg.decide(net.graph, dict.fromkeys(names, decision))
        equal_runs(net, Losses(depth), a, b)
        found = rg.measure(net, a, b)
        assert (found.held_bytes, found.peak_bytes) == (net.plan.held_bytes, net.plan.peak_bytes)
        held.append(found.held_bytes)
    if decision == "invert":
        assert held[1] - held[0] < 64  # a loss of 8 bytes each


@pytest.mark.slow
def test_function_with_a_loss_besides_under_every_plan() -> None:
    a, b = randn(3, 4), randn(3, 4, seed=2)
    model = Losses(5)
    net = rg.trace(model, a, b)
    for plan in rg.frontier(net.graph):
        net.plan = plan
        equal_runs(net, model, a, b)
        found = rg.measure(net, a, b)
        assert (found.held_bytes, found.peak_bytes) == (plan.held_bytes, plan.peak_bytes)


@pytest.mark.slow
def test_inverse_with_a_loss_besides() -> None:
    a, b = randn(3, 4), randn(3, 4, seed=2)
    net = rg.trace(Losses(3), a, b)
    with torch.no_grad():
        torch.testing.assert_close(net.inverse(*net(a, b)), (a, b), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_large_result_that_is_read_besides_is_right() -> None:
    agree(Losses(3, reads="map"), randn(3, 4), randn(3, 4, seed=2), couplings=3)


def test_result_that_comes_back_into_its_own_function_is_right() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = Loss(3)

        def forward(self, a: Tensor, b: Tensor) -> Any:
            r, besides = self.f(b)
            return a + r * torch.sigmoid(besides["loss"]), b, besides["loss"] * 2

    agree(Gated(), randn(3, 4), randn(3, 4, seed=2), couplings=1)


class Checkpointed(nn.Module):
    """Blocks that are checkpointed by the model itself."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.blocks = (
            how,
            nn.ModuleList(rg.Additive(mlp(seed=s), mlp(seed=s + 5)) for s in range(2)),
        )

    def forward(self, x1: Tensor, x2: Tensor) -> Any:
        for block in self.blocks:
            if self.how == "method":
                x1, x2 = checkpoint.checkpoint(
                    lambda one, two, b=block: b(one, two), x1, x2, use_reentrant=False
                )
            else:
                x1, x2 = checkpoint.checkpoint(block, x1, x2, use_reentrant=self.how == "reentrant")
        return x1, x2


@pytest.mark.slow
@pytest.mark.parametrize("place", ["root", "submodule"])
@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "method"])
def test_checkpoints_of_the_model_give_way_to_the_plan_and_that_is_said(how: str, place: str) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Checkpointed(how)

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return self.inner(x1, x2)

    model = Checkpointed(how) if place == "root" else Outer()
    x1, x2 = randn(3, 4).requires_grad_(), randn(3, 4, seed=2).requires_grad_()
    with pytest.warns(rg.TraceWarning, match=r"test_granularity\.py:\d+.*the net's plan"):
        net = rg.trace(model, x1, x2)
    assert [node.kind for node in net.graph.nodes].count("coupling") == 4
    net.plan = rg.decide(net.graph, {})
    found: list[Any] = []
    for module in (net, model):
        for each in (x1, x2, *module.parameters()):
            each.grad = None
        out = module(x1, x2)
        sum(each.square().sum() for each in out).backward()  # pyright: ignore
        found.append([*out, x1.grad, x2.grad, *(each.grad for each in module.parameters())])
    equal_trees(found[0][:2], found[1][:2])
    for one, two in zip(found[0], found[1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_checkpointed_block_is_no_longer_checkpointed() -> None:
    calls: list[int] = []

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:  # pyright: ignore
            calls.append(1)
            return super().forward(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = Counted(4, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint.checkpoint(self.f, x, use_reentrant=False).sin()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rg.TraceWarning)
        net = rg.trace(nn.Sequential(Net(), Net()), randn(3, 4))
    net.plan = rg.keep_all(net.graph)
    calls.clear()
    net(randn(3, 4).requires_grad_()).sum().backward()
    assert len(calls) == 2


@pytest.mark.slow
@pytest.mark.parametrize("between", [True, False])
@pytest.mark.parametrize("deep", [True, False])
def test_what_waits_for_a_coupling_draws_its_random_numbers_in_the_models_order(
    between: bool, deep: bool
) -> None:
    """A call that reads a further result runs after the sum, and so after draws that stand before that."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g = nn.ModuleList(Attend("tuple", seed) for seed in (0, 5)), linear(seed=20)

        def forward(self, a: Tensor, b: Tensor) -> Any:
            r, p = self.f[0](b)
            waits = nn.functional.dropout(p.sin() if deep else p, 0.5)
            other = nn.functional.dropout(self.g(b), 0.5) if between else b
            a = a + r
            r, p = self.f[1](a)
            return a, b + r, waits, other, p

    agree(Net(), randn(3, 4), randn(3, 4, seed=2), couplings=None if between else 2)


class Ignoring(nn.Module):
    """Does not read its second argument."""

    def __init__(self) -> None:
        super().__init__()
        self.f = linear()

    def forward(self, x: Tensor, types: Tensor) -> Tensor:
        return torch.tanh(self.f(x) * 2)


class MadeForNothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part, self.head = Ignoring(), linear(seed=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x, torch.zeros(x.shape)))


def test_a_module_may_ignore_an_argument_that_is_made_for_it() -> None:
    net = agree(MadeForNothing(), randn(3, 4))
    assert any(node.name.startswith("part") for node in net.graph.nodes)
