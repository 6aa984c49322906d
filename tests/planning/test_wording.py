"""A plan in words: a short summary, and a table whose bytes add up to what is held."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine.random_nets import BATCH, WIDTH, RandomNet, recipes
from engine.random_plans import random_plan
from family.test_shipped import small
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import revgraph as rg
from revgraph import specs
from revgraph.drawing.subject import subject
from revgraph.graph import Cost
from revgraph.planning.accounting import holdings
from revgraph.planning.composing import compose
from revgraph.planning.wording import ROWS, folded, kind_of, rows, status, text, where_peak

SETTINGS = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)


def number(cell: str) -> int:
    return int(cell.replace(",", ""))


def adds_up(plan: rg.Plan) -> None:
    """Every table's bytes are those of the headline."""
    held = holdings(plan)
    assert sum(each.nbytes for each in held) == plan.held_bytes
    assert all(each.stored_bytes >= 0 and each.own_bytes >= 0 for each in held)
    *parts, total = rows(plan)
    assert sum(row.nbytes for row in parts) == total.nbytes == plan.held_bytes
    assert sum(row.nodes for row in parts) >= len(plan.decisions)
    made: Any = plan.table()
    column = made.head.index("held bytes")
    *cells, last = [number(row[column]) for row in made.rows]
    assert sum(cells) == last == plan.held_bytes
    assert f"{plan.held_bytes:,} bytes" in plan.summary().replace("(", "")
    for fold in (False, True):
        drawn = subject(plan, fold)
        assert set(drawn.stored) <= drawn.graph.value.keys() and set(drawn.own) <= drawn.graph.node.keys()
        shown = [*drawn.stored.values(), *drawn.own.values(), (held[-1].nbytes,)]
        assert sum(map(sum, shown)) == plan.held_bytes
    turn = [each for each in compose(plan) if each.moment.step.action == "loss"]
    assert all(sum(each.parts.values()) == plan.held_bytes for each in turn)


def fits(plan: rg.Plan, width: int = 80) -> None:
    said, lines = plan.summary().splitlines(), text(plan, width).splitlines()
    assert len(said) <= 10 and max(map(len, said)) <= 80
    assert max(map(len, lines)) <= width
    assert len(lines) <= 40


WHOLE = ("revnet-38", "revnet-110", "reversible-lm", "glow", "revgru", "realnvp", "leapfrog")
# Tracing these takes longest; their blocks are those of others.
LONG = ("haar-revnet", "midpoint", "momentumnet", "resnet-50", "resnet-101", "resnet-152", "resnet-164")
LONG += ("revnet-56", "revnet-104", "revnet-164")


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_shipped_networks_are_told_on_a_page_that_adds_up(name: str) -> None:
    graph = rg.load(name, batch=16).graph
    plans = [
        rg.plan(graph, effort="quick"),
        rg.plan(graph, "least", effort="quick"),
        rg.plan(graph, "60%", effort="quick"),
        rg.keep_all(graph),
        rg.decide(graph, {}),
    ]
    for plan in plans:
        adds_up(plan)
        fits(plan)
        fits(plan, 140)


@pytest.mark.slow
@pytest.mark.parametrize("name", [each for each in specs.shipped() if each not in WHOLE + LONG])
def test_bytes_of_other_shipped_networks_add_up(name: str) -> None:
    """With no more than two blocks of a kind, which does for the sums."""
    graph = rg.load(small(name), batch=2).graph
    for plan in (rg.plan(graph, effort="quick"), rg.keep_all(graph), rg.decide(graph, {})):
        adds_up(plan)
        fits(plan)


@pytest.mark.slow
@SETTINGS
@given(recipes(), st.integers(0, 2**32))
def test_bytes_of_random_plans_add_up(recipe: Any, seed: int) -> None:
    torch.manual_seed(0)
    graph = rg.trace(RandomNet(*recipe), *torch.randn(recipe[0], BATCH, WIDTH)).graph
    for plan in (random_plan(random.Random(seed), graph), rg.keep_all(graph), rg.decide(graph, {})):
        adds_up(plan)
        fits(plan)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Chain(nn.Module):
    def __init__(self, depth: int = 6, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(rg.Additive(Block(width), Block(width)) for _ in range(depth))

    def forward(self, x1: Tensor, x2: Tensor) -> Any:
        for layer in self.layers:
            x1, x2 = layer(x1, x2)
        return x1, x2


@pytest.fixture(scope="module")
def chain() -> rg.Graph:
    return rg.trace(Chain(), *torch.randn(2, 4, 8)).graph


def test_repeated_blocks_are_one_row(chain: rg.Graph) -> None:
    lines = folded(rg.keep_all(chain)).splitlines()
    # The first block's inputs are the caller's, so it holds less.
    assert [line.split()[0] for line in lines[1:4]] == ["layers.0.f", "layers.0.g", "layers.1-5.f,g"]
    assert lines[3].split() == ["layers.1-5.f,g", "x5", "additive", "keep", "2,560", "internals,", "inputs"]
    names = [row.name for row in rows(rg.decide(chain, {"layers.2.f": "keep"}))]
    assert names[3:6] == ["layers.2.f", "layers.2.g", "layers.3-4.f,g"]


def test_kept_results_have_their_operators_names(chain: rg.Graph) -> None:
    plan = rg.decide(chain, {}, results={"layers.1.f": [1], "layers.3.g": [0, 1], "layers.4.f": [-1]})
    what = {each.node: each.what for each in holdings(plan)}
    assert what["layers.1.f"] == "output of second"
    assert what["layers.3.g"] == "outputs of first, second"
    assert what["layers.4.f"] == "what its function returns"
    adds_up(plan)
    assert "1: output of second" in str(plan.table())


class Turn(rg.Coupling):
    """`y = R x`, where the function gives the angle."""

    def couple(self, x: Tensor, term: Tensor) -> Tensor:
        return x * torch.exp(torch.sin(term))

    def uncouple(self, y: Tensor, term: Tensor) -> Tensor:
        return y * torch.exp(-torch.sin(term))


class Laws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn, self.scale = Turn(nn.Linear(4, 4)), rg.Affine(nn.Linear(4, 8))
        self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x1: Tensor, x2: Tensor) -> Any:
        x1 = self.scale(self.turn(x1, x2), x2)
        x1, x2 = self.f(x2) - x1, x2
        return x1, x2 * torch.exp(self.g(x1)) + x1


def test_couplings_are_called_by_their_laws() -> None:
    graph = rg.trace(Laws(), *torch.randn(2, 3, 4)).graph
    kinds = [kind_of(node) for node in graph.nodes if node.kind == "coupling"]
    assert kinds == ["turn", "affine", "difference", "affine"]
    assert "(+)" not in str(rg.decide(graph, {}))
    printed = str(graph)
    assert "(+)" not in printed
    assert " (turn) " in printed and " (difference) " in printed and printed.count(" (affine) ") == 2
    assert (
        str(rg.trace(rg.Additive(nn.Linear(3, 3), nn.Linear(3, 3)), *torch.randn(2, 4, 3)).graph).count("(+)")
        == 2
    )
    assert rg.Graph.from_json(graph.to_json()) == graph


def test_the_status_says_how_the_plan_was_made(chain: rg.Graph) -> None:
    plan = rg.plan(chain)
    assert status(plan) == "best found that runs no function more than twice"
    assert status(rg.plan(chain, "least")) == "best found: the least peak"
    assert status(rg.plan(chain, "1 MiB")) == "best found within the budget of 1.0 MiB"
    assert status(rg.keep_all(chain)) == "ordinary training: every node is kept"
    assert status(rg.decide(chain, {})).startswith("made by hand: every coupling is inverted")
    assert status(rg.decide(chain, {"layers.0.f": "recompute"})) == "made by hand"
    assert status(rg.Plan.from_json(plan.to_json())) == "read from a file"
    assert {status(each) for each in rg.frontier(chain)} == {"best found in so many bytes"}
    for each in (plan, rg.plan(chain, "least")):
        assert "proved" not in str(each) and "optimal" not in str(each)


def test_the_saving_is_told(chain: rg.Graph) -> None:
    plan = rg.keep_all(chain)
    ordinary = plan.ordinary_bytes
    assert "at the peak, as ordinary training" in plan.summary()
    assert "at the peak, 75.0 % less" in replace(plan, peak_bytes=ordinary // 4).summary()
    assert "at the peak, 100.0 % more" in replace(plan, peak_bytes=2 * ordinary).summary()
    assert "%" not in replace(plan, ordinary_bytes=0).summary()


def test_anchors_and_unknown_costs_are_told(chain: rg.Graph) -> None:
    plan = rg.plan(chain, anchors=["layers.1.f", "layers.3.g"])
    assert "\nanchors            2 hold 256 B\n" in plan.summary()
    assert {each.what for each in holdings(plan) if each.node == "layers.1.f"} == {"its output (anchor)"}
    adds_up(plan)
    bare = replace(chain, nodes=tuple(replace(node, cost=Cost()) for node in chain.nodes))
    assert "; 12 of unknown cost" in rg.decide(bare, {}).summary()


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("run of stem", "in the forward pass, while stem runs"),
        ("loss of the loss", "in the loss, between forward and backward"),
        ("backward of a.b", "in the backward pass, while a.b is differentiated"),
        ("rerun of a", "in the backward pass, while a runs again"),
        ("invert of a", "in the backward pass, while a is inverted"),
        ("", "nowhere: nothing is counted"),
    ],
)
def test_the_peak_is_told_in_words(at: str, said: str) -> None:
    assert where_peak(at) == said


def test_one_node_and_no_couplings() -> None:
    plan = rg.plan(rg.trace(nn.Linear(4, 4), torch.ones(2, 4)).graph)
    adds_up(plan)
    fits(plan)
    assert "nodes              1 kept, 0 inverted, 0 recomputed" in plan.summary()
    layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    plan = rg.plan(rg.trace(layers, torch.ones(2, 4)).graph, "least")
    adds_up(plan)
    fits(plan)


def test_an_empty_graph() -> None:
    plan = rg.keep_all(rg.Graph((), (), "nothing"))
    adds_up(plan)
    fits(plan)


def test_names_of_two_hundred_characters(chain: rg.Graph) -> None:
    long = {node.name: f"{node.name}.{'n' * 200}" for node in chain.nodes if node.kind != "output"}
    text_of = chain.to_json()
    for name in sorted(long, key=len, reverse=True):
        text_of = text_of.replace(f'"{name}"', f'"{long[name]}"')
    graph = rg.Graph.from_json(text_of.replace('"name": "Chain"', f'"name": "{"C" * 200}"'))
    for plan in (rg.keep_all(graph), rg.decide(graph, {long["layers.1.f"]: "recompute"}), rg.plan(graph)):
        adds_up(plan)
        fits(plan)
        assert plan.table().rows[0][0] == long["layers.0.f"]


class Uneven(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4 + n, 5 + n) for n in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


@pytest.mark.slow
def test_long_tables_sum_up_the_nodes_that_hold_least() -> None:
    plan = rg.keep_all(rg.trace(Uneven(60), torch.ones(2, 4)).graph)
    found = rows(plan)
    assert len(found) == ROWS + 2 and found[-3].name.endswith(" other nodes")
    assert sum(row.nodes for row in found) == len(plan.decisions)
    adds_up(plan)
    fits(plan)
