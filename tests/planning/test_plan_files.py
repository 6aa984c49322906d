"""Plans are files: JSON both ways, checked, and refused by another graph in words that say why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine.random_nets import BATCH, WIDTH, RandomNet, decisions, recipes
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from trust.file_checks import breakages, broken
from trust.fuzzing import fuzzed
from trust.weighing import Outcome, timed

import revgraph as rg
from revgraph.cli.baselines import checkpoint_blocks

SETTINGS = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)
CHAIN = [str(index) for index in range(6)]
SEGMENT: dict[str, Any] = {
    "decisions": dict.fromkeys(CHAIN, "recompute"),
    "stored": ["1", "3"],
    "reruns": ["0", "2", "4"],
    "holds": {"4": "5"},
    "drops": {"3": ["2"]},
    "results": {"1": [0]},
}


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(width, 2 * width)
        self.blocks = nn.ModuleList(rg.Additive(self._function(width), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(2 * width, 3)

    def _function(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, 3 * width), nn.ReLU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.stem(x).chunk(2, 1)
        for block in self.blocks:
            x1, x2 = block(x1, x2)
        return self.head(torch.cat([x1, x2], 1))


class Elsewhere(Net):
    """The same network with other lines of code, and so under another name."""


def traced(batch: int = 5, width: int = 4, kind: type[Net] = Net) -> rg.ReversibleModule:
    torch.manual_seed(1)
    return rg.trace(kind(width), torch.randn(batch, width))


@pytest.fixture(scope="module")
def net() -> rg.ReversibleModule:
    return traced()


@pytest.fixture(scope="module")
def chain() -> rg.Graph:
    return rg.trace(nn.Sequential(*(nn.Linear(4, 4) for _ in CHAIN)), torch.ones(2, 4)).graph


@pytest.fixture(scope="module")
def segment(chain: rg.Graph) -> rg.Plan:
    """A plan that has everything a plan can have."""
    plan = rg.decide(chain, **SEGMENT)
    assert plan.holds and plan.drops and plan.results
    return plan.noted(anchors=("1",))


def assert_comes_back(plan: rg.Plan) -> None:
    text = plan.to_json()
    again = rg.Plan.from_json(text)
    assert again == plan and again.to_json() == text
    assert rg.simulate(again) == rg.simulate(plan)


@pytest.mark.slow
def test_plans_of_every_kind_come_back_equal(net: rg.ReversibleModule, segment: rg.Plan) -> None:
    graph = net.graph
    assert_comes_back(net.plan)
    assert_comes_back(rg.keep_all(graph))
    assert_comes_back(rg.decide(graph, {}, anchors=[graph.node["blocks.1.f"].outputs[0]]))
    assert_comes_back(checkpoint_blocks(graph))
    assert_comes_back(segment)
    for plan in rg.frontier(graph):
        assert_comes_back(plan)


@pytest.mark.slow
@SETTINGS
@given(st.data())
def test_plans_of_random_nets_come_back_equal(data: Any) -> None:
    recipe = data.draw(recipes())
    torch.manual_seed(0)
    inputs = [torch.randn(BATCH, WIDTH, dtype=torch.double) for _ in range(recipe[0])]
    graph = rg.trace(RandomNet(*recipe).double(), *inputs).graph
    chosen = decisions(graph, lambda fit: data.draw(st.sampled_from(fit)))
    plan = rg.decide(graph, chosen, reruns=[name for name in chosen if chosen[name] != "keep"])
    assert_comes_back(plan)


@pytest.mark.slow
def test_text_is_compact_and_the_same_under_any_hash_seed() -> None:
    program = (
        "import torch, revgraph as rg\n"
        "net = rg.trace(rg.Additive(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)), *torch.ones(2, 2, 3))\n"
        "print(rg.decide(net.graph, {}, anchors=net.graph.inputs).to_json(), end='')\n"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    (text,) = texts
    assert "\n" not in text and '": ' not in text and rg.Plan.from_json(text)


def test_file_says_nothing_of_how_the_plan_was_found(net: rg.ReversibleModule) -> None:
    assert list(json.loads(net.plan.to_json())) == [
        *("revgraph_plan", "peak_bytes", "held_bytes", "ordinary_bytes", "peak_at", "flops_ratio"),
        *("time_ratio", "cost", "profile", "decisions", "stored", "anchors", "results"),
        *("holds", "drops", "sources", "reasons", "graph"),
    ]


def test_net_trains_under_a_plan_that_was_read() -> None:
    gradients = []
    for again in (False, True):
        net = traced()
        plan = rg.decide(net.graph, {"stem": "recompute"})
        net.plan = rg.Plan.from_json(plan.to_json()) if again else plan
        torch.manual_seed(2)
        x = torch.randn(5, 4)
        net(x).square().mean().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
        assert rg.measure(net, x).peak_bytes == net.plan.peak_bytes
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


# What differs, and how the error says so.
def changed(net: rg.ReversibleModule, **parts: Any) -> rg.Graph:
    """The net's graph with other parts of the node 'stem'."""
    nodes = [replace(node, **parts) if node.name == "stem" else node for node in net.graph.nodes]
    return replace(net.graph, nodes=tuple(nodes))


def costing(net: rg.ReversibleModule, **parts: Any) -> rg.Graph:
    return changed(net, cost=replace(net.graph.node["stem"].cost, **parts))


OTHER: dict[str, tuple[Callable[[rg.ReversibleModule], rg.Graph], str]] = {
    "batch": (
        lambda net: traced(batch=6).graph,
        r"value 'x' is 6x4 float32 in the plan, and 5x4 float32 in the net\. A plan is for one batch size",
    ),
    "width": (lambda net: traced(width=6).graph, r"value 'x' is 5x6 float32 in the plan, and 5x4"),
    "nodes": (
        lambda net: rg.trace(nn.Linear(4, 3), torch.ones(5, 4)).graph,
        r"another graph \('Linear', 3 nodes; the net's is 'Net', \d+ nodes\): only the plan's graph has a",
    ),
    "costs": (
        lambda net: costing(net, flops=7),
        r"node 'stem' has flops 7 in the plan, and 320 in the net\. Costs are measured where a net is made",
    ),
    "courses": (lambda net: costing(net, courses={}), "'stem' has other courses in the plan than in the net"),
    "function": (lambda net: changed(net, expression="tanh(x)"), r"'stem' has expression 'tanh\(x\)' in"),
    "order": (
        lambda net: replace(net.graph, values=net.graph.values[::-1]),
        "the values are in another order, from '",
    ),
    "loss": (lambda net: replace(net.graph, loss=None), "only one of them has a loss"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHER)
def test_plan_for_another_graph_is_refused_with_what_differs(net: rg.ReversibleModule, case: str) -> None:
    make, said = OTHER[case]
    plan = rg.keep_all(make(net))
    text = plan.to_json()
    before = net.plan
    with pytest.raises(rg.PlanError, match=said):
        net.plan = plan
    with pytest.raises(rg.PlanError, match=said):
        rg.Plan.from_json(text, net.graph)
    assert net.plan is before


def test_name_place_device_and_drift_estimates_do_not_matter(net: rg.ReversibleModule) -> None:
    plan = rg.decide(net.graph, {"stem": "recompute"})
    nodes = [replace(node, where="/other/place.py:7") for node in net.graph.nodes]
    nodes = [replace(node, cost=replace(node.cost, rounding=1e-7, growth=1.5)) for node in nodes]
    values = tuple(replace(value, device="cuda:1") for value in net.graph.values)
    there = replace(net.graph, name="there", nodes=tuple(nodes), values=values)
    loaded = rg.Plan.from_json(replace(plan, graph=there).to_json(), net.graph)
    assert loaded == plan and loaded.graph is net.graph
    other = traced(kind=Elsewhere)
    assert other.graph != net.graph
    other.plan = plan
    assert other.plan.graph is other.graph and other.plan.decisions == plan.decisions


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def edited(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return edited


WRONG: dict[str, tuple[Callable[[str], str], str]] = {
    "no JSON": (lambda text: "no JSON", r"this is not a plan in revgraph's JSON form \(JSONDecodeError: "),
    "cut off": (lambda text: text[:-1], "this is not a plan in revgraph's JSON form"),
    "a list": (lambda text: "[]", "it has no 'revgraph_plan', the number of the format"),
    "a graph": (
        edit(lambda data: data.pop("revgraph_plan")),
        r"has no 'revgraph_plan'.*Write one with plan\.to_json\(\), or with `revgraph plan NET --save FILE`",
    ),
    "later format": (
        edit(lambda data: data.update(revgraph_plan=2)),
        "^plan format 2 is unknown: this revgraph reads format 1$",
    ),
    "missing key": (edit(lambda data: data.pop("holds")), "'holds' is missing"),
    "unknown key": (edit(lambda data: data.update(bound=3)), "a plan has no 'bound'; it has revgraph_plan, "),
    "peak": (
        edit(lambda data: data.update(peak_bytes=data["peak_bytes"] - 1)),
        r"the plan says peak_bytes \d+, and its simulation gives \d+: the text was changed, or another "
        r"version of revgraph wrote it\. Make it again with revgraph\.plan\.",
    ),
    "ratio": (edit(lambda data: data.update(flops_ratio=1)), r"says flops_ratio 1\.0, and its simulation"),
    "not a number": (edit(lambda data: data.update(flops_ratio=float("nan"))), "NaN is no number in JSON"),
    "decision": (
        edit(lambda data: data["decisions"].update({"0": "store"})),
        "'store' is none of keep, invert, recompute",
    ),
    "decision missing": (
        edit(lambda data: data["decisions"].pop("0")),
        "the plan does not decide on '0', a boundary of its graph",
    ),
    "inverted boundary": (
        edit(lambda data: data["decisions"].update({"0": "invert"})),
        "boundary '0' cannot be inverted",
    ),
    "unknown node": (
        edit(lambda data: data["holds"].update(there="5")),
        "the plan names 'there', which is no node of its graph",
    ),
    "unknown value": (
        edit(lambda data: data["stored"].append("there")),
        "the plan names 'there', which is no value of its graph",
    ),
    "unknown source": (
        edit(lambda data: data["sources"].update({"0": ["guessed", "0"]})),
        "'guessed' is none of stored, inverted, rewired, wired, recomputed",
    ),
    "stored twice": (edit(lambda data: data["stored"].append("1")), "the plan's stored are not as"),
    "not stored": (
        edit(lambda data: data.update(stored=["1"])),
        "value '3' cannot come back as the plan says: stored$",
    ),
    "source that is none": (
        edit(lambda data: data["sources"].update({"0": ["wired", "0"]})),
        "value '0' cannot come back as the plan says: wired by '0'",
    ),
    "source missing": (
        edit(lambda data: data["sources"].pop("2")),
        "the plan does not say how value '2' comes back, which a replay reads",
    ),
    "source of another value": (
        edit(lambda data: data["sources"].update({"5": ["recomputed", "4"]})),
        "value '5' cannot come back as the plan says: recomputed by '4'",
    ),
    "held by itself": (edit(lambda data: data.update(holds={"5": "4"})), "which is not before its own"),
    "result": (edit(lambda data: data.update(results={"1": [3]})), "'1' has no result 3"),
    "dropped stored value": (edit(lambda data: data.update(drops={"3": ["1"]})), "for it is stored"),
    "no reason": (edit(lambda data: data["reasons"].pop("0")), "the plan gives no reason for '0'"),
    "graph": (
        edit(lambda data: data["graph"]["nodes"].pop(0)),
        "the plan's own graph cannot be read: node '0' reads 'input' before any node made it",
    ),
    "half a surrogate pair": (edit(lambda data: data["reasons"].update({"0": "\ud800"})), "surrogates not"),
}


@pytest.mark.parametrize("case", WRONG)
def test_file_that_is_no_sound_plan_is_refused(segment: rg.Plan, case: str) -> None:
    change, said = WRONG[case]
    with pytest.raises(rg.PlanError, match=said):
        rg.Plan.from_json(change(segment.to_json()))


def test_value_that_would_come_back_from_itself_is_refused(net: rg.ReversibleModule) -> None:
    plan = rg.decide(net.graph, {"blocks.0.f": "recompute"})
    (halves,) = (node for node in net.graph.nodes if node.kind == "wiring" and len(node.outputs) == 2)
    data = json.loads(plan.to_json())
    data["sources"].update({name: ["wired", halves.name] for name in halves.outputs})
    data["sources"].update({name: ["rewired", halves.name] for name in halves.inputs})
    with pytest.raises(rg.PlanError, match="would come back from itself, by the plan's sources"):
        rg.Plan.from_json(json.dumps(data))


def test_source_that_nothing_asks_for_is_refused(chain: rg.Graph) -> None:
    data = json.loads(rg.keep_all(chain).to_json())
    data["sources"]["input"] = ["stored"]
    with pytest.raises(rg.PlanError, match="says how value 'input' comes back, and nothing asks for it"):
        rg.Plan.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, "9" * 100_000, "NaN", "\ud800", "", "3"])
def test_vast_and_odd_json_is_no_plan(text: str) -> None:
    with pytest.raises(rg.PlanError, match="this is not a plan in revgraph's JSON form"):
        rg.Plan.from_json(text)


def used(text: str) -> None:
    plan = rg.Plan.from_json(text)
    assert rg.Plan.from_json(plan.to_json()) == plan
    assert str(plan) and max(moment.peak_bytes for moment in rg.simulate(plan)) == plan.peak_bytes


def read(text: str) -> Outcome:
    """A PlanError of a readable length, or a plan that can be shown, written and simulated."""
    outcome = timed(lambda: used(text))
    assert outcome.kind in ("done", "PlanError"), outcome
    assert len(outcome.text) < 1000, outcome.text[:2000]
    return outcome


@pytest.mark.slow
def test_broken_plans_are_refused_or_are_plans(segment: rg.Plan, net: rg.ReversibleModule) -> None:
    for start, plan in enumerate((segment, rg.decide(net.graph, {}))):
        text = plan.to_json()
        tally = fuzzed(
            lambda breakage, text=text: read(broken(text, breakage)), breakages(text), 120, start=start
        )
        assert tally.kinds["PlanError"] >= 60


@SETTINGS
@given(st.text() | st.recursive(st.none() | st.text(max_size=3), st.lists, max_leaves=8).map(json.dumps))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(rg.PlanError):
        rg.Plan.from_json(text)
