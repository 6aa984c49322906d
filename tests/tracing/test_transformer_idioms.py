"""What the code of today's transformers does in its forward traces, and does the same in the net."""

from __future__ import annotations

import copy
import gc
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import agree, linear, mlp, randn

import revgraph as rg


def test_halves_whose_middle_is_computed_each_time_stay_in_a_module_that_becomes_one_node() -> None:
    class Rotary(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.into, self.out = linear(seed=seed), linear(seed=seed + 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.into(x)
            low = x[..., : x.shape[-1] // 2]
            high = x[..., x.shape[-1] // 2 :]
            return self.out(torch.cat([-high, low], -1))

    class Layer(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.attend, self.mlp = Rotary(seed), mlp(seed=seed + 5)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attend(x)
            return x + self.mlp(x)

    net = agree(nn.Sequential(Layer(0), Layer(20)), randn(3, 4))
    assert {"0.attend", "0.mlp.0", "1.attend"} <= {node.module for node in net.graph.nodes}


class Config:
    def __init__(self) -> None:
        self.kind: str | None = None
        self.classes = 4


class Classifier(nn.Module):
    """Settles in its first forward with labels on what they are, as transformers' classifiers do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.config = nn.Sequential(mlp(), mlp(seed=3)), Config()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.body(x)
        if labels is None:
            return x
        if self.config.kind is None:
            self.config.kind = "classes" if labels.dtype == torch.long else "numbers"
        if self.config.kind == "classes":
            return nn.functional.cross_entropy(x, labels)
        return nn.functional.mse_loss(x, labels)


@pytest.mark.slow
def test_what_the_first_forward_settles_the_net_settles_when_it_is_called() -> None:
    model, labels = Classifier(), torch.arange(3)
    net = agree(model, randn(3, 4), labels)
    assert model.config.kind == "classes"
    assert len(net._forms) == 1, "no call needed another trace"
    net(randn(3, 4))
    assert len(net._forms) == 2


@pytest.mark.slow
def test_a_trace_and_calls_that_do_not_settle_leave_it_open() -> None:
    model = Classifier()
    net = rg.trace(model, randn(3, 4), torch.arange(3))
    assert model.config.kind is None
    net(randn(3, 4))
    assert model.config.kind is None


@pytest.mark.slow
def test_other_inputs_at_first_settle_otherwise_as_in_the_model() -> None:
    model, numbers = Classifier(), randn(3, 4, seed=8)
    reference = copy.deepcopy(model)
    net = rg.trace(model, randn(3, 4), torch.arange(3))
    assert torch.equal(net(randn(3, 4), numbers), reference(randn(3, 4), numbers))
    assert model.config.kind == "numbers"


@pytest.mark.slow
def test_what_is_settled_otherwise_later_is_followed() -> None:
    model = Classifier()
    net = rg.trace(model, randn(3, 4), torch.arange(3))
    net(randn(3, 4), torch.arange(3))
    model.config.kind = "numbers"
    assert torch.equal(net(randn(3, 4), randn(3, 4)), model(randn(3, 4), randn(3, 4)))


@pytest.mark.slow
def test_a_first_forward_that_computes_something_else_is_refused_or_run_by_its_module() -> None:
    class Started(nn.Module):
        """Scales by the first input it sees."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale, self.began = linear(), 1.0, None

        def forward(self, x: Tensor) -> Tensor:
            if self.began is None:
                self.began = True
                return 2 * self.inner(x)
            return self.inner(x)

    with pytest.raises(rg.TraceError, match=r"it changes model\.began, which it also reads"):
        rg.trace(Started(), randn(3, 4))
    agree(nn.Sequential(mlp(), Started()), randn(3, 4))


def test_sizes_that_a_module_returns_are_known_where_the_costs_are_found() -> None:
    class Patches(nn.Module):
        """The patches of an image, and how many there are each way."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = linear(1), linear(1, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
            size = x.shape[1], x.shape[2]
            return self.second(self.first(x.flatten(1).unsqueeze(-1))), size

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.body = Patches(), mlp()

        def forward(self, x: Tensor) -> Tensor:
            x, (height, width) = self.patches(x)
            return self.body(x).transpose(1, 2).contiguous().view(-1, 4, height, width)

    net = agree(Net(), randn(2, 3, 5))
    assert all(node.cost.courses for node in net.graph.planned)
    assert net(randn(2, 5, 4)).shape == (2, 4, 5, 4)


class CacheLayer:
    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.dtype: Any = None

    def update(self, keys: Tensor) -> Tensor:
        if self.keys is None:
            self.dtype = keys.dtype
            self.keys = torch.tensor([], dtype=self.dtype)
        self.keys = torch.cat([self.keys, keys], dim=-1)
        return self.keys


class Cache:
    """Grows by a layer when it is first updated there."""

    def __init__(self, mode: str = "dynamic") -> None:
        self.layers: list[CacheLayer] = []
        self.mode = mode
        self.first: CacheLayer | None = None

    def update(self, keys: Tensor, index: int) -> Tensor:
        while len(self.layers) <= index:
            self.layers.append(CacheLayer())
            self.first = self.layers[0]
        return self.layers[index].update(keys)


class Cached(nn.Module):
    """A residual layer that puts its keys into the cache that it is given."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index, self.key, self.mlp = index, linear(seed=index), mlp(seed=10 * index)

    def forward(self, x: Tensor, past: Cache | None = None) -> Tensor:
        keys = self.key(x)
        if past is not None:
            keys = past.update(keys, self.index)
        return x + self.mlp(torch.tanh(keys))


class Output(OrderedDict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class Decoder(nn.Module):
    """Makes a cache in its forward, as transformers do unless told otherwise, and returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Cached(index) for index in range(3))

    def forward(self, x: Tensor, past: Cache | None = None, use_cache: bool = True) -> Any:
        if use_cache and past is None:
            past = Cache()
        for layer in self.layers:
            x = layer(x, past=past)
        return Output(x=x, past=past)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Decoder(), linear()

    def forward(self, x: Tensor, use_cache: bool = True) -> Any:
        found = self.body(x, use_cache=use_cache)
        return Output(y=self.head(found.x), past=found.past)


def values_of(out: Any) -> list[Any]:
    return [out.y, *([] if out.past is None else [each.keys for each in out.past.layers])]


@pytest.mark.slow
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("plan", [rg.keep_all, lambda graph: rg.plan(graph, budget="least")])
def test_a_cache_made_in_the_forward_comes_back_as_the_model_makes_it(use_cache: bool, plan: Any) -> None:
    model, x = Head(), randn(3, 4)
    net = rg.trace(copy.deepcopy(model), x, use_cache=use_cache)
    net.plan = plan(net.graph)
    layers = {".".join(node.module.split(".")[:3]) for node in net.graph.nodes}
    assert {"body.layers.0", "body.layers.1", "body.layers.2"} <= layers, "each is planned by itself"
    steps = []
    for each in (net, model):
        out = each(x, use_cache=use_cache)
        assert type(out) is Output
        sum((value.square() * (n + 1)).sum() for n, value in enumerate(values_of(out))).backward()
        steps.append((out, values_of(out), [each.grad for each in each.parameters()]))
    ours, theirs = steps
    for found, wanted in zip(ours[1] + ours[2], theirs[1] + theirs[2], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    if use_cache:
        past = ours[0].past
        assert type(past) is Cache and past.mode == "dynamic"
        assert past.first is past.layers[0] and past.first.dtype is torch.float64
        assert past is not net(x).past and past.layers is not net(x).past.layers


def test_a_cache_that_is_given_is_refused_for_what_is_put_into_it() -> None:
    with pytest.raises(
        rg.TraceError, match=r"puts a result into its argument past.*net\.generate.*use_cache=False"
    ):
        rg.trace(Decoder(), randn(3, 4), past=Cache())


@pytest.mark.slow
def test_objects_that_the_model_holds_or_is_given_are_not_returned_as_copies() -> None:
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config = mlp(), Config()

        def forward(self, x: Tensor) -> Any:
            return self.inner(x), self.config

    with pytest.raises(rg.TraceError, match="returns a Config that it was given or that the model holds"):
        rg.trace(Holding(), randn(3, 4))


@pytest.mark.slow
def test_an_object_that_holds_itself_is_refused() -> None:
    class Circle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Any:
            made = Cache()
            made.layers = [made]
            return self.inner(x), made

    with pytest.raises(rg.TraceError, match="holds itself"):
        rg.trace(Circle(), randn(3, 4))


def test_a_layer_that_cannot_be_traced_is_named_where_it_is_given_a_cache() -> None:
    class Branching(Cached):
        def forward(self, x: Tensor, past: Cache | None = None) -> Tensor:
            return super().forward(x, past) if x.sum() > 0 else x

    model = Head()
    model.body.layers[1] = Branching(1)
    net = rg.trace(model, randn(3, 4))
    assert "depends on the values in a tensor" in str(net.graph)
    assert torch.equal(net(randn(3, 4)).y, model(randn(3, 4)).y)


@pytest.mark.slow
def test_a_trace_that_settles_something_holds_on_to_no_traced_value() -> None:
    net = rg.trace(Classifier(), randn(3, 4), torch.arange(3))
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing).__name__ == "ShadowProxy"]
    assert net is not None


class Width(nn.Module):
    """Settles a number that follows from the example's shape."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.f, self.config = linear(), kind()

    def forward(self, x: Tensor) -> Tensor:
        if self.config.width is None:
            self.config.width = x.shape[-1]
        return self.f(x)


class Sizes:
    def __init__(self) -> None:
        self.width: Any = None


def test_a_refused_setting_of_a_namespace_leaves_it_open() -> None:
    model = Width(lambda: SimpleNamespace(width=None))
    with pytest.raises(rg.TraceError, match=r"changes model\.config"):
        rg.trace(model, randn(3, 4))
    assert model.config.width is None


@pytest.mark.slow
def test_a_number_that_is_settled_is_a_number() -> None:
    model = Width(Sizes)
    net = rg.trace(model, randn(3, 4))
    assert model.config.width is None
    net(randn(3, 4))
    assert type(model.config.width) is int
    assert model.config.width == 4
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing).__name__ == "ShadowProxy"]
