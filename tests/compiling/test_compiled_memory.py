"""Compiled steps take the bytes that their plan predicts."""

from __future__ import annotations

import pytest
from compiling.nets import chain, decided, inputs

import revgraph as rg
from revgraph import compile
from revgraph.measuring import activation_bytes


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["keep", "recompute", "invert", "default"])
@pytest.mark.parametrize("depth", [2, 5])
def test_peak_and_held_bytes_are_those_predicted(depth: int, plan: str) -> None:
    net = rg.trace(chain(depth=depth), inputs(64))
    if plan != "default":
        net.plan = decided(net.graph, plan)
    step = compile(net, "aot")
    x = inputs(64)
    step(x).sum().backward()  # compiles
    assert activation_bytes(step, x) == pytest.approx((net.plan.peak_bytes, net.plan.held_bytes), rel=0.03)


@pytest.mark.slow
def test_what_is_held_does_not_grow_with_depth() -> None:
    held = set[int]()
    for depth in (1, 3, 6):
        net = rg.trace(chain(depth=depth), inputs(64))
        net.plan = decided(net.graph, "invert")
        step = compile(net, "aot")
        step(inputs(64)).sum().backward()
        held.add(activation_bytes(step, inputs(64))[1])
    assert len(held) == 1
