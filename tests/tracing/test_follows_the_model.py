"""Nothing that a trace fixed goes stale in silence: what changes is followed, or refused with what to do."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
import random
import time
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import agree, equal_runs, linear, randn

import revgraph as rg


@dataclasses.dataclass
class Config:
    strength: float = 1.0
    deep: Any = None


class Blocks(nn.Module):
    """Additive blocks whose arithmetic depends on attributes of many kinds."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList(linear(seed=each) for each in range(3))
        self.strength, self.mode, self.sign, self.bias = 1.0, "add", True, None
        self.shift = randn(4, seed=9)
        self.weights, self.table = [1.0, 2.0, 3.0], {"gain": 0.5}
        self.config, self.space = Config(deep=Config(2.0)), SimpleNamespace(power=1)
        self.act = torch.tanh
        self.array = np.ones(4)

    @property
    def gain(self) -> float:
        return self.table["gain"] * self.config.strength

    def term(self, x: Tensor) -> Tensor:
        return self.act(x)

    def forward(self, a: Tensor, b: Tensor) -> Any:
        for index, f in enumerate(self.f):
            term = self.term(f(b)) * self.strength * self.weights[index % 3] * self.gain * self.factor
            term = term * self.config.deep.strength * self.space.power + self.shift * float(self.array[0])
            term = term if self.mode == "add" else -term
            term = term if self.sign else term * 2
            a, b = b, a + (term if self.bias is None else term + self.bias)
        return a, b


CHANGES: dict[str, Any] = {
    "number": lambda model: setattr(model, "strength", 0.1),
    "kind of number": lambda model: setattr(model, "strength", 1),
    "string": lambda model: setattr(model, "mode", "subtract"),
    "flag": lambda model: setattr(model, "sign", False),
    "none": lambda model: setattr(model, "bias", 0.5),
    "tensor": lambda model: setattr(model, "shift", randn(4, seed=10)),
    "tensor in place": lambda model: model.shift.add_(1),
    "list": lambda model: model.weights.__setitem__(1, 7.0),
    "dictionary": lambda model: model.table.update(gain=0.3),
    "dataclass": lambda model: setattr(model.config, "strength", 0.2),
    "nested dataclass": lambda model: setattr(model.config.deep, "strength", 0.2),
    "replaced dataclass": lambda model: setattr(model, "config", Config(3.0, Config(1.0))),
    "namespace": lambda model: setattr(model.space, "power", 3),
    "function": lambda model: setattr(model, "act", torch.sigmoid),
    "array": lambda model: model.array.__setitem__(0, 4.0),
    "method": lambda model: setattr(model, "term", torch.sin),
    "class attribute": lambda model: setattr(model, "factor", 2.0),
    "replaced submodule": lambda model: model.f.__setitem__(1, nn.Sequential(linear(seed=7), nn.Tanh())),
    "appended submodule": lambda model: model.f.append(linear(seed=8)),
    "removed submodule": lambda model: model.f.__delitem__(0),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["model", "copied", "pickled"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model_is_followed(change: str, how: str) -> None:
    model, pair = Blocks(), (randn(3, 4), randn(3, 4, seed=1))
    net = rg.trace(model, *pair)
    if how == "copied":
        net = copy.deepcopy(net)
    elif how == "pickled":
        net = pickle.loads(pickle.dumps(net))
    CHANGES[change](net._model)
    equal_runs(net, copy.deepcopy(net._model), *pair)
    assert len(net._forms) <= 2


def test_a_change_back_needs_no_other_trace() -> None:
    model, pair = Blocks(), (randn(3, 4), randn(3, 4, seed=1))
    net = rg.trace(model, *pair)
    for strength in (0.5, 1.0, 0.5, 1.0):
        net.strength = strength
        equal_runs(net, copy.deepcopy(model), *pair)
    assert len(net._forms) == 2


@pytest.mark.slow
def test_a_value_that_changes_at_each_call_is_named_once() -> None:
    model, pair = Blocks(), (randn(3, 4), randn(3, 4, seed=1))
    net = rg.trace(model, *pair)
    told: list[str] = []
    for step in range(12):
        model.strength = 1.5 + step
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            equal_runs(net, copy.deepcopy(model), *pair)
        told += [str(each.message) for each in caught if issubclass(each.category, rg.TraceWarning)]
    (text,) = told
    assert text.startswith("model.strength has had another value in 8 calls")
    assert "register_buffer" in text


def test_an_assigned_plan_stays_where_the_graph_is_the_same() -> None:
    model, pair = Blocks(), (randn(3, 4), randn(3, 4, seed=1))
    net = rg.trace(model, *pair)
    net.plan = chosen = rg.keep_all(net.graph)
    model.strength = 0.5
    equal_runs(net, copy.deepcopy(model), *pair)
    assert net.plan == chosen


def test_mode_asked_for_in_opened_code_is_traced_when_it_comes() -> None:
    class Modes(Blocks):
        def forward(self, a: Tensor, b: Tensor) -> Any:
            for f in self.f:
                a, b = b, a + (torch.tanh(f(b)) if self.training else torch.sin(f(b)) * 2)
            return a, b

    model, pair = Modes(), (randn(3, 4), randn(3, 4, seed=1))
    net = rg.trace(model, *pair)
    assert sum(node.kind == "coupling" for node in net.graph.nodes) == 3
    for switch in (net.eval, net.train, model.eval, model.train):
        switch()
        assert net.training is model.training
        equal_runs(net, copy.deepcopy(model), *pair)
    assert len(net._forms) == 2


class Clock:
    def __init__(self) -> None:
        self.ticks = 0

    def now(self) -> int:
        self.ticks += 1
        return self.ticks


def _with_a_number_waiting() -> np.random.RandomState:
    """Normal numbers come in pairs."""
    source = np.random.RandomState(1)
    source.randn()
    return source


SOURCE = np.random.default_rng(1)


def _drawing(source: np.random.Generator) -> Any:
    return lambda self: source.normal()


DRAWS: dict[str, tuple[Any, Any]] = {
    "torch": (None, lambda self: torch.rand(4).double()),
    "python": (None, lambda self: random.random()),
    "numpy": (None, lambda self: np.random.rand()),
    "torch generator": (torch.Generator, lambda self: torch.rand(4, generator=self.source).double()),
    "python generator": (random.Random, lambda self: self.source.random()),
    "numpy generator": (np.random.default_rng, lambda self: self.source.random()),
    "numpy state": (np.random.RandomState, lambda self: self.source.rand()),
    "generator in a list": (lambda: [np.random.default_rng(1)], lambda self: self.source[0].normal()),
    "generator in a dictionary": (lambda: {"a": random.Random(1)}, lambda self: self.source["a"].random()),
    "method of python's": (lambda: random.Random(1).random, lambda self: self.source()),
    "method of numpy's": (lambda: np.random.default_rng(1).random, lambda self: self.source()),
    "method of numpy's state": (lambda: np.random.RandomState(1).rand, lambda self: self.source()),
    "number that waits": (_with_a_number_waiting, lambda self: self.source.randn()),
    "default value": (None, lambda self, source=SOURCE: source.normal()),
    "free variable": (None, _drawing(SOURCE)),
    "system": (random.SystemRandom, lambda self: self.source.random()),
    "iterator": (itertools.count, lambda self: next(self.source)),
    "clock": (lambda: time.perf_counter, lambda self: self.source()),
    "counter": (Clock, lambda self: self.source.now()),
}


class Draws(nn.Module):
    def __init__(self, kind: str, before: bool) -> None:
        super().__init__()
        self.kind, self.before, (make, self.draw) = kind, before, DRAWS[kind]
        self.inner = nn.Sequential(linear(), nn.Sequential(nn.Tanh()))
        if make is not None:
            self.source = make()

    def forward(self, x: Tensor) -> Tensor:
        drawn = type(self).drawn(self) if self.before else None
        y = self.inner(x)
        return y * (type(self).drawn(self) if drawn is None else drawn)

    def drawn(self) -> Any:
        return DRAWS[self.kind][1](self)


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", [kind for kind in DRAWS if kind != "torch"])
def test_a_draw_in_the_models_own_forward_is_refused_by_name(kind: str, before: bool) -> None:
    with pytest.raises(
        rg.TraceError,
        match=r"drawn from|numbers from the system|reads a clock|reads the iterator|changes model",
    ):
        rg.trace(Draws(kind, before), randn(3, 4))


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_a_draw_of_torch_in_the_models_own_forward_is_the_models_draw(before: bool) -> None:
    agree(Draws("torch", before), randn(3, 4))


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRAWS)
def test_a_draw_in_a_submodule_differs_from_call_to_call(kind: str) -> None:
    net = rg.trace(nn.Sequential(linear(), Draws(kind, True)), randn(3, 4))
    with torch.no_grad():
        assert len({net(randn(3, 4)).sum().item() for _ in range(5)}) == 5


def test_a_forward_that_counts_its_calls_is_refused() -> None:
    class Counts(Blocks):
        calls = 0

        def forward(self, a: Tensor, b: Tensor) -> Any:
            self.calls += 1
            return super().forward(a, b)

    model = Counts()
    with pytest.raises(rg.TraceError, match=r"changes model\.calls"):
        rg.trace(model, randn(3, 4), randn(3, 4))
    assert "calls" not in vars(model)


class Adapter(nn.Module):
    """A frozen layer with a trained one of rank 1 beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down, self.up = base.requires_grad_(False), linear(4, 1), linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Adapting(nn.Module):
    """Additive blocks whose functions are modules of several layers, and a residual layer."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList(
            nn.Sequential(linear(seed=each), nn.Tanh(), linear(seed=each + 1)) for each in range(3)
        )
        self.last = nn.Sequential(linear(seed=9), nn.Tanh(), nn.Dropout(0.1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        for f in self.f:
            a, b = b, a + f(b)
        return self.last(a) * b

    def adapt(self) -> Adapting:
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        for f in (*self.f, self.last):
            f[0] = Adapter(f[0])  # pyright: ignore
        return self


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, "least"])
def test_modules_put_into_functions_after_the_trace_are_planned_as_before_it(budget: str | None) -> None:
    pair = randn(16, 4), randn(16, 4, seed=1)
    before, after = (rg.trace(model, *pair) for model in (Adapting().adapt(), Adapting()))
    if budget is not None:
        for net in (before, after):
            net.plan = rg.plan(net.graph, budget=budget)
    after._model.adapt()  # pyright: ignore
    equal_runs(after, Adapting().adapt(), *pair)
    assert [node.name for node in after.graph.nodes] == [node.name for node in before.graph.nodes]
    if budget is None:
        assert rg.measure(after, *pair) == rg.measure(before, *pair)
        assert after.plan == before.plan
    assert rg.measure(after, *pair).peak_bytes == after.plan.peak_bytes
    assert len(after._forms) == 1


def test_a_whole_module_that_makes_modules_as_it_runs_is_traced_once() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleList([linear()])

        def forward(self, x: Tensor) -> Tensor:
            if float(x.sum()) > -1e9:
                self.inner.append(nn.Tanh())
            return self.inner[0](x)

    net = rg.trace(nn.Sequential(linear(), Growing(), nn.Tanh()), randn(3, 4))
    program = net._program
    with torch.no_grad():
        for _ in range(3):
            net(randn(3, 4))
    assert net._program is program
    assert len(net._forms) == 1
