"""Plans on foreign kinds of nets run, and measure what they predict, by a tracker that shares no code."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from engine.random_plans import random_plan
from planning.corpus import NETS, Entry, tracker
from torch import Tensor, nn

import revgraph as rg
from revgraph import costs

TRACED = [entry for entry in NETS.values() if not entry.untraced]
RANDOM_PLANS = 2
# What inversion may lose in float64: sums of numbers near 1, undone up to a dozen times.
DRIFT = 1e-9


def made(entry: Entry) -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    return entry.make(), entry.inputs()


def traced(entry: Entry) -> tuple[rg.ReversibleModule, tuple[Any, ...]]:
    model, inputs = made(entry)
    return rg.trace(model, *inputs, **entry.options), inputs


def whole_plans(graph: rg.Graph) -> dict[str, rg.Plan]:
    """Everything kept, everything inverted that can be, and everything recomputed."""
    return {
        "keep": rg.keep_all(graph),
        "invert": rg.decide(graph, {}),
        "recompute": rg.decide(graph, {node.name: "recompute" for node in graph.planned}),
    }


def random_plans(graph: rg.Graph) -> Iterator[rg.Plan]:
    pick = random.Random(0)
    for _ in range(RANDOM_PLANS if graph.planned else 0):
        yield random_plan(pick, graph)


def differences(
    net: rg.ReversibleModule, inputs: tuple[Any, ...], plan: rg.Plan, plain_flops: int
) -> dict[str, tuple[float, float]]:
    """What is measured otherwise than predicted: figures predicted and measured."""
    net.plan = plan
    torch.manual_seed(1)
    with net.comparing(False):  # comparisons hold on to a few tensors for a moment longer
        found = tracker.track(net, *inputs)
    ratio = found.flops / plain_flops if plain_flops else 1.0
    figures = {
        "peak": (plan.peak_bytes, found.peak_bytes),
        "held": (plan.held_bytes, found.held_bytes),
        "flops": (plan.flops_ratio, pytest.approx(ratio, rel=1e-9)),
    }
    return {name: pair for name, pair in figures.items() if pair[0] != pair[1]}


def agree(net: rg.ReversibleModule, inputs: tuple[Any, ...], plans: dict[str, rg.Plan]) -> None:
    net.plan = rg.keep_all(net.graph)
    plain_flops = tracker.track(net, *inputs).flops
    wrong = {name: differences(net, inputs, plan, plain_flops) for name, plan in plans.items()}
    assert not {name: found for name, found in wrong.items() if found}


def test_the_corpus_is_large_and_of_many_kinds() -> None:
    assert len(TRACED) >= 150
    assert len({entry.kind for entry in TRACED}) == 17


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in TRACED])
def test_plans_measure_what_they_predict(name: str) -> None:
    net, inputs = traced(NETS[name])
    plans = whole_plans(net.graph)
    for cost in ("time", "flops"):
        found = rg.frontier(net.graph, points=3, effort="quick", cost=cost)
        plans.update((f"frontier by {cost}, {index}", plan) for index, plan in enumerate(found))
    agree(net, inputs, plans)


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in TRACED])
def test_random_plans_measure_what_they_predict_and_gradients_are_plain_autograds(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs from tensors without memory, as those of large nets are; in double precision where it can be."""
    monkeypatch.setattr(costs, "SMALL", 0)
    entry = NETS[name]
    model, inputs = made(entry)
    if entry.float64:
        model, inputs = in_double(model), tuple(map(in_double, inputs))
    net = rg.trace(copy.deepcopy(model), *inputs, **entry.options)
    state = copy.deepcopy(net.state_dict())
    agree(net, inputs, {str(index): plan for index, plan in enumerate(random_plans(net.graph))})
    if not entry.float64:
        return
    torch.manual_seed(1)
    expected = tracker.gradients(model, *inputs)
    plans = whole_plans(net.graph)
    for decisions in ("invert", "recompute"):
        net.plan = plans[decisions]
        net.load_state_dict(state)
        torch.manual_seed(1)
        for one, two in zip(tracker.gradients(net, *inputs), expected, strict=True):
            torch.testing.assert_close(one, two, rtol=DRIFT, atol=DRIFT)


@pytest.mark.parametrize("name", [entry.name for entry in NETS.values() if entry.untraced])
def test_what_is_not_traced_says_why(name: str) -> None:
    with pytest.raises(rg.TraceError, match=NETS[name].untraced):
        traced(NETS[name])


def in_double(thing: Any) -> Any:
    """A module or tensor with its numbers in double precision."""
    if isinstance(thing, nn.Module):
        for module in thing.modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if isinstance(tensor, nn.Parameter):
                        tensor.data = in_double(tensor.data)
                    elif tensor is not None:
                        table[name] = in_double(tensor)
        return thing
    if not isinstance(thing, Tensor) or not (thing.is_floating_point() or thing.is_complex()):
        return thing
    double = torch.complex128 if thing.is_complex() else torch.float64
    return thing.detach().to(double).requires_grad_(thing.requires_grad)
