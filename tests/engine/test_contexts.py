"""Contexts around the forward, the backward, or both: a replay is the forward again, or refused by name.

Each context is entered in the first forward, and again in one that comes after a dozen without it, when the
net may have settled on a leaner path.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from engine.kinds import (
    Weave,
    dense,
    leaves_of,
    loss_of,
    made_twice,
    plans,
    right_or_refused,
    settle,
    two_streams,
)
from engine.samples import assert_close
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import revgraph as rg

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")


class Function(nn.Module):
    """Two layers with a table between them; what differs under a context is in `table` or `bend`."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def table(self, x: Tensor) -> Tensor:
        return torch.ones_like(x[0])

    def bend(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.bend(self.one(x)) * self.table(x))


class OnTheDefaultDevice(Function):
    """A table of positions, made where tensors are made; its numbers count only where it has any."""

    def table(self, x: Tensor) -> Tensor:
        table = torch.linspace(0.5, 1.5, 4, dtype=x.dtype)
        return table if table.device == x.device else torch.full_like(x[0], 0.25)


class OfTheDefaultType(Function):
    """A table in the precision of the day."""

    def table(self, x: Tensor) -> Tensor:
        return (torch.linspace(0.5, 1.5, 4) / 3).to(x.dtype)


class ByPrecision(Function):
    """Another function in low precision."""

    def bend(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) if x.dtype is torch.bfloat16 else torch.tanh(x)


class ByDeterminism(Function):
    """Another algorithm where determinism is asked for."""

    def bend(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) if torch.are_deterministic_algorithms_enabled() else torch.tanh(x)


class Attending(Function):
    def bend(self, x: Tensor) -> Tensor:
        rows = x.view(1, 1, *x.shape)
        return functional.scaled_dot_product_attention(rows, rows, rows.sin()).view(x.shape)


class Dropping(Function):
    def bend(self, x: Tensor) -> Tensor:
        return functional.dropout(torch.tanh(x), 0.4)


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).t()


class Parametrized(Function):
    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.one, "weight", Symmetric())

    def bend(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.one.weight)


class SwapsFunctions(TorchFunctionMode):
    """Every tanh is a sigmoid."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (torch.sigmoid if func is torch.tanh else func)(*args, **(kwargs or {}))


class LooksAtFunctions(TorchFunctionMode):
    """Counts, and changes nothing."""

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        LooksAtFunctions.calls += 1
        return func(*args, **(kwargs or {}))


class ChangesOperators(TorchDispatchMode):
    """Every tanh is halved, below autograd."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result / 2 if func is torch.ops.aten.tanh.default else result


class LooksAtOperators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def default_type(dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Any:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def default_device(device: str) -> Any:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


# What changes what a function computes: it holds in the replay, or is refused.
CHANGING: dict[str, tuple[type[Function], Callable[[], AbstractContextManager[Any]]]] = {
    "device": (OnTheDefaultDevice, lambda: torch.device("meta")),
    "default device": (OnTheDefaultDevice, lambda: default_device("meta")),
    "dtype": (OfTheDefaultType, lambda: default_type(torch.float16)),
    "autocast": (ByPrecision, lambda: torch.autocast("cpu", torch.bfloat16)),
    "determinism": (ByDeterminism, deterministic),
    "kernel": (Attending, lambda: sdpa_kernel(SDPBackend.MATH)),
    "SwapsFunctions": (Function, SwapsFunctions),
    "ChangesOperators": (Function, ChangesOperators),
}
CALLED = {
    "device": "device",
    "default device": "device",
    "dtype": "dtype|default type",
    "autocast": "autocast",
    "determinism": "use_deterministic_algorithms",
    "kernel": "sdpa_kernel|kernel|backend",
    "SwapsFunctions": "SwapsFunctions|function mode",
    "ChangesOperators": "ChangesOperators|dispatch mode",
}


def held_or_refused(name: str) -> AbstractContextManager[None]:
    """A refusal calls the context by its name; that a function differs from itself would be no help."""
    return right_or_refused("'fs.", name, says=f"(?i){CALLED[name]}|context")


# What only looks on, or changes something else: always right.
HARMLESS: dict[str, tuple[type[Function], Callable[[], AbstractContextManager[Any]]]] = {
    "flop counter": (Function, lambda: FlopCounterMode(display=False)),
    "function mode that looks": (Function, LooksAtFunctions),
    "dispatch mode that looks": (Function, LooksAtOperators),
    "saved on the CPU": (Function, torch.autograd.graph.save_on_cpu),
    "hooks of one's own": (
        Function,
        lambda: torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x),
    ),
    "random numbers forked": (Dropping, lambda: torch.random.fork_rng(devices=[])),
    "single thread": (Function, lambda: torch.autograd.set_multithreading_enabled(False)),
    "grad mode": (Function, torch.enable_grad),
    "parametrizations cached": (Parametrized, parametrize.cached),
    "autocast off": (ByPrecision, lambda: torch.autocast("cpu", enabled=False)),
    "profiler": (Function, lambda: torch.profiler.record_function("step")),
    "mkldnn off": (Function, lambda: torch.backends.mkldnn.flags(enabled=False)),
}


def one_step(
    run: nn.Module,
    inputs: tuple[Tensor, ...],
    context: Callable[[], AbstractContextManager[Any]],
    where: str,
    seed: int = 7,
) -> list[Tensor | None]:
    """Gradients of a step whose forward, backward or whole is in a context."""
    torch.manual_seed(seed)
    with context() if where == "whole" else nullcontext():
        with context() if where == "forward" else nullcontext():
            loss = loss_of(run(*inputs))
        with context() if where == "backward" else nullcontext():
            loss.backward()
    leaves = leaves_of(run, inputs)
    found = [dense(leaf.grad) for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return found


def models(function: Callable[[], nn.Module], plan: str, late: bool) -> tuple[Any, nn.Module, Any]:
    """A net, the plain model and inputs, in single precision; `late` after a dozen ordinary steps."""
    inputs = two_streams(6, 4, dtype=torch.float32)
    model, plain = made_twice(lambda: Weave(function), torch.float32)
    net = rg.trace(model, *inputs)
    (net.plan,) = plans(net, plan)
    if late:
        settle(net, plain, inputs)
    return net, plain, inputs


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True], ids=["first", "late"])
@pytest.mark.parametrize("where", ["forward", "backward", "whole"])
@pytest.mark.parametrize("name", CHANGING)
def test_a_context_holds_in_the_replay_or_is_refused(name: str, where: str, late: bool) -> None:
    function, context = CHANGING[name]
    net, plain, inputs = models(function, "inverted", late)
    expected = one_step(plain, inputs, context, where)
    with held_or_refused(name):
        assert_close(one_step(net, inputs, context, where), expected, 2e-2 if name == "autocast" else 1e-3)
    assert_close(
        one_step(net, inputs, nullcontext, "whole"), one_step(plain, inputs, nullcontext, "whole"), 1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize(("where", "late"), [("forward", False), ("backward", False), ("whole", True)])
@pytest.mark.parametrize("name", HARMLESS)
def test_a_context_that_changes_nothing_is_right(name: str, where: str, late: bool) -> None:
    function, context = HARMLESS[name]
    net, plain, inputs = models(function, "inverted", late)
    expected = one_step(plain, inputs, context, where)
    assert_close(one_step(net, inputs, context, where), expected, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["default", "recomputed", "results"])
@pytest.mark.parametrize("name", ["device", "autocast", "SwapsFunctions", "ChangesOperators"])
def test_a_context_around_the_forward_under_other_plans(name: str, plan: str) -> None:
    function, context = CHANGING[name]
    with held_or_refused(name):
        net, plain, inputs = models(function, plan, False)
        for _ in range(12):
            expected = one_step(plain, inputs, context, "forward")
            assert_close(one_step(net, inputs, context, "forward"), expected, 2e-2)


class Seen(Function):
    """Notes where its table was made and in which precision it worked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        table, y = torch.arange(4.0), self.one(x)
        self.seen.append((table.device.type, table.dtype, y.dtype, torch.is_autocast_enabled("cpu")))
        return torch.tanh(y)


@pytest.mark.slow
@pytest.mark.parametrize("backward", ["outside", "inside"])
@pytest.mark.parametrize("name", ["device", "default device", "dtype", "autocast"])
def test_functions_see_the_same_context_in_the_replay(name: str, backward: str) -> None:
    net, _, inputs = models(Seen, "inverted", False)
    fs = [f for f in net.modules() if isinstance(f, Seen)]
    with held_or_refused(name):
        for _ in range(12):
            for f in fs:
                f.seen.clear()
            context = CHANGING[name][1]
            with context() if backward == "outside" else nullcontext():
                loss = loss_of(net(*inputs))
            with context() if backward == "inside" else nullcontext():
                loss.backward()
            assert all(len(set(f.seen)) == 1 for f in fs)


@pytest.mark.parametrize("late", [False, True], ids=["first", "late"])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)])
def test_autocast_in_one_precision_and_backward_in_another(dtypes: Any, late: bool) -> None:
    net, plain, inputs = models(ByPrecision, "inverted", late)
    results = []
    for run in (net, plain):
        with torch.autocast("cpu", dtypes[0]):
            loss = loss_of(run(*inputs))
        with torch.autocast("cpu", dtypes[1]):
            results.append(torch.autograd.grad(loss, leaves_of(run, inputs)))
    assert_close(*results, 2e-2)


@pytest.mark.parametrize("late", [False, True], ids=["first", "late"])
@pytest.mark.parametrize("name", ["autocast", "device", "dtype"])
def test_backward_in_another_thread(name: str, late: bool) -> None:
    """Many contexts belong to a thread; the replay runs in one that never entered them."""
    function, context = CHANGING[name]
    net, plain, inputs = models(function, "inverted", late)
    results: list[Any] = []
    for run in (net, plain):
        with context():
            loss = loss_of(run(*inputs))

        def differentiate(loss: Tensor = loss, run: nn.Module = run) -> None:
            try:
                results.append(torch.autograd.grad(loss, leaves_of(run, inputs)))
            except Exception as error:
                results.append(error)

        thread = threading.Thread(target=differentiate)
        thread.start()
        thread.join()
    with held_or_refused(name):
        if isinstance(results[0], Exception):
            raise results[0]
        assert_close(*results, 2e-2)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_backward_under_a_gradient_mode(mode: type) -> None:
    net, plain, inputs = models(Function, "inverted", False)
    for _ in range(12):
        assert_close(one_step(net, inputs, mode, "backward"), one_step(plain, inputs, mode, "backward"), 1e-3)


@pytest.mark.parametrize("late", [False, True], ids=["first", "late"])
@pytest.mark.parametrize("changed", [False, True], ids=["same", "others"])
def test_functional_call_around_the_net(changed: bool, late: bool) -> None:
    net, plain, inputs = models(Function, "inverted", late)
    others = {
        name: (parameter.detach() + (0.5 if changed else 0.0)).requires_grad_()
        for name, parameter in plain.named_parameters()
    }
    leaves = [*inputs, *others.values()]
    expected = torch.autograd.grad(loss_of(functional_call(plain, others, inputs)), leaves)
    with right_or_refused("'fs.", "functional_call", says="functional_call|parameter"):
        found = torch.autograd.grad(loss_of(functional_call(net, others, inputs)), leaves)
        assert_close(found, expected, 1e-3)


def test_edits_of_saved_tensors_allowed() -> None:
    """torch's own context in which saved tensors may be edited, around a whole step."""
    net, plain, inputs = models(Function, "inverted", False)
    context = torch.autograd.graph.allow_mutation_on_saved_tensors
    expected = one_step(plain, inputs, context, "whole")
    with right_or_refused("'fs.", "allow_mutation_on_saved_tensors"):
        assert_close(one_step(net, inputs, context, "whole"), expected, 1e-3)


def test_a_flop_counter_sees_the_second_evaluations() -> None:
    net, plain, inputs = models(Function, "inverted", True)
    totals = []
    for run in (net, plain):
        with FlopCounterMode(display=False) as counter:
            loss_of(run(*inputs)).backward()
        totals.append(counter.get_total_flops())
    assert totals[0] > totals[1]


PRECISIONS: list[str] = []


class Asking(nn.Module):
    """Notes how precisely products are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        PRECISIONS.append(torch.get_float32_matmul_precision())
        return torch.tanh(self.linear(x))


def test_products_are_as_precise_in_the_replay() -> None:
    before = torch.get_float32_matmul_precision()
    net, _, inputs = models(Asking, "inverted", late=False)
    try:
        torch.set_float32_matmul_precision("medium")
        loss = loss_of(net(*inputs))
        torch.set_float32_matmul_precision("highest")
        PRECISIONS.clear()
        loss.backward()
        assert PRECISIONS and set(PRECISIONS) == {"medium"}
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
