"""What `rg.check` and `net.watch_drift` say of flipped choices, kinks and drift: what, and where."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from engine.kinds import Weave, made_twice, two_streams
from torch import Tensor, nn

import revgraph as rg

ROWS, WIDTH = 400, 8


def streams() -> tuple[Tensor, Tensor]:
    return two_streams(ROWS, WIDTH, dtype=torch.float32)


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())


class Levelled(nn.Module):
    """One tied function between smooth ones, on a stream whose last columns are one number in the forward."""

    def __init__(self, kink: Callable[[Tensor], Tensor], level: float) -> None:
        super().__init__()
        self.stem, self.linear, self.kink = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), kink
        self.others = nn.ModuleList(smooth() for _ in range(4))
        with torch.no_grad():
            self.stem.weight[WIDTH // 2 :] = 0
            self.stem.bias[WIDTH // 2 :] = level

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a = self.stem(a)
        b = b + 0.5 * self.linear(self.kink(a))
        for f, g in zip(self.others[::2], self.others[1::2], strict=True):
            a = a + f(b)
            b = b + g(a)
        return a, b


def level_net(kink: Callable[[Tensor], Tensor], level: float) -> rg.ReversibleModule:
    model, _ = made_twice(lambda: Levelled(kink, level), None)
    return inverted(model)


def inverted(model: nn.Module) -> rg.ReversibleModule:
    net = rg.trace(model, *streams())
    net.plan = rg.decide(net.graph, {})
    return net


def tied_node(net: rg.ReversibleModule) -> str:
    """The node of a `Levelled` that runs its tied function."""
    return next(node.name for node in net.graph.nodes if "linear" in node.expression + node.module)


@contextmanager
def warned() -> Iterator[list[str]]:
    told: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield told
    told += [str(each.message) for each in caught if issubclass(each.category, rg.DriftWarning)]


TIES: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "relu": (torch.relu, 0.0),
    "relu in place": (lambda x: torch.relu_(x.clone()), 0.0),
    "relu6": (nn.functional.relu6, 0.0),
    "leaky relu": (nn.functional.leaky_relu, 0.0),
    "prelu": (lambda x: nn.functional.prelu(x, torch.tensor([0.25])), 0.0),
    "threshold": (lambda x: nn.functional.threshold(x, 0.0, 0.0), 0.0),
    "abs": (torch.abs, 0.0),
    "minimum": (lambda x: torch.minimum(x, torch.zeros_like(x)), 0.0),
    "where": (lambda x: torch.where(x > 0, x, -2 * x), 0.0),
    "masked": (lambda x: x.masked_fill(x <= 0, 0.0), 0.0),
    "largest of a window": (lambda x: nn.functional.max_pool1d(x[:, None], 2).squeeze(1).repeat(1, 2), 0.5),
    "sorted": (lambda x: x.sort(-1)[0] * torch.arange(WIDTH), 0.5),
}
# Kinks away from zero and jumps leave no trace among signs and indices: only gradients show them.
HIDDEN: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "clamp at one": (lambda x: x.clamp(max=0.5), 0.5),
    "maximum of two": (lambda x: torch.maximum(x, torch.full_like(x, 0.5)), 0.5),
    "rounding": (lambda x: x * (1.5 + torch.sign(x.detach() - 0.5)), 0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TIES | HIDDEN)
def test_checking_calls_a_tie_flipped_and_names_its_node(name: str) -> None:
    net = level_net(*(TIES | HIDDEN)[name])
    report = rg.check(net, *streams())
    node = tied_node(net)
    assert max(report.drift.values()) > 0
    assert (report.verdict, report.begins_at) == ("flipped", node)
    assert report.flips[node] > 0
    for told in (f"'{node}'", "keep", "anchors", "exact"):
        assert told in str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIES)
def test_watching_warns_of_a_tie_by_name(name: str) -> None:
    net = level_net(*TIES[name])
    net.watch_drift(every=2)
    for step in range(4):
        with warned() as told:
            sum(net(*streams())).sum().backward()
        assert len(told) == (step % 2 == 0)
        for text in told:
            for part in (f"'{tied_node(net)}'", "keep", "anchor", "exact"):
                assert part in text


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.0, 0.5])
@pytest.mark.parametrize("name", ["tanh", "gelu", "clamp elsewhere", "relu elsewhere", "compared elsewhere"])
def test_zeros_that_come_back_as_nearly_zero_are_no_alarm_without_a_kink(name: str, level: float) -> None:
    kinks: dict[str, Callable[[Tensor], Tensor]] = {
        "tanh": torch.tanh,
        "gelu": nn.functional.gelu,
        "clamp elsewhere": lambda x: x.clamp(-3, 3),
        "relu elsewhere": lambda x: torch.relu(x + 1),
        "compared elsewhere": lambda x: torch.where(x > -0.25, x, -x),
    }
    net = level_net(kinks[name], level)
    report = rg.check(net, *streams())
    assert max(report.drift.values()) > 0
    assert (report.verdict, report.begins_at) == ("good", None)
    net.watch_drift(every=1)
    with warned() as told:
        sum(net(*streams())).sum().backward()
    assert told == []


class Router(nn.Module):
    """A gate whose rows are nearly the same; what it chooses is taken by index, mask or rows."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.one, self.two, self.way = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), way
        self.register_buffer("gate", torch.randn(1, WIDTH) + 1e-7 * torch.randn(2, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        choice = (x.detach() @ self.gate.t()).argmax(-1, keepdim=True)
        one, two = torch.tanh(self.one(x)), torch.sin(3 * self.two(x))
        if self.way == "index":
            return torch.stack([one, two], -1).gather(-1, choice[..., None].expand(-1, WIDTH, 1))[..., 0]
        if self.way == "mask":
            return torch.where(choice > 0, one, two)
        rows = choice[:, 0].nonzero()[:, 0]
        return one.index_add(0, rows, torch.sin(3 * self.two(x[rows])))


@pytest.mark.parametrize("way", ["index", "mask", "rows"])
def test_a_router_near_ties_is_called_flipped(way: str) -> None:
    turns = iter([smooth(), Router(way)] * 2)
    torch.manual_seed(0)
    net = inverted(Weave(lambda: next(turns), 4))
    report = rg.check(net, *streams())
    assert report.verdict == "flipped" and report.begins_at in ("fs.1", "fs.3")
    assert all(name in ("fs.1", "fs.3") for name in report.flips)
    if way == "rows":
        assert report.max_relative_error == float("inf") and report.angle_degrees != report.angle_degrees
    net.watch_drift(every=1)
    if way != "rows":
        with warned() as told:
            sum(net(*streams())).sum().backward()
        assert any("flipped choices in node 'fs." in text for text in told)


@pytest.mark.slow
@pytest.mark.parametrize("kink", [nn.ReLU, nn.SiLU])
def test_growing_errors_are_called_drifted_kinks_or_not(kink: Callable[[], nn.Module]) -> None:
    def steep() -> nn.Module:
        f = nn.Sequential(nn.Linear(WIDTH, WIDTH), kink(), nn.Linear(WIDTH, WIDTH))
        for parameter in f.parameters():
            parameter.data *= 2.5
        return f

    torch.manual_seed(0)
    report = rg.check(inverted(Weave(steep, 40)), *streams())
    assert report.verdict == "drifted"
    assert report.begins_at is not None and report.begins_at.startswith("fs.")
    assert f"'{report.begins_at}'" in str(report) and "max_drift" in str(report)


def test_a_good_report_gives_no_advice() -> None:
    torch.manual_seed(0)
    report = rg.check(inverted(Weave(smooth, 4)), *streams())
    assert report.verdict == "good" and report.begins_at is None and not report.flips
    assert str(report).endswith("verdict: good") and report.advice == ""


def test_a_wrong_gradient_that_drift_does_not_explain_is_called_wrong() -> None:
    report = rg.GradientReport(0.5, 3.0, {"x": 0.0}, begins_at="f")
    assert report.verdict == "wrong"
    assert "'f'" in report.advice and "deterministic" in report.advice
    assert rg.GradientReport(float("nan"), 3.0, {}).verdict == "wrong"


def test_checking_leaves_no_hook_on_what_it_was_given() -> None:
    net, inputs = inverted(Weave(smooth, 4)), streams()
    rg.check(net, *inputs)
    assert not any(leaf._backward_hooks for leaf in (*inputs, *net.parameters()))


def test_bfloat16_inside_is_measured_by_its_own_rounding() -> None:
    torch.manual_seed(0)
    net = inverted(Weave(smooth, 4))
    with torch.autocast("cpu", torch.bfloat16):
        report: Any = rg.check(net, *streams())
    assert report.limit > 1e-2 and report.verdict == "good"
