"""What functions and boundaries return: None and numbers among tensors, mappings, dataclasses, inputs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from engine.kinds import BOTH, Weave, assert_follows, follow, made_twice, right_or_refused, two_streams
from torch import Tensor, nn

import revgraph as rg


class Pair(NamedTuple):
    y: Tensor
    extra: Any


@dataclass
class Record:
    y: Tensor
    extra: Any = None


class Output(OrderedDict[str, Any]):
    """A mapping whose entries are attributes too, as model outputs of libraries are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Function(nn.Module):
    """A small function that is looked into, or not: `p` depends on the training flag."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def main(self, x: Tensor) -> Tensor:
        p = 0.5 if self.training else 0.25
        return self.two(torch.tanh(self.one(x))) * p


def first(out: Any) -> Tensor:
    y, _ = out
    return y


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], Tensor]]] = {
    "(tensor, None)": (lambda x, y: (y, None), lambda out: out[0]),
    "(tensor, None), unpacked": (lambda x, y: (y, None), first),
    "(tensor, number), unpacked": (lambda x, y: (y, 3), first),
    "(tensor, unused tensor), unpacked": (lambda x, y: (y, y.exp()), first),
    "(None, tensor)": (lambda x, y: (None, y), lambda out: out[1]),
    "(tensor, number)": (lambda x, y: (y, 3), lambda out: out[0] * out[1]),
    "(tensor, string)": (lambda x, y: (y, "mean"), lambda out: out[0]),
    "(tensor, (tensor, None))": (lambda x, y: (y, (y * y, None)), lambda out: out[0] + out[1][0]),
    "(tensor, its input)": (lambda x, y: (y, x), lambda out: out[0] * out[1].sigmoid()),
    "(tensor, itself)": (lambda x, y: (y, y), lambda out: out[0] + out[1].sin()),
    "(tensor, a view of it)": (lambda x, y: (y, y[:, :1]), lambda out: out[0] * out[1]),
    "(tensor, detached)": (lambda x, y: (y, y.detach()), lambda out: out[0] * out[1].sigmoid()),
    "(tensor, integers)": (lambda x, y: (y, y.argmax(-1)), lambda out: out[0] * out[1].unsqueeze(-1)),
    "(tensor, mask)": (lambda x, y: (y, y > 0), lambda out: out[0] * out[1]),
    "(tensor, unused tensor)": (lambda x, y: (y, y.exp()), lambda out: out[0]),
    "list": (lambda x, y: [y, None, 2], lambda out: out[0] * out[2]),
    "list of one": (lambda x, y: [y], lambda out: out[0]),
    "dict": (lambda x, y: {"y": y, "extra": None}, lambda out: out["y"]),
    "dict of tuples": (lambda x, y: {"y": (y, None), "n": 2}, lambda out: out["y"][0] * out["n"]),
    "named tuple": (lambda x, y: Pair(y, None), lambda out: out.y),
    "dataclass": (lambda x, y: Record(y, 3), lambda out: out.y * out.extra),
    "model output": (lambda x, y: Output(y=y, extra=None), lambda out: out.y),
    "several": (lambda x, y: (y[:, :2], None, y[:, 2:]), lambda out: torch.cat([out[2], out[0]], -1)),
}


class Wrapped(Function):
    """A function that returns a form; the net takes the tensor out of it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return FORMS[self.form][0](x, self.main(x))


class OpaqueWrapped(rg.Boundary, Wrapped):
    pass


class InCouplings(nn.Module):
    def __init__(self, form: str, kind: type[Wrapped]) -> None:
        super().__init__()
        self.fs = nn.ModuleList(kind(form) for _ in range(3))
        self.form = form

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        take = FORMS[self.form][1]
        for f in self.fs:
            a, b = b, a + take(f(b))
        return a, b


class InBoundaries(nn.Module):
    """The results go through further layers, as in a transformer without reversible streams."""

    def __init__(self, form: str, kind: type[Wrapped]) -> None:
        super().__init__()
        self.stem, self.f, self.out, self.norm = nn.Linear(4, 4), kind(form), nn.Linear(4, 4), nn.LayerNorm(4)
        self.form = form

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.norm(self.out(FORMS[self.form][1](self.f(x))) + x)
        return torch.tanh(x) + y


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_form_inside_couplings(form: str) -> None:
    assert_follows(lambda: InCouplings(form, OpaqueWrapped), *two_streams(), forwards=9, evaluation=True)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_form_between_boundaries(form: str) -> None:
    assert_follows(lambda: InBoundaries(form, OpaqueWrapped), *two_streams(), under=("default",), forwards=3)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["(tensor, None)", "several"])
@pytest.mark.parametrize("net", [InCouplings, InBoundaries])
def test_a_form_under_every_plan(net: type[nn.Module], form: str) -> None:
    assert_follows(
        lambda: net(form, OpaqueWrapped),
        *two_streams(),
        under=("recomputed", "results", "frontier"),
        forwards=9,
    )  # pyright: ignore


@pytest.mark.slow
@pytest.mark.parametrize("form", list(FORMS)[::2])
def test_a_form_in_a_function_that_is_looked_into(form: str) -> None:
    assert_follows(lambda: InCouplings(form, Wrapped), *two_streams(), forwards=9)


class Wide(nn.Module):
    """As `InBoundaries`, with feed-forward layers and wide enough that running again pays."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.fs = nn.ModuleList(WideWrapped(form) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.forwards = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2)
        )
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for f, out, forwards in zip(self.fs, self.outs, self.forwards, strict=True):
            x = torch.tanh(out(FORMS[self.form][1](f(x))) + x)
            x = forwards(x) + x
        return x


class WideWrapped(rg.Boundary):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.query, self.key, self.form = nn.Linear(8, 8), nn.Linear(8, 8), form

    def forward(self, x: Tensor) -> Any:
        y = torch.softmax(self.query(x) @ self.key(x).transpose(-1, -2), -1) @ x
        return FORMS[self.form][0](x, y)


WIDE = ("(tensor, None), unpacked", "(tensor, number), unpacked", "dict")


@pytest.mark.slow
@pytest.mark.parametrize("form", WIDE)
def test_every_plan_of_a_frontier_runs_and_measures_what_it_predicts(form: str) -> None:
    model, plain = made_twice(lambda: Wide(form))
    inputs = two_streams(2, 4, 8)[:1]
    net = rg.trace(model, *inputs)
    for chosen in (rg.keep_all(net.graph), rg.plan(net.graph), *rg.frontier(net.graph)[::3]):
        net.plan = chosen
        follow(net, plain, inputs, 1)
        measured = rg.measure(net, *inputs)
        assert (measured.peak_bytes, measured.held_bytes) == (net.plan.peak_bytes, net.plan.held_bytes)
        assert measured.flops_ratio == pytest.approx(net.plan.flops_ratio)


@pytest.mark.slow
@pytest.mark.parametrize("form", WIDE)
def test_a_plan_by_hand_that_stores_nothing(form: str) -> None:
    model, plain = made_twice(lambda: Wide(form))
    inputs = two_streams(2, 4, 8)[:1]
    net = rg.trace(model, *inputs)
    names = [node.name for node in net.graph.nodes if node.kind in ("coupling", "boundary")]
    net.plan = rg.decide(net.graph, dict.fromkeys(names, "recompute"), stored=(), reruns=names)
    follow(net, plain, inputs, 9)


class ReturnsForm(nn.Module):
    """The net itself returns a form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.weave = Weave(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
        self.form = form

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return FORMS[self.form][0](*self.weave(a, b))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_form_as_the_result_of_the_net(form: str) -> None:
    model, plain = made_twice(lambda: ReturnsForm(form))
    inputs = two_streams()
    with right_or_refused("ReturnsForm", "output", form.split(",")[0], "Record"):
        net = rg.trace(model, *inputs)
        net.plan = rg.decide(net.graph, {})
        assert type(net(*inputs)) is type(plain(*inputs))
        follow(net, plain, inputs, 9)


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class SameInTraining(Function):
    """Its input in evaluation, something else in training."""

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) if self.training else x


class Zero(Function):
    """A term that needs no gradient, though its function has parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Constant(nn.Module):
    """Always the same buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("term", torch.linspace(-1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.term


class Number(nn.Module):
    """A tensor without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)).mean()


class OwnParameter(nn.Module):
    """A parameter itself, not a function of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.term = nn.Parameter(torch.linspace(-1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.term


class ViewOfInput(Function):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1]


class Integers(Function):
    """A term of whole numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.main(x) > 0).long()


TERMS = (
    Same, SameInTraining, Zero, Constant, Number, OwnParameter, ViewOfInput, Integers, nn.Identity,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("function", TERMS)
def test_terms_of_every_kind(function: type[nn.Module]) -> None:
    functions = [function, lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh())]

    def make() -> nn.Module:
        turns = iter(functions * 2)
        return Weave(lambda: next(turns)(), 4)

    assert_follows(make, *two_streams(), under=BOTH, forwards=9)


class OpaqueSame(rg.Boundary, Same):
    pass


class OpaqueZero(rg.Boundary, Zero):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("function", [OpaqueSame, OpaqueZero])
def test_boundaries_that_return_their_input_or_nothing_to_differentiate(function: type[nn.Module]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.behind = function(), function()
            self.weave = Weave(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), function()))

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            a, b = self.weave(self.before(a) * 2, b)
            return self.behind(a) + a, b * b

    assert_follows(Net, *two_streams(), under=("default", "inverted", "recomputed"), forwards=9)


class SometimesNone(nn.Module):
    """A function that may have nothing to add; the net looks."""

    def __init__(self) -> None:
        super().__init__()
        self.fs = nn.ModuleList(MaybeNone(index == 1) for index in range(3))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for f in self.fs:
            term = f(b)
            a, b = b, a if term is None else a + term
        return a, b


class MaybeNone(Function):
    def __init__(self, nothing: bool) -> None:
        super().__init__()
        self.nothing = nothing

    def forward(self, x: Tensor) -> Tensor | None:
        return None if self.nothing else self.main(x)


def test_a_function_that_returns_none() -> None:
    assert_follows(
        SometimesNone,
        *two_streams(),
        under=BOTH,
        forwards=9,
        refusal=lambda: right_or_refused("'fs.1", "MaybeNone", "None"),
    )
