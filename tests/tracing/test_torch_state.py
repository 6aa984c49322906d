"""Code that asks for torch's global state computes by that of the call, and not by that of the trace."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, is_autocast_enabled, nn
from tracing.agreement import equal_runs, linear, randn

import revgraph as rg


class Model(nn.Module):
    """Couplings with a factor that a function gives."""

    def __init__(self, factor: Callable[[], Any]) -> None:
        super().__init__()
        self.layers, self.factor = nn.ModuleList([linear(seed=1), linear(seed=3)]), factor

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            a, b = b, a + self.factor() * layer(b).tanh()
        return a, b


@contextmanager
def switched(read: Callable[[], Any], write: Callable[[Any], None], value: Any) -> Iterator[None]:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def flag(name: str, value: Any) -> Callable[[], AbstractContextManager[Any]]:
    cudnn: Any = torch.backends.cudnn
    return partial(switched, lambda: getattr(cudnn, name), partial(setattr, cudnn, name), value)


def bfloat16() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


DOUBLE = partial(switched, torch.get_default_dtype, torch.set_default_dtype, torch.float64)
CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "autocast": (lambda: 2.0 if torch.is_autocast_enabled("cpu") else 3.0, bfloat16),
    "autocast by keyword": (
        lambda: 2.0 if torch.is_autocast_enabled(device_type="cpu") else 3.0,
        bfloat16,
    ),
    "autocast's dtype": (
        lambda: 2.0 if torch.get_autocast_dtype("cpu") == torch.float16 else 3.0,
        lambda: torch.autocast("cpu", dtype=torch.float16),
    ),
    "the default dtype": (lambda: 2.0 if torch.get_default_dtype() == torch.float32 else 3.0, DOUBLE),
    "the size of a new tensor": (lambda: float(torch.ones(1).element_size()), DOUBLE),
    "the dtype of a tensor of numbers": (lambda: float(torch.tensor([1.5]).element_size()), DOUBLE),
    "threads": (
        lambda: float(torch.get_num_threads()),
        partial(switched, torch.get_num_threads, torch.set_num_threads, 2),
    ),
    "determinism": (
        lambda: 2.0 if torch.are_deterministic_algorithms_enabled() else 3.0,
        partial(
            switched, torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
        ),
    ),
    "a backend's flag": (lambda: 2.0 if torch.backends.cudnn.benchmark else 3.0, flag("benchmark", True)),
    "a kind of attention": (
        lambda: 2.0 if torch.backends.cuda.flash_sdp_enabled() else 3.0,
        partial(switched, torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp, False),
    ),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with switched(torch.get_num_threads, torch.set_num_threads, 1):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("first", ["as it is", "changed"])
@pytest.mark.parametrize("case", CASES)
def test_a_call_in_another_state_of_torch_computes_by_that(case: str, first: str) -> None:
    factor, change = CASES[case]
    model = Model(factor)
    inputs = randn(3, 4), randn(3, 4, seed=1)
    before, after = (nullcontext, change) if first == "as it is" else (change, nullcontext)
    with before():
        net = rg.trace(copy.deepcopy(model), *inputs)
    for around in (before, after, before):
        with around():
            equal_runs(net, model, *inputs)


def test_a_copy_and_a_pickle_are_held_to_the_state() -> None:
    model = Model(deterministic)
    inputs = randn(3, 4), randn(3, 4, seed=1)
    net = rg.trace(copy.deepcopy(model), *inputs)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        equal_runs(other, model, *inputs)
        with flag("deterministic", True)():
            equal_runs(other, model, *inputs)


def deterministic() -> float:
    return 2.0 if torch.backends.cudnn.deterministic else 3.0


def test_autocast_that_is_asked_for_by_an_imported_name_is_refused() -> None:
    model = Model(lambda: 2.0 if is_autocast_enabled("cpu") else 3.0)
    with pytest.raises(rg.TraceError, match=r"call it as torch\.is_autocast_enabled"):
        rg.trace(model, randn(3, 4), randn(3, 4, seed=1))


class Precise(nn.Module):
    """A layer that leaves autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.layer(x)


class Casting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.precise, self.layer = Precise(), nn.Linear(4, 4)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a = a + self.precise(b).tanh()
        return a, b + self.layer(a).tanh()


def test_a_part_that_leaves_autocast_leaves_it_in_the_net() -> None:
    torch.manual_seed(0)
    model, inputs = Casting(), (randn(3, 4).float(), randn(3, 4, seed=1).float())
    net = rg.trace(copy.deepcopy(model), *inputs)
    for around in (nullcontext, bfloat16, nullcontext):
        with around(), torch.no_grad():
            for ours, theirs in zip(net(*inputs), model(*inputs), strict=True):
                assert torch.equal(ours, theirs)
