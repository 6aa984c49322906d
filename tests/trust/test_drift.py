"""Drift: seen, warned of while training, and bounded by anchors."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import revgraph as rg
from revgraph.cli.app import app
from revgraph.planning.drifting import drift_of

BLOCKS = 64
CHAIN = """
inputs: {x: [32]}
layers:
  - streams: {Split: 2, out: [x1, x2]}
  - block:
      repeat: 64
      layers:
        - mix: {Additive: {f: {Doubled: 16}, g: {Doubled: 16}}, in: [x1, x2], out: [x1, x2]}
  - joined: {Concatenate: {}, in: [x1, x2]}
"""


class Chain(nn.Module):
    """The chain of blocks on which reversible libraries go wrong once its weights are doubled."""

    def __init__(self, blocks: int, gain: float, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f, self.g = (nn.ModuleList(_function(width) for _ in range(blocks)) for _ in range(2))
        with torch.no_grad():
            for weight in self.parameters():
                weight *= gain

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        for f, g in zip(self.f, self.g, strict=True):
            x1 = x1 + f(x2)
            x2 = x2 + g(x1)
        return torch.cat([x1, x2], 1)


def _function(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def streams() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 16, generator=generator), torch.randn(8, 16, generator=generator)


@pytest.fixture(scope="module")
def doubled() -> rg.ReversibleModule:
    net = rg.trace(Chain(BLOCKS, gain=2), *streams())
    net.plan = rg.decide(net.graph, {})
    return net


@pytest.mark.slow
def test_check_sees_the_drift_of_doubled_weights(doubled: rg.ReversibleModule) -> None:
    doubled.plan = rg.decide(doubled.graph, {})
    report = rg.check(doubled, *streams())
    assert max(report.drift.values()) > 1
    assert report.angle_degrees > 1
    single = rg.trace(Chain(8, gain=1), *streams())
    single.plan = rg.decide(single.graph, {})
    assert max(rg.check(single, *streams()).drift.values()) < 1e-5


@pytest.mark.slow
def test_max_drift_bounds_the_error_of_the_gradient(doubled: rg.ReversibleModule) -> None:
    """Within 1e-2 of plain autograd, by the bytes that the plan says."""
    graph = rg.estimate_drift(doubled, *streams())
    plan = doubled.plan = rg.plan(graph, max_drift=1e-3)
    report = rg.check(doubled, *streams())
    assert report.max_relative_error < 1e-2
    assert max(report.drift.values()) < 1e-2
    assert 0 < len(plan.anchors) < 2 * BLOCKS
    assert plan.anchor_bytes == sum(graph.value[name].nbytes for name in plan.anchors if name in plan.stored)
    hold = "holds" if len(plan.anchors) == 1 else "hold"
    assert any(
        line.split()[:3] == ["anchors", f"{len(plan.anchors)}", hold] for line in plan.summary().splitlines()
    )
    assert plan.peak_bytes < rg.keep_all(graph).peak_bytes
    inputs = streams()
    reference = copy.deepcopy(doubled._model)
    doubled(*inputs).square().mean().backward()
    reference(*inputs).square().mean().backward()
    for found, expected in zip(doubled.parameters(), reference.parameters(), strict=True):
        assert found.grad is not None
        assert expected.grad is not None
        error = (found.grad - expected.grad).abs().max() / expected.grad.abs().max()
        assert error < 1e-2


@pytest.mark.slow
def test_a_smaller_bound_takes_more_anchors(doubled: rg.ReversibleModule) -> None:
    graph = rg.estimate_drift(doubled, *streams())
    counts = []
    for bound in (1e-1, 1e-3, 1e-5):
        plan = rg.plan(graph, max_drift=bound, effort="quick")
        assert max(drift_of(plan).values()) <= bound
        counts.append(len(plan.anchors))
    assert counts[0] < counts[1] < counts[2]


@pytest.mark.slow
def test_a_net_that_hardly_drifts_takes_no_anchor() -> None:
    net = rg.trace(Chain(4, gain=0.5), *streams())
    plan = rg.plan(rg.estimate_drift(net, *streams()), max_drift=1e-3)
    assert plan.anchors == ()
    assert "anchor" not in str(plan)


@pytest.mark.slow
def test_max_drift_and_a_budget_together(doubled: rg.ReversibleModule) -> None:
    graph = rg.estimate_drift(doubled, *streams())
    free = rg.plan(graph, max_drift=1e-3)
    plan = rg.plan(graph, budget=2 * free.peak_bytes, max_drift=1e-3)
    assert plan.peak_bytes <= 2 * free.peak_bytes
    assert max(drift_of(plan).values()) <= 1e-3
    with pytest.raises(rg.BudgetError):
        rg.plan(graph, budget=1000, max_drift=1e-3)


@pytest.mark.parametrize("bound", [0, -1.0, float("nan"), float("inf"), "1e-3", True])
def test_a_bound_that_is_none_is_refused(doubled: rg.ReversibleModule, bound: Any) -> None:
    with pytest.raises(rg.PlanError, match="max_drift is a relative error above 0"):
        rg.plan(doubled.graph, max_drift=bound)


def test_bounding_unmeasured_drift_is_refused() -> None:
    net = rg.trace(Chain(2, gain=1), *streams())
    with pytest.raises(rg.PlanError, match=r"'f.0' was never measured: call revgraph.estimate_drift"):
        rg.plan(net.graph, max_drift=1e-3)


def test_estimating_leaves_the_net_as_it_was_and_goes_through_json() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + self.f(y)

    inputs = torch.randn(6, 4), torch.randn(6, 4)
    net = rg.trace(Block(), *inputs)
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    graph = rg.estimate_drift(net, *inputs)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert net.plan.graph == graph == rg.Graph.from_json(graph.to_json())
    net.plan = rg.plan(graph)
    other = rg.trace(nn.Linear(4, 4), inputs[0])
    with pytest.raises(rg.PlanError, match="not the net's own with other costs"):
        other.adopt(graph)


def test_growth_is_that_of_a_linear_function() -> None:
    """Undoing x = y - a*o from errors e on both gives errors of up to (1 + a) e on values of size 1."""

    class Linear(nn.Module):
        def forward(self, x: Tensor, o: Tensor) -> Tensor:
            return x + 30 * o

    x, o = torch.ones(1000), torch.ones(1000).requires_grad_()
    net = rg.trace(Linear(), x, o)
    (node,) = [each for each in rg.estimate_drift(net, x, o).nodes if each.kind == "coupling"]
    assert node.cost.growth == pytest.approx(61, rel=0.1)  # y is 31, so its error is 31 e
    assert 0 <= node.cost.rounding < 1e-5


def test_watching_warns_while_training_and_names_the_node(doubled: rg.ReversibleModule) -> None:
    doubled.plan = rg.decide(doubled.graph, {})
    doubled.watch_drift(every=2)
    try:
        for step in range(4):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                doubled(*streams()).square().mean().backward()
            messages = [str(each.message) for each in caught if each.category is rg.DriftWarning]
            assert len(messages) == (step % 2 == 0)
            if messages:
                assert "rebuilt by inverting node '" in messages[0]
                assert "max_drift" in messages[0]
    finally:
        doubled.stop_watching_drift()
    doubled(*streams()).square().mean().backward()


def test_watching_is_silent_where_nothing_drifts() -> None:
    net = rg.trace(Chain(8, gain=1), *streams())
    net.plan = rg.decide(net.graph, {})
    net.watch_drift(every=1)
    net(*streams()).square().mean().backward()
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(rg.PlanError, match="a whole number above 0"):
            net.watch_drift(every=wrong)  # pyright: ignore
    with pytest.raises(rg.PlanError, match="relative error above 0"):
        net.watch_drift(limit=0)


@pytest.mark.slow
def test_the_command_line_names_drift_by_its_exit_status(tmp_path: Path) -> None:
    rg.register("Doubled", _doubled)
    spec = tmp_path / "chain.yaml"
    spec.write_text(CHAIN)
    picture = tmp_path / "drift.svg"
    result = CliRunner().invoke(app, ["check", str(spec), "--json", "--chart", str(picture)])
    assert "drift of rebuilt values" in picture.read_text()
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert not found["good"]
    assert max(found["drift"].values()) > found["max_drift"]
    spec.write_text(CHAIN.replace("repeat: 64", "repeat: 2"))
    assert CliRunner().invoke(app, ["check", str(spec)]).exit_code == 0


def _doubled(width: int) -> nn.Module:
    function = _function(width)
    with torch.no_grad():
        for weight in function.parameters():
            weight *= 2
    return function


def test_half_precision_streams_are_refused_unless_asked_for() -> None:
    model = rg.Additive(nn.Linear(4, 4)).bfloat16()
    inputs = [torch.randn(3, 4, dtype=torch.bfloat16) for _ in range(2)]
    with pytest.raises(rg.TraceError, match=r"'f' changes .* bfloat16: .*half_streams=True"):
        rg.trace(model, *inputs)
    net = rg.trace(model, *inputs, half_streams=True)
    assert net(*inputs).dtype == torch.bfloat16


@pytest.mark.slow
def test_a_net_that_turns_to_half_precision_after_its_trace_is_refused_where_it_inverts() -> None:
    x = streams()
    half = x[0].bfloat16(), x[1].bfloat16()

    class Stemmed(Chain):
        def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
            return super().forward(torch.tanh(x1), torch.tanh(x2))  # no input is a stream

    for kind in (Chain, Stemmed):
        net = rg.trace(kind(2, 1.0), *x).bfloat16()
        net.plan = rg.decide(net.graph, {})
        with pytest.raises(rg.TraceError, match=r"'f\.0' .* bfloat16 .* was float32 .*half_streams=True"):
            net(*half)
        with torch.no_grad():
            assert net(*half).dtype == torch.bfloat16
        net.plan = rg.keep_all(net.graph)
        net(*half).sum().backward()
        permitted = rg.trace(kind(2, 1.0).bfloat16(), *half, half_streams=True)
        permitted.plan = rg.decide(permitted.graph, {})
        permitted(*half).sum().backward()
        permitted.half()(x[0].half(), x[1].half()).sum().backward()


def test_streams_stay_in_float32_under_autocast() -> None:
    """The stem's output, bfloat16 under autocast, begins two streams; what is rebuilt is accurate."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Linear(8, 32)
            self.chain = Chain(8, gain=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.chain(*self.stem(x).chunk(2, 1))

    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    net = rg.trace(Net(), x)
    net.plan = rg.decide(net.graph, {})
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype == torch.float32
        report = rg.check(net, x)
    assert max(report.drift.values()) < 1e-5
