"""Reruns: values that come back by running their node again, held or dropped as the plan says."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from engine.random_nets import BATCH, WIDTH, RandomNet, recipes
from engine.random_plans import heavy_operators, random_plan
from engine.samples import (
    Pair,
    assert_bitwise,
    assert_close,
    assert_same_buffers,
    batch,
    doubled,
    loss_of,
    mlp,
    step,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import revgraph as rg
from revgraph.planning import Source, deciding
from revgraph.planning.sources import sources_of
from revgraph.storages import StorageTracker

SETTINGS = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)


@pytest.fixture(autouse=True)
def without_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plan costs is for the planner's tests; these are about what the engine does with it."""
    monkeypatch.setattr(deciding, "finished", lambda plan: plan)


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Unit(rg.Boundary):
    """A boundary with a normalization and a dropout."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def line(depth: int, unit: Callable[[], nn.Module] = Unit) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(unit() for _ in range(depth)))


def everywhere(depth: int) -> dict[str, Any]:
    return {str(index): "recompute" for index in range(depth)}


def agrees(make: Callable[[], nn.Module], decisions: Any, *inputs: Tensor, **options: Any) -> rg.Measurement:
    """What a step measures, once its gradients and buffers are plain autograd's."""
    model, plain = doubled(make)
    net = rg.trace(model, *inputs)
    net.plan = rg.decide(net.graph, decisions, **options)
    for seed in range(2):
        torch.manual_seed(seed)
        found, after = step(net, model, *inputs), torch.get_rng_state()
        torch.manual_seed(seed)
        assert_close(found, step(plain, plain, *inputs))
        assert torch.equal(torch.get_rng_state(), after)
        assert_same_buffers(model, plain)
    return rg.measure(net, *inputs)


def calls(measured: rg.Measurement) -> list[int]:
    return list(measured.calls.values())


# Sources


def test_what_is_rerun_is_not_stored() -> None:
    model, _ = doubled(line(4))
    graph = rg.trace(model, batch(3, 4)).graph
    assert sources_of(graph, everywhere(4))[0] == ("0", "1", "2")
    stored, sources = sources_of(graph, everywhere(4), reruns=["0", "2"])
    assert stored == ("1",)
    assert sources["0"] == Source("recomputed", "0") and sources["2"] == Source("recomputed", "2")
    assert sources_of(graph, everywhere(4), reruns="0123")[0] == ()
    assert sources_of(graph, everywhere(4), anchors=["1"], reruns="0123")[0] == ("1",)


def test_inversion_and_wiring_go_before_reruns() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.pair, self.out = Unit(8), Pair(), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat(self.pair(*self.stem(x).chunk(2, 1)), 1))

    model, _ = doubled(Net)
    graph = rg.trace(model, batch(3, 8)).graph
    names = [node.name for node in graph.planned if node.name != "out"]
    plan = rg.decide(graph, {"stem": "recompute"}, stored=["cat"], reruns=names)
    assert plan.sources["chunk.1"] == Source("inverted", "pair.g")
    assert plan.sources["pair.g"] == Source("rewired", "cat")
    assert "stem" not in plan.sources
    plan = rg.decide(graph, {"stem": "recompute"}, reruns=names)
    assert plan.stored == ()
    assert plan.sources["chunk.1"] == Source("wired", "chunk")
    assert plan.sources["stem"] == Source("recomputed", "stem")


def test_stored_values_are_exactly_those_asked_for() -> None:
    model, _ = doubled(line(4))
    graph = rg.trace(model, batch(3, 4)).graph
    assert rg.decide(graph, everywhere(4), stored=["2", "1", "input"], reruns=["0"]).stored == ("1", "2")
    assert rg.decide(graph, {}, stored=["3"]).stored == ("3",)
    with pytest.raises(
        rg.PlanError, match=r"value '2' cannot come back for '3'.* recomputed: .*Store it, or rerun '2'"
    ):
        rg.decide(graph, everywhere(4), stored=["1"], reruns=["0"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stored": ["ghost"]}, "'ghost', to be stored, is no value"),
        ({"stored": ["1"], "anchors": ["1"]}, "give one of the two"),
        ({"reruns": ["ghost"]}, "no coupling or boundary named 'ghost'"),
        ({"reruns": ["3"]}, "'3' is kept, so it is never rerun"),
        ({"reruns": ["0"], "holds": {"ghost": "2"}}, "no coupling or boundary named 'ghost'"),
        ({"reruns": ["0"], "holds": {"0": "ghost"}}, "no coupling or boundary named 'ghost'"),
        ({"holds": {"0": "2"}}, "'0' cannot be held from the stage of '2', for it is not in reruns"),
        ({"reruns": ["1"], "holds": {"1": "0"}}, "'1' .* stage of '0', which is not before its own"),
        ({"reruns": ["1"], "holds": {"1": "1"}}, "'1' .* stage of '1', which is not before its own"),
        ({"reruns": ["1"], "holds": {"1": "3"}}, "nothing is derived there, for '3' is kept"),
        ({"reruns": "01", "holds": {"0": "1", "1": "2"}}, "for '1' is held itself, from that of '2'"),
        (
            {"reruns": ["0"], "holds": {"0": "2"}, "results": {"0": [0]}},
            "'0' is held .*: it has no use for kept results",
        ),
        ({"drops": {"ghost": ["1"]}}, "no coupling or boundary named 'ghost'"),
        ({"drops": {"2": ["ghost"]}}, "'ghost', to be dropped after '2', is no value"),
        ({"drops": {"2": ["input"]}}, "'input' cannot be dropped after '2', for it is stored"),
        ({"drops": {"2": ["1"]}}, "'1' cannot be dropped after '2', for it is stored"),
    ],
)
def test_names_that_fit_nothing_are_plan_errors(options: Any, message: str) -> None:
    model, _ = doubled(line(4))
    graph = rg.trace(model, batch(3, 4)).graph
    with pytest.raises(rg.PlanError, match=message):
        rg.decide(graph, {**everywhere(3), "3": "keep"}, **options)


# Schedules


def test_a_segment_is_run_once_more_and_held() -> None:
    reruns = ["0", "1", "3", "4"]
    holds = {"0": "2", "1": "2", "3": "5", "4": "5"}
    measured = agrees(line(6), everywhere(6), batch(3, 4), stored=["2"], reruns=reruns, holds=holds)
    assert calls(measured) == [2] * 6


def test_a_segment_that_is_not_held_is_run_again_for_each_node() -> None:
    options: Any = {"stored": [], "reruns": "0123"}
    measured = agrees(line(4), everywhere(4), batch(3, 4), **options)
    assert calls(measured) == [3, 3, 3, 2]  # once for what comes later, once for its own backward
    drops = {"3": ["0", "1"], "2": ["0"]}
    measured = agrees(line(4), everywhere(4), batch(3, 4), **options, drops=drops)
    assert calls(measured) == [5, 4, 3, 2]


def test_treeverse() -> None:
    """Eight nodes on two checkpoints that are made anew: the middle first, then quarters."""
    options: Any = {
        "stored": ["3"],
        "reruns": "012456",
        "drops": {"7": ["4"], "3": ["0"]},
        "holds": {"6": "7", "4": "5", "2": "3", "0": "1"},
    }
    measured = agrees(line(8), everywhere(8), batch(3, 4), **options)
    assert calls(measured) == [3, 3, 2, 2, 3, 3, 2, 2]


def test_a_normalization_that_is_run_many_times_counts_one_step() -> None:
    model, _ = doubled(line(4))
    net = rg.trace(model, batch(3, 4))
    drops = {"3": ["0", "1"], "2": ["0"]}
    net.plan = rg.decide(net.graph, everywhere(4), stored=[], reruns="0123", drops=drops)
    net(batch(3, 4)).sum().backward()
    assert [int(unit.inner[1].num_batches_tracked) for unit in model] == [1, 1, 1, 1]


def test_reruns_give_the_values_of_the_forward_bitwise() -> None:
    class Careful(rg.Boundary):
        """Takes another way without gradients, as torch's transformer layers do."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.linear(x)) if torch.is_grad_enabled() else x * 0.0

    torch.manual_seed(0)
    model = nn.Sequential(*(Careful() for _ in range(5)))
    x = torch.randn(3, 4, requires_grad=True)
    net = rg.trace(model, x)
    net.plan = rg.decide(net.graph, everywhere(5), stored=[], reruns="01234")
    found = []
    for run in (net, model):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(run(x))
        found.append(torch.autograd.grad(loss, [x, *model.parameters()]))
    assert_bitwise(*found)
    assert rg.check(net, x).drift == dict.fromkeys("0123", 0.0)


def test_an_inverted_node_that_is_run_again_too() -> None:
    class Net(nn.Module):
        """The second half-step's output is read later, and comes back from a stored input."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three, self.end = mlp(), mlp(), mlp(), Unit()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            x = x + self.one(y)
            z = x + self.two(y)
            return self.end(torch.tanh(y * 1.5) * self.three(z))

    inputs = (batch(3, 4, seed=1), batch(3, 4, seed=2))
    model, _ = doubled(Net)
    graph = rg.trace(model, *inputs).graph
    decisions: Any = {node.name: "recompute" for node in graph.planned if node.kind == "boundary"}
    reruns = [node.name for node in graph.planned]
    measured = agrees(Net, decisions, *inputs, stored=[], reruns=reruns)
    assert max(calls(measured)) > 2


def test_a_shared_condition_is_stored_until_its_last_rerun() -> None:
    """The sum reads its target in reruns alone, which no replay of its own counts."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.f, self.m, self.g, self.end = Unit(), mlp(), mlp(), mlp(), mlp()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            x = self.stem(x)
            a = x + self.f(y)
            b = torch.sin(self.m(x))
            return self.end(b * torch.cos(self.g(a)) + self.g(b))

    inputs = (batch(3, 4, seed=1), batch(3, 4, seed=2))
    model, _ = doubled(Net)
    graph = rg.trace(model, *inputs).graph
    decisions: Any = {node.name: "recompute" for node in graph.planned}
    reruns = [node.name for node in graph.planned if node.name != "stem"]
    drops = {
        node.name: [value.name for value in graph.values if value.name in reruns] for node in graph.planned
    }
    agrees(Net, decisions, *inputs, stored=["stem"], reruns=reruns, drops=drops)


@pytest.mark.slow
def test_what_wiring_gives_again_finds_its_stored_values() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fs = nn.Linear(4, 8), nn.ModuleList(Unit() for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            one, two = torch.tanh(self.stem(x)).chunk(2, 1)
            for f in self.fs:
                two = f(one * two)
            return two

    x = batch(3, 4)
    model, _ = doubled(Net)
    graph = rg.trace(model, x).graph
    decisions: Any = {node.name: "recompute" for node in graph.planned}
    joined = next(node for node in graph.nodes if node.kind == "wiring")
    keep = [name for name in graph.value if name not in joined.outputs]
    drops = {node.name: joined.outputs for node in graph.planned}
    agrees(Net, decisions, x, stored=keep, drops=drops)
    agrees(Net, decisions, x, stored=joined.inputs, reruns=list(decisions), drops=drops)


def test_drops_of_a_stage_without_a_replay_come_with_the_next() -> None:
    options: Any = {"stored": [], "reruns": "01234", "holds": {"4": "5"}}
    assert calls(agrees(line(6), everywhere(6), batch(3, 4), **options)) == [3, 3, 3, 3, 2, 2]
    options["drops"] = {"4": ["0", "1"]}
    assert calls(agrees(line(6), everywhere(6), batch(3, 4), **options)) == [4, 4, 3, 3, 2, 2]


# Memory


class Wide(rg.Boundary):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


def segments(depth: int, length: int) -> dict[str, Any]:
    """Every `length`-th output stored, and what is between run once more and held."""
    ends = [index for index in range(depth) if index % length == length - 1]
    held = {
        str(index): str(index // length * length + length - 1) for index in range(depth) if index not in ends
    }
    return {"stored": [str(index) for index in ends[:-1]], "reruns": list(held), "holds": held}


@pytest.mark.slow
def test_segments_hold_less_than_all_boundaries_recomputed(without_collector: None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(Wide() for _ in range(16)))
    x = torch.randn(64, 16, requires_grad=True)
    net = rg.trace(model, x)
    measured = []
    options: Any
    for options in ({}, segments(16, 4), {"stored": [], "reruns": everywhere(16)}):
        net.plan = rg.decide(net.graph, everywhere(16), **options)
        measured.append(rg.measure(net, x))
    held = [each.held_bytes for each in measured]
    assert held[0] - held[1] == 12 * x.nbytes and held[1] - held[2] == 3 * x.nbytes
    assert measured[1].peak_bytes < measured[0].peak_bytes
    assert measured[1].flops_ratio < 4 / 3


@pytest.mark.slow
@pytest.mark.parametrize("keeps", [True, False])
def test_reruns_leave_nothing_behind(keeps: bool, without_collector: None) -> None:
    model, _ = doubled(line(9))
    x = batch(3, 4)
    net = rg.trace(model, x)
    for options in (segments(9, 3), {"stored": [], "reruns": "012345678", "drops": {"8": ["1"], "5": ["2"]}}):
        net.plan = rg.decide(net.graph, everywhere(9), **options)
        with StorageTracker([x, *net.parameters(), *net.buffers()]) as tracker:
            loss = loss_of(net(x))
            before = tracker.live()
            first = torch.autograd.grad(loss, x, retain_graph=keeps)
            if keeps:
                assert tracker.live(without=first) == before
            del loss
            assert tracker.live(without=first) == 0


@pytest.mark.slow
def test_a_stored_value_goes_in_the_stage_of_its_own_reader(without_collector: None) -> None:
    """And before the backward there, though it was read by reruns in other stages before."""
    seen: list[int] = []

    class Looks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            seen.append(tracker.live())
            return grads[0]

    class Looking(rg.Boundary):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(Looks.apply(self.linear(torch.sin(x))))

    model = nn.Sequential(*(Looking() for _ in range(6)))
    x = torch.randn(64, 16, requires_grad=True)
    net = rg.trace(model, x)
    found = []
    options: Any
    for options in ({"stored": ["2"], "reruns": "0134"}, {}):
        net.plan = rg.decide(net.graph, everywhere(6), **options)
        seen.clear()
        net.zero_grad()
        x.grad = None
        with StorageTracker([x, *net.parameters()]) as tracker:
            net(x).sum().backward()
        found.append(list(seen))
    saved = [every - few for few, every in zip(*found, strict=True)]
    assert (
        saved == [2 * x.nbytes] * 3 + [0] * 3
    )  # 0 and 1, until they are rebuilt; 2 is gone for 2's backward


@pytest.mark.slow
def test_a_long_line_without_recursion() -> None:
    depth = 1500
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.Tanh()) for _ in range(3)))
    units = nn.Sequential(*(model[index % 3] for index in range(depth)))
    x = torch.randn(1, 2, requires_grad=True)
    net = rg.trace(units, x)
    every = {node.name: "recompute" for node in net.graph.planned}
    names = list(every)
    last = names[-1]
    net.plan = rg.decide(
        net.graph, every, stored=[], reruns=names[:-1], holds=dict.fromkeys(names[:-1], last)
    )
    found = torch.autograd.grad(net(x).sum(), [x, *model.parameters()])
    assert_close(found, torch.autograd.grad(units(x).sum(), [x, *model.parameters()]), tolerance=1e-5)


# Random graphs under random plans


def weighted(outputs: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([(output**2).sum() * (index + 1) for index, output in enumerate(outputs)]).sum()


def net_under_a_random_plan(
    recipe: Any, pick: random.Random
) -> tuple[rg.ReversibleModule, nn.Module, list[Tensor], list[Tensor]]:
    torch.manual_seed(pick.randrange(100))
    model = RandomNet(*recipe).double()
    inputs = [torch.randn(BATCH, WIDTH, dtype=torch.double) for _ in range(recipe[0])]
    for tensor in (*inputs, *model.parameters()):
        tensor.requires_grad_(pick.random() < 0.9)
    net = rg.trace(model, *inputs)
    net.plan = random_plan(pick, net.graph, heavy_operators(net, inputs))
    return net, model, inputs, [each for each in (*inputs, *model.parameters()) if each.requires_grad]


@pytest.mark.slow
@SETTINGS
@given(recipes(), st.integers(0, 10**6))
def test_gradients_equal_plain_autograd_under_random_plans(recipe: Any, seed: int) -> None:
    net, model, inputs, leaves = net_under_a_random_plan(recipe, random.Random(seed))
    losses = [weighted(run(*inputs)) for run in (net, model, net)]
    if losses[0].requires_grad:
        found, expected, again = (
            list(torch.autograd.grad(loss, leaves, allow_unused=True)) for loss in losses
        )
        assert_close(found, expected, tolerance=1e-11)
        assert_close(again, expected, tolerance=1e-11)


@pytest.mark.slow
@SETTINGS
@given(recipes(most_moves=8), st.integers(0, 10**6))
def test_partial_and_repeated_gradients_under_random_plans(recipe: Any, seed: int) -> None:
    pick = random.Random(seed)
    net, model, inputs, leaves = net_under_a_random_plan(recipe, pick)
    found, expected = [], []
    for run, out in ((net, found), (model, expected)):
        pick.seed(seed)
        outputs = [each for each in run(*inputs) if each.requires_grad]
        if not outputs:
            return
        some = pick.sample(leaves, min(len(leaves), 2))
        loss = weighted(tuple(outputs))
        for wanted in (some, leaves, some):
            out += torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
        order = pick.sample(outputs, min(len(outputs), 2))
        del loss
        for index, output in enumerate(order):  # the last one frees a part of the graph
            last = index == len(order) - 1
            out += torch.autograd.grad((output**2).sum(), leaves, retain_graph=not last, allow_unused=True)
    assert_close(found, expected, tolerance=1e-11)


@pytest.mark.slow
@settings(SETTINGS, max_examples=15)
@given(recipes(most_moves=6), st.integers(0, 10**6))
def test_second_gradients_under_random_plans(recipe: Any, seed: int) -> None:
    net, model, inputs, leaves = net_under_a_random_plan(recipe, random.Random(seed))
    second = []
    for run in (net, model):
        loss = weighted(run(*inputs))
        if not loss.requires_grad:
            return
        first = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
        penalty = torch.stack([each.square().sum() for each in first if each is not None]).sum()
        second.append(
            torch.autograd.grad(penalty, leaves, allow_unused=True) if penalty.requires_grad else []
        )
    assert_close(*second, tolerance=1e-9)


@pytest.mark.slow
@settings(SETTINGS, max_examples=15)
@given(recipes(), st.integers(0, 10**6))
def test_random_plans_leave_nothing_behind(recipe: Any, seed: int) -> None:
    net, model, inputs, leaves = net_under_a_random_plan(recipe, random.Random(seed))
    gc.collect()
    gc.disable()
    try:
        with StorageTracker([*inputs, *model.parameters()]) as tracker:
            loss = weighted(net(*inputs))
            if not loss.requires_grad:
                return
            before = tracker.live()
            first = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
            gradients = [each for each in first if each is not None]
            assert tracker.live(without=gradients) == before
            again = torch.autograd.grad(loss, leaves, allow_unused=True)
            gradients += [each for each in again if each is not None]
            del loss
            assert tracker.live(without=gradients) == 0
    finally:
        gc.enable()
