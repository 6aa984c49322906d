"""Gradients over random graphs equal plain autograd's in float64, whatever the decisions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.random_nets import BATCH, WIDTH, RandomNet, decisions, recipes
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import revgraph as rg

pytestmark = pytest.mark.usefixtures("device")

EXACT = dict(rtol=1e-12, atol=1e-12)
SETTINGS = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)


def made(recipe: Any, seed: int, flags: list[bool]) -> tuple[RandomNet, list[Tensor]]:
    torch.manual_seed(seed)
    model = RandomNet(*recipe).double()
    inputs = [torch.randn(BATCH, WIDTH, dtype=torch.double) for _ in range(recipe[0])]
    for tensor, flag in zip(inputs, flags, strict=False):
        tensor.requires_grad_(flag)
    return model, inputs


def weighted(outputs: tuple[Tensor, ...]) -> Tensor:
    return sum((output * output * (index + 1)).sum() for index, output in enumerate(outputs))  # pyright: ignore


def gradients(run: Any, leaves: list[Tensor], inputs: list[Tensor]) -> list[Tensor | None]:
    loss = weighted(run(*inputs))
    return list(torch.autograd.grad(loss, leaves, allow_unused=True)) if loss.requires_grad else []


def assert_equal(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            scale = max(1.0, two.abs().max().item())
            torch.testing.assert_close(one / scale, two / scale, **EXACT)


@pytest.mark.slow
@SETTINGS
@given(recipes(), st.integers(0, 99), st.lists(st.booleans(), min_size=4, max_size=4), st.data())
def test_gradients_equal_plain_autograd_on_random_graphs(recipe, seed, flags, data) -> None:
    model, inputs = made(recipe, seed, flags)
    for parameter in model.parameters():
        if data.draw(st.integers(0, 4)) == 0:
            parameter.requires_grad_(False)
    net = rg.trace(model, *inputs)
    net.plan = rg.decide(net.graph, decisions(net.graph, lambda fit: data.draw(st.sampled_from(fit))))
    leaves = [leaf for leaf in (*model.parameters(), *inputs) if leaf.requires_grad]
    with torch.no_grad():
        for one, two in zip(net(*inputs), model(*inputs), strict=True):
            torch.testing.assert_close(one, two, **EXACT)
    assert_equal(gradients(net, leaves, inputs), gradients(model, leaves, inputs))


@pytest.mark.slow
@SETTINGS
@given(recipes(most_moves=8), st.integers(0, 99), st.data())
def test_partial_repeated_and_second_gradients_on_random_graphs(recipe, seed, data) -> None:
    model, inputs = made(recipe, seed, [True] * 4)
    net = rg.trace(model, *inputs)
    net.plan = rg.decide(net.graph, decisions(net.graph, lambda fit: data.draw(st.sampled_from(fit))))
    every = [*model.parameters(), *inputs]
    some = data.draw(st.lists(st.sampled_from(range(len(every))), min_size=1, max_size=3, unique=True))
    subset = [every[index] for index in some]
    ours, theirs = weighted(net(*inputs)), weighted(model(*inputs))
    for leaves in (subset, every, subset):
        assert_equal(
            list(torch.autograd.grad(ours, leaves, retain_graph=True, allow_unused=True)),
            list(torch.autograd.grad(theirs, leaves, retain_graph=True, allow_unused=True)),
        )
    second = []
    for loss in (ours, theirs):
        first = torch.autograd.grad(loss, every, create_graph=True, allow_unused=True)
        penalty = sum(gradient.square().sum() for gradient in first if gradient is not None)
        second.append(list(torch.autograd.grad(penalty, every, allow_unused=True)))
    for one, two in zip(*second, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            scale = max(1.0, two.abs().max().item())
            torch.testing.assert_close(one / scale, two / scale, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["keep", "invert", "recompute"])
def test_one_decision_everywhere(choice: str) -> None:
    torch.manual_seed(0)
    recipe = (2, (), ())
    from engine.random_nets import COUPLINGS, Move

    moves = tuple(Move(kind, index % 2, ((index + 1) % 2,)) for index, kind in enumerate(COUPLINGS))
    model, inputs = made((recipe[0], moves, ()), 0, [True, True])
    net = rg.trace(model, *inputs)
    net.plan = rg.decide(
        net.graph,
        {node.name: choice for node in net.graph.planned if node.kind == "coupling"},
    )
    leaves = [*model.parameters(), *inputs]
    assert_equal(gradients(net, leaves, inputs), gradients(model, leaves, inputs))
