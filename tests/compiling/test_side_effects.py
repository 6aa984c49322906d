"""What a function does besides its result: it is done once, as in eager code, or the net is not compiled."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiling.nets import Chain, assert_same_step, compiled, half_step, inputs, twice
from torch import Tensor, nn
from torch.distributed import fsdp

import revgraph as rg
from revgraph import compile
from revgraph.compiling import refusals
from revgraph.compiling.compiled_form import MOST_IN_A_ROW
from revgraph.compiling.module import _compiled

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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_backward_hooks_run_on_the_engine_and_it_is_said() -> None:
    model, plain = twice(block(Function))
    seen: list[str] = []
    step = compiled(model, inputs())
    for each, name in ((model, "net"), (plain, "plain")):
        each.blocks[0].f.register_full_backward_hook(lambda *_, name=name: seen.append(name))  # pyright: ignore
    with pytest.warns(
        rg.CompileWarning, match=r"'blocks.0.f' cannot be compiled: Module-level backwards hooks"
    ):
        assert_same_step(step, plain, inputs())
    assert seen == ["net", "plain"]


class DrawsOfItsOwn(Function):
    def __init__(self) -> None:
        super().__init__()
        self.source = random.Random(3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.source.random()


class Remembers(Function):
    def __init__(self) -> None:
        super().__init__()
        self.last = deque([1.0, 2.0], maxlen=3)

    def forward(self, x: Tensor) -> Tensor:
        self.last.append(self.last[-1] + 1)
        return super().forward(x) * sum(self.last)


@pytest.mark.parametrize(
    ("function", "reason"),
    [(DrawsOfItsOwn, r"f\.source is a generator of Python's"), (Remembers, r"f\.last is a bounded queue")],
)
def test_what_the_compiler_would_take_for_something_else_runs_on_the_engine(
    function: type[nn.Module], reason: str
) -> None:
    model, plain = twice(block(function))
    step = compiled(model, inputs(), plan="keep")
    with pytest.warns(rg.CompileWarning, match=reason):
        assert_same_step(step, plain, inputs())
    for _ in range(3):
        assert_same_step(step, plain, inputs())


def test_a_counter_would_compile_on_every_call() -> None:
    model, plain = twice(block(Counts))
    step = compiled(model, inputs())
    with pytest.warns(rg.CompileWarning, match=r"anew on every call, .* \('calls == [0-9]' held no longer\)"):
        for _ in range(MOST_IN_A_ROW):
            assert_same_step(step, plain, inputs())
    assert_same_step(step, plain, inputs())
    assert model.blocks[0].f.calls == plain.blocks[0].f.calls == MOST_IN_A_ROW + 1  # pyright: ignore


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def grown(_: nn.Module, __: Any, result: Tensor) -> Tensor:
    return result * 3


def shrunk(_: nn.Module, given: Any) -> Any:
    return tuple(each / 2 for each in given)


def doubled(_: nn.Module, gradients: Any) -> Any:
    return tuple(2 * each for each in gradients)


class Straight(nn.Module):
    """A function that is one node."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x))


def grown_straight(module: nn.Module, _: Any, result: Tensor) -> Tensor | None:
    return result * 3 if type(module) is Straight else None


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda module: module.register_forward_hook(grown),
    "pre": lambda module: module.register_forward_pre_hook(shrunk),
    "backward": lambda module: module.register_full_backward_pre_hook(doubled),
}


@pytest.mark.filterwarnings("ignore::revgraph.errors.CompileWarning")
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_that_come_and_go_after_compiling_are_called(kind: str) -> None:
    model, plain = twice(nn.Sequential(nn.Linear(4, 4), Straight(), nn.Linear(4, 4)).double())
    x = torch.randn(3, 4, dtype=torch.double)
    step = compiled(model, x)
    assert_same_step(step, plain, x)
    handles = [HOOKS[kind](each[1]) for each in (model, plain)]
    assert_same_step(step, plain, x)
    assert_same_step(rg.compile(rg.trace(model, x), "aot"), plain, x)
    for handle in handles:
        handle.remove()
    assert_same_step(step, plain, x)


def test_hooks_of_all_modules_are_called() -> None:
    model, plain = twice(nn.Sequential(nn.Linear(4, 4), Straight()).double())
    x = torch.randn(3, 4, dtype=torch.double)
    step = compiled(model, x)
    assert_same_step(step, plain, x)
    handle = nn.modules.module.register_module_forward_hook(grown_straight)
    try:
        assert_same_step(step, plain, x)
    finally:
        handle.remove()


def test_another_forward_of_a_class_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = twice(nn.Sequential(nn.Linear(4, 4), Straight()).double())
    x = torch.randn(3, 4, dtype=torch.double)
    step = compiled(model, x)
    assert_same_step(step, plain, x)
    monkeypatch.setattr(Straight, "forward", lambda self, x: torch.sigmoid(self.layer(x)))
    assert_same_step(step, plain, x)


@pytest.mark.parametrize("face", ["net", "compiled net", "net that was compiled before"])
def test_sharded_nets_run_on_the_engine(face: str) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model, plain = twice(block(Function))
        net = rg.trace(model, inputs())
        if face == "net":
            fsdp.fully_shard(net)
        step = rg.compile(net, "aot")
        if face != "net":
            fsdp.fully_shard(step if face == "compiled net" else net)
        with pytest.warns(rg.CompileWarning, match="a net with fully_shard applied to it is not compiled"):
            loss = step(inputs()).sum()
        loss.backward()
        plain(inputs()).sum().backward()
        for one, two in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad.full_tensor(), two.grad)  # pyright: ignore
    finally:
        torch.distributed.destroy_process_group()


def partitions(step: rg.ReversibleModule) -> int:
    return len(_compiled[step._executable]["aot", False].partitions)
