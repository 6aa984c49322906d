"""What a function does besides its result: it is done once, as in eager code, or the net is not compiled."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from compiling.nets import Chain, assert_same_step, compiled, half_step, inputs, twice
from torch import Tensor, nn
from torch.distributed import fsdp

import revgraph as rg
from revgraph import compile
from revgraph.compiling import backend, refusals

PLANS = ("keep", "recompute", "invert")


class Function(nn.Module):
    """A perceptron, with something to note things in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.calls = 0
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


class Prints(Function):
    def forward(self, x: Tensor) -> Tensor:
        print("a batch")
        return super().forward(x)


class Branches(Function):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) > 0 else super().forward(-x)


class Draws(Function):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + 0 * random.random())


class Counts(Function):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Notes(Function):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.last = y.mean()
        return y


class Asserts(Function):
    def forward(self, x: Tensor) -> Tensor:
        torch._assert_async((x.abs() < 100).all(), "the input is too large")
        return super().forward(x)


class Raises(Function):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise KeyError("no such table")
        return super().forward(x)


def block(function: type[nn.Module]) -> Chain:
    return Chain(lambda: rg.Additive(function(), half_step()), depth=1).double()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (Prints, r"builtin operator.*line [0-9]+: print\(.a batch.\)"),
        (Branches, r"line [0-9]+: return super\(\).forward\(x\) if float\(x.sum\(\)\) > 0"),
        (Draws, r"Dynamo does not know how to trace .*random"),
    ],
)
def test_what_the_compiler_cannot_read_runs_on_the_engine_and_says_why(
    function: type[nn.Module], reason: str
) -> None:
    model, plain = twice(block(function))
    step = compiled(model, inputs())
    with pytest.warns(rg.CompileWarning, match=rf"node 'blocks.0.f' cannot be compiled: .*{reason}") as told:
        assert_same_step(step, plain, inputs())
    assert "This form of call runs on the eager engine instead." in str(told[0].message)
    assert_same_step(step, plain, inputs())  # and says so once


def test_another_call_is_compiled_nevertheless() -> None:
    class Looks(Function):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and float(x.sum()) > 0:
                return super().forward(-x)
            return super().forward(x)

    model, plain = twice(block(Looks))
    step = compiled(model, inputs())
    with pytest.warns(rg.CompileWarning, match="eager engine"):
        assert_same_step(step, plain, inputs())
    assert_same_step(step.eval(), plain.eval(), inputs())
    assert partitions(step) == 1


def test_a_counter_would_compile_on_every_call() -> None:
    model, plain = twice(block(Counts))
    step = compiled(model, inputs())
    with pytest.warns(rg.CompileWarning, match=r"anew on every call, .* \('calls == [0-9]' held no longer\)"):
        for _ in range(backend.MOST_IN_A_ROW):
            assert_same_step(step, plain, inputs())
    assert_same_step(step, plain, inputs())
    assert model.blocks[0].f.calls == plain.blocks[0].f.calls == backend.MOST_IN_A_ROW + 1  # pyright: ignore


@pytest.mark.parametrize("plan", PLANS)
def test_a_tensor_that_is_noted_on_a_module_is_that_of_the_forward(plan: str) -> None:
    model, plain = twice(block(Notes))
    step = compiled(model, inputs(), plan=plan)
    for batch in range(2):
        assert_same_step(step, plain, inputs(seed=batch))
    one, two = (each.blocks[0].f for each in (model, plain))  # pyright: ignore
    torch.testing.assert_close(one.last, two.last)
    gradients = []
    for run, f in ((step, one), (plain, two)):
        (run(inputs()).sum() + f.last).backward()
        gradients.append(f.linear.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("plan", PLANS)
def test_assertions_hold(plan: str) -> None:
    model, plain = twice(block(Asserts))
    step = compiled(model, inputs(), plan=plan)
    assert_same_step(step, plain, inputs())
    with pytest.raises(RuntimeError, match="the input is too large"):
        step(inputs() * 1e4)


@torch.library.custom_op("revgraph_tests::counted", mutates_args=("counter",))
def counted(x: Tensor, counter: Tensor) -> Tensor:
    counter.add_(1)
    return x * counter


@counted.register_fake
def _(x: Tensor, counter: Tensor) -> Tensor:
    return torch.empty_like(x)


@pytest.mark.parametrize("plan", PLANS)
def test_an_operator_of_ones_own_that_writes_a_buffer_writes_it_once(plan: str) -> None:
    class Own(Function):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("counter", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * counted(x.detach(), self.counter)

    model, plain = twice(block(Own))
    step = compiled(model, inputs(), plan=plan)
    for _ in range(2):
        assert_same_step(step, plain, inputs())
    assert model.blocks[0].f.counter == 2  # pyright: ignore


def test_what_the_function_raises_is_raised() -> None:
    model = block(Raises).eval()
    step = compiled(model, inputs())
    with pytest.raises(KeyError, match="no such table"):
        step.train()(inputs())
    assert_same_step(step.eval(), model, inputs())


def test_an_inverse_with_a_tensor_of_its_own_runs_on_the_engine() -> None:
    class Shifted(rg.Coupling):
        def __init__(self) -> None:
            super().__init__(half_step(), half_step())
            self.shifts = [torch.ones(8, dtype=torch.double)]  # not a buffer

        def couple(self, x: Tensor, term: Tensor) -> Tensor:
            return x + term + self.shifts[0]

        def uncouple(self, y: Tensor, term: Tensor) -> Tensor:
            return y - term - self.shifts[0]

    model, plain = twice(Chain(Shifted, depth=1).double())
    step = compiled(model, inputs())
    with pytest.warns(rg.CompileWarning, match=r"an inverse uses a tensor .* Register it as a buffer"):
        assert_same_step(step, plain, inputs())


def test_a_missing_compiler_is_an_error() -> None:
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._inductor.exc import InvalidCxxCompiler

    marked: Any = None
    error = BackendCompilerFailed(compile, InvalidCxxCompiler("g++"), None)
    with pytest.raises(rg.PlanError, match=r"there is none. Install g\+\+ or clang\+\+.*'aot' needs none"):
        refusals.refusal(error, marked)


def test_sharded_nets_run_on_the_engine() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model, plain = twice(block(Function))
        step = compiled(model, inputs())
        fsdp.fully_shard(step)
        with pytest.warns(rg.CompileWarning, match="a net with fully_shard applied to it is not compiled"):
            loss = step(inputs()).sum()
        loss.backward()
        plain(inputs()).sum().backward()
        for one, two in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad.full_tensor(), two.grad)  # pyright: ignore
    finally:
        torch.distributed.destroy_process_group()


def partitions(step: rg.ReversibleModule) -> int:
    return len(backend._compiled[step._executable]["aot", False].partitions)
