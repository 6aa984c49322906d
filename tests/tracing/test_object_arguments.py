"""Objects as arguments: their tensors are inputs; what the forward puts into them is refused."""

from __future__ import annotations

import dataclasses
import enum
import functools
import weakref
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import agree, linear, randn

import revgraph as rg


@dataclasses.dataclass
class Plain:
    x: Tensor
    scale: Tensor
    note: str = "a"


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    x: Tensor
    scale: Tensor
    note: str = "a"


class Named(NamedTuple):
    x: Tensor
    scale: Tensor
    note: str = "a"


class Ordinary:
    def __init__(self, x: Tensor, scale: Tensor, note: str = "a") -> None:
        self.inner = {"x": x, "scales": [scale]}
        self.note = note

    @property
    def x(self) -> Tensor:
        return self.inner["x"]

    @property
    def scale(self) -> Tensor:
        return self.inner["scales"][0]


class Store:
    def __init__(self, parent: Any, x: Tensor, scale: Tensor) -> None:
        self.parent, self.x, self.scale = weakref.ref(parent), x, scale


class GraphBatch:
    """As graph libraries have them: attributes of a part that refers back to the whole."""

    def __init__(self, x: Tensor, scale: Tensor, note: str = "a") -> None:
        self.note = note
        self.store = Store(self, x, scale)

    def __getattr__(self, name: str) -> Any:
        if name == "store":
            raise AttributeError(name)
        return getattr(self.store, name)

    def __call__(self) -> None: ...


class Mapped(UserDict):  # type: ignore[type-arg]
    def __init__(self, x: Tensor, scale: Tensor, note: str = "a") -> None:
        super().__init__(x=x, scale=scale, note=note)

    def __getattr__(self, name: str) -> Any:
        if name == "data":
            raise AttributeError(name)
        return self.data[name]


KINDS: list[Any] = [Plain, Slotted, Named, Ordinary, GraphBatch, Mapped]


def named_space(x: Tensor, scale: Tensor, note: str = "a") -> SimpleNamespace:
    return SimpleNamespace(x=x, scale=scale, note=note)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList(linear(seed=each) for each in range(4))

    def forward(self, batch: Any, gain: Tensor) -> Tensor:
        a, b = batch.x.chunk(2, -1)
        for f in self.f:
            a, b = b, a + torch.tanh(f(b)) * batch.scale * (gain if batch.note == "a" else -gain)
        return torch.cat([a, b], -1)


def batch(kind: Any, seed: int, rows: int = 5, note: str = "a") -> Any:
    return kind(randn(rows, 8, seed=seed), randn(rows, 1, seed=seed + 1), note)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, named_space])
def test_tensors_of_an_object_are_inputs(kind: Any) -> None:
    model, gain = Net(), torch.ones(1, dtype=torch.double)
    net = rg.trace(model, batch(kind, 1), gain)
    assert sum(node.kind == "coupling" for node in net.graph.nodes) == 4
    for other in (batch(kind, 3), batch(kind, 5, rows=2), batch(kind, 7, note="b"), batch(kind, 9)):
        ours, theirs = net(other, gain), model(other, gain)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        found = torch.autograd.grad(ours.square().sum(), list(model.parameters()))
        wanted = torch.autograd.grad(theirs.square().sum(), list(model.parameters()))
        torch.testing.assert_close(found, wanted)
    assert len(net._forms) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Plain, Ordinary, named_space])
def test_objects_are_results(kind: Any) -> None:
    """Of opened modules, whose tensors the code around reads, and of the model, which makes new ones."""

    class Block(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.f = linear(seed=seed)

        def forward(self, x: Tensor) -> Any:
            y = torch.tanh(self.f(x))
            return kind(y, y.mean())

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block(each) for each in range(3))

        def forward(self, x: Tensor) -> Any:
            total = x.new_zeros(())
            for block in self.blocks:
                made = block(x)
                x, total = x + made.x, total + made.scale
            return kind(x, total, "b")

    model, x = Blocks(), randn(5, 4)
    net = rg.trace(model, x)
    assert not [node for node in net.graph.nodes if node.module in ("blocks.0", "blocks.1", "blocks.2")]
    ours, theirs = net(x), model(x)
    assert type(ours) is type(theirs) and ours.note == "b" and net(x) is not ours
    torch.testing.assert_close((ours.x, ours.scale), (theirs.x, theirs.scale), rtol=0, atol=0)
    found = torch.autograd.grad(ours.x.square().sum() + ours.scale, list(model.parameters()))
    wanted = torch.autograd.grad(theirs.x.square().sum() + theirs.scale, list(model.parameters()))
    torch.testing.assert_close(found, wanted)


def test_settings_without_tensors_are_part_of_the_form() -> None:
    class Settings:
        def __init__(self, steps: int) -> None:
            self.steps = steps

    class Steps(nn.Module):
        def forward(self, x: Tensor, settings: Settings) -> Tensor:
            for _ in range(settings.steps):
                x = torch.sin(x)
            return x

    settings, x = Settings(2), randn(3, 4)
    net = rg.trace(Steps(), x, settings)
    for settings.steps in (2, 4, 1):
        torch.testing.assert_close(net(x, settings), Steps()(x, settings), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [Plain, dict, list])
def test_a_result_that_is_put_into_an_argument_is_refused(kind: Any) -> None:
    class Puts(nn.Module):
        def forward(self, x: Tensor, into: Any) -> Tensor:
            y = torch.sin(x)
            if isinstance(into, Plain):
                into.x = y
            elif isinstance(into, dict):
                into["y"] = y
            else:
                into.append(y)
            return y

    into: Any = Plain(randn(3), randn(3)) if kind is Plain else kind()
    with pytest.raises(rg.TraceError, match="puts a result into its argument into"):
        rg.trace(Puts(), randn(3, 4), into)


class Digit(enum.IntEnum):
    ONE = 1


class Letter(str, enum.Enum):
    A = "a"


FACTOR = torch.full((1,), 2.0, dtype=torch.double)
ALIKE: dict[str, tuple[Any, Any, Any]] = {
    "a flag and a number": (lambda given: 2.0 if given is True else 3.0, True, 1),
    "a string and an enum": (lambda given: 2.0 if type(given) is str else 3.0, "a", Letter.A),
    "the order of keys": (
        lambda given: next(iter(given.values())),
        {"x": FACTOR, "y": FACTOR * 2},
        {"y": FACTOR * 2, "x": FACTOR},
    ),
    "kinds of numbers in a set": (lambda given: 2.0 if type(next(iter(given))) is int else 3.0, {1}, {1.0}),
    "kinds of keys": (lambda given: 2.0 if type(next(iter(given))) is int else 3.0, {1: "a"}, {True: "a"}),
    "classes in a set": (lambda given: 2.0 if int in given else 3.0, {int}, {float}),
    "classes as keys": (lambda given: 2.0 if int in given else 3.0, {int: "a"}, {float: "a"}),
    "classes as values": (lambda given: 2.0 if given["a"] is int else 3.0, {"a": int}, {"a": float}),
    "a list and a tuple": (lambda given: 2.0 if type(given) is list else 3.0, ["a"], ("a",)),
    "kinds of dictionaries": (
        lambda given: 2.0 if type(given) is dict else 3.0,
        {"a": "b"},
        OrderedDict(a="b"),
    ),
    "a number and an enum": (lambda given: 2.0 if type(given) is Digit else 3.0, Digit.ONE, 1),
    "kinds of numpy's numbers": (lambda given: given.itemsize / 2, np.float32(2), np.float64(2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ALIKE)
def test_arguments_that_compare_equal_are_not_the_same(case: str) -> None:
    factor, first, second = ALIKE[case]

    class Scaled(nn.Module):
        def forward(self, x: Tensor, given: Any) -> Tensor:
            return torch.sin(x) * factor(given)

    net, x = rg.trace(Scaled(), randn(3, 4), first), randn(3, 4, seed=2)
    for given in (first, second, first):
        torch.testing.assert_close(net(x, given), Scaled()(x, given), rtol=0, atol=0)
    assert len(net._forms) == 2


class Slots:
    __slots__ = ("scale",)

    def __init__(self, scale: float = 2.0) -> None:
        self.scale = scale


class Classed:
    scale = 2.0

    def __init__(self) -> None:
        self.own = 2.0

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.own


def times(x: Tensor, by: float) -> Tensor:
    return x * by


def with_scale(module: Any, scale: float) -> Any:
    module.scale = scale
    return module


# What is given, what the forward makes of it, and how its content changes.
EDITED: dict[str, tuple[Callable[[], Any], Any, Callable[[Any], Any]]] = {
    "set": (lambda: {1, 2}, lambda x, given: x * sum(given), lambda given: given.add(5)),
    "queue": (lambda: deque([1]), lambda x, given: x * sum(given), lambda given: given.append(5)),
    "bytes": (lambda: bytearray(b"ab"), lambda x, given: x * len(given), lambda given: given.extend(b"c")),
    "array": (lambda: np.ones(3), lambda x, given: x * float(given.sum()), lambda given: given.fill(3)),
    "partial": (
        lambda: functools.partial(times, by=2.0),
        lambda x, given: given(x),
        lambda given: given.keywords.update(by=3.0),
    ),
    "slots": (Slots, lambda x, given: x * given.scale, lambda given: setattr(given, "scale", 5.0)),
    "class": (Classed, lambda x, given: x * given.scale, lambda given: setattr(Classed, "scale", 5.0)),
    "module": (
        lambda: with_scale(nn.Identity(), 2.0),
        lambda x, given: x * given.scale,
        lambda given: setattr(given, "scale", 5.0),
    ),
    "method": (
        lambda: Classed().__call__,
        lambda x, given: given(x),
        lambda given: setattr(given.__self__, "own", 5.0),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", EDITED)
def test_an_argument_that_is_edited_between_calls_is_read_again(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, body, edit = EDITED[case]
    monkeypatch.setattr(Classed, "scale", 2.0)

    class Uses(nn.Module):
        def forward(self, x: Tensor, given: Any) -> Tensor:
            return torch.sin(body(x, given))

    given, x = make(), randn(3, 4)
    net = rg.trace(Uses(), x, given)
    for _ in range(2):
        torch.testing.assert_close(net(x, given), Uses()(x, given), rtol=0, atol=0)
        edit(given)
    torch.testing.assert_close(net(x, given), Uses()(x, given), rtol=0, atol=0)


class Cache:
    def __init__(self, *tensors: Tensor) -> None:
        self.tensors, self.seen = [*tensors], 0

    def update(self, x: Tensor) -> Tensor:
        self.tensors.append(x)
        return torch.cat(self.tensors)


def counted(x: Tensor, cache: Cache) -> Tensor:
    cache.seen += 1
    return x * cache.seen


def swapped(x: Tensor, given: list[Tensor]) -> Tensor:
    given[0], given[1] = given[1], given[0]
    return x * given[0]


CHANGING: dict[str, tuple[Any, Callable[[], Any]]] = {
    "empty cache": (lambda x, cache: cache.update(x).sum(0), Cache),
    "filled cache": (lambda x, cache: cache.update(x).sum(0), lambda: Cache(randn(2, 4))),
    "counter": (counted, lambda: Cache(randn(2, 4))),
    "list": (lambda x, given: given.append(1) or x * len(given), list),
    "pop": (lambda x, given: x * given.pop(), lambda: [randn(4), randn(4)]),
    "dictionary": (lambda x, given: given.update(n=len(given)) or x * given["n"], dict),
    "set": (lambda x, given: given.add(3) or x * len(given), lambda: {1}),
    "swap": (swapped, lambda: [randn(4), randn(4, seed=1)]),
    "in place": (lambda x, given: x * given[0].add_(1), lambda: [randn(4)]),
    "array": (lambda x, given: x * float(given.__iadd__(1).sum()), lambda: np.ones(3)),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("case", CHANGING)
def test_a_forward_that_changes_its_argument_is_refused(case: str, inside: bool) -> None:
    body, make = CHANGING[case]

    class Changes(nn.Module):
        def forward(self, x: Tensor, given: Any) -> Tensor:
            return torch.sin(body(x, given))

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Changes()

        def forward(self, x: Tensor, given: Any) -> Tensor:
            return self.inner(x, given) * 2

    given, model = make(), Around() if inside else Changes()
    held = str(getattr(given, "tensors", given)), getattr(given, "seen", 0)
    with pytest.raises(rg.TraceError, match=r"puts a result into its argument given|edits given\.0 in place"):
        rg.trace(model, randn(3, 4), given)
    assert held == (str(getattr(given, "tensors", given)), getattr(given, "seen", 0))


def test_a_submodule_that_is_one_node_and_changes_a_list_is_refused() -> None:
    class Collects(nn.Module):
        def forward(self, x: Tensor, into: list[Tensor]) -> Tensor:
            if x.sum() > 1e9:  # which no graph can hold
                return x
            into.append(torch.sin(x))
            return x

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Collects()

        def forward(self, x: Tensor) -> Tensor:
            into: list[Tensor] = []
            return self.inner(x, into) + sum(into)

    with pytest.raises(rg.TraceError, match="changes a list or dictionary that it is given"):
        rg.trace(Around(), randn(3, 4))


def test_a_list_that_submodules_fill_is_filled() -> None:
    class Collects(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.f = linear(seed=seed)

        def forward(self, x: Tensor, into: list[Tensor]) -> Tensor:
            x = torch.sin(self.f(x))
            into.append(x * 2)
            return x

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleList(Collects(each) for each in range(3))

        def forward(self, x: Tensor) -> Tensor:
            into: list[Tensor] = []
            for each in self.inner:
                x = each(x, into)
            return x + sum(into) * len(into)

    agree(Around(), randn(3, 4))
