"""What opened code reads besides the model does not go stale: globals, free variables, classes and so on."""

from __future__ import annotations

import contextvars
import copy
import dataclasses
import datetime
import enum
import functools
import gc
import io
import logging
import math
import os
import pickle
import random
import threading
import time
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import equal_runs, linear, randn

import revgraph as rg


@dataclasses.dataclass
class Config:
    scale: float = 1.5


@dataclasses.dataclass(slots=True)
class Slotted:
    scale: float = 1.5


class Settings:
    scale: Any = 1.5


class Mode(enum.Flag):
    PLAIN = 1
    DOUBLE = 2


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


LOG = logging.getLogger("tests.tracing")
NOW = time.perf_counter


class Logging(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        LOG.warning("called")
        return x * 2.0


def activation(x: Tensor) -> Tensor:
    return torch.tanh(x)


def scaled(x: Tensor, options: dict[str, float] = {"scale": 2.0}) -> Tensor:  # noqa: B006
    return x * options["scale"] * SCALE


@functools.lru_cache
def remembered(factor: int) -> float:
    return factor * SCALE


def pieces(model: Any, x: Tensor) -> Any:
    for weight in model.tensors:
        yield model.f(x) * weight


class Helper:
    @staticmethod
    def gain() -> float:
        return 2.0

    @classmethod
    def gain_of(cls) -> float:
        return 2.0


def is_training(model: nn.Module) -> bool:
    return model.training


class Base:
    def gain(self) -> float:
        return 2.0


class Derived(Base):
    def gain(self) -> float:
        return super().gain() * 3


class Called:
    def __call__(self, x: Tensor) -> Tensor:
        return x * 2


class Described:
    def __init__(self) -> None:
        self.value = 2.0

    def __get__(self, owner: Any, kind: Any = None) -> float:
        return self.value


def attributed() -> None:
    pass


def times(x: Tensor, by: float) -> Tensor:
    return x * by


CALLED, LOCAL = Called(), threading.local()
CONTEXT = contextvars.ContextVar("tests.tracing", default=2.0)
SILU = torch.nn.functional.silu
SCALE = 2.0
ITEMS = [1.0]
FLAG = True
MODE = Mode.PLAIN
WEIGHT = torch.ones(4, dtype=torch.double)
SPACE = SimpleNamespace(inner=SimpleNamespace(scale=2.0))
CONFIG = Config()
GAIN = Gain()
GLOBALS = globals()
FRESH: dict[str, Callable[[], Any]] = {
    "SCALE": lambda: 2.0,
    "ITEMS": lambda: [1.0],
    "FLAG": lambda: True,
    "MODE": lambda: Mode.PLAIN,
    "WEIGHT": lambda: torch.ones(4, dtype=torch.double),
    "SPACE": lambda: SimpleNamespace(inner=SimpleNamespace(scale=2.0)),
    "CONFIG": Config,
    "GAIN": Gain,
    "activation": lambda: activation_at_first,
}
activation_at_first = activation


class Model(nn.Module):
    factors: Any = (3.0,)
    described = Described()

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.f, self.body = linear(), body
        self.listed, self.configs, self.slotted = [Gain()], [Config()], Slotted()
        self.nested, self.modules_in_lists = {"a": {"b": Config()}}, [[nn.ReLU()]]
        self.factor, self.zero, self.zeros, self.nan = 2.0, 0.0, [0.0], math.nan
        self.watched = weakref.ref(CONFIG)
        self.partial, self.kinds = functools.partial(times, by=2.0), {1}
        self.number, self.bytes, self.tensors = np.float32(2), bytearray(b"\2"), [randn(4)]
        self.register_parameter("free", None)
        self.register_buffer("shift", None)

    @property
    def gain(self) -> float:
        return 2.0

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


@pytest.fixture(autouse=True)
def as_at_first() -> Any:
    attributed.scale = LOCAL.scale = 2.0  # pyright: ignore
    yield
    CONTEXT.set(2.0)
    torch.nn.functional.silu, Model.__dict__["described"].value = SILU, 2.0
    Base.gain, Called.__call__ = lambda self: 2.0, lambda self, x: x * 2
    if hasattr(Settings, "extra"):
        del Settings.extra
    for name, make in FRESH.items():
        GLOBALS[name] = make()
    Settings.scale, Model.factors, Model.gain = 1.5, (3.0,), property(lambda self: 2.0)  # pyright: ignore
    scaled.__defaults__[0]["scale"] = 2.0  # pyright: ignore
    remembered.cache_clear()
    Helper.gain, Helper.gain_of = staticmethod(lambda: 2.0), classmethod(lambda cls: 2.0)  # pyright: ignore


def put(name: str, value: Any) -> Callable[[Any], None]:
    return lambda model: GLOBALS.__setitem__(name, value)


def let(**values: Any) -> Callable[[Any], None]:
    def change(thing: Any) -> None:
        for name, value in values.items():
            setattr(thing, name, value)

    return change


# What a forward reads, and a change of that.
CASES: dict[str, tuple[Callable[[Any, Tensor], Any], Callable[[Any], Any]]] = {
    "number": (lambda net, x: net.f(x) * SCALE, put("SCALE", 3.0)),
    "in a helper": (lambda net, x: scaled(net.f(x)), put("SCALE", 3.0)),
    "flag": (lambda net, x: net.f(x) if FLAG else x, put("FLAG", False)),
    "list": (lambda net, x: net.f(x) * ITEMS[0], lambda net: ITEMS.__setitem__(0, 5.0)),
    "enum": (lambda net, x: net.f(x) if Mode.PLAIN & MODE else x, put("MODE", Mode.DOUBLE)),
    "tensor": (lambda net, x: net.f(x) * WEIGHT, lambda net: WEIGHT.add_(1)),
    "namespace": (lambda net, x: net.f(x) * SPACE.inner.scale, lambda net: let(scale=5.0)(SPACE.inner)),
    "object": (lambda net, x: net.f(x) * CONFIG.scale, lambda net: let(scale=5.0)(CONFIG)),
    "function": (lambda net, x: activation(net.f(x)), put("activation", torch.sin)),
    "module": (lambda net, x: GAIN(net.f(x)), lambda net: let(scale=5.0)(GAIN)),
    "class": (lambda net, x: net.f(x) * Settings.scale, lambda net: let(scale=5.0)(Settings)),
    "own class": (lambda net, x: net.f(x) * type(net).factors[0], lambda net: let(factors=(4.0,))(Model)),
    "class of self": (
        lambda net, x: net.f(x) * net.__class__.factors[0],
        lambda net: let(factors=[4.0])(Model),
    ),
    "property": (lambda net, x: net.f(x) * net.gain, lambda net: let(gain=property(lambda self: 3.0))(Model)),
    "default value": (lambda net, x: scaled(net.f(x)), lambda net: scaled.__defaults__[0].update(scale=4.0)),  # pyright: ignore
    "remembered": (
        lambda net, x: net.f(x) * remembered(3),
        lambda net: (remembered.cache_clear(), put("SCALE", 9.0)(net)),
    ),
    "variable": (
        lambda net, x: net.f(x) * float(os.environ.get("RG_TEST", "1")),
        lambda net: os.environ.update(RG_TEST="2"),
    ),
    "variable there": (
        lambda net, x: net.f(x) if "RG_THERE" in os.environ else x,
        lambda net: os.environ.update(RG_THERE=""),
    ),
    "getenv": (
        lambda net, x: net.f(x) if os.getenv("RG_GOT") else x,
        lambda net: os.environ.update(RG_GOT="2"),
    ),
    "listed module": (lambda net, x: net.listed[0](net.f(x)), lambda net: let(scale=7.0)(net.listed[0])),
    "module in lists": (
        lambda net, x: net.modules_in_lists[0][0](net.f(x)),
        lambda net: net.modules_in_lists[0].__setitem__(0, nn.Tanh()),
    ),
    "listed object": (
        lambda net, x: net.f(x) * net.configs[0].scale,
        lambda net: let(scale=7.0)(net.configs[0]),
    ),
    "nested object": (
        lambda net, x: net.f(x) * net.nested["a"]["b"].scale,
        lambda net: let(scale=7.0)(net.nested["a"]["b"]),
    ),
    "slots": (lambda net, x: net.f(x) * net.slotted.scale, lambda net: let(scale=7.0)(net.slotted)),
    "weak reference": (
        lambda net, x: net.f(x) * net.watched().scale,
        lambda net: let(scale=7.0)(net.watched()),
    ),
    "numpy number": (lambda net, x: net.f(x) * float(net.number), let(number=np.float32(3))),
    "bytes": (lambda net, x: net.f(x) * net.bytes[0], lambda net: net.bytes.__setitem__(0, 3)),
    "listed tensor": (lambda net, x: net.f(x) * net.tensors[0], lambda net: net.tensors[0].add_(1)),
    "generator": (lambda net, x: sum(pieces(net, x)), lambda net: net.tensors.append(randn(4, seed=3))),
    "no attribute": (lambda net, x: net.f(x) * getattr(net, "extra", 1.0), let(extra=4.0)),
    "asked for": (lambda net, x: net.f(x) if hasattr(net, "extra") else x, let(extra=4.0)),
    "no parameter": (
        lambda net, x: net.f(x) if net.free is None else net.f(x) + net.free,
        lambda net: let(free=nn.Parameter(randn(4, seed=5)))(net),
    ),
    "no buffer": (
        lambda net, x: net.f(x) if net.shift is None else net.f(x) + net.shift,
        lambda net: let(shift=randn(4))(net),
    ),
    "all attributes": (lambda net, x: net.f(x) * vars(net)["factor"], let(factor=4.0)),
    "attributes by name": (lambda net, x: net.f(x) * net.__dict__.get("factor"), let(factor=4.0)),
    "attribute that comes": (lambda net, x: net.f(x) if "extra" in vars(net) else x, let(extra=4.0)),
    "attributes of an object": (
        lambda net, x: net.f(x) * vars(net.configs[0])["scale"],
        lambda net: let(scale=7.0)(net.configs[0]),
    ),
    "sign of zero": (lambda net, x: net.f(x) * math.copysign(2.0, net.zero), let(zero=-0.0)),
    "sign of a listed zero": (
        lambda net, x: net.f(x) * math.copysign(2.0, net.zeros[0]),
        lambda net: net.zeros.__setitem__(0, -0.0),
    ),
    "no number": (lambda net, x: net.f(x) * (2.0 if math.isnan(net.nan) else net.nan), let(nan=3.0)),
    "static method": (
        lambda net, x: net.f(x) * Helper.gain(),
        lambda net: let(gain=staticmethod(lambda: 5.0))(Helper),
    ),
    "class method": (
        lambda net, x: net.f(x) * Helper.gain_of(),
        lambda net: let(gain_of=classmethod(lambda cls: 5.0))(Helper),
    ),
    "mode of a layer": (lambda net, x: net.f(x) * (2.0 if net.f.training else 3.0), lambda net: net.f.eval()),
    "class method of a base": (
        lambda net, x: Derived().gain() * net.f(x),
        lambda net: let(gain=lambda self: 5.0)(Base),
    ),
    "called object": (
        lambda net, x: CALLED(net.f(x)),
        lambda net: let(__call__=lambda self, x: x * 3)(type(CALLED)),
    ),
    "descriptor": (
        lambda net, x: net.f(x) * net.described,
        lambda net: let(value=5.0)(Model.__dict__["described"]),
    ),
    "asked of a class": (
        lambda net, x: net.f(x) * getattr(Settings, "extra", 2.0),
        lambda net: let(extra=5.0)(Settings),
    ),
    "attribute of a function": (
        lambda net, x: net.f(x) * attributed.scale,
        lambda net: let(scale=5.0)(attributed),
    ),
    "of the thread": (lambda net, x: net.f(x) * LOCAL.scale, lambda net: let(scale=5.0)(LOCAL)),
    "of the context": (lambda net, x: net.f(x) * CONTEXT.get(), lambda net: CONTEXT.set(5.0)),
    "function of torch's": (
        lambda net, x: torch.nn.functional.silu(net.f(x)),
        lambda net: let(silu=torch.tanh)(torch.nn.functional),
    ),
    "partial": (
        lambda net, x: net.partial(net.f(x)),
        lambda net: net.partial.keywords.update(by=5.0),
    ),
    "kinds in a set": (
        lambda net, x: net.f(x) * (2.0 if type(next(iter(net.kinds))) is int else 3.0),
        lambda net: (net.kinds.clear(), net.kinds.add(1.0)),
    ),
    "mode in a helper": (lambda net, x: net.f(x) * 2 if is_training(net) else x, lambda net: net.eval()),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_change_of_what_is_read_from_elsewhere_is_followed(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RG_TEST", "RG_THERE", "RG_GOT"):
        monkeypatch.delenv(name, raising=False)
    body, change = CASES[case]
    model, x = Model(body), randn(3, 4)
    net = rg.trace(model, x)
    copied = copy.deepcopy(net)
    equal_runs(net, model, x)
    assert len(net._forms) == 1
    change(model)
    equal_runs(net, model, x)
    equal_runs(copied, copied._model, x)
    for name in ("RG_TEST", "RG_THERE", "RG_GOT"):
        monkeypatch.delenv(name, raising=False)


def test_an_attribute_that_is_no_number_is_no_other_one_in_the_next_call() -> None:
    model, x = Model(lambda net, x: net.f(x) * (2.0 if math.isnan(net.nan) else 3.0)), randn(3, 4)
    net = rg.trace(model, x)
    for _ in range(2):
        model.nan = float("nan")
        equal_runs(net, model, x)
    assert len(net._forms) == 1


def helper(x: Tensor, by: float = 2.0, *, plus: float = 1.0) -> Tensor:
    return x * by + plus


def another(x: Tensor, by: float = 2.0, *, plus: float = 1.0) -> Tensor:
    return x * by - plus


class Helped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(helper(self.f(x)))

    def scaled(self, x: Tensor, by: float = 3.0) -> Tensor:
        return x * by


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (helper, "__defaults__", (5.0,)),
        (helper, "__kwdefaults__", {"plus": 5.0}),
        (helper, "__code__", another.__code__),
        (Helped.scaled, "__defaults__", (5.0,)),
    ],
)
def test_a_function_that_gets_other_defaults_or_code_is_followed(
    owner: Any, name: str, value: Any, pickled: bool, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own objects may be set aside from the collector, as before a fork."""
    model, x = Helped(), randn(3, 4)
    if frozen:
        gc.freeze()
    try:
        net = rg.trace(model, x)
    finally:
        gc.unfreeze()
    if pickled:
        net = pickle.loads(pickle.dumps(net))
    equal_runs(net, net._model, x)
    assert len(net._forms) == 1
    monkeypatch.setattr(owner, name, value)
    equal_runs(net, net._model, x)
    assert len(net._forms) == 2


def test_all_globals_at_once_are_refused() -> None:
    with pytest.raises(rg.TraceError, match=r"reads globals\(\)"):
        rg.trace(Model(lambda net, x: net.f(x) * globals()["SCALE"]), randn(3, 4))


def factory(scale: float) -> tuple[Any, Any]:
    def body(net: Any, x: Tensor) -> Tensor:
        return net.f(x) * scale

    def change(value: float) -> None:
        nonlocal scale
        scale = value

    return body, change


def test_a_free_variable_is_followed_each_in_its_own_function() -> None:
    (body, change), (other, _), x = factory(2.0), factory(3.0), randn(3, 4)
    nets = [rg.trace(Model(each), x) for each in (body, other)]
    change(5.0)
    for net in nets:
        equal_runs(net, net._model, x)
    assert [len(net._forms) for net in nets] == [2, 1]


class Global(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = linear()

    def forward(self, x: Tensor) -> Tensor:
        return activation(self.f(x)) * SCALE * CONFIG.scale * WEIGHT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SCALE", "CONFIG", "WEIGHT", "activation"])
def test_a_pickled_net_follows_globals(name: str) -> None:
    x = randn(3, 4)
    net = pickle.loads(pickle.dumps(rg.trace(Global(), x)))
    equal_runs(net, net._model, x)
    changed = {"SCALE": 3.0, "CONFIG": Config(4.0), "WEIGHT": randn(4), "activation": torch.sin}
    put(name, changed[name])(None)
    equal_runs(net, net._model, x)


def counting() -> Any:
    calls: list[int] = []

    def body(net: Any, x: Tensor) -> Tensor:
        calls.append(1)
        return net.f(x) * len(calls)

    return body


def numbering() -> Any:
    calls = 0

    def body(net: Any, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return net.f(x) * calls

    return body


def count_globally(net: Any, x: Tensor) -> Tensor:
    ITEMS.append(1.0)
    return net.f(x) * len(ITEMS)


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "clock": (lambda net, x: net.f(x) * (time.time() % 1), "reads a clock, time.time"),
    "date": (
        lambda net, x: net.f(x) * datetime.datetime.now().microsecond,
        "reads a clock, datetime.now",
    ),
    "os": (lambda net, x: net.f(x) * os.urandom(1)[0], "draws numbers from the system"),
    "list that grows": (counting(), "changes the free variable 'calls'"),
    "variable assigned": (numbering(), "assigns the free variable 'calls'"),
    "global list that grows": (count_globally, "changes .*ITEMS"),
    "past attributes": (
        lambda net, x: net.f(x) * object.__getattribute__(net, "factor"),
        r"reads attributes by object\.__getattribute__",
    ),
    "id": (lambda net, x: net.f(x) * (id(x) % 2), "id of a traced tensor"),
    "generator without a seed": (
        lambda net, x: net.f(x) * random.Random().random(),
        "makes a generator of Python's that the system seeds",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_tells_something_else_each_time_is_refused_by_name(case: str) -> None:
    body, text = REFUSED[case]
    with pytest.raises(rg.TraceError, match=text):
        rg.trace(Model(body), randn(3, 4))


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in REFUSED if case not in ("id", "past attributes")])
def test_a_submodule_that_reads_such_runs_as_it_is(case: str) -> None:
    net = rg.trace(nn.Sequential(linear(), Model(REFUSED[case][0])), randn(3, 4))
    with torch.no_grad():
        assert len({net(randn(3, 4)).sum().item() for _ in range(4)}) > 1


def test_code_may_log_to_any_stream() -> None:
    """What a logger holds is nothing that a model computes with."""
    handler = logging.StreamHandler(io.StringIO())
    LOG.addHandler(handler)
    try:
        model, x = Logging(), randn(3, 4)
        net = rg.trace(model, x)
        assert torch.equal(net(x), model(x))
    finally:
        LOG.removeHandler(handler)


class Collecting(nn.Module):
    """Garbage of it tells the time when it goes, in the middle of the forward."""

    class Garbage:
        def __del__(self) -> None:
            time.time()

    def forward(self, x: Tensor) -> Tensor:
        self.Garbage()
        gc.collect()
        return x * 2.0


@pytest.mark.slow
def test_what_the_interpreter_calls_in_between_is_none_of_the_models_code() -> None:
    def tell(phase: str, info: dict[str, int]) -> None:
        told.append((phase, NOW()))

    told: list[Any] = []
    gc.callbacks.append(tell)
    try:
        model, x = Collecting(), randn(3, 4)
        net = rg.trace(model, x)
    finally:
        gc.callbacks.remove(tell)
    assert told
    assert torch.equal(net(x), model(x))
