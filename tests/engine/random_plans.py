"""Random plans of a graph, with everything that a plan can say."""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import revgraph as rg
from revgraph.engine.observer import Observer
from revgraph.engine.selective_recompute import is_heavy
from revgraph.planning.plans import TERM


class Counts(TorchDispatchMode):
    """Counts heavy operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += is_heavy(func)
        return func(*args, **(kwargs or {}))


class Watches(Observer):
    """How many heavy operators each node runs."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.node = ""
        self.heavy: dict[str, int] = {}

    def evaluated(self, node: str) -> None:
        self.node, self.counts.count = node, 0

    def made(self, name: str, value: Tensor) -> None:
        self.heavy[self.node] = self.counts.count


def heavy_operators(net: rg.ReversibleModule, inputs: list[Tensor]) -> dict[str, int]:
    net.plan = rg.keep_all(net.graph)
    with Counts() as counts, net.watched_by(watches := Watches(counts)):
        net(*inputs)
    return watches.heavy


def random_plan(pick: random.Random, graph: rg.Graph, heavy: dict[str, int] | None = None) -> rg.Plan:
    """Any decisions, stored values, reruns, holds, drops and kept results that make a plan.

    `heavy` says how many results of a node can be kept; without it those are that costs are known of.
    """
    lean: Any = pick.choice([("keep", "invert", "recompute"), ("invert", "recompute"), ("recompute",)])
    decisions: dict[str, Any] = {
        node.name: pick.choice(
            [each for each in lean if node.kind == "coupling" or each != "invert"] or ["recompute"]
        )
        for node in graph.planned
    }
    live = [name for name, decision in decisions.items() if decision != "keep"]
    share = pick.choice((0.3, 0.9))
    reruns = [name for name in live if pick.random() < share]
    values = list(graph.value)
    stored = None
    if pick.random() < 0.5:  # as few as will do, and one on top
        stored = set(rg.decide(graph, decisions, reruns=reruns).stored)
        for name in sorted(stored):
            try:
                rg.decide(graph, decisions, stored=stored - {name}, reruns=reruns)
            except rg.PlanError as error:
                assert "cannot come back" in str(error)
            else:
                stored.discard(name)
        stored |= set(pick.sample(values, 1))
    anchors = pick.sample(values, min(len(values), 2)) if stored is None and pick.random() < 0.3 else ()
    place = {name: index for index, name in enumerate(decisions)}
    stages = {name: [each for each in live if place[each] > place[name]] for name in reruns}
    holds = {name: pick.choice(each) for name, each in stages.items() if each and pick.random() < 0.5}
    for name in list(holds):
        if holds[name] in holds:
            del holds[name]
    fixed = {*rg.decide(graph, decisions, anchors, stored, reruns).stored, *graph.inputs}
    rebuilt = [name for name in values if name not in fixed]
    drops = {
        name: pick.sample(rebuilt, min(len(rebuilt), pick.randint(1, 4)))
        for name in decisions
        if pick.random() < 0.6
    }
    results = {
        name: _results(pick, graph.node[name], decisions[name], heavy)
        for name in live
        if name not in holds and pick.random() < 0.5
    }
    return rg.decide(graph, decisions, anchors, stored, reruns, holds, drops, results)


def _results(pick: random.Random, node: rg.Node, decision: str, heavy: dict[str, int] | None) -> list[int]:
    if heavy is None:
        known = [name.split("+")[1:] for name in node.cost.courses if name.startswith(f"{decision}+")]
        return [int(index) for index in pick.choice(known)] if known else []
    term = [TERM] if node.kind == "coupling" and pick.random() < 0.3 else []
    return [index for index in range(heavy[node.name]) if pick.random() < 0.5] + term
