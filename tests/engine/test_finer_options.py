"""Finer options inside a node: a sum recomputed without its target, early stops, and kept results."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from engine.samples import (
    Chain,
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
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import revgraph as rg
from revgraph.engine.saved_tensors import Captured
from revgraph.engine.selective_recompute import is_heavy
from revgraph.planning import deciding
from revgraph.planning.plans import TERM
from revgraph.storages import StorageTracker


@pytest.fixture(autouse=True)
def without_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plan costs is for the planner's tests; these are about what the engine does with it."""
    monkeypatch.setattr(deciding, "finished", lambda plan: plan)


def two_products() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


class Block(rg.Boundary):
    """Two products, whatever the tracer would make of them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = two_products()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def streams() -> tuple[Tensor, Tensor]:
    return batch(3, 4, seed=1), batch(3, 4, seed=2)


def ratio(net: rg.ReversibleModule, decisions: Any, *inputs: Tensor, **options: Any) -> float:
    net.plan = rg.decide(net.graph, decisions, **options)
    return rg.measure(net, *inputs).flops_ratio


def agrees(
    make: Callable[[], nn.Module], decisions: Any, *inputs: Tensor, **options: Any
) -> rg.ReversibleModule:
    """The net, once its gradients are plain autograd's, in one pass and with the graph kept."""
    model, plain = doubled(make)
    net = rg.trace(model, *inputs)
    net.plan = rg.decide(net.graph, decisions, **options)
    torch.manual_seed(3)
    found = step(net, model, *inputs)
    torch.manual_seed(3)
    assert_close(found, step(plain, plain, *inputs))
    assert_same_buffers(model, plain)
    for run, leaves in ((net, model), (plain, plain)):
        torch.manual_seed(4)
        loss = loss_of(run(*inputs))
        wanted = [*leaves.parameters(), *(each for each in inputs if each.requires_grad)]
        again = [
            torch.autograd.grad(loss, wanted, retain_graph=keep, allow_unused=True) for keep in (True, False)
        ]
        if run is net:
            kept = again
        else:
            assert_close(kept[0], again[0])
            assert_close(kept[1], again[1])
    return net


# A sum recomputed without its target


class Sums(nn.Module):
    """Half-steps of each kind that only add, the last one another type of number, and one that does more."""

    def __init__(self) -> None:
        super().__init__()
        self.fs = nn.ModuleList(mlp() for _ in range(4))
        self.additive, self.affine = rg.Additive(mlp()), rg.Affine(nn.Linear(4, 8))
        self.mixed = mlp()

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        x = x + self.fs[0](y)
        x = x - self.fs[1](y)
        x = self.fs[2](y) - x
        x = torch.add(x, self.fs[3](y), alpha=0.5)
        x = self.additive(x, y)
        x = self.affine(x, y)
        return x + self.mixed(y).float(), y


def test_the_nodes_that_only_add_are_marked() -> None:
    model, _ = doubled(Sums)
    graph = rg.trace(model, *streams()).graph
    marked = {node.name: node.additive for node in graph.nodes if node.kind == "coupling"}
    assert list(marked.values()) == [True, True, True, True, True, False, True]
    assert not any(node.additive for node in graph.nodes if node.kind != "coupling")


def test_the_mark_goes_through_json() -> None:
    model, _ = doubled(Pair)
    node = rg.trace(model, *streams()).graph.node["f"]
    graph = rg.Graph((rg.Node("in", "input", (), node.inputs), node), (), "g")
    data = json.loads(graph.to_json())
    assert [each["additive"] for each in data["nodes"]] == [False, True]
    data["nodes"][1]["additive"] = "yes"
    with pytest.raises(rg.GraphError, match=r"Node 'f': 'yes' should be true or false"):
        rg.Graph.from_json(json.dumps(data))


def test_sums_of_every_kind_recomputed_without_their_targets() -> None:
    model, _ = doubled(Sums)
    graph = rg.trace(model, *streams()).graph
    names = [node.name for node in graph.nodes if node.kind == "coupling"]
    net = agrees(Sums, dict.fromkeys(names, "recompute"), *streams())
    targets = {node.target for node in net.graph.nodes if node.additive}
    assert not targets & (set(net.plan.sources) - {net.graph.node[names[-1]].target, names[4]})
    assert not targets & set(net.plan.stored)


def test_a_recomputed_chain_of_sums_stores_what_its_functions_read() -> None:
    net = agrees(
        lambda: Chain(3),
        {f"blocks.{index}.{name}": "recompute" for index in range(3) for name in "fg"},
        batch(),
    )
    assert set(net.plan.stored) == {"blocks.0.f", "blocks.0.g", "blocks.1.f", "blocks.1.g", "join"}


def test_a_sum_that_saves_tensors_after_all_is_refused_in_the_forward() -> None:
    model, _ = doubled(lambda: rg.Additive(mlp(), mlp()))
    net = rg.trace(model, *streams())
    net.plan = rg.decide(net.graph, {"f": "recompute", "g": "recompute"})
    model.couple = lambda x, term: x * torch.exp(term)  # pyright: ignore
    with pytest.raises(rg.ReplayError, match=r"node 'f'.* only adds.*Keep or invert the node"):
        net(*streams())


# Early stops


def test_a_recomputed_sum_skips_its_last_product() -> None:
    net = agrees(
        lambda: Pair(two_products(), two_products()), {"f": "recompute", "g": "recompute"}, *streams()
    )
    measured = rg.measure(net, *streams())
    assert measured.flops_ratio == pytest.approx(14 / 12)
    assert measured.calls == {"f": 2, "g": 2}


def test_a_recomputed_boundary_skips_its_last_product() -> None:
    net = agrees(Block, {"block": "recompute"}, batch(3, 4))
    assert rg.measure(net, batch(3, 4)).flops_ratio == pytest.approx(7 / 6)


class Behind(nn.Module):
    """Half-steps whose targets nobody but their own inversion would give back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.f, self.g = nn.Linear(4, 8, bias=False), two_products(), two_products()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x1, x2 = self.stem(x).chunk(2, 1)
        y1 = x1 + self.f(x2)
        return y1, x2 + self.g(y1)


def test_an_inverted_sum_whose_target_nobody_asks_for_skips_its_last_product() -> None:
    net = agrees(Behind, {}, batch(3, 4))
    assert {net.graph.node[name].target for name in "fg"} & set(net.plan.sources) == {"chunk.1"}
    # In products of 4 to 4: the stem is 2, f and g are 2 each; a backward is twice its forward.
    assert rg.measure(net, batch(3, 4)).flops_ratio == pytest.approx(1 + (1 + 2) / 18)


def test_an_inverted_sum_whose_target_is_stored_skips_its_last_product() -> None:
    net = agrees(Behind, {}, batch(3, 4), anchors=["chunk.1"])
    assert rg.measure(net, batch(3, 4)).flops_ratio == pytest.approx(1 + (1 + 1) / 18)


class Swallows(nn.Module):
    """Goes on after an exception in its middle, or makes another one of it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = two_products(), how
        self.swallowed: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.inner(x)
        except BaseException as error:
            self.swallowed.append(type(error).__name__)
            if self.how == "go on":
                return torch.tanh(x.exp()) * 2
            if self.how == "another":
                raise ZeroDivisionError from error
            raise KeyError("a third") from None


class SwallowsWhole(Swallows, rg.Boundary):
    """The same as one node."""


@pytest.mark.parametrize("how", ["go on", "another", "unrelated"])
@pytest.mark.parametrize("kind", ["boundary", "coupling"])
def test_a_function_that_swallows_the_stop_is_right(how: str, kind: str) -> None:
    if kind == "coupling":
        net = agrees(lambda: Pair(Swallows(how), mlp()), {"f": "recompute", "g": "recompute"}, *streams())
        function = net.get_submodule("f")
    else:
        net = agrees(lambda: nn.Sequential(SwallowsWhole(how), nn.Tanh()), {"0": "recompute"}, batch(3, 4))
        function = net.get_submodule("0")
    assert set(function.swallowed) <= {"Enough"}  # pyright: ignore


def test_an_exception_before_all_is_captured_is_raised() -> None:
    class Once(rg.Boundary):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = two_products(), [0]

        def forward(self, x: Tensor) -> Tensor:
            self.calls[0] += 1
            y = self.inner[0](x)
            if self.calls[0] == 2:
                raise ZeroDivisionError
            return self.inner[2](torch.relu(y))

    model, _ = doubled(lambda: nn.Sequential(Once()))
    net = rg.trace(model, batch(3, 4))
    net.plan = rg.decide(net.graph, {"0": "recompute"})
    model[0].calls[0] = 0
    with pytest.raises(ZeroDivisionError):
        net(batch(3, 4)).sum().backward()


def test_hooks_that_are_always_called_see_a_stopped_replay() -> None:
    model, _ = doubled(lambda: Pair(two_products(), mlp()))
    net = rg.trace(model, *streams())
    net.plan = rg.decide(net.graph, {"f": "recompute", "g": "recompute"})
    seen: list[str] = []
    model.f.register_forward_pre_hook(lambda *_: seen.append("before"))
    model.f.register_forward_hook(lambda *_: seen.append("after"))
    model.f.register_forward_hook(lambda *_: seen.append("always"), always_call=True)
    loss_of(net(*streams())).backward()
    assert seen == ["before", "after", "always", "before", "always"]


class Everything(nn.Module):
    """What a replay has to restore, with operations after the last tensor that is saved."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.one, self.norm, self.two = (
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.Linear(width, width),
        )
        self.last = nn.BatchNorm1d(width, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.dropout(self.norm(self.one(x)), 0.4, self.training)
        with torch.no_grad():
            scale = nn.functional.dropout(torch.ones(()), 0.0) + torch.rand(()) * 0
        return self.two(self.last(torch.tanh(y))) * float(scale)


@pytest.mark.slow
@pytest.mark.parametrize("decision", ["invert", "recompute"])
def test_a_stopped_replay_restores_all(decision: Any) -> None:
    x = batch()
    model, _ = doubled(lambda: Chain(2, Everything))
    names = [node.name for node in rg.trace(model, x).graph.planned]
    net = agrees(lambda: Chain(2, Everything), dict.fromkeys(names, decision), x)
    assert all(
        int(each.num_batches_tracked) == 2 for each in net.modules() if isinstance(each, nn.BatchNorm1d)
    )
    torch.manual_seed(0)
    loss = loss_of(net(x))
    net.eval()
    state = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        loss.backward()
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module.training for module in net.modules())


def test_a_function_that_checkpoints_its_own_middle() -> None:
    class Checkpoints(rg.Boundary):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = mlp(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(checkpoint(self.inner, torch.sin(x), use_reentrant=False))

    agrees(lambda: Pair(Checkpoints(), mlp()), {"f": "recompute", "g": "recompute"}, *streams())


def test_a_function_of_its_own_that_saves_at_its_end() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return 3 * x**2 * grads[0]

    class Cubes(rg.Boundary):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return Cube.apply(self.linear(x)) + 1

    agrees(lambda: Pair(Cubes(), mlp()), {"f": "recompute", "g": "invert"}, *streams())


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_stop_holds_nothing_and_raises_no_peak(
    monkeypatch: pytest.MonkeyPatch, without_collector: None
) -> None:
    model, _ = doubled(lambda: Chain(4, lambda width: two_products()))
    x = batch(64, 8)
    net = rg.trace(model, x)
    net.plan = rg.decide(net.graph, dict.fromkeys((node.name for node in net.graph.planned), "recompute"))
    stopping = rg.measure(net, x)
    with StorageTracker([x, *net.parameters()]) as tracker:
        loss_of(net(x)).backward()
        gradients = [leaf.grad for leaf in (x, *net.parameters())]
        assert tracker.live(without=[each for each in gradients if each is not None]) == 0
    until = Captured.until
    monkeypatch.setattr(Captured, "until", lambda self, limit, *run: until(self, None, *run))
    going_on = rg.measure(net, x)
    assert stopping.peak_bytes <= going_on.peak_bytes
    assert stopping.flops < going_on.flops


# Kept results


def test_heavy_operators() -> None:
    aten = torch.ops.aten
    heavy = [aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default]
    heavy += [aten.convolution.default, aten._scaled_dot_product_flash_attention_for_cpu.default]
    assert all(is_heavy(each) for each in heavy)
    light = [aten.add.Tensor, aten.relu.default, aten.native_batch_norm.default, aten.embedding_bag.default]
    assert not any(is_heavy(each) for each in light)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decision", "results", "again"),
    [
        ("invert", (), 2),
        ("invert", (0,), 1),
        ("invert", (1,), 1),
        ("invert", (0, 1), 0),
        ("invert", (TERM,), 1),
        ("invert", (TERM, 0), 0),
        ("recompute", (), 1),
        ("recompute", (0,), 0),
        ("recompute", (1,), 1),
        ("recompute", (TERM,), 1),
    ],
)
def test_kept_results_are_not_computed_again(decision: Any, results: tuple[int, ...], again: int) -> None:
    options = {"results": {"f": results, "g": results}}
    net = agrees(
        lambda: Pair(two_products(), two_products()), dict.fromkeys("fg", decision), *streams(), **options
    )
    assert rg.measure(net, *streams()).flops_ratio == pytest.approx(1 + again / 6)


def test_kept_results_are_held_from_forward_to_backward() -> None:
    model, _ = doubled(lambda: Pair(two_products(), two_products()))
    x1, x2 = streams()
    net = rg.trace(model, x1, x2)
    held = []
    for results in ({}, {"f": (0,)}, {"f": (0, 1), "g": (TERM,)}):
        net.plan = rg.decide(net.graph, {}, results=results)
        held.append(rg.measure(net, x1, x2).held_bytes)
    assert [each - held[0] for each in held] == [0, x1.nbytes, 3 * x1.nbytes]


def test_kept_results_go_with_a_pass_that_frees_and_stay_with_one_that_does_not(
    without_collector: None,
) -> None:
    model, _ = doubled(lambda: Pair(two_products(), two_products()))
    x1, x2 = streams()
    net = rg.trace(model, x1, x2)
    net.plan = rg.decide(net.graph, {}, results={"f": (0, 1, TERM), "g": (0, TERM)})
    with StorageTracker([x1, x2, *net.parameters()]) as tracker:
        loss = loss_of(net(x1, x2))
        before = tracker.live()
        first = torch.autograd.grad(loss, x1, retain_graph=True)
        assert tracker.live(without=first) == before
        second = torch.autograd.grad(loss, x1)
        del loss
        assert tracker.live(without=[*first, *second]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("results", [(TERM,), (0,), (TERM, 0)])
def test_affine_halves_with_kept_results(results: tuple[int, ...]) -> None:
    make = lambda: rg.Affine(nn.Sequential(mlp(), nn.Linear(4, 8)), nn.Linear(4, 8))  # noqa: E731
    for decision in ("invert", "recompute"):
        agrees(make, {"f": decision, "g": decision}, *streams(), results={"f": results, "g": results})
    model, _ = doubled(make)
    net = rg.trace(model, *streams())
    before = ratio(net, {}, *streams())
    assert ratio(net, {}, *streams(), results={"f": results}) < before


def test_a_convolution_kept_before_its_normalization() -> None:
    class Unit(rg.Boundary):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.norm(self.conv(x)))

    x = batch(2, 2, 5, 5)
    net = agrees(lambda: nn.Sequential(Unit(), Unit()), dict.fromkeys("01", "recompute"), x)
    assert rg.measure(net, x).flops_ratio == pytest.approx(4 / 3)
    options = {"results": dict.fromkeys("01", (0,))}
    net = agrees(lambda: nn.Sequential(Unit(), Unit()), dict.fromkeys("01", "recompute"), x, **options)
    assert rg.measure(net, x).flops_ratio == pytest.approx(1)


class Attends(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.dropout(self.attention(y, y, y, need_weights=False)[0])


@pytest.mark.slow
@pytest.mark.parametrize("decision", ["invert", "recompute"])
@pytest.mark.parametrize("results", [(0,), (1,), (2,), (0, 1, 2), (TERM, 1)])
def test_attention_with_kept_results_draws_the_same(decision: Any, results: tuple[int, ...]) -> None:
    x1, x2 = batch(2, 5, 4, seed=1), batch(2, 5, 4, seed=2)
    options = {"results": {"f": results, "g": results}}
    agrees(lambda: Pair(Attends(), Attends()), dict.fromkeys("fg", decision), x1, x2, **options)


def test_kept_results_under_autocast_are_the_computed_ones_bitwise() -> None:
    torch.manual_seed(0)
    model = Pair(two_products(), two_products())
    x1, x2 = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    net = rg.trace(model, x1, x2)
    found = []
    for results in ({}, {"f": (0, 1), "g": (TERM, 0)}):
        net.plan = rg.decide(net.graph, {}, results=results)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(net(x1, x2))
        found.append(torch.autograd.grad(loss, [x1, x2, *model.parameters()]))
    assert_bitwise(*found)


def test_second_derivatives_with_kept_results() -> None:
    model, plain = doubled(lambda: Pair(mlp(), mlp()))
    net = rg.trace(model, *streams())
    net.plan = rg.decide(net.graph, {"g": "recompute"}, results={"f": (TERM, 0), "g": (0, 1)})
    second = []
    for run, leaves in ((net, model), (plain, plain)):
        x1, x2 = streams()
        wanted = [x1, x2, *leaves.parameters()]
        first = torch.autograd.grad(loss_of(run(x1, x2)), wanted, create_graph=True)
        penalty = torch.stack([each.square().sum() for each in first]).sum()
        second.append(torch.autograd.grad(penalty, wanted, allow_unused=True))
    assert_close(*second, tolerance=1e-10)


@pytest.mark.parametrize("results", [(0,), (1,), (0, 1)])
def test_a_kept_result_that_its_function_edits_in_place_is_kept_as_it_was(results: Any) -> None:
    inner = lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))  # noqa: E731
    agrees(lambda: Pair(inner(), mlp()), {}, *streams(), results={"f": results})


def test_a_kept_result_edited_after_the_forward_is_refused() -> None:
    class Both(rg.Boundary):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.out = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.linear(x)
            return y, self.out(torch.sin(y))

    model, _ = doubled(lambda: nn.Sequential(Both()))
    net = rg.trace(model, batch(3, 4))
    net.plan = rg.decide(net.graph, {"0": "recompute"}, results={"0": (0,)})
    y, z = net(batch(3, 4))
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(rg.ReplayError, match=r"'0'.*addmm.*edited in place"):
        z.sum().backward()


def test_a_term_that_is_an_input_is_not_kept_twice() -> None:
    class Unchanged(rg.Boundary):
        def forward(self, x: Tensor) -> Tensor:
            return x

    net = agrees(lambda: Pair(Unchanged(), mlp()), {}, *streams(), results={"f": (TERM,), "g": (TERM,)})
    assert rg.measure(net, *streams()).calls["g"] == 2


def test_results_beyond_the_heavy_operators_are_refused_by_name() -> None:
    model, _ = doubled(lambda: Pair(two_products(), two_products()))
    net = rg.trace(model, *streams())
    with pytest.raises(rg.PlanError, match=r"'g' has no result 2: its function runs 2 heavy operators"):
        rg.decide(net.graph, {}, results={"g": (0, 2)})


def test_a_forward_with_fewer_heavy_operators_than_planned_keeps_what_there_is() -> None:
    """As where a function was compiled or exchanged after the net was traced."""

    class Lighter(rg.Boundary):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.light = False

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.first(x))
            return torch.sin(y * self.second.weight.sum()) if self.light else torch.sin(self.second(y))

    model, plain = doubled(lambda: nn.Sequential(Lighter()))
    net = rg.trace(model, batch(3, 4))
    net.plan = rg.decide(net.graph, {"0": "recompute"}, results={"0": (0, 1)})
    model[0].light = plain[0].light = True
    assert_close(step(net, model, batch(3, 4)), step(plain, plain, batch(3, 4)))


def test_a_function_that_runs_another_heavy_operator_at_its_replay_is_refused() -> None:
    class Moody(rg.Boundary):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.calls = nn.Linear(4, 4, bias=False), [0]

        def forward(self, x: Tensor) -> Tensor:
            self.calls[0] += type(x) is Tensor
            y = self.linear(x) if self.calls[0] < 2 else torch.bmm(x[None], self.linear.weight.t()[None])[0]
            return torch.tanh(y)

    model, _ = doubled(lambda: nn.Sequential(Moody()))
    net = rg.trace(model, batch(3, 4))
    net.plan = rg.decide(net.graph, {"0": "recompute"}, results={"0": (0,)})
    model[0].calls[0] = 0
    loss = net(batch(3, 4)).sum()
    with pytest.raises(rg.ReplayError, match=r"replay of node '0'.*differs from its forward"):
        loss.backward()


@pytest.mark.parametrize(
    ("decisions", "results", "message"),
    [
        ({}, {"nobody": (0,)}, "no coupling or boundary named 'nobody'"),
        ({"f": "keep"}, {"f": (0,)}, "'f' is kept with all its internals"),
        ({}, {"f": (-2,)}, "-2 is no result of 'f'"),
        ({}, {"f": (True,)}, "True is no result of 'f'"),
        ({}, {"f": (0.0,)}, "0.0 is no result of 'f'"),
        ({"stem": "recompute"}, {"stem": (TERM,)}, "boundary 'stem' has no term"),
    ],
)
def test_results_that_fit_no_node_are_plan_errors(decisions: Any, results: Any, message: str) -> None:
    model, _ = doubled(Behind)
    graph = rg.trace(model, batch(3, 4)).graph
    with pytest.raises(rg.PlanError, match=message):
        rg.decide(graph, decisions, results=results)


def test_results_are_a_set_of_indices() -> None:
    model, _ = doubled(Behind)
    graph = rg.trace(model, batch(3, 4)).graph
    plan = rg.decide(graph, {}, results={"f": iter([0, TERM, 1, 0])})
    assert plan.results == {"f": (TERM, 0, 1)}
