"""What cannot be compiled is refused by name, or runs on the eager engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compiling.nets import chain, compiled, inputs, step
from torch.utils._python_dispatch import TorchDispatchMode

import revgraph as rg
from revgraph import compile


def test_an_unknown_backend() -> None:
    with pytest.raises(rg.PlanError, match="'inductor' and 'aot'"):
        compile(rg.trace(chain(), inputs()), "triton")  # pyright: ignore


def test_streams_in_half_precision() -> None:
    model = chain().float()
    found = compiled(model, inputs().float())
    model.half()
    with pytest.raises(rg.TraceError, match=r"is to give back .* which is float16 in this call"):
        found(inputs().half())


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators = set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.add(str(func))
        return func(*args, **(kwargs or {}))


def test_under_a_dispatch_mode_the_engine_runs() -> None:
    model = chain()
    found = compiled(model, inputs())
    expected = step(model, inputs())
    with Seen() as seen:
        for one, two in zip(step(found, inputs()), expected, strict=True):
            torch.testing.assert_close(one, two)
    assert "aten.addmm.default" in seen.operators


def test_second_derivatives_are_refused() -> None:
    found = compiled(chain(), inputs())
    x = inputs()
    (first,) = torch.autograd.grad(found(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        first.sum().backward()
