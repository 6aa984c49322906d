"""Objects as arguments: their tensors are inputs; what the forward puts into them is refused."""

from __future__ import annotations

import dataclasses
import enum
import weakref
from collections import UserDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import linear, randn

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
}


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
