"""Gradients of parameters and inputs, whatever requires one, however values are shared and read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.samples import (
    Chain,
    Pair,
    assert_bitwise,
    assert_close,
    batch,
    doubled,
    inverted,
    mlp,
    normed,
    step,
)
from torch import Tensor, nn

import revgraph as rg

pytestmark = pytest.mark.usefixtures("device")


def check(make: Any, *inputs: Any, **extras: Any) -> rg.ReversibleModule:
    """Invert, keep and recompute all agree with plain autograd; returns the inverted net."""
    model, plain = doubled(make)
    net = rg.trace(model, *inputs, **extras)
    for choice in ("keep", "recompute", "invert"):
        choices = {
            node.name: choice if choice != "invert" or node.kind == "coupling" else "keep"
            for node in net.graph.planned
        }
        net.plan = rg.decide(net.graph, choices)
        found = step(net, model, *inputs, **extras)
        assert_close(found, step(plain, plain, *inputs, **extras))
    return net


def streams(count: int, grad: bool = True) -> list[Tensor]:
    return [batch(3, 4, seed=seed, grad=grad) for seed in range(count)]


def test_gradients_are_bitwise_plain_autograds_where_everything_is_kept() -> None:
    x = batch()
    model, plain = doubled(lambda: nn.Sequential(nn.Linear(8, 8), Chain(f=normed), nn.Linear(8, 2)))
    net = rg.trace(model, x)
    net.plan = rg.keep_all(net.graph)
    assert_bitwise(step(net, model, x), step(plain, plain, x))


def test_outputs_are_bitwise_the_models() -> None:
    x = batch()
    model, plain = doubled(Chain)
    assert torch.equal(inverted(model, x)(x), plain(x))


def test_an_input_without_gradient_still_gives_parameters_theirs() -> None:
    check(Chain, batch(grad=False))


def test_a_net_traced_with_gradient_runs_without_and_the_other_way_round() -> None:
    for traced in (True, False):
        model, plain = doubled(Chain)
        net = inverted(model, batch(grad=traced))
        x = batch(grad=not traced)
        assert_close(step(net, model, x), step(plain, plain, x))


def test_a_leaf_input_gets_its_gradient_once() -> None:
    model, plain = doubled(Chain)
    one, two = batch(), batch()
    net = inverted(model, one)
    net(one).pow(2).sum().backward()
    plain(two).pow(2).sum().backward()
    assert_close([one.grad], [two.grad])
    net(one).pow(2).sum().backward()
    plain(two).pow(2).sum().backward()
    assert_close([one.grad], [two.grad])


def test_an_input_that_is_no_leaf_passes_its_gradient_on() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    found = torch.autograd.grad(net(torch.sin(x) * 2).pow(2).sum(), x)
    assert_close(found, torch.autograd.grad(plain(torch.sin(x) * 2).pow(2).sum(), x))


def test_an_input_may_be_a_parameter() -> None:
    check(Chain, nn.Parameter(batch().detach()))


def test_streams_may_be_parameters() -> None:
    check(Pair, *(nn.Parameter(stream.detach()) for stream in streams(2)))


def test_one_input_may_need_a_gradient_and_another_not() -> None:
    one, two = streams(2)
    check(Pair, one.detach(), two)
    check(Pair, one, two.detach())


@pytest.mark.slow
@pytest.mark.parametrize(
    "frozen", ["all", "first", "last", "middle", "biases", "weights", "fs", "but one bias"]
)
@pytest.mark.parametrize("grad", [True, False])
def test_frozen_parameters_at_any_place(frozen: str, grad: bool) -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8), Chain(4), nn.Linear(8, 8))
        names = dict(model.named_parameters())
        matches = {
            "all": lambda name: True,
            "first": lambda name: name.startswith("0.") or ".blocks.0." in name,
            "last": lambda name: name.startswith("2.") or ".blocks.3." in name,
            "middle": lambda name: ".blocks.1." in name or ".blocks.2." in name,
            "biases": lambda name: name.endswith("bias"),
            "weights": lambda name: name.endswith("weight"),
            "fs": lambda name: ".f." in name,
            "but one bias": lambda name: name != "1.blocks.1.f.0.bias",
        }[frozen]
        for name, parameter in names.items():
            parameter.requires_grad_(not matches(name))
        return model

    if frozen == "all" and not grad:
        model, _ = doubled(make)
        x = batch(grad=False)
        assert not inverted(model, x)(x).requires_grad
    else:
        check(make, batch(grad=grad))


def test_parameters_frozen_after_the_trace() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    for run in (model, plain):
        run.blocks[1].requires_grad_(False)
    assert_close(step(net, model, x), step(plain, plain, x))


def test_one_function_in_several_nodes() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = mlp()
            self.block = rg.Additive(self.f, mlp())

        def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
            x1, x2 = self.block(x1, x2)
            x1 = x1 + self.f(x2)
            x2 = x2 + self.f(x1)
            return self.block(x1, x2)

    check(Shared, *streams(2))


def test_tied_parameters_of_two_modules() -> None:
    def make() -> nn.Module:
        model = Pair()
        model.g[0].weight = model.f[0].weight
        return model

    model, _ = doubled(make)
    assert model.f[0].weight is model.g[0].weight
    check(make, *streams(2))


class Skipping(nn.Module):
    """Skips around, into and out of a reversible stretch; one value is read by three nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.chain, self.gate, self.head = nn.Linear(8, 8), Chain(2), nn.Linear(8, 4), mlp(8)
        self.f, self.g = mlp(), mlp()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.stem(x)
        y = self.chain(h)
        one, two = y.chunk(2, 1)
        one = one + self.f(two) * torch.sigmoid(self.gate(h))
        early = one
        two = two + self.g(one)
        one = one - self.f(two + early)
        out = self.head(torch.cat([one, two], 1) + h)
        return out, early, y


def test_skips_into_out_of_and_around_a_reversible_stretch() -> None:
    check(Skipping, batch())


def test_a_value_read_by_several_nodes() -> None:
    class Fan(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fs = nn.ModuleList(mlp() for _ in range(5))

        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
            a = a + self.fs[0](b)
            b = b + self.fs[1](a)
            c = c + self.fs[2](a)
            a2 = a + self.fs[3](c)
            return a2 + self.fs[4](b + c), b, c

    check(Fan, *streams(3))


def test_half_steps_with_several_others() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g, self.h = (nn.Bilinear(4, 4, 4) for _ in range(3))

        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
            for _ in range(2):
                a = a + self.f(b, c)
                b = b - torch.tanh(self.g(c, a))
                c = self.h(a, b) - c
            return a, b, c

    check(Several, *streams(3))


def test_coupling_modules_of_three_streams_and_affine_ones() -> None:
    class Halves(nn.Module):
        def __init__(self, outputs: int = 4) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, outputs))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.net(torch.cat([a, b], 1))

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.additive = rg.Additive(Halves(), Halves(), Halves())
            self.affine = rg.Affine(Halves(8), Halves(8), Halves(8))
            self.turn = rg.Permute(2, 0, 1)

        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
            return self.turn(*self.affine(*self.turn(*self.additive(a, b, c))))

    check(Three, *streams(3))


class Conditioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)
        self.embed = nn.Linear(2, 4)

    def forward(
        self, x1: Tensor, x2: Tensor, scale: float = 1.0, *, mask: Tensor, condition: Tensor
    ) -> tuple[Tensor, Tensor]:
        c = self.embed(condition)
        y1 = x1 + torch.tanh(self.f(x2 + c)).masked_fill(mask, 0.0) * scale
        y2 = x2 + torch.tanh(self.g(y1) * c) * scale
        return y1, y2


@pytest.mark.slow
@pytest.mark.parametrize("grad", [True, False])
def test_a_mask_a_condition_a_number_and_keyword_arguments(grad: bool) -> None:
    x1, x2 = streams(2)
    mask = torch.eye(4, dtype=torch.bool)[:3]
    condition = batch(3, 2, seed=9, grad=grad)
    net = check(Conditioned, x1, x2, 2.0, mask=mask, condition=condition)
    model, plain = doubled(Conditioned)
    net = inverted(model, x1, x2, 2.0, mask=mask, condition=condition)
    other = dict(mask=~mask, condition=condition)
    assert_close(step(net, model, x1, x2, -0.5, **other), step(plain, plain, x1, x2, -0.5, **other))


def test_coupling_modules_pass_keyword_arguments_on() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            return torch.tanh(self.linear(x)) * scale

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = rg.Additive(Scaled(), Scaled())

        def forward(self, x1: Tensor, x2: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
            return self.block(*self.block(x1, x2, scale=scale), scale=scale * 2)

    check(Net, *streams(2), batch(4, seed=7))


def test_an_integer_input_read_by_an_embedding() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.f, self.pair = nn.Embedding(7, 4), mlp(), Pair()

        def forward(self, x1: Tensor, x2: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
            x1 = x1 + self.f(self.table(words))
            return self.pair(x1, x2 + self.table(words))

    check(Words, *streams(2), torch.tensor([0, 3, 3]))


def test_several_outputs_one_of_them_an_input_and_one_returned_twice() -> None:
    class Several(Pair):
        def forward(self, x1: Tensor, x2: Tensor) -> dict[str, Any]:
            y1, y2 = super().forward(x1, x2)
            return {"first": y1, "again": (y1, y2), "input": x2}

    model, plain = doubled(Several)
    x1, x2 = streams(2)
    net = inverted(model, x1, x2)
    results = []
    for run, leaves in ((net, model), (plain, plain)):
        out = run(x1, x2)
        loss = out["first"].sum() + (out["again"][0] * out["again"][1]).sum() + out["input"].pow(3).sum()
        results.append(torch.autograd.grad(loss, [x1, x2, *leaves.parameters()]))
    assert_close(*results)


def test_learned_streams_expanded_over_the_batch() -> None:
    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries = nn.Parameter(torch.randn(1, 4))
            self.f, self.g, self.h = mlp(), mlp(), mlp()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            q = self.queries.expand(x.shape[0], -1)
            q = q + self.g(x)
            x = x + self.f(q)
            return x, q + self.h(x)

    check(Queries, batch(3, 4))


def test_a_stream_that_broadcasts_at_another_batch_size_is_right_or_refused() -> None:
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start = nn.Parameter(torch.randn(1, 4))
            self.f, self.g, self.h = mlp(), mlp(), mlp()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            q = self.start * 1.0
            x = x + self.g(q)
            q = q + self.f(x)
            return x + self.h(q), q

    model, plain = doubled(Broadcast)
    net = inverted(model, batch(1, 4))
    x = batch(3, 4)
    try:
        found = step(net, model, x)
    except rg.RevgraphError as error:
        assert "shape" in str(error) and "deterministic" not in str(error)
    else:
        assert_close(found, step(plain, plain, x))


def test_other_batch_sizes_and_shapes_than_the_traced_ones() -> None:
    model, plain = doubled(Chain)
    net = inverted(model, batch(3, 8))
    for x in (batch(1, 8), batch(7, 8)):
        assert_close(step(net, model, x), step(plain, plain, x))


def test_in_place_relu_after_a_coupling() -> None:
    class After(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.relu = Pair(), nn.ReLU(inplace=True)

        def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
            y1, y2 = self.pair(x1, x2)
            y1 = self.relu(y1 * 2.0)
            y2 += y1
            return self.pair(y1, torch.relu_(y2))

    model, plain = doubled(After)
    x1, x2 = streams(2)
    net = inverted(model, x1, x2)
    assert_close(step(net, model, x1, x2), step(plain, plain, x1, x2))
    assert_close(step(rg.trace(model, x1, x2), model, x1, x2), step(plain, plain, x1, x2))


def test_gradients_accumulate_over_several_forwards() -> None:
    model, plain = doubled(Chain)
    net = inverted(model, batch())
    for run in (net, plain):
        losses = [run(batch(seed=seed)).pow(2).sum() for seed in range(3)]
        torch.stack(losses).sum().backward()
        run(batch(seed=4)).pow(2).sum().backward()
    assert_close(
        [parameter.grad for parameter in model.parameters()],
        [parameter.grad for parameter in plain.parameters()],
    )


def test_the_plan_may_change_between_forward_and_backward() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    loss = net(x).pow(2).sum()
    net.plan = rg.keep_all(net.graph)
    found = torch.autograd.grad(loss, [x, *model.parameters()])
    assert_close(found, torch.autograd.grad(plain(x).pow(2).sum(), [x, *plain.parameters()]))


def test_anchors_do_not_change_gradients() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    net.plan = rg.decide(net.graph, {}, anchors=["blocks.1.f", "blocks.0.g"])
    assert {"blocks.1.f", "blocks.0.g"} <= set(net.plan.stored)
    assert_close(step(net, model, x), step(plain, plain, x))


def test_the_reference_algorithm_agrees() -> None:
    model, _ = doubled(Pair)
    x1, x2 = streams(2)
    net = inverted(model, x1, x2)
    y1, y2 = net(x1, x2)
    dy1, dy2 = batch(3, 4, seed=5, grad=False), batch(3, 4, seed=6, grad=False)
    found = torch.autograd.grad((y1, y2), (x1, x2), (dy1, dy2))
    result = rg.reference.algorithm1(model.f, model.g, y1.detach(), y2.detach(), dy1, dy2)
    assert_close([x1, x2, *found], [result.x1, result.x2, result.dx1, result.dx2])
