"""Drift that flips a choice near a tie, or moves an exact zero off a kink: called drift, with the ways out.

A value that inversion gives back carries rounding errors. Where a function chooses (a router, a comparison,
the largest of a window), a replay may then choose otherwise: another shape, or a gradient that is wrong in
a few rows. That is no function that differs from itself. `rg.check` shows it, and exact mode, anchors and
kept nodes cure it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from engine.kinds import Weave, follow, gradients, made_twice, two_streams
from engine.samples import assert_close
from torch import Tensor, nn

import revgraph as rg

ROWS, WIDTH, DEPTH = 400, 8, 6


def streams() -> tuple[Tensor, Tensor]:
    return two_streams(ROWS, WIDTH, dtype=torch.float32)


class Choosing(nn.Module):
    """A gate whose rows are nearly the same, so that rounding decides; subclasses say what follows from it.

    The gate is not trained: nothing of it is saved, and these tests are about drift alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        rows = torch.randn(1, WIDTH) + 1e-6 * torch.randn(4, WIDTH)
        self.register_buffer("gate", rows)

    def scores(self, x: Tensor) -> Tensor:
        return x.detach() @ self.gate.t()

    def choice(self, x: Tensor) -> Tensor:
        return self.scores(x).argmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class RowsOfExperts(Choosing):
    """Each expert gets its rows: shapes depend on the choice."""

    def forward(self, x: Tensor) -> Tensor:
        choice, y = self.choice(x), torch.zeros_like(x)
        for index, expert in enumerate((self.one, self.two)):
            rows = (choice % 2 == index).nonzero()[:, 0]
            y = y.index_add(0, rows, torch.tanh(expert(x[rows])))
        return y


class BooleanIndex(Choosing):
    def forward(self, x: Tensor) -> Tensor:
        mask = self.choice(x) > 1
        y = torch.tanh(self.one(x))
        return y.masked_scatter(mask.unsqueeze(-1), torch.sin(self.two(x[mask])))


class Sorted(Choosing):
    """Rows put in order of expert, with a split at counts."""

    def forward(self, x: Tensor) -> Tensor:
        choice = self.choice(x) % 2
        order = choice.argsort(stable=True)
        first, second = x[order].split([int((choice == 0).sum()), int((choice == 1).sum())])
        y = torch.cat([torch.tanh(self.one(first)), torch.sin(self.two(second))])
        return torch.empty_like(y).index_copy(0, order, y)


class Masked(Choosing):
    """The choice is a mask; every shape is the same."""

    def forward(self, x: Tensor) -> Tensor:
        mask = (self.choice(x) > 1).unsqueeze(-1)
        return torch.where(mask, torch.tanh(self.one(x)), torch.sin(3 * self.two(x)))


class Topk(Choosing):
    def forward(self, x: Tensor) -> Tensor:
        _, best = self.scores(x).topk(2, -1)
        y = torch.cat([torch.tanh(self.one(x)), torch.sin(self.two(x))], -1)
        return y.gather(-1, torch.cat([best, best + 4, best, best + 8], -1))


class Rounded(Choosing):
    """Quantizes a difference that is all rounding, straight through."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores(x)
        sign = torch.sign(scores[:, :1] - scores[:, 1:2])
        return torch.tanh(self.one(x) * (1.5 + sign))


SHAPES: tuple[type[Choosing], ...] = (RowsOfExperts, BooleanIndex, Sorted)
VALUES: tuple[type[Choosing], ...] = (Masked, Topk, Rounded)


def undone(model: Any, a: Tensor, b: Tensor) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """Each function with what it reads in the forward and when the forward is undone by hand."""
    with torch.no_grad():
        read = []
        for f in model.fs:
            read.append(b)
            a, b = b, a + f(b)
        for f, before in zip(reversed(model.fs), reversed(read), strict=True):
            a, b = b - f(a), a
            yield f, before, b


def flips(model: nn.Module, a: Tensor, b: Tensor) -> int:
    """How many choices are others when the forward is undone by hand."""
    return sum(int((f.choice(x) != f.choice(again)).sum()) for f, x, again in undone(model, a, b))


@contextmanager
def right_or_drift(*names: str) -> Iterator[None]:
    """The block passes, or the error says that values drifted, at which node, and all three ways out."""
    try:
        yield
    except rg.RevgraphError as error:
        text = str(error)
        assert re.search("(?i)drift", text), f"says nothing of drift: {text}"
        assert any(name in text for name in names), f"names no node: {text}"
        for way in ("keep", "anchor", "exact"):
            assert re.search(rf"(?i)\b{way}", text), f"does not say {way!r}: {text}"
        assert "deterministic" not in text


def inverted(model: nn.Module, *inputs: Tensor, **options: Any) -> rg.ReversibleModule:
    net = rg.trace(model, *inputs, **options)
    net.plan = rg.decide(net.graph, {})
    return net


def error_of(found: list[Any], expected: list[Any]) -> float:
    pairs = [(one, two) for one, two in zip(found, expected, strict=True) if two is not None]
    return max(float((one - two).abs().max() / two.abs().max()) for one, two in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True], ids=["first", "late"])
@pytest.mark.parametrize("function", SHAPES)
def test_a_choice_of_shapes_that_flips_is_called_drift(function: type[Choosing], late: bool) -> None:
    model, plain = made_twice(lambda: Weave(function, DEPTH), None)
    a, b = streams()
    assert flips(plain, a, b) > 0
    net = inverted(model, a, b)
    if late:  # a single row may well be no tie
        calm = [x[:1] for x in streams()]
        for _ in range(12):
            gradients(net, model, *calm)
    with right_or_drift("'fs."):
        assert_close(gradients(net, model, a, b), gradients(plain, plain, a, b), 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("function", SHAPES + VALUES)
def test_checking_reports_a_flip_and_does_not_fail(function: type[Choosing]) -> None:
    model, plain = made_twice(lambda: Weave(function, DEPTH), None)
    a, b = streams()
    assert flips(plain, a, b) > 0
    report = rg.check(inverted(model, a, b), a, b)
    assert report.drift and max(report.drift.values()) > 0
    assert any(name in str(report) for name in report.drift)


@pytest.mark.slow
@pytest.mark.parametrize("function", VALUES)
def test_checking_sees_what_a_flip_does_to_the_gradient(function: type[Choosing]) -> None:
    model, plain = made_twice(lambda: Weave(function, DEPTH), None)
    a, b = streams()
    net = inverted(model, a, b)
    with right_or_drift("'fs."):
        error = error_of(gradients(net, model, a, b), gradients(plain, plain, a, b))
        assert error < 1e-3 or rg.check(net, a, b).max_relative_error > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("function", SHAPES + VALUES)
def test_anchors_cure_a_flip(function: type[Choosing]) -> None:
    model, plain = made_twice(lambda: Weave(function, DEPTH), None)
    inputs = streams()
    net = rg.trace(model, *inputs)
    outputs = [node.outputs[0] for node in net.graph.nodes if node.kind == "coupling"]
    net.plan = rg.decide(net.graph, {}, anchors=outputs)
    follow(net, plain, inputs, 9, tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("function", SHAPES + VALUES)
def test_keeping_the_choosing_nodes_cures_a_flip(function: type[Choosing]) -> None:
    def make() -> nn.Module:
        turns = iter([function, smooth] * DEPTH)
        return Weave(lambda: next(turns)(), DEPTH)

    model, plain = made_twice(make, None)
    inputs = streams()
    net = rg.trace(model, *inputs)
    choosing = [
        node.name
        for node in net.graph.nodes
        if node.kind == "coupling" and isinstance(model.get_submodule(node.module), Choosing)
    ]
    assert len(choosing) == DEPTH // 2
    net.plan = rg.decide(net.graph, dict.fromkeys(choosing, "keep"))
    follow(net, plain, inputs, 9, tolerance=1e-4)


class OnAGrid(nn.Module):
    """What exact mode says it does: streams and terms rounded to a grid, with gradients straight through."""

    def __init__(self, weave: nn.Module) -> None:
        super().__init__()
        self.fs: Any = weave.fs

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, b = rounded(a), rounded(b)
        for f in self.fs:
            a, b = b, a + rounded(f(b))
        return a, b


def rounded(x: Tensor) -> Tensor:
    return (x - x.detach()) + (torch.round(x.detach() * 2**14) / 2**14)


@pytest.mark.slow
@pytest.mark.parametrize("function", SHAPES + VALUES)
def test_exact_mode_cures_a_flip(function: type[Choosing]) -> None:
    model, plain = made_twice(lambda: Weave(function, DEPTH), None)
    a, b = streams()
    net = inverted(model, a, b, exact=True)
    oracle = OnAGrid(plain)
    for seed in range(3):
        assert_close(gradients(net, model, a, b, seed=seed), gradients(oracle, plain, a, b, seed=seed), 1e-5)
    assert rg.check(net, a, b).max_relative_error < 1e-5


def test_a_function_that_is_not_deterministic_is_not_called_drift() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.generator = nn.Linear(WIDTH, WIDTH), torch.Generator()

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.linear(x) * torch.rand(WIDTH, generator=self.generator))

    a, b = streams()
    torch.manual_seed(0)
    net = inverted(Weave(Changing), a, b)
    with pytest.raises(rg.ReplayError, match="deterministic") as caught:
        sum(net(a, b)).sum().backward()
    assert "drift" not in str(caught.value).lower()


# Kinks: a stream with columns of exact zeros in front of a ReLU, as behind a layer that begins at zero.


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())


class Kinked(nn.Module):
    def __init__(self, kink: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.kink = nn.Linear(WIDTH, WIDTH), kink

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.linear(self.kink(x))


class Padded(nn.Module):
    """A stream whose last columns are exactly zero where a kinked function reads it, and filled later."""

    def __init__(self, kink: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.kinked = nn.Linear(WIDTH, WIDTH), Kinked(kink)
        self.others = nn.ModuleList(smooth() for _ in range(4))
        with torch.no_grad():
            self.stem.weight[WIDTH // 2 :] = 0
            self.stem.bias[WIDTH // 2 :] = 0

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a = self.stem(a)
        b = b + self.kinked(a)
        for f, g in zip(self.others[::2], self.others[1::2], strict=True):
            a = a + f(b)
            b = b + g(a)
        return a, b


KINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(min=0),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
}


def off_the_kink(model: Any, a: Tensor, b: Tensor) -> bool:
    """Whether columns that are zero in the forward come back as something else by hand."""
    with torch.no_grad():
        a = model.stem(a)
        x, y = a, b + model.kinked(a)
        for f, g in zip(model.others[::2], model.others[1::2], strict=True):
            x = x + f(y)
            y = y + g(x)
        for f, g in reversed(list(zip(model.others[::2], model.others[1::2], strict=True))):
            y = y - g(x)
            x = x - f(y)
        return bool((x[:, WIDTH // 2 :] != 0).any())


@pytest.fixture(params=KINKS)
def kinked(request: pytest.FixtureRequest) -> tuple[Any, nn.Module, tuple[Tensor, Tensor]]:
    model, plain = made_twice(lambda: Padded(KINKS[request.param]), None)
    inputs = streams()
    assert off_the_kink(plain, *inputs)
    return inverted(model, *inputs), plain, inputs


@pytest.mark.slow
def test_checking_shows_a_kink_and_where(kinked: Any) -> None:
    net, plain, inputs = kinked
    with right_or_drift("kinked"):
        error = error_of(gradients(net, net, *inputs), gradients(plain, plain, *inputs))
        report = rg.check(net, *inputs)
        assert error < 1e-3 or report.max_relative_error > 1e-3
        assert error < 1e-3 or "kinked" in str(report) or "stem" in str(report)


@pytest.mark.slow
def test_watching_warns_of_a_kink_by_name(kinked: Any) -> None:
    net, plain, inputs = kinked
    net.watch_drift(every=1)
    with right_or_drift("kinked"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = gradients(net, net, *inputs)
        expected = gradients(plain, plain, *inputs)
        told = [str(each.message) for each in caught if issubclass(each.category, rg.DriftWarning)]
        assert error_of(found, expected) < 1e-3 or any("kinked" in text or "stem" in text for text in told)


@pytest.mark.slow
def test_anchors_cure_a_kink(kinked: Any) -> None:
    net, plain, inputs = kinked
    node = next(node for node in net.graph.nodes if node.name == "kinked")
    read = next(name for name in node.inputs if name != node.target)
    net.plan = rg.decide(net.graph, {}, anchors=[read])
    for _ in range(9):
        assert_close(gradients(net, net, *inputs), gradients(plain, plain, *inputs), 1e-4)


@pytest.mark.slow
def test_keeping_the_node_cures_a_kink(kinked: Any) -> None:
    net, plain, inputs = kinked
    net.plan = rg.decide(net.graph, {"kinked": "keep"})
    for _ in range(9):
        assert_close(gradients(net, net, *inputs), gradients(plain, plain, *inputs), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINKS)
def test_exact_mode_cures_a_kink(name: str) -> None:
    class Oracle(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            a, b = rounded(self.model.stem(a)), rounded(b)
            b = b + rounded(self.model.kinked(a))
            for f, g in zip(self.model.others[::2], self.model.others[1::2], strict=True):
                a = a + rounded(f(b))
                b = b + rounded(g(a))
            return a, b

    model, plain = made_twice(lambda: Padded(KINKS[name]), None)
    inputs = streams()
    net = inverted(model, *inputs, exact=True)
    assert_close(gradients(net, model, *inputs), gradients(Oracle(plain), plain, *inputs), 1e-5)


def test_watching_warns_of_ordinary_drift_by_name() -> None:
    def steep() -> nn.Module:
        f = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        for parameter in f.parameters():
            parameter.data *= 2.5
        return f

    torch.manual_seed(0)
    a, b = streams()
    net = inverted(Weave(steep, 40), a, b)
    net.watch_drift(every=1)
    with pytest.warns(rg.DriftWarning, match=r"'fs\.\d+'") as told:
        sum(net(a, b)).sum().backward()
    assert told[0].filename == __file__
