"""Buffers that a function moves in its forward: once a step, however they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine.kinds import (
    BOTH,
    REST,
    Weave,
    assert_follows,
    follow,
    made_twice,
    plans,
    right_or_refused,
    state_of,
    two_streams,
)
from engine.samples import assert_bitwise, doubled
from torch import Tensor, nn

import revgraph as rg


class Running(nn.Module):
    """Subtracts a running mean, then moves it; the subclasses say how."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.linear(x) - self.mean)
        if self.training:
            self.move(x.detach().mean(0))
        return y

    def move(self, seen: Tensor) -> None:
        raise NotImplementedError


class InPlace(Running):
    def move(self, seen: Tensor) -> None:
        self.mean.mul_(0.9).add_(seen, alpha=0.1)


class WithoutGrad(Running):
    def move(self, seen: Tensor) -> None:
        with torch.no_grad():
            self.mean.lerp_(seen, 0.1)


class ThroughData(Running):
    def move(self, seen: Tensor) -> None:
        self.mean.data.mul_(0.9).add_(seen, alpha=0.1)


class ThroughDetach(Running):
    def move(self, seen: Tensor) -> None:
        self.mean.detach().lerp_(seen, 0.1)


class DataReplaced(Running):
    def move(self, seen: Tensor) -> None:
        self.mean.data = 0.9 * self.mean.data + 0.1 * seen


class Copied(Running):
    def move(self, seen: Tensor) -> None:
        self.mean.copy_(0.9 * self.mean + 0.1 * seen)


class CopiedIntoData(Running):
    def move(self, seen: Tensor) -> None:
        self.mean.data.copy_(0.9 * self.mean + 0.1 * seen)


class Assigned(Running):
    def move(self, seen: Tensor) -> None:
        self.mean = 0.9 * self.mean + 0.1 * seen


class AssignedInTheTable(Running):
    def move(self, seen: Tensor) -> None:
        self._buffers["mean"] = 0.9 * self.mean + 0.1 * seen


class Set(Running):
    def move(self, seen: Tensor) -> None:
        with torch.no_grad():
            self.mean.set_(0.9 * self.mean + 0.1 * seen)


class WrittenOut(Running):
    def move(self, seen: Tensor) -> None:
        torch.lerp(self.mean, seen, 0.1, out=self.mean)


class View(Running):
    def move(self, seen: Tensor) -> None:
        self.mean[:2].lerp_(seen[:2], 0.1)
        self.mean.view(2, 2)[1].copy_(seen[2:])


class Indexed(Running):
    def move(self, seen: Tensor) -> None:
        self.mean[torch.tensor([0, 2])] = seen[1:3]


class ThroughNumpy(Running):
    def move(self, seen: Tensor) -> None:
        self.mean.numpy()[:] += 0.1 * seen.numpy()


class Foreach(Running):
    def move(self, seen: Tensor) -> None:
        torch._foreach_mul_([self.mean], 0.9)
        torch._foreach_add_([self.mean], [seen], alpha=0.1)


class MovedFirst(Running):
    """Moves what it then reads."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.data.lerp_(x.detach().mean(0), 0.1)
        return torch.tanh(self.linear(x) - self.mean)


class OnlyWritten(Running):
    """A statistic that no gradient depends on."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.data.lerp_(x.detach().mean(0), 0.1)
        return torch.tanh(self.linear(x))


class Counter(Running):
    """An integer buffer, which the result depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return torch.tanh(self.linear(x)) / (1 + self.calls)


class NotPersistent(Running):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4), persistent=False)

    def move(self, seen: Tensor) -> None:
        self.mean.data.lerp_(seen, 0.1)


class Late(Running):
    """A buffer that is None until the first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", None)

    def move(self, seen: Tensor) -> None:
        self.mean.lerp_(seen, 0.1)
        if self.first is None:
            self.first = seen.clone()


class OfASubmodule(nn.Module):
    """The function writes what belongs to a module below it, through `.data`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = InPlace()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.inner.linear(x) - self.inner.mean)
        if self.training:
            self.inner.mean.data.lerp_(x.detach().mean(0), 0.1)
        return y


WRITTEN: tuple[Callable[[], nn.Module], ...] = (
    InPlace, WithoutGrad, ThroughData, ThroughDetach, DataReplaced, Copied, CopiedIntoData, Assigned,
    AssignedInTheTable, Set, WrittenOut, View, Indexed, ThroughNumpy, Foreach, MovedFirst, OnlyWritten,
    Counter, NotPersistent, Late, OfASubmodule,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("function", WRITTEN)
def test_a_buffer_moves_once_however_it_is_written(function: Callable[[], nn.Module]) -> None:
    assert_follows(lambda: Weave(function), *two_streams(), under=BOTH, evaluation=True)


@pytest.mark.slow
@pytest.mark.parametrize("function", [ThroughData, DataReplaced, Assigned, Set, ThroughNumpy, Late])
def test_tracing_moves_nothing(function: Callable[[], nn.Module]) -> None:
    model, plain = made_twice(lambda: Weave(function))
    rg.trace(model, *two_streams())
    assert_bitwise(state_of(model), state_of(plain))


@pytest.mark.slow
@pytest.mark.parametrize("function", [ThroughData, Assigned])
def test_state_moves_once_under_every_plan(function: Callable[[], nn.Module]) -> None:
    assert_follows(lambda: Weave(function), *two_streams(6, 4), under=REST, evaluation=True)


class Bank(nn.Module):
    """One running mean at the root, that every function reads and moves."""

    def __init__(self, data: bool) -> None:
        super().__init__()
        self.running = InPlace()
        self.fs = nn.ModuleList(BankUser([self.running], data) for _ in range(3))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for f in self.fs:
            a, b = b, a + f(b)
        return a, b


class BankUser(nn.Module):
    def __init__(self, owner: list[nn.Module], data: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.owner, self.data = owner, data  # in a list, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        mean = self.owner[0].mean
        y = torch.tanh(self.linear(x) - mean)
        if self.training:
            (mean.data if self.data else mean).lerp_(x.detach().mean(0), 0.1)
        return y


@pytest.mark.slow
@pytest.mark.parametrize("data", [True, False])
def test_a_buffer_of_another_module_is_right_or_refused(data: bool) -> None:
    assert_follows(
        lambda: Bank(data),
        *two_streams(),
        under=BOTH,
        evaluation=True,
        refusal=lambda: right_or_refused("'fs."),
    )


class CallCounter(Running):
    """A number on the module that the result depends on, and no buffer."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(self.linear(x)) / self.calls


class TensorAttribute(Running):
    """A tensor on the module that is no buffer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.seen = torch.zeros(4, dtype=torch.double)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.linear(x) - self.seen)
        now = x.detach().mean(0)
        if self.how == "in place":
            self.seen.lerp_(now, 0.1)
        elif self.how == "data":
            self.seen.data.lerp_(now, 0.1)
        else:
            self.seen = torch.lerp(self.seen, now, 0.1)
        return y


class History(Running):
    """A list on the module that grows, and that the result depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.history.append(x.detach().mean(0))
        return torch.tanh(self.linear(x) - torch.stack(self.history[-3:]).mean(0))


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["inverted", "recomputed"])
@pytest.mark.parametrize("function", [CallCounter, History, *(["in place", "data", "assigned"])])
def test_state_that_is_no_buffer_is_right_or_refused(function: Any, plan: str) -> None:
    with right_or_refused("'fs."):
        make = (lambda: TensorAttribute(function)) if isinstance(function, str) else function
        model, plain = doubled(lambda: Weave(make))
        a, b = two_streams()
        net = rg.trace(model, a, b)
        for one, two in zip(model.fs, plain.fs, strict=True):  # a trace may call the functions
            for name in ("calls", "seen", "history"):
                if name in two.__dict__:
                    value = two.__dict__[name]
                    setattr(one, name, value.clone() if isinstance(value, Tensor) else value * 1)
                else:
                    one.__dict__.pop(name, None)
        (net.plan,) = plans(net, plan)
        follow(net, plain, (a, b), 20)
