"""Predicted bytes are the measured bytes: exactly, for every plan of a net's frontier."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.random_nets import BATCH, WIDTH, RandomNet, decisions, recipes
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import revgraph as rg
from revgraph.measuring import activation_bytes
from revgraph.specs import build as build_spec
from revgraph.specs import example_inputs

# Eight runs of twenty-five graphs each, so that they spread over test processes.
GRAPHS = settings(
    max_examples=16,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,),
)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_three, self.back = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.to_three(self.norm(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.back(y.transpose(1, 2).reshape(batch, length, width))


class Transformer(nn.Module):
    """A reversible transformer in plain arithmetic, with an embedding before it and a head after it."""

    def __init__(self, depth: int = 4, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 2 * width)
        self.attend = nn.ModuleList(Attention(width, 2) for _ in range(depth))
        self.feed = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(2 * width, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        x1, x2 = self.embed(tokens).chunk(2, -1)
        for attend, feed in zip(self.attend, self.feed, strict=True):
            x1 = x1 + attend(x2)
            x2 = x2 + feed(x1)
        return self.head(torch.cat([x1, x2], -1))


class ThreeStreams(nn.Module):
    """Three streams that read each other, a boundary in the middle, and skips across it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.f = nn.ModuleList(self._function(width) for _ in range(9))
        self.bend = nn.Linear(width, width)

    def _function(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, width))

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        f, early = self.f, a
        for step in range(3):
            a = a + f[3 * step](b)
            b = b + f[3 * step + 1](c) * 0.5
            if step == 1:
                c = torch.sigmoid(self.bend(c)) + early
            c = c - f[3 * step + 2](a + early)
        return torch.cat([a, b, c + early], 1)


def agree(net: rg.ReversibleModule, plan: rg.Plan, *inputs: Any) -> None:
    net.plan = plan
    assert activation_bytes(net, *inputs) == (plan.peak_bytes, plan.held_bytes)


def agree_on_frontier(net: rg.ReversibleModule, *inputs: Any) -> None:
    plans = rg.frontier(net.graph)
    assert len(plans) > 1
    for plan in [*plans, rg.keep_all(net.graph), rg.decide(net.graph, {})]:
        agree(net, plan, *inputs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch"), [("revnet-38", 2), ("revnet-164", 4), ("resnet-32", 2)])
def test_shipped_nets(name: str, batch: int) -> None:
    built = build_spec(name, batch=batch)
    inputs = example_inputs(built)
    agree_on_frontier(rg.trace(built.module, *inputs), *inputs)


def test_reversible_transformer() -> None:
    tokens = torch.randint(50, (3, 10))
    agree_on_frontier(rg.trace(Transformer(), tokens), tokens)


@pytest.mark.slow
@pytest.mark.parametrize("differentiable", [False, True])
def test_three_streams_with_skips(differentiable: bool) -> None:
    inputs = [torch.randn(5, 8, requires_grad=differentiable) for _ in range(3)]
    agree_on_frontier(rg.trace(ThreeStreams(), *inputs), *inputs)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_random_graphs(number: int) -> None:
    drawn = []

    @seed(number)
    @GRAPHS
    @given(recipes(), st.booleans(), st.data())
    def every_plan(recipe: Any, differentiable: bool, data: Any) -> None:
        torch.manual_seed(0)
        inputs = [torch.randn(BATCH, WIDTH, requires_grad=differentiable) for _ in range(recipe[0])]
        net = rg.trace(RandomNet(*recipe), *inputs)
        if net.graph.loss is None:
            return
        chosen = decisions(net.graph, lambda words: data.draw(st.sampled_from(words)))
        for plan in [*rg.frontier(net.graph, points=4), rg.decide(net.graph, chosen)]:
            agree(net, plan, *inputs)
        drawn.append(recipe)

    every_plan()
    assert len(drawn) >= 12


SMALL = {
    "inputs": {"image": [3, 8, 8]},
    "layers": [
        {"stem": {"Stem": {"in_channels": 3, "out_channels": 8}}},
        {"streams": {"Split": 2}},
        {"unit": {"Additive": {"f": {"BasicFunction": 4}, "g": {"BasicFunction": 4}}, "repeat": 2}},
        {"joined": "Concatenate"},
        {"head": {"Head": {"channels": 8, "classes": 10}}},
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer", "three streams", "small"])
def test_predicted_flops_are_measured_flops(name: str) -> None:
    if name == "small":
        inputs: tuple[Tensor, ...] = (torch.randn(2, 3, 8, 8),)
        net = rg.load(SMALL)
    else:
        streams = name == "three streams"
        inputs = tuple(torch.randn(3, 5, 8)) if streams else (torch.randint(50, (3, 10)),)
        net = rg.trace(ThreeStreams() if streams else Transformer(), *inputs)
    for plan in rg.frontier(net.graph, points=6):
        net.plan = plan
        assert rg.measure(net, *inputs).flops_ratio == pytest.approx(plan.flops_ratio, rel=1e-12)
