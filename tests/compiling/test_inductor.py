"""Steps compiled by torch's own compiler; they need a C++ compiler."""

from __future__ import annotations

import shutil

import pytest
import torch
from compiling.nets import Chain, assert_same_step, chain, compiled, inputs, step, twice
from compiling.random_steps import worst_error
from torch import nn

import revgraph as rg
from benchmarks.tradeoff.networks import transformer
from revgraph.compiling.memory import allocated_bytes

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="there is no C++ compiler"
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 14])
def test_random_plans_equal_plain_autograd(seed: int) -> None:
    assert worst_error(seed, "inductor") <= 1e-9


@pytest.mark.slow
def test_batchnorm_counts_one_step() -> None:
    model, plain = twice(chain(lambda: nn.BatchNorm1d(8)))
    found = compiled(model, inputs(), backend="inductor")
    for batch in range(2):
        assert_same_step(found, plain, inputs(seed=batch), tolerance=1e-9)


@pytest.mark.slow
def test_random_numbers_are_drawn_once() -> None:
    model = chain(lambda: nn.Dropout(0.4))
    by_plan = [
        step(compiled(model, inputs(), plan=plan, backend="inductor"), inputs())
        for plan in ("keep", "invert")
    ]
    for one, two in zip(*by_plan, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


def test_check_compares_with_the_same_random_numbers() -> None:
    found = compiled(chain(lambda: nn.Dropout(0.4)), inputs(), backend="inductor")
    assert rg.check(found, inputs()).verdict == "good"


@pytest.mark.slow
def test_a_rebuilt_stream_is_one_tensor_to_all_its_readers() -> None:
    model = Chain(lambda: rg.Additive(*(normalized_first() for _ in "fg")), depth=3)
    x = torch.randn(2048, 32, requires_grad=True)
    step = compiled(model, x, backend="inductor")
    assert allocated_bytes(step, x)[0] <= 1.1 * step.plan.peak_bytes


def normalized_first() -> nn.Module:
    """Statistics and their use read the stream before anything else does."""
    return nn.Sequential(nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16))


@pytest.mark.slow
def test_dead_buffers_are_not_held_until_others_of_their_size_are_made() -> None:
    found = transformer(blocks=3, batch=8, length=64, width=128)
    step = rg.compile(found.net)
    assert allocated_bytes(step, *found.inputs)[0] <= step.plan.peak_bytes


@pytest.mark.slow
def test_what_is_held_does_not_grow_with_depth() -> None:
    held = [
        allocated_bytes(compiled(chain(depth=depth), inputs(256), backend="inductor"), inputs(256))[1]
        for depth in (2, 5)
    ]
    assert max(held) < 1.1 * min(held)
