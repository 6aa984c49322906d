"""Textbook segments of small nets with joins, made by hand: the planner never refuses nor exceeds them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import revgraph as rg
from revgraph.errors import PlanError
from revgraph.planning.posing import pose
from revgraph.planning.solver.line import Line

# Costs of a problem are rounded; plans this close in a step's cost are as good.
ROUNDED = 1e-4
# More points than a frontier has.
ALL = 10_000


class Dense(nn.Module):
    """Every layer reads all earlier ones."""

    def __init__(self, depth: int, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width * (n + 1), width) for n in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        known = [x]
        for layer in self.layers:
            known.append(torch.tanh(layer(torch.cat(known, -1))))
        return known[-1]


class UNet(nn.Module):
    """Layers down, one in the middle, and layers up, which read those down as well."""

    def __init__(self, width: int = 12, depth: int = 4) -> None:
        super().__init__()
        widths = [width + 4 * n for n in range(depth + 1)]
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Sequential(nn.Linear(a, b), nn.GELU()) for a, b in pairs)
        self.middle = nn.Linear(widths[-1], widths[-1])
        self.up = nn.ModuleList(nn.Sequential(nn.Linear(2 * b, a), nn.Tanh()) for a, b in reversed(pairs))

    def forward(self, x: Tensor) -> Tensor:
        passing: list[Tensor] = []
        for layer in self.down:
            x = layer(x)
            passing.append(x)
        x = self.middle(x)
        for layer in self.up:
            x = layer(torch.cat([x, passing.pop()], -1))
        return x


NETS = {**{f"dense {depth}": Dense(depth) for depth in (2, 3, 4, 5, 7)}, "U-Net": UNet()}
WIDTHS = {"U-Net": 12}


def graph_of(name: str) -> rg.Graph:
    return rg.trace(NETS[name], torch.randn(6, WIDTHS.get(name, 8))).graph


def segmentations(graph: rg.Graph) -> Iterator[rg.Plan]:
    """Every count of segments over all nodes, or over those before a place; what comes behind is kept."""
    nodes = [node.name for node in graph.planned]
    made = {value: n for n, node in enumerate(graph.planned) for value in node.outputs}
    last = {value: max(readers(graph, nodes, value)) for value in made}
    divisions = [(len(nodes), count) for count in range(1, len(nodes) + 1)]
    divisions += [(place, count) for place in range(1, len(nodes)) for count in (1, 2, 3) if count <= place]
    for place, count in divisions:
        cuts = sorted({round(n * place / count) for n in range(count + 1)})
        again = {node: nodes[b - 1] for a, b in pairwise(cuts) for node in nodes[a : b - 1]}
        for at in {tuple(cuts[1:]), tuple(cuts[1:-1])}:
            try:
                yield rg.decide(
                    graph,
                    {node: "recompute" if n < place else "keep" for n, node in enumerate(nodes)},
                    stored=[value for value, n in made.items() if any(n < cut <= last[value] for cut in at)],
                    reruns=list(again),
                    holds=again,
                )
            except PlanError:  # what is not stored there does not come back
                continue


def readers(graph: rg.Graph, nodes: list[str], value: str) -> Iterator[int]:
    """The places of the nodes that read a value or what wiring makes of it; -1 stands for the caller."""
    yield -1
    for reader in graph.readers[value]:
        if reader.name in nodes:
            yield nodes.index(reader.name)
        for output in reader.outputs if reader.kind == "wiring" else ():
            yield from readers(graph, nodes, output)


@pytest.mark.slow
@pytest.mark.parametrize("effort", ["quick", "normal"])
@pytest.mark.parametrize("name", NETS)
def test_no_segments_made_by_hand_are_refused_or_cheaper(
    name: str, effort: rg.planning.budgets.Effort
) -> None:
    graph = graph_of(name)
    by_hand = list(segmentations(graph))
    assert len(by_hand) > len(graph.planned)
    flops = rg.frontier(graph, ALL, effort, cost="flops")
    times = rg.frontier(graph, ALL, effort)
    for plan in by_hand:
        fit = [each.flops_ratio for each in flops if each.peak_bytes <= plan.peak_bytes]
        assert min(fit) <= plan.flops_ratio + ROUNDED
        fit = [each.time_ratio for each in times if each.peak_bytes <= plan.peak_bytes]
        assert min(fit) <= plan.time_ratio + ROUNDED


def test_least_plan_of_joined_layers_stores_parts_and_measures_what_it_predicts() -> None:
    net = rg.trace(Dense(2), x := torch.randn(6, 8))
    net.plan = rg.plan(net.graph, "least")
    assert net.plan.peak_bytes == rg.measure(net, x).peak_bytes == 1160
    assert rg.check(net, x).max_relative_error == 0


def test_states_have_joined_copies_by_their_parts_where_these_are_alive_anyway() -> None:
    problem = pose(graph_of("dense 7")).problem
    line, whole = Line(problem), Line(problem, by_parts=False)
    assert line.parts
    assert not whole.parts
    for n in range(line.count):
        assert line.size(line.storages[n]) <= whole.size(whole.storages[n])
        assert not line.parts.keys() & set(line.states[n])
    for before, here, after in zip(line.states, line.states[1:], line.states[2:], strict=False):
        assert set(before) & set(after) <= set(here)
    assert not Line(pose(graph_of("U-Net")).problem).parts
