"""What a module gives has a structure, to which code around it was traced; another one is another form."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from tracing.agreement import Net, equal_runs, linear, randn

import revgraph as rg


class Two(NamedTuple):
    first: Any
    others: Any


class Part(nn.Module):
    def __init__(self, give: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.give = linear(), give

    def forward(self, x: Tensor) -> Any:
        return self.give(self, self.layer(x))


def is_long(h: Tensor) -> bool:
    return h.shape[1] > 3


# What a module gives, and what code around it makes of that.
STRUCTURES: dict[str, tuple[Callable[[Any, Tensor], Any], Callable[[Any, Any], Any]]] = {
    "list beside": (lambda part, h: (h, list(h.unbind(1))), lambda net, o: o[0].sum(1) / len(o[1])),
    "empty list beside": (
        lambda part, h: (h, list(h.unbind(1))[1:]),
        lambda net, o: o[0].sum(1) + sum(net.f(each) for each in o[1]),
    ),
    "named tuple": (
        lambda part, h: Two(h, list(h.unbind(1))[1:]),
        lambda net, o: o.first.sum(1) + sum(net.f(each) for each in o.others),
    ),
    "dictionary of lists": (
        lambda part, h: {"first": h, "others": list(h.unbind(1))[1:]},
        lambda net, o: o["first"].sum(1) + sum(net.f(each) for each in o["others"]),
    ),
    "none or tensor": (
        lambda part, h: (h, None) if is_long(h) else (h, h * 3),
        lambda net, o: net.f(o[0] * 2 if o[1] is None else o[0] + o[1]),
    ),
    "tensor or none": (
        lambda part, h: (h, h * 3) if is_long(h) else (h, None),
        lambda net, o: net.f(o[0] * 2 if o[1] is None else o[0] + o[1]),
    ),
    "tensor or tuple": (
        lambda part, h: (h, h * 3) if is_long(h) else h,
        lambda net, o: net.f(o[0] + o[1] if isinstance(o, tuple) else o * 5),
    ),
    "longer tuple": (
        lambda part, h: (h, h * 3) if is_long(h) else (h,),
        lambda net, o: net.f(o[1] if len(o) > 1 else o[0]),
    ),
    "tuple or list": (
        lambda part, h: [h, h * 3] if is_long(h) else (h, h * 3),
        lambda net, o: net.f(o[1] if isinstance(o, tuple) else o[0]),
    ),
    "text beside": (
        lambda part, h: (h, "long") if is_long(h) else (h, "short"),
        lambda net, o: net.f(o[0] if o[1] == "short" else o[0] * 2),
    ),
    "order of keys": (
        lambda part, h: {"b": h * 3, "a": h} if is_long(h) else {"a": h, "b": h * 3},
        lambda net, o: net.f(next(iter(o.values()))),
    ),
    "other keys": (
        lambda part, h: {"long": h} if is_long(h) else {"short": h},
        lambda net, o: sum(net.f(each) * (2 if key == "long" else 3) for key, each in o.items()),
    ),
    "nested lists": (lambda part, h: [list(h.unbind(1)), [h]], lambda net, o: net.f(o[1][0]) * len(o[0])),
    "mode": (
        lambda part, h: (h, h * 3) if part.training else h,
        lambda net, o: net.f(o[0] + o[1] if isinstance(o, tuple) else o * 5),
    ),
    "number beside": (lambda part, h: (h, h.shape[1] * 0.5), lambda net, o: net.f(o[0]) * o[1]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTURES)
def test_another_structure_is_another_form_of_call(name: str) -> None:
    give, use = STRUCTURES[name]
    model = Net(lambda net, x: use(net, net.part(x)), part=Part(give), f=linear(seed=3))
    for first in (3, 5):
        plain = copy.deepcopy(model)
        net = rg.trace(copy.deepcopy(model), randn(2, first, 4))
        for length in (3, 5, 2, 7, 3):
            equal_runs(net, plain, randn(2, length, 4, seed=length))
        for each in (net, plain):
            each.eval()
        equal_runs(net, plain, randn(2, 3, 4))


class Counting(nn.Module):
    """Notes how often it ran in all kinds of attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tensor, self.array, self.number = torch.zeros(()), np.zeros(1), 0
        self.register_buffer("buffer", torch.zeros(()))
        self.listed = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.tensor += 1
        self.array += 1
        self.buffer += 1  # pyright: ignore[reportOperatorIssue]
        self.number += 1
        self.listed.append(self.number)
        return x * self.tensor + float(self.array[0]) + self.buffer + self.number + len(self.listed)


def test_a_call_that_is_taken_back_leaves_no_mark() -> None:
    model = Net(lambda net, x: sum(net.count(net.f(x)).unbind(1)), count=Counting(), f=linear())
    plain = copy.deepcopy(model)
    net = rg.trace(model, randn(2, 5, 4))
    net.plan = rg.keep_all(net.graph)
    for length in (5, 3, 5, 7, 3):
        x = randn(2, length, 4, seed=length)
        assert torch.equal(net(x), plain(x))
    count, expected = model.count, plain.count
    assert (count.tensor, count.number, count.listed) == (expected.tensor, expected.number, expected.listed)
    assert count.array == expected.array
    assert count.buffer == expected.buffer


def test_a_call_that_is_wrong_at_other_sizes_fails_as_the_model_does() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        pieces = net.f(x).unbind(1)
        return torch.stack([net.g(each) if place > 3 else each for place, each in enumerate(pieces)], 1)

    net = rg.trace(Net(body, f=linear(), g=linear(3)), randn(2, 3, 4))
    for _ in range(2):
        with pytest.raises(rg.TraceError, match=r"shapes cannot be multiplied"):
            net(randn(2, 5, 4))
    equal_runs(net, net.__dict__["_model"], randn(2, 4, 4))


def test_in_a_transform_an_error_says_to_call_it_once_outside() -> None:
    net = rg.trace(Net(lambda net, x: sum(net.f(x).unbind(1)), f=linear()), randn(2, 5, 4))
    weights = {name: each.detach() for name, each in net.named_parameters()}

    def gradients(run: nn.Module, x: Tensor) -> Any:
        return torch.func.grad(lambda given: torch.func.functional_call(run, given, (x,)).sum())(weights)

    x = randn(2, 3, 4)
    with pytest.raises(rg.TraceError, match=r"Call the net once with such inputs outside of torch\.func"):
        gradients(net, x)
    net(x)
    torch.testing.assert_close(gradients(net, x), gradients(net.__dict__["_model"], x))


def pooled(net: Any, x: Tensor) -> Tensor:
    return functional.max_pool1d(net.f(x), 2)


def test_functions_of_torch_that_are_local_ones_are_pickled() -> None:
    net = rg.trace(Net(pooled, f=linear()), x := randn(2, 3, 4))
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), net(x))
