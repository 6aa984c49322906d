"""Layers are costed once for all that look alike, and alike is what the layers' code makes of it."""

from __future__ import annotations

from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revgraph as rg


class Layer(nn.Module):
    """One node, for its way depends on a value. Its number says how often it works, if it is asked."""

    calls = 0

    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer_idx = number
        self.f = nn.Linear(4, 4)

    def times(self) -> int:
        return 1

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        if x.is_floating_point() and bool((x.detach() * 0 == 0).all()):
            for _ in range(self.times()):
                x = self.f(x).tanh()
        return x


class ReadsItsNumber(Layer):
    def times(self) -> int:
        return self.layer_idx


class ReadsByName(Layer):
    def times(self) -> int:
        return getattr(self, "layer" + "_idx")


class ReadsAllItHas(Layer):
    def times(self) -> int:
        return vars(self)["layer_idx"]


class ReadsAList(Layer):
    def __init__(self, number: int) -> None:
        super().__init__(0)
        self.numbers = [number]

    def times(self) -> int:
        return self.numbers[0]


class ReadsAnObject(Layer):
    def __init__(self, number: int) -> None:
        super().__init__(0)
        self._config = SimpleNamespace(inner=SimpleNamespace(times=number))

    def times(self) -> int:
        return self._config.inner.times


class ReadsAClosure(Layer):
    def __init__(self, number: int) -> None:
        super().__init__(0)
        self.ask = lambda: number

    def times(self) -> int:
        return self.ask()


class ReadsAPartial(Layer):
    def __init__(self, number: int) -> None:
        super().__init__(0)
        self.ask = partial(max, 0, number)

    def times(self) -> int:
        return self.ask()


class ReadsALambda(Layer):
    """All three have one name, and no closure."""

    def __init__(self, number: int) -> None:
        super().__init__(0)
        self.ask = {1: lambda: 1, 2: lambda: 2, 3: lambda: 3}[number]

    def times(self) -> int:
        return self.ask()


class ReadsAMethod(Layer):
    def __init__(self, number: int) -> None:
        super().__init__(0)
        self.ask = Counter({"times": number}).total

    def times(self) -> int:
        return self.ask()


class HasAHook(Layer):
    def __init__(self, number: int) -> None:
        super().__init__(0)
        self.register_forward_hook(lambda layer, _, x: _more_often(layer, number - 1, x))


def _more_often(layer: Layer, times: int, x: Tensor) -> Tensor:
    for _ in range(times):
        x = layer.f(x).tanh()
    return x


class HasAWayOfItsOwn(Layer):
    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name)

    def times(self) -> int:
        return self.layer_idx


READING = (
    ReadsItsNumber,
    ReadsByName,
    ReadsAllItHas,
    ReadsAList,
    ReadsAnObject,
    ReadsAClosure,
    ReadsAPartial,
    ReadsALambda,
    ReadsAMethod,
    HasAHook,
    HasAWayOfItsOwn,
)


def traced(*layers: nn.Module) -> rg.Graph:
    return rg.trace(nn.Sequential(*layers), torch.randn(2, 4, requires_grad=True)).graph


def calls_of_costing(count: int) -> int:
    Layer.calls = 0
    graph = traced(*(Layer(number) for number in range(count)))
    assert len(graph.planned) == count
    assert len({str(node.cost.courses) for node in graph.planned}) == 1
    return Layer.calls


@pytest.mark.slow
def test_a_number_that_no_code_reads_does_not_tell_layers_apart() -> None:
    few, many = calls_of_costing(4), calls_of_costing(14)
    one = calls_of_costing(3), calls_of_costing(2)
    assert one[0] - one[1] == (many - few) / 10  # each further layer is traced, and not costed


@pytest.mark.slow
@pytest.mark.parametrize("kind", READING)
def test_what_the_code_reads_tells_layers_apart(kind: type[Layer]) -> None:
    graph = traced(*(kind(number) for number in (1, 2, 3, 2)))
    costs = [node.cost for node in graph.planned]
    assert [cost.flops for cost in costs] == [costs[0].flops * times for times in (1, 2, 3, 2)]
    assert [cost.saved_bytes for cost in costs][1] == costs[3].saved_bytes > costs[0].saved_bytes


@pytest.mark.slow
def test_layers_that_differ_in_everything_are_each_costed_by_themselves() -> None:
    kinds = (ReadsItsNumber, Layer, ReadsAList)
    graph = traced(*(kind(2) for kind in kinds))
    alone = [traced(kind(2)).planned[0].cost.flops for kind in kinds]
    assert [node.cost.flops for node in graph.planned] == alone
