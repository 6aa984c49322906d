"""Plans: decisions, errors, sources that really rebuild, and the default plan's peak."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from engine.random_nets import BATCH, WIDTH, RandomNet, decisions, recipes
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import revgraph as rg
from revgraph.planning import EVALUATING, human_bytes
from revgraph.planning.accounting import holdings
from revgraph.planning.reasons import reasons_of

SETTINGS = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)


class Net(nn.Module):
    def __init__(self, depth: int = 3, width: int = 8) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(width, 2 * width), nn.Linear(2 * width, 3)
        self.blocks = nn.ModuleList(
            rg.Additive(self._function(width), self._function(width)) for _ in range(depth)
        )

    def _function(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, 4 * width), nn.Tanh(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.stem(x).chunk(2, 1)
        for block in self.blocks:
            x1, x2 = block(x1, x2)
        return self.head(torch.cat([x1, x2], 1))


@pytest.fixture(scope="module")
def graph() -> rg.Graph:
    return rg.trace(Net(), torch.randn(5, 8)).graph


def traced(recipe: Any) -> rg.ReversibleModule:
    torch.manual_seed(0)
    inputs = [torch.randn(BATCH, WIDTH, dtype=torch.double) for _ in range(recipe[0])]
    return rg.trace(RandomNet(*recipe).double(), *inputs)


def test_decide_inverts_couplings_and_keeps_boundaries(graph: rg.Graph) -> None:
    plan = rg.decide(graph, {})
    for node in graph.planned:
        assert plan.decisions[node.name] == ("invert" if node.kind == "coupling" else "keep")


def test_decide_follows_what_was_asked(graph: rg.Graph) -> None:
    asked = {"stem": "recompute", "blocks.1.f": "keep", "blocks.2.g": "recompute"}
    plan = rg.decide(graph, asked)
    assert {name: plan.decisions[name] for name in asked} == asked


def test_unknown_node_is_an_error_with_a_suggestion(graph: rg.Graph) -> None:
    with pytest.raises(rg.PlanError, match=r"no coupling or boundary named 'stm'; did you mean 'stem'\?"):
        rg.decide(graph, {"stm": "keep"})
    with pytest.raises(rg.PlanError, match=r"no coupling or boundary named 'zzzzzz'$"):
        rg.decide(graph, {"zzzzzz": "keep"})


def test_wiring_and_inputs_cannot_be_decided_on(graph: rg.Graph) -> None:
    for node in graph.nodes:
        if node.kind not in ("coupling", "boundary"):
            with pytest.raises(rg.PlanError, match="no coupling or boundary named"):
                rg.decide(graph, {node.name: "keep"})


def test_unknown_decision_is_an_error(graph: rg.Graph) -> None:
    with pytest.raises(
        rg.PlanError, match="'drop' is no decision for 'stem'; the decisions are keep, invert"
    ):
        rg.decide(graph, {"stem": "drop"})  # pyright: ignore


def test_boundary_cannot_be_inverted(graph: rg.Graph) -> None:
    with pytest.raises(rg.PlanError, match="boundary 'stem' cannot be inverted: keep or recompute it"):
        rg.decide(graph, {"stem": "invert"})


def test_unknown_anchor_is_an_error(graph: rg.Graph) -> None:
    with pytest.raises(rg.PlanError, match="anchor 'ghost' is no value"):
        rg.decide(graph, {}, anchors=["ghost"])


def test_anchor_is_stored(graph: rg.Graph) -> None:
    assert "blocks.0.g" not in rg.decide(graph, {}).stored
    plan = rg.decide(graph, {}, anchors=["blocks.0.g"])
    assert "blocks.0.g" in plan.stored
    assert plan.held_bytes == rg.decide(graph, {}).held_bytes + graph.value["blocks.0.g"].nbytes
    assert plan.anchor_bytes == graph.value["blocks.0.g"].nbytes


def test_an_anchor_that_would_follow_from_others_comes_back_as_stored(graph: rg.Graph) -> None:
    anchors = ["blocks.2.g", "blocks.2.f", "blocks.0.g", "blocks.0.f"]
    plan = rg.decide(graph, {}, anchors=anchors)
    asked_for = plan.sources.keys() & set(anchors)
    assert asked_for
    assert {plan.sources[name].how for name in asked_for} == {"stored"}


def test_anchors_may_be_any_iterable_and_doubled(graph: rg.Graph) -> None:
    plan = rg.decide(graph, {}, anchors=iter(["blocks.0.g", "blocks.0.g"]))
    assert plan.stored.count("blocks.0.g") == 1


@pytest.mark.parametrize("make", [partial(rg.decide, decisions={}), partial(rg.plan, effort="quick")])
def test_a_plan_tells_its_anchors(graph: rg.Graph, make: Any) -> None:
    """Once each, and without the caller's inputs, which no plan stores."""
    asked = ["blocks.2.g", *graph.inputs, "blocks.0.g", "blocks.2.g"]
    plan = make(graph, anchors=iter(asked))
    assert plan.anchors == ("blocks.2.g", "blocks.0.g")
    assert set(plan.anchors) <= set(plan.stored)
    assert f"anchors            2 hold {human_bytes(plan.anchor_bytes)}" in plan.summary()
    assert "(anchor)" in " ".join(each.what for each in holdings(plan))
    assert rg.Plan.from_json(plan.to_json()).anchors == plan.anchors
    assert make(graph).anchors == ()


def test_keep_all_is_ordinary_autograd(graph: rg.Graph) -> None:
    plan = rg.keep_all(graph)
    assert set(plan.decisions.values()) == {"keep"}
    assert plan.stored == ()
    assert plan.flops_ratio == 1.0
    assert plan.held_bytes > rg.decide(graph, {}).held_bytes


def test_all_inverted_costs_a_forward_of_each_coupling(graph: rg.Graph) -> None:
    """But for the first's last product, for nobody asks for its target."""
    plan = rg.decide(graph, {})
    plain = sum(node.cost.flops + node.cost.backward_flops for node in graph.planned)
    again = sum(node.cost.flops for node in graph.planned if node.kind == "coupling")
    last_product = 2 * 5 * 32 * 8
    assert plan.flops_ratio == pytest.approx(1 + (again - last_product) / plain, rel=1e-12)
    assert 1.2 < plan.flops_ratio < 1.34


def test_default_plan_is_the_cheapest_within_a_tenth_of_the_least_without_repeated_reruns(
    graph: rg.Graph,
) -> None:
    default, least = rg.plan(graph), rg.plan(graph, budget="least")
    inverted = rg.decide(graph, {})
    assert most_runs(default) <= 2
    assert least.peak_bytes <= default.peak_bytes <= 1.1 * inverted.peak_bytes
    assert default.time_ratio <= inverted.time_ratio


def most_runs(plan: rg.Plan) -> int:
    """How often a function runs at most in a step under the plan."""
    steps = [moment.step for moment in rg.simulate(plan)]
    return max(Counter(step.node for step in steps if step.action in EVALUATING).values())


@pytest.mark.slow
@SETTINGS
@given(recipes())
def test_default_and_least_plans_are_as_promised_on_random_graphs(recipe: Any) -> None:
    graph = traced(recipe).graph
    default, least, inverted = rg.plan(graph), rg.plan(graph, budget="least"), rg.decide(graph, {})
    assert most_runs(default) <= 2
    assert (least.peak_bytes, least.time_ratio) <= (inverted.peak_bytes, inverted.time_ratio)
    assert least.peak_bytes <= default.peak_bytes
    for plan in rg.frontier(graph, points=1000):
        if most_runs(plan) <= 2:
            assert default.peak_bytes <= 1.1 * plan.peak_bytes
            break


def test_explain_is_a_sentence_on_every_node(graph: rg.Graph) -> None:
    plan = rg.plan(graph)
    for node in graph.planned:
        text = plan.explain(node.name)
        assert text.startswith(f"{node.name}: {plan.decisions[node.name]}, ")
        assert "\n" not in text
    assert "as asked" in rg.decide(graph, {"stem": "recompute"}).explain("stem")
    with pytest.raises(rg.PlanError, match="the plan decides on no node 'ghost'"):
        plan.explain("ghost")


def test_a_run_for_another_nodes_backward_is_told_with_its_flops() -> None:
    """Linear's own backward needs no output, so its replay is free; making the output for `1` is not."""
    net = rg.trace(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), torch.ones(2, 4))
    everywhere = dict.fromkeys("01", "recompute")
    free = rg.decide(net.graph, everywhere)
    run_again = rg.decide(net.graph, everywhere, stored=[], reruns=["0"], holds={"0": "1"})
    assert "computes no heavy operator again" in reasons_of(free)["0"]
    assert run_again.flops_ratio > free.flops_ratio
    assert (
        f"computes 100% of its {net.graph.node['0'].cost.flops:,} FLOPs again" in reasons_of(run_again)["0"]
    )


def test_plan_prints_as_a_short_aligned_table(graph: rg.Graph) -> None:
    plan = rg.decide(graph, {"stem": "recompute"})
    lines = str(plan).splitlines()
    assert lines[0] == "Net: plan of a training step"
    said = {line[:19].rstrip(): line[19:] for line in lines[1 : lines.index("")]}
    assert list(said) == [
        "ordinary training",
        "this plan",
        "peak",
        "held",
        "FLOPs",
        "time",
        "nodes",
        "status",
    ]
    assert said["nodes"] == "1 kept, 6 inverted, 1 recomputed" and said["status"] == "made by hand"
    assert said["time"].endswith(" of ordinary training's, estimated (profile: generic)")
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)
    head, *rows = lines[lines.index("") + 1 :]
    column = head.index("decision")
    decided = [line[column:].split()[0] for line in rows[:-2] if " wiring " not in line]
    assert set(decided) == {"keep", "invert", "recompute"}
    assert rows[-1].split() == ["total", f"{plan.held_bytes:,}"]


def test_plan_is_frozen_and_comparable(graph: rg.Graph) -> None:
    assert rg.plan(graph) == rg.plan(graph)
    with pytest.raises(dataclasses.FrozenInstanceError):
        rg.plan(graph).peak_bytes = 0  # pyright: ignore


def test_caller_cannot_change_a_plan_by_its_own_mapping(graph: rg.Graph) -> None:
    asked = {"stem": "recompute"}
    plan = rg.decide(graph, asked)
    asked["stem"] = "keep"
    assert plan.decisions["stem"] == "recompute"


def test_plan_of_another_graph_is_refused() -> None:
    net, other = rg.trace(Net(), torch.randn(5, 8)), rg.trace(Net(2), torch.randn(5, 8))
    with pytest.raises(rg.PlanError, match="this plan is for another graph"):
        net.plan = other.plan
    with pytest.raises(rg.PlanError, match=r"a net's plan is a revgraph\.Plan, not a dict"):
        net.plan = {}  # pyright: ignore


def asked_for(graph: rg.Graph, plan: rg.Plan) -> Iterator[str]:
    """What replays read: an inverted node its output and others, a recomputed one its inputs (of a sum, the
    others)."""
    for node in graph.planned:
        if plan.decisions[node.name] == "invert":
            yield from (*node.others, *node.outputs)
        elif plan.decisions[node.name] == "recompute":
            yield from node.others if node.additive else node.inputs


def takes(graph: rg.Graph, source: Any) -> tuple[str, ...]:
    """What a value's source is made from, read off the words' own meaning."""
    if source.how == "stored":
        return ()
    node = graph.node[source.node]
    if source.how == "inverted":
        return (*node.outputs, *(name for name in node.inputs if name != node.target))
    return node.outputs if source.how == "rewired" else node.inputs


@pytest.mark.slow
@SETTINGS
@given(recipes(), st.data())
def test_everything_asked_for_is_rebuilt_from_what_is_stored_in_an_acyclic_way(
    recipe: Any, data: Any
) -> None:
    graph = traced(recipe).graph
    anchors = data.draw(st.lists(st.sampled_from([each.name for each in graph.values]), max_size=2))
    plan = rg.decide(graph, decisions(graph, lambda fit: data.draw(st.sampled_from(fit))), anchors)
    held = {*plan.stored, *graph.inputs}
    for name in asked_for(graph, plan):
        assert name in plan.sources
    rebuilt: set[str] = set()
    waiting = dict(plan.sources)
    while waiting:
        ready = {
            name
            for name, source in waiting.items()
            if (name in held if source.how == "stored" else rebuilt.issuperset(takes(graph, source)))
        }
        assert ready, f"these follow from nothing: {waiting}"
        rebuilt |= ready
        for name in ready:
            source = waiting.pop(name)
            if source.how == "inverted":
                assert graph.node[source.node].target == name
                assert plan.decisions[source.node] == "invert"
            elif source.how == "rewired":
                assert graph.node[source.node].kind == "wiring" and name in graph.node[source.node].inputs
            elif source.how == "wired":
                assert graph.node[source.node].kind == "wiring" and name in graph.node[source.node].outputs
    assert set(anchors) - set(graph.inputs) == set(plan.anchors) <= set(plan.stored)


def closure(graph: rg.Graph, plan: rg.Plan, held: set[str]) -> set[str]:
    """Everything that follows from `held` by inverting and wiring, by brute force."""
    known = set(held)
    while True:
        before = len(known)
        for node in graph.nodes:
            if node.kind == "coupling" and plan.decisions[node.name] == "invert":
                if known.issuperset((*node.outputs, *node.others)) and node.target is not None:
                    known.add(node.target)
            elif node.kind == "wiring":
                if known.issuperset(node.outputs):
                    known.update(node.inputs)
                if known.issuperset(node.inputs):
                    known.update(node.outputs)
        if len(known) == before:
            return known


@pytest.mark.slow
@SETTINGS
@given(recipes(most_streams=3, most_moves=6))
def test_no_stored_value_is_superfluous_on_random_graphs(recipe: Any) -> None:
    """With one stored value less, something that is asked for no longer follows."""
    graph = traced(recipe).graph
    plan = rg.decide(graph, {})
    wanted = set(asked_for(graph, plan))
    assert wanted <= closure(graph, plan, {*graph.inputs, *plan.stored})
    for name in plan.stored:
        rest = {*graph.inputs, *plan.stored} - {name}
        assert not wanted <= closure(graph, plan, rest), f"{name!r} is stored for nothing"


@pytest.mark.slow
@settings(SETTINGS, max_examples=15)
@given(recipes(most_streams=2, most_moves=4))
def test_stored_bytes_are_the_least_on_small_graphs(recipe: Any) -> None:
    """Against every smaller choice of stored values: none holds fewer bytes and still gives all."""
    graph = traced(recipe).graph
    plan = rg.decide(graph, {})
    wanted = set(asked_for(graph, plan))
    size = lambda names: sum(graph.value[each].nbytes for each in {graph.value[n].storage for n in names})  # noqa: E731
    ours = size(plan.stored)
    names = [each.name for each in graph.values if each.name not in graph.inputs]
    for count in range(min(len(plan.stored), 3)):
        for choice in itertools.combinations(names, count):
            if size(choice) < ours:
                assert not wanted <= closure(graph, plan, {*graph.inputs, *choice}), f"{choice} would do"


@pytest.mark.slow
def test_bytes_held_do_not_grow_with_depth() -> None:
    held = {rg.decide(rg.trace(Net(depth), torch.randn(5, 8)).graph, {}).held_bytes for depth in (1, 4, 12)}
    assert len(held) == 1
