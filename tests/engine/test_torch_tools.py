"""Hooks, counters, profilers and anomaly mode around a step."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine.samples import (
    Chain,
    Pair,
    assert_close,
    batch,
    counted,
    doubled,
    inverted,
    loss_of,
    mlp,
    step,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import revgraph as rg


def test_flop_counter_mode_around_a_step() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    expected = step(plain, plain, x)
    with FlopCounterMode(display=False) as counter:
        loss_of(net(x)).backward()
    assert counter.get_total_flops() > 0
    assert_close([*(parameter.grad for parameter in model.parameters()), x.grad], expected)


def test_keeping_everything_costs_plain_flops() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = rg.trace(model, x)
    net.plan = rg.keep_all(net.graph)
    totals = []
    for run in (net, plain):
        with FlopCounterMode(display=False) as counter:
            loss_of(run(x)).backward()
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1]


def test_profiler_around_a_step() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = step(net, model, x)
    assert any("addmm" in event.key for event in profile.key_averages())
    assert_close(found, step(plain, plain, x))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly_mode_around_a_step() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    with torch.autograd.set_detect_anomaly(True):
        found = step(net, model, x)
    assert_close(found, step(plain, plain, x))


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected in")
def test_anomaly_mode_finds_a_nan_inside_a_function() -> None:
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(self.linear(x) * 0.0)

    model, _ = doubled(lambda: Pair(Bad(), mlp()))
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    net = inverted(model, x1, x2)
    with torch.autograd.set_detect_anomaly(True), pytest.raises(RuntimeError, match="nan"):
        loss_of(net(x1, x2)).backward()


def test_forward_hooks_inside_a_function_fire_twice_and_full_backward_hooks_once() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    expected = step(plain, plain, x)
    seen: list[str] = []
    grads: list[Tensor] = []
    linear = model.blocks[1].f[2]
    linear.register_forward_pre_hook(lambda *_: seen.append("before"))
    linear.register_forward_hook(lambda *_: seen.append("after"))
    linear.register_full_backward_pre_hook(lambda *_: seen.append("backward before"))

    def backward(module: nn.Module, into: Any, out: Any) -> None:
        seen.append("backward")
        grads.append(out[0])

    linear.register_full_backward_hook(backward)
    found = step(net, model, x)
    assert seen == ["before", "after", "backward before", "before", "after", "backward"]
    assert grads[0].shape == (3, 4)
    assert_close(found, expected)


def test_a_forward_hook_that_changes_the_output_is_replayed() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    for run in (model, plain):
        run.blocks[1].f[0].register_forward_hook(lambda module, args, out: torch.sin(out) * 2)
    assert_close(step(net, model, x), step(plain, plain, x))


def test_a_backward_hook_that_changes_the_gradient_counts() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    for run in (model, plain):
        run.blocks[1].f[1].register_full_backward_hook(lambda module, into, out: (into[0] * 3,))
    assert_close(step(net, model, x), step(plain, plain, x))


def test_parameter_hooks_fire_once() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    seen: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda grad, name=name: seen.append(name))
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: seen.append("after " + name))
    loss_of(net(x)).backward()
    names = [name for name, _ in model.named_parameters()]
    assert sorted(seen) == sorted([*names, *("after " + name for name in names)])
    loss_of(plain(x)).backward()
    assert_close([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])


def test_tensor_hooks_inside_a_function_fire_once() -> None:
    seen: list[Tensor] = []

    class Hooked(rg.Boundary):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.inner(x))
            if y.requires_grad:
                y.register_hook(seen.append)
            return torch.sin(y)

    model, plain = doubled(lambda: Pair(Hooked(), mlp()))
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    net = inverted(model, x1, x2)
    expected = step(plain, plain, x1, x2)
    seen.clear()
    assert_close(step(net, model, x1, x2), expected)
    assert len(seen) == 1


def test_hooks_on_the_output_and_retain_grad() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    kept = []
    for run in (net, plain):
        output = run(x)
        output.retain_grad()
        output.register_hook(lambda grad: grad * 2)
        loss_of(output).backward()
        kept += [output.grad, x.grad]
        x.grad = None
    assert_close(kept[:2], kept[2:])


def test_full_backward_hooks_on_the_net_fire_once() -> None:
    model, _ = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    seen: list[int] = []
    net.register_full_backward_hook(lambda module, into, out: seen.append(len(into)))
    loss_of(net(x)).backward()
    assert seen == [1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "again", [lambda net: net, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))]
)
@pytest.mark.parametrize("late", [False, True])
def test_full_backward_hooks_on_the_model_are_the_nets_too(late: bool, again: Callable[[Any], Any]) -> None:
    model, plain = doubled(Chain)
    x = batch()
    if not late:
        for each in (model, plain):
            each.register_full_backward_hook(_doubled)
    net = inverted(model, x)
    if late:
        for each in (model, plain):
            each.register_full_backward_hook(_doubled)
    found = []
    for run in (again(net), plain):
        x.grad = None
        loss_of(run(x)).backward()
        found.append(x.grad)
    assert_close(found[:1], found[1:])


def _doubled(_: nn.Module, into: tuple[Any, ...], out: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(None if each is None else 2 * each for each in into)


def test_saved_tensor_hooks_of_the_caller_see_what_is_kept() -> None:
    model, plain = doubled(lambda: nn.Sequential(nn.Linear(8, 8), Chain(), nn.Tanh()))
    x = batch()
    net = inverted(model, x)
    with torch.autograd.graph.save_on_cpu():
        loss = loss_of(net(x))
    found = torch.autograd.grad(loss, [*model.parameters(), x])
    assert_close(found, step(plain, plain, x))


def test_evaluations_are_counted_the_same_by_hooks_and_by_measure() -> None:
    model, _ = doubled(Chain)
    x = batch()
    net = rg.trace(model, x)
    calls = rg.measure(net, x).calls
    with counted(model, nn.Sequential) as hooked:
        loss_of(net(x)).backward()
    assert {name: calls[name] for name in hooked} == hooked


def test_measure_and_check_leave_gradients_as_they_were() -> None:
    model, _ = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    for measured in (rg.measure, rg.check):
        measured(net, x)
        assert x.grad is None
        assert all(parameter.grad is None for parameter in model.parameters())
