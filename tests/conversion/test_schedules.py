"""A schedule moves the coefficients of a converted net while it trains."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from conversion.residual_networks import converted

import revgraph as rg


def coefficients(net: rg.ReversibleModule) -> tuple[float, float]:
    state = net.state_dict()
    return state["dual_residual.alpha"].item(), state["dual_residual.beta"].item()


def test_a_linear_schedule_takes_even_steps_and_then_stays() -> None:
    _, net, _ = converted("transformer")
    rg.set_dual_residual(net, alpha=1)
    schedule = rg.DualResidualSchedule(net, 4, alpha=0, beta=0.75)
    seen = []
    for _ in range(6):
        schedule.step()
        seen.append(coefficients(net))
    ends = [(0.0, 0.75)] * 3
    assert seen == [(0.75, 0.375), (0.5, 0.5), (0.25, 0.625), *ends]


def test_a_cosine_schedule_is_slow_at_both_ends() -> None:
    _, net, _ = converted("transformer")
    rg.set_dual_residual(net, alpha=1)
    schedule = rg.DualResidualSchedule(net, 8, alpha=0, beta=1, shape="cosine")
    alphas = [1.0]
    for _ in range(8):
        schedule.step()
        alphas.append(schedule.alpha)
    steps = [before - after for before, after in itertools.pairwise(alphas)]
    assert alphas[4] == pytest.approx(0.5)
    assert coefficients(net) == (0, 1)
    assert max(steps[0], steps[-1]) < min(steps[3:5]) / 2


def test_a_schedule_goes_on_where_it_stopped() -> None:
    _, net, _ = converted("transformer")
    rg.set_dual_residual(net, alpha=1)
    schedule = rg.DualResidualSchedule(net, 10, alpha=0.5, beta=0.75, shape="cosine")
    for _ in range(3):
        schedule.step()
    other = converted("transformer")[1]
    resumed = rg.DualResidualSchedule(other, 1, alpha=1, beta=1)
    resumed.load_state_dict(schedule.state_dict())
    assert coefficients(other) == coefficients(net)
    for each in (schedule, resumed):
        for _ in range(7):
            each.step()
    assert coefficients(other) == coefficients(net) == (0.5, 0.75)


def test_finetuning_under_a_schedule_learns_as_with_stored_activations() -> None:
    losses: list[list[float]] = []
    for stored in (False, True):
        _, net, x = converted("basic")
        labels = torch.arange(len(x))
        net.plan = rg.keep_all(net.graph) if stored else rg.decide(net.graph, {})
        schedule = rg.DualResidualSchedule(net, 10, alpha=0.25, beta=0.75)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        losses.append([])
        for _ in range(12):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(x), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses[-1].append(loss.item())
        assert coefficients(net) == (0.25, 0.75)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][-1] < losses[0][0] / 2


def test_coefficients_moved_between_forward_and_backward_are_an_error() -> None:
    _, net, x = converted("basic")
    net.plan = rg.decide(net.graph, {})
    loss = net(x).sum()
    rg.set_dual_residual(net, beta=0.5)
    with pytest.raises(rg.ReplayError, match="changed or replaced between forward and backward"):
        loss.backward()


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ({"steps": 0}, "steps are 0"),
        ({"steps": 2.5}, "steps are 2.5"),
        ({"shape": "square"}, "'linear' or 'cosine'"),
        ({"beta": 0}, "beta is 0"),
    ],
)
def test_a_wrong_schedule_says_what_it_takes(figures: dict[str, Any], text: str) -> None:
    _, net, _ = converted("transformer")
    given: Any = {"steps": 5, "alpha": 0.5, "beta": 0.5, **figures}
    with pytest.raises(rg.GraphError, match=text):
        rg.DualResidualSchedule(net, given.pop("steps"), **given)
