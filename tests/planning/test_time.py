"""Cost in time: device profiles, the work of nodes, and plans that are chosen by them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine.samples import Chain, batch, dropping, mlp, normed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import revgraph as rg
from revgraph.planning import GENERIC
from revgraph.planning.deciding import finished

FREE = {"_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "zeros"}


class Counting(TorchDispatchMode):
    """Operators that run, but for views, and the bytes of the elements that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and name not in FREE and func.namespace == "aten":
            self.operators[name] += 1
            tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor)]
            self.moved += sum(each.numel() * each.element_size() for each in tensors)
        return result


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [mlp(), normed(), nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 4))],
    ids=["mlp", "normed", "feed-forward"],
)
def test_work_of_a_forward_is_what_torch_dispatches(model: nn.Module) -> None:
    x = torch.randn(3, 4, dtype=torch.float32)
    model = model.float()
    net = rg.trace(model, x)
    counting = Counting()
    with counting:
        model(x.requires_grad_())
    work = [node.cost.courses["keep"].forward_work for node in net.graph.planned]
    assert sum(each.operators for each in work) == counting.operators.total()
    assert sum(each.moved_bytes for each in work) == counting.moved


@pytest.fixture(scope="module")
def net() -> rg.ReversibleModule:
    return rg.trace(Chain(depth=4, f=normed).double(), batch())


@pytest.mark.slow
def test_ordinary_autograd_is_the_measure_of_time(net: rg.ReversibleModule) -> None:
    for profile in rg.PROFILES.values():
        kept = rg.keep_all(net.graph, profile)
        assert kept.time_ratio == kept.flops_ratio == 1.0
        assert kept.ordinary_bytes == kept.peak_bytes
    plan = rg.plan(net.graph, "least")
    assert plan.ordinary_bytes == rg.keep_all(net.graph).peak_bytes > plan.peak_bytes
    assert plan.time_ratio > 1.0


def test_time_is_the_sum_of_what_runs(net: rg.ReversibleModule) -> None:
    """By a profile with one rate at a time: work of the step's instructions, and a constant a replay."""
    plan = rg.plan(net.graph, "50%")
    kept = rg.keep_all(net.graph)
    counted = replace(GENERIC, bytes_per_second=1e18, flops_per_second=1e18, seconds_per_operator=1e-3)
    for profile in (
        replace(counted, seconds_per_replay=0.0),
        replace(counted, seconds_per_replay=5e-3),
        replace(counted, seconds_per_operator=0.0, bytes_per_second=1e6, seconds_per_replay=0.0),
    ):
        timed, ordinary = (finished(each.noted(profile=profile)) for each in (plan, kept))
        seconds = [sum(moment.nanoseconds for moment in rg.simulate(each)) for each in (timed, ordinary)]
        assert timed.time_ratio == seconds[0] / seconds[1]
        assert timed.flops_ratio == plan.flops_ratio


@pytest.mark.slow
def test_time_and_flops_choose_differently_and_each_is_best_at_its_own() -> None:
    """Wide products beside cheap functions over many bytes: FLOPs do not see the latter."""
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.GELU(), nn.LayerNorm(64)) for _ in range(8))
    )
    graph = rg.trace(model, torch.randn(256, 64)).graph
    for share in ("40%", "60%", "80%"):
        by_time, by_flops = rg.plan(graph, share), rg.plan(graph, share, cost="flops")
        assert (by_time.cost, by_flops.cost) == ("time", "flops")
        assert by_time.time_ratio <= by_flops.time_ratio
        assert by_flops.flops_ratio <= by_time.flops_ratio
    assert by_flops.flops_ratio == 1.0 < by_time.time_ratio < by_flops.time_ratio


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    rate=st.floats(1e9, 1e15),
    bandwidth=st.floats(1e9, 1e13),
    overhead=st.floats(0, 1e-4),
    constant=st.floats(0, 1e-3),
)
def test_cost_falls_and_never_rises_with_the_budget_by_any_profile(
    rate: float, bandwidth: float, overhead: float, constant: float
) -> None:
    graph = rg.trace(Chain(depth=2, f=dropping).double(), batch()).graph
    profile = rg.DeviceProfile("random", rate, bandwidth, overhead, constant)
    plans = rg.frontier(graph, cost=profile, effort="quick")
    ratios = [plan.time_ratio for plan in plans]
    assert ratios == sorted(set(ratios), reverse=True) and ratios[-1] == 1.0
    for plan in plans:
        assert plan.profile == profile
        again = rg.plan(graph, plan.peak_bytes, cost=profile, effort="quick")
        assert again.time_ratio <= plan.time_ratio
        assert rg.Plan.from_json(plan.to_json()) == plan


@pytest.mark.slow
def test_profile_measures_every_node_and_leaves_the_net_alone() -> None:
    model = Chain(depth=2, f=lambda width: nn.Sequential(normed(width), dropping(width)))
    net = rg.trace(model.double(), batch())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.random.get_rng_state()
    found = rg.profile(net, batch(), repeats=2)
    assert {name for name, *_ in found.nodes} == {node.name for node in net.graph.nodes if node.cost.courses}
    seconds = {name: both for name, *both in found.nodes}
    assert all(min(seconds[node.name]) > 0 for node in net.graph.planned)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.slow
def test_a_slow_node_is_kept_where_a_profile_says_that_it_is_slow(net: rg.ReversibleModule) -> None:
    names = [node.name for node in net.graph.planned]
    for slow in names[1:-1]:
        nodes = tuple((name, 1.0 if name == slow else 1e-3, 1e-3) for name in names)
        plan = rg.plan(net.graph, "75%", cost=replace(GENERIC, name="one is slow", nodes=nodes))
        assert plan.decisions[slow] == "keep"


def test_a_profile_of_another_net_is_refused(net: rg.ReversibleModule) -> None:
    other = replace(GENERIC, name="theirs", nodes=(("ghost", 1.0, 1.0),))
    with pytest.raises(
        rg.PlanError, match="profile 'theirs' is of another net: it has measured node 'ghost'"
    ):
        rg.plan(net.graph, cost=other)
    with pytest.raises(
        rg.PlanError, match=r"input 'input' has the shape \(5, 4\), and the graph is made for"
    ):
        rg.profile(rg.trace(nn.Linear(4, 4), torch.ones(3, 4)), torch.ones(5, 4))
    with pytest.raises(rg.PlanError, match="repeats is a whole number above 0"):
        rg.profile(net, batch(), repeats=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flops_per_second": 0.0}, "flops_per_second of profile 'generic' is 0.0: a rate is a number"),
        ({"flops_per_second": "fast"}, "flops_per_second of profile 'generic' is 'fast': a rate is a number"),
        ({"seconds_per_replay": None}, "seconds_per_replay of profile 'generic' is None"),
        ({"bytes_per_second": float("nan")}, "bytes_per_second of profile 'generic' is nan"),
        ({"seconds_per_operator": -1.0}, "seconds_per_operator of profile 'generic' is -1.0"),
        ({"seconds_per_replay": float("inf")}, "seconds_per_replay of profile 'generic' is inf"),
        ({"nodes": (("f", -1.0, 0.0),)}, "a time of node 'f' of profile 'generic' is -1.0"),
    ],
)
def test_profiles_without_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(rg.PlanError, match=message):
        replace(GENERIC, **change)


@pytest.mark.parametrize("cost", ["speed", "", "A100", 3, None, ["time"]])
def test_unknown_costs_are_refused_and_the_known_ones_named(net: rg.ReversibleModule, cost: Any) -> None:
    with pytest.raises(rg.PlanError, match=r"is no cost; costs are 'time', 'flops', .*'a100'"):
        rg.plan(net.graph, cost=cost)


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data["profile"].pop("name"),
        lambda data: data["profile"].update(name=3),
        lambda data: data["profile"].update(flops_per_second="fast"),
        lambda data: data["profile"].update(nodes=[["f", 1.0]]),
        lambda data: data["profile"].update(bytes_per_second=GENERIC.bytes_per_second / 2),
        lambda data: data.update(time_ratio=data["time_ratio"] * 2),
        lambda data: data.update(cost="money"),
        lambda data: data.update(ordinary_bytes=1),
    ],
)
def test_plan_files_with_another_profile_are_refused(net: rg.ReversibleModule, edit: Any) -> None:
    data = json.loads(rg.plan(net.graph, "50%").to_json())
    edit(data)
    with pytest.raises(rg.PlanError):
        rg.Plan.from_json(json.dumps(data))
