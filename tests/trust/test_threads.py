"""Two threads, each with its own step on one net."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from engine.samples import (
    Chain,
    assert_close,
    assert_same_buffers,
    batch,
    doubled,
    dropping,
    inverted,
    normed,
    step,
)
from torch import Tensor, nn

import revgraph as rg

THREADS, STEPS = 2, 60


@pytest.fixture(autouse=True)
def threads_change_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(run: Callable[[int], None]) -> None:
    """Run with each thread's number, and raise what a thread raises."""
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            run(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_gradients_of_two_threads_are_each_their_own() -> None:
    model, plain = doubled(lambda: Chain(f=normed))
    net = inverted(model, batch())
    inputs = [batch(seed=number) for number in range(THREADS)]
    expected = [step(plain, plain, x) for x in inputs]

    def run(number: int) -> None:
        for _ in range(STEPS):
            assert_close(step(net, model, inputs[number]), expected[number])

    in_threads(run)


@pytest.mark.slow
def test_traces_in_two_threads_are_those_of_one() -> None:
    models = [doubled(lambda f=f: Chain(f=f, depth=2))[0] for f in (normed, dropping)]
    alone = [rg.trace(model, batch()).graph for model in models]
    found: dict[int, list[rg.Graph]] = {number: [] for number in range(THREADS)}

    def run(number: int) -> None:
        found[number] += [rg.trace(models[number], batch()).graph for _ in range(2)]

    in_threads(run)
    assert found == {number: [alone[number]] * 2 for number in range(THREADS)}


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["invert", "recompute", "default"])
def test_batchnorm_counts_every_step_of_two_threads(choice: str) -> None:
    model, plain = doubled(lambda: Chain(f=normed))
    x = batch()
    net = rg.trace(model, x)
    if choice != "default":
        net.plan = rg.decide(net.graph, {name: choice for name in net.plan.decisions})

    def run(_: int) -> None:
        for _ in range(STEPS):
            step(net, model, x)

    in_threads(run)
    # All steps see one batch, so that any order of them leaves the same statistics.
    for _ in range(THREADS * STEPS):
        plain(x)
    assert_same_buffers(model, plain)


class Steps(nn.Module):
    """Goes through as many steps as its input has, or as what it computes of that."""

    def __init__(self, computed: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.computed = computed

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x[:, 0])
        for place, each in enumerate(self.first(x).unbind(1) if self.computed else x.unbind(1)):
            total = total + torch.tanh(each) * place
        return self.last(total)


@pytest.mark.slow
@pytest.mark.parametrize("computed", [False, True])
def test_forms_of_call_that_come_in_two_threads_at_once(computed: bool) -> None:
    """While one is traced, the other thread's net waits, and its plain modules run as they are."""
    inputs = {size: batch(2, size, 4, seed=size) for size in range(2, 7)}
    for _ in range(3):
        model, plain = doubled(lambda: Steps(computed))
        net = rg.trace(model, inputs[2])
        expected = {size: step(plain, plain, x) for size, x in inputs.items()}

        def run(
            number: int, net: nn.Module = net, plain: nn.Module = plain, expected: Any = expected
        ) -> None:
            for size in ([3, 4, 5, 6], [6, 5, 4, 3])[number]:
                x = inputs[size].detach().clone().requires_grad_()
                assert_close(step(net, net, x), expected[size])
                assert_close(step(plain, plain, x), expected[size])

        in_threads(run)


class Masked(rg.Boundary):
    """Drops elements, and notes what it dropped in which thread."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.masks: dict[int, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.functional.dropout(torch.ones_like(x), 0.5)
        self.masks.setdefault(threading.get_ident(), []).append(mask.detach())
        return torch.tanh(self.linear(x)) * mask


def test_dropout_replays_each_threads_own_mask() -> None:
    model, _ = doubled(lambda: Chain(f=Masked))
    net = inverted(model, batch())
    dropping = [module for module in model.modules() if isinstance(module, Masked)]
    for module in dropping:
        module.masks.clear()

    def run(number: int) -> None:
        x = batch(seed=number)
        for _ in range(STEPS):
            step(net, model, x)
            for module in dropping:
                first, second = module.masks.pop(threading.get_ident())
                assert torch.equal(first, second)

    in_threads(run)


def test_a_thread_that_evaluates_does_not_disturb_one_that_trains() -> None:
    model, plain = doubled(lambda: Chain(f=dropping))
    x = batch()
    net = inverted(model, x)
    torch.manual_seed(0)
    expected = [step(plain, plain, x) for _ in range(STEPS)]
    watched = [batch(seed=9, grad=False), *(each.clone() for each in model.state_dict().values())]
    still = inverted(doubled(lambda: Chain(f=normed))[0], watched[0]).eval()
    with torch.no_grad():
        known = still(watched[0])
    torch.manual_seed(0)

    def run(number: int) -> None:
        for index in range(STEPS):
            if number == 0:
                assert_close(step(net, model, x), expected[index])
            else:
                with torch.no_grad():
                    assert torch.equal(still(watched[0]), known)

    in_threads(run)
