"""Results keep their form: containers, constants, inputs and parameters returned as they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import agree, equal_runs, mlp, randn

import revgraph as rg


class Pair(NamedTuple):
    one: Any
    two: Any


class Net(nn.Module):
    def __init__(self, form: Callable[..., Any]) -> None:
        super().__init__()
        self.form = form
        self.f, self.g = mlp(), mlp(seed=3)
        self.weight = nn.Parameter(randn(4, seed=4))
        self.register_buffer("shift", randn(4, seed=5))

    def forward(self, x1: Tensor, x2: Tensor) -> Any:
        y1 = x1 + self.f(x2)
        y2 = x2 + self.g(y1)
        return self.form(self, x1, x2, y1, y2)


RESULTS: dict[str, Callable[..., Any]] = {
    "one": lambda net, x1, x2, y1, y2: y1 * y2,
    "tuple": lambda net, x1, x2, y1, y2: (y1, y2),
    "tuple of one": lambda net, x1, x2, y1, y2: (y1 * y2,),
    "list": lambda net, x1, x2, y1, y2: [y1, y2],
    "dict": lambda net, x1, x2, y1, y2: {"a": y1, "b": y2},
    "ordered dict": lambda net, x1, x2, y1, y2: OrderedDict(b=y1, a=y2),
    "namedtuple": lambda net, x1, x2, y1, y2: Pair(y1, y2),
    "nested": lambda net, x1, x2, y1, y2: {"a": [y1, (y2, {"c": y1 * 2})], "n": Pair(y1, [y2])},
    "none": lambda net, x1, x2, y1, y2: (y1, None, {"a": None, "b": y2}),
    "constants": lambda net, x1, x2, y1, y2: (y1 * y2, 3, 2.5, "text", True, [], (), {}),
    "inputs": lambda net, x1, x2, y1, y2: (x1, y1, y2, x2),
    "input twice": lambda net, x1, x2, y1, y2: (x1, x1, y1, y1, y2),
    "inputs alone": lambda net, x1, x2, y1, y2: (x2, x1),
    "parameter": lambda net, x1, x2, y1, y2: (y1, y2, net.weight),
    "parameter and buffer": lambda net, x1, x2, y1, y2: {"w": net.weight, "s": net.shift, "y": y1 * y2},
    "submodule's parameter": lambda net, x1, x2, y1, y2: (y1 * y2, net.f[0].weight),
    "shape": lambda net, x1, x2, y1, y2: (y1 * y2, y1.shape, y1.shape[0], y1.size(1) * 2),
    "list of shapes": lambda net, x1, x2, y1, y2: (y1 * y2, list(y1.shape), tuple(y1.shape)),
    "dtype": lambda net, x1, x2, y1, y2: (y1 * y2, y1.dtype, y1.device),
    "constant tensor": lambda net, x1, x2, y1, y2: (y1 * y2, torch.arange(3)),
    "views": lambda net, x1, x2, y1, y2: (y1, y1.view(-1), y1[0], y2.t()),
    "sum": lambda net, x1, x2, y1, y2: (y1.sum(), y2.mean(0), (y1 > 0).sum()),
    "detached": lambda net, x1, x2, y1, y2: (y1, y2.detach()),
    "multi": lambda net, x1, x2, y1, y2: (torch.max(y1, 1), torch.sort(y2, 1)),
    "multi fields": lambda net, x1, x2, y1, y2: (torch.max(y1, 1).values, y2.topk(2).indices),
    "training": lambda net, x1, x2, y1, y2: (y1 * y2, net.training),
    "partly unused": lambda net, x1, x2, y1, y2: y1,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("form", RESULTS)
def test_results_keep_their_form(form: str) -> None:
    model = Net(RESULTS[form])
    net = agree(model, randn(3, 4, seed=1), randn(3, 4, seed=2))
    equal_runs(net, model, randn(5, 4, seed=1), randn(5, 4, seed=2))


def test_returned_container_is_a_new_one_each_time() -> None:
    net = rg.trace(Net(RESULTS["constants"]), randn(3, 4), randn(3, 4))
    first = net(randn(3, 4), randn(3, 4))
    first[5].append(1)
    assert net(randn(3, 4), randn(3, 4))[5] == []


def test_returned_parameter_is_the_parameter_itself() -> None:
    model = Net(RESULTS["parameter"])
    assert rg.trace(model, randn(3, 4), randn(3, 4))(randn(3, 4), randn(3, 4))[2] is model.weight


def test_returned_input_is_the_input_itself() -> None:
    x1, x2 = randn(3, 4), randn(3, 4, seed=2)
    out = rg.trace(Net(RESULTS["inputs"]), x1, x2)(x1, x2)
    assert out[0] is x1
    assert out[3] is x2


def test_subclass_with_attributes_returned_by_the_root_is_right_or_refused() -> None:
    class Output(OrderedDict):
        @property
        def last(self) -> Tensor:
            return self["a"]

    model = Net(lambda net, x1, x2, y1, y2: Output(a=y1, b=y2))
    try:
        net = rg.trace(model, randn(3, 4), randn(3, 4))
    except rg.TraceError as error:
        assert len(str(error)) > 40
    else:
        assert type(net(randn(3, 4), randn(3, 4))) is Output


def test_dataclass_returned_by_the_root_is_right_or_refused() -> None:
    import dataclasses

    @dataclasses.dataclass
    class Output:
        a: Any
        b: Any

    model = Net(lambda net, x1, x2, y1, y2: Output(y1, y2))
    try:
        net = rg.trace(model, randn(3, 4), randn(3, 4))
    except rg.TraceError as error:
        assert "Output" in str(error) or "return" in str(error)
    else:
        found, expected = net(randn(3, 4), randn(3, 4)), model(randn(3, 4), randn(3, 4))
        assert type(found) is Output
        torch.testing.assert_close(found.a, expected.a, rtol=0, atol=0)


def test_model_without_couplings() -> None:
    agree(mlp(), randn(3, 4), couplings=0)


def test_model_without_parameters() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Any:
            a, b = x.chunk(2, 1)
            a = a + torch.sin(b)
            b = b + torch.cos(a)
            return a, b

    agree(Plain(), randn(3, 4), couplings=2)


def test_identity_model() -> None:
    agree(nn.Identity(), randn(3, 4), couplings=0)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 0)], ids=str)
def test_tensors_without_dimensions_or_elements(shape: tuple[int, ...]) -> None:
    class Plain(nn.Module):
        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            x1 = x1 + torch.sin(x2)
            return x1, x2 - torch.cos(x1)

    agree(Plain(), randn(*shape), randn(*shape, seed=2), couplings=2)


@pytest.mark.slow
def test_integer_input_and_embedding() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.f, self.g = nn.Embedding(10, 8).double(), mlp(), mlp(seed=3)
            self.pos = nn.Parameter(randn(7, 8))

        def forward(self, ids: Tensor) -> Tensor:
            x = self.table(ids) + self.pos[: ids.shape[1]]
            x1, x2 = x.chunk(2, -1)
            x1 = x1 + self.f(x2)
            x2 = x2 + self.g(x1)
            return torch.cat([x1, x2], -1) @ self.table.weight.t()

    model = Tokens()
    net = agree(model, torch.randint(0, 10, (2, 5)), couplings=2)
    equal_runs(net, model, torch.randint(0, 10, (3, 7)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_results_are_bitwise_equal_in_every_precision(dtype: torch.dtype) -> None:
    model = Net(RESULTS["tuple"]).to(dtype)
    x1, x2 = randn(3, 4).to(dtype), randn(3, 4, seed=2).to(dtype)
    net = rg.trace(model, x1, x2, half_streams=True)
    for plan in (rg.decide(net.graph, {}), rg.keep_all(net.graph), rg.plan(net.graph)):
        net.plan = plan
        for one, two in zip(net(x1, x2), model(x1, x2), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_autocast_around_the_net() -> None:
    model = Net(RESULTS["tuple"]).float()
    x1, x2 = randn(3, 4).float(), randn(3, 4, seed=2).float()
    net = rg.trace(model, x1, x2)
    with torch.autocast("cpu", torch.bfloat16):
        for one, two in zip(net(x1, x2), model(x1, x2), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.slow
def test_tracing_inside_autocast_and_without_gradients() -> None:
    model = Net(RESULTS["tuple"]).float()
    x1, x2 = randn(3, 4).float(), randn(3, 4, seed=2).float()
    with torch.autocast("cpu", torch.bfloat16):
        net = rg.trace(model, x1, x2)
        for one, two in zip(net(x1, x2), model(x1, x2), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0)
    with torch.no_grad():
        net = rg.trace(model, x1, x2)
    for one, two in zip(net(x1, x2), model(x1, x2), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
        assert one.requires_grad == two.requires_grad
