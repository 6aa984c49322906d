"""The reference chain: evaluations, FLOPs and bytes, flat in depth."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from engine.samples import Chain, counted, couplings, drawn, inverted
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import revgraph as rg

pytestmark = pytest.mark.usefixtures("device")


def linear_relu(width: int = 64) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def chain(depth: int) -> tuple[Chain, rg.ReversibleModule]:
    return chain_on(torch.get_default_device(), depth)


@cache
def chain_on(_: torch.device, depth: int) -> tuple[Chain, rg.ReversibleModule]:
    torch.manual_seed(0)
    model = Chain(depth, linear_relu, 64)
    return model, inverted(model, example())


def example() -> Tensor:
    return drawn(32, 128, seed=0).requires_grad_()


def measured(depth: int) -> rg.Measurement:
    return measured_on(torch.get_default_device(), depth)


@cache
def measured_on(_: torch.device, depth: int) -> rg.Measurement:
    return rg.measure(chain(depth)[1], example())


@pytest.mark.parametrize("depth", [2, 8])
def test_every_function_is_evaluated_exactly_twice_a_step(depth: int) -> None:
    model, net = chain(depth)
    with counted(model, nn.Sequential) as calls:
        output = net(example())
        assert set(calls.values()) == {1}
        output.sum().backward()
    assert calls == dict.fromkeys(calls, 2) and len(calls) == 2 * depth


@pytest.mark.parametrize("depth", [2, 8])
def test_measure_counts_two_evaluations_of_every_coupling(depth: int) -> None:
    calls = measured(depth).calls
    assert {name: calls[name] for name in couplings(chain(depth)[1].graph)} == dict.fromkeys(
        couplings(chain(depth)[1].graph), 2
    )


def test_flops_are_four_thirds_of_plain_autograd() -> None:
    model, net = chain(8)
    totals = []
    for run in (net, model):
        with FlopCounterMode(display=False) as counter:
            run(example()).sum().backward()
        totals.append(counter.get_total_flops())
    assert totals[0] / totals[1] <= 1.3334
    assert measured(8).flops == totals[0]
    assert measured(8).flops_ratio == pytest.approx(totals[0] / totals[1])


@pytest.mark.slow
def test_held_bytes_do_not_grow_with_depth() -> None:
    held = {depth: measured(depth).held_bytes for depth in (2, 64, 256)}
    assert len(set(held.values())) == 1, held


@pytest.mark.parametrize("depth", [2, 64])
def test_no_more_than_the_streams_is_held_beyond_the_outputs(depth: int) -> None:
    output_bytes, loss_bytes = 32 * 128 * 4, 4
    # measure takes the turn after the loss: mean of squares holds the loss itself.
    assert measured(depth).held_bytes <= output_bytes + loss_bytes + 16_388


@pytest.mark.parametrize("depth", [8, 64])
def test_the_peak_stays_below_100_000_bytes(depth: int) -> None:
    assert measured(depth).peak_bytes < 100_000


def test_the_least_plan_peaks_no_higher_than_inverting_everything() -> None:
    model, _ = chain(8)
    net = rg.trace(model, example())
    net.plan = rg.plan(net.graph, budget="least")
    assert rg.measure(net, example()).peak_bytes <= measured(8).peak_bytes
