"""Hooks of modules that the trace goes into fire, and cost no coupling where they only look."""

from __future__ import annotations

import copy
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import equal_runs, linear, randn

import revgraph as rg


class Block(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.f = linear(seed=seed)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Any:
        return b, a + torch.tanh(self.f(b)) * scale


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(each) for each in range(4))

    def forward(self, a: Tensor, b: Tensor) -> Any:
        for block in self.blocks:
            a, b = block(a, b, scale=0.5)
        return a, b


def pair() -> tuple[Tensor, Tensor]:
    return randn(3, 4), randn(3, 4, seed=1)


def couplings(net: rg.ReversibleModule) -> int:
    return sum(node.kind == "coupling" for node in net.graph.nodes)


def held(net: nn.Module, hooks: list[Any]) -> list[Any]:
    seen: list[Any] = []
    block: Any = net.get_submodule("blocks.1")
    block.register_forward_hook(lambda *given: seen.append(given[1:]))
    block.register_forward_hook(lambda *given: seen.append(given[1:]), with_kwargs=True)
    block.register_forward_pre_hook(lambda *given: seen.append(given[1:]))
    hooks.append(block.register_forward_pre_hook(lambda *given: seen.append(given[1:]), with_kwargs=True))
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_hooks_that_look_are_given_what_the_models_are(before: bool) -> None:
    model, reference, hooks = Net(), Net(), list[Any]()
    net = rg.trace(model, *pair()) if not before else None
    seen = held(model, hooks)
    net = net or rg.trace(model, *pair())
    wanted = held(reference, [])
    for _ in range(2):
        sum(each.sum() for each in net(*pair())).backward()
        sum(each.sum() for each in reference(*pair())).backward()
    assert couplings(net) == 4
    assert len(seen) == len(wanted) == 8
    torch.testing.assert_close(seen, wanted)
    hooks[0].remove()
    net(*pair())
    assert len(seen) == 11


CHANGES: dict[str, Any] = {
    "hook": lambda block: block.register_forward_hook(lambda _, args, out: (out[0] * 2, out[1])),
    "pre-hook": lambda block: block.register_forward_pre_hook(lambda _, args: (args[0] * 2, args[1])),
    "backward": lambda block: block.register_full_backward_hook(
        lambda _, given, got: (given[0] * 2, given[1])
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", CHANGES)
def test_hooks_that_change_something_are_obeyed(kind: str, before: bool) -> None:
    model = Net()
    net = rg.trace(model, *pair()) if not before else None
    CHANGES[kind](model.blocks[1])
    net = net or rg.trace(model, *pair())
    equal_runs(net, copy.deepcopy(model), *pair())
    equal_runs(net, copy.deepcopy(model), *pair())


COLLECTOR: ContextVar[dict[str, list[Tensor]] | None] = ContextVar("collector", default=None)


class Collecting(nn.Module):
    """Returns what hooks on its layers put into a collector while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(linear(seed=each), nn.Tanh()) for each in range(2))
        for layer in self.layers:
            layer.register_forward_hook(collect)

    def forward(self, x: Tensor) -> Any:
        token = COLLECTOR.set(found := {"results": []})
        try:
            for layer in self.layers:
                x = layer(x)
        finally:
            COLLECTOR.reset(token)
        return x, found["results"]


def collect(module: nn.Module, args: Any, result: Tensor) -> None:
    if (found := COLLECTOR.get()) is not None:
        found.setdefault("results", []).append(result)


class CollectingInto(Collecting):
    """A collector that is empty at first."""

    def forward(self, x: Tensor) -> Any:
        token = COLLECTOR.set(found := {})
        try:
            for layer in self.layers:
                x = layer(x)
        finally:
            COLLECTOR.reset(token)
        return x, [each for items in found.values() for each in items]


class Summed(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Any:
        x, results = self.body(x)
        return x, results[0] + results[1]


@pytest.mark.parametrize("kind", [Collecting, CollectingInto])
def test_hooks_that_collect_for_the_forward_collect_what_they_do_in_the_model(kind: Any) -> None:
    model, x = Summed(kind()), randn(3, 4)
    reference = copy.deepcopy(model)
    equal_runs(rg.trace(model, x), reference, x)
    with pytest.raises(rg.TraceError, match="context variable 'collector'"):
        rg.trace(kind(), x)
