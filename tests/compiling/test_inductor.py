"""Steps compiled by torch's own compiler; they need a C++ compiler."""

from __future__ import annotations

import shutil

import pytest
import torch
from compiling.nets import assert_same_step, chain, compiled, inputs, step, twice
from compiling.random_steps import worst_error
from torch import nn

import revgraph as rg
from revgraph.compiling.memory import allocated_bytes

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="there is no C++ compiler"
)


@pytest.mark.parametrize("seed", [3, 14])
def test_random_plans_equal_plain_autograd(seed: int) -> None:
    assert worst_error(seed, "inductor") <= 1e-9


def test_batchnorm_counts_one_step() -> None:
    model, plain = twice(chain(lambda: nn.BatchNorm1d(8)))
    found = compiled(model, inputs(), backend="inductor")
    for batch in range(2):
        assert_same_step(found, plain, inputs(seed=batch), tolerance=1e-9)


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


def test_what_is_held_does_not_grow_with_depth() -> None:
    held = [
        allocated_bytes(compiled(chain(depth=depth), inputs(256), backend="inductor"), inputs(256))[1]
        for depth in (2, 5)
    ]
    assert max(held) < 1.1 * min(held)
