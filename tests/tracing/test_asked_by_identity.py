"""What code asks past operators (`is`, `type`, `hash` and so on) is answered as in the model, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import Net, agree, equal_runs, linear, randn

import revgraph as rg


def is_double(kind: Any) -> bool:
    return kind is torch.double


def by_case(x: Tensor) -> int:
    match x.ndim:
        case 2:
            return 3
        case _:
            return 1


RIGHT: dict[str, Callable[[Any, Tensor], Any]] = {
    "dtype": lambda net, x: net.f(x) * (2 if x.dtype is torch.double else 3),
    "dtype of a result": lambda net, x: net.f(x) * (2 if net.f(x).dtype is not torch.double else 3),
    "dtype in a helper": lambda net, x: net.f(x) * (2 if is_double(x.dtype) else 3),
    "dtypes": lambda net, x: net.f(x) * (2 if x.dtype is net.f(x).dtype else 3),
    "layout": lambda net, x: net.f(x) * (2 if x.layout is torch.strided else 3),
    "flag": lambda net, x: net.f(x) * (2 if x.is_cuda is False else 3),
    "answer": lambda net, x: net.f(x) * (2 if x.is_floating_point() is True else 3),
    "class": lambda net, x: net.f(x) * (2 if type(x) is Tensor else 3),
    "class of a parameter": lambda net, x: net.f(x) * (2 if type(net.f.weight) is nn.Parameter else 3),
    "class of a size": lambda net, x: net.f(x) * (2 if type(x.shape) is torch.Size else 3),
    "device": lambda net, x: net.f(x) * (2 if isinstance(x.device, torch.device) else 3),
    "size": lambda net, x: net.f(x) * (2 if isinstance(x.shape, tuple) else 3),
    "kind": lambda net, x: net.f(x) * (2 if isinstance(x.dtype, torch.dtype) else 3),
    "text": lambda net, x: net.f(x) * (2 if str(x.device) == "cpu" else 3),
    "format": lambda net, x: net.f(x) * (2 if f"{x.dtype}" == "torch.float64" else 3),
    "case": lambda net, x: net.f(x) * by_case(x),
    "attribute": lambda net, x: net.f(x) * (2 if hasattr(x, "logits") else 3),
    "callable": lambda net, x: net.f(x) * (2 if callable(x) else 3),
    "tensors": lambda net, x: net.f(x) * (2 if net.f(x) is x else 3),
    "the same": lambda net, x: net.f(x) * (2 if x is x else 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", RIGHT)
def test_what_is_asked_past_operators_is_answered_as_in_the_model(case: str) -> None:
    agree(Net(RIGHT[case], f=linear()), randn(3, 4))


def aliased(net: Any, x: Tensor) -> Tensor:
    y = x.to(x.dtype)
    return net.f(x) * (2 if y is x else 3)


def test_whether_tensors_are_one_is_refused_and_a_submodule_is_right() -> None:
    with pytest.raises(rg.TraceError, match="by `is` whether two tensors are one"):
        rg.trace(Net(aliased, f=linear()), randn(3, 4))
    agree(nn.Sequential(linear(seed=4), Net(aliased, f=linear())), randn(3, 4))


LOOKED_UP: dict[str, Callable[[Any, Tensor], Any]] = {
    "set": lambda net, x: net.f(x) * (2 if x.dtype in {torch.double} else 3),
    "table": lambda net, x: net.f(x) * {torch.double: 2}.get(x.dtype, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LOOKED_UP)
def test_a_dtype_may_be_looked_up(case: str) -> None:
    """fx cannot tell which it is; `torch.export` can, and the graph is for inputs of that form."""
    model = Net(LOOKED_UP[case], f=linear())
    agree(model, randn(3, 4))
    agree(nn.Sequential(linear(seed=4), model), randn(3, 4))


class Attention(nn.Module):
    """Asks whether it attends to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.f = linear()

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return self.f(query) * key if query is key else self.f(query) + key


def test_inputs_that_are_one_tensor_are_told_from_several() -> None:
    x, y = randn(3, 4), randn(3, 4, seed=1)
    net = agree(Attention(), x, y)
    with pytest.raises(rg.TraceError, match="by `is` whether two tensors are one"):
        net(x, x)  # a form of its own, which cannot be traced
    with pytest.raises(rg.TraceError, match="by `is` whether two tensors are one"):
        rg.trace(Attention(), x, x)


def test_the_kind_of_a_number_is_held_to() -> None:
    def body(net: Any, x: Tensor, scale: Any) -> Tensor:
        return net.f(x) * (scale if isinstance(scale, int) else -scale)

    model = Net(body, f=linear())
    net = rg.trace(model, randn(3, 4), 2)
    equal_runs(net, model, randn(3, 4), 3)
    equal_runs(net, model, randn(3, 4), 2.0)
    assert len(net._forms) == 2
