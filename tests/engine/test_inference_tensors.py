"""Inference tensors as inputs, conditions, buffers and stand-ins; tracing and running in inference mode.

Plain autograd takes an inference tensor wherever it need not save it. There a net is right, or says what to
do.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.kinds import Weave, follow, leaves_of, loss_of, made_twice, plans, right_or_refused, two_streams
from engine.samples import assert_close
from torch import Tensor, nn
from torch.func import functional_call

import revgraph as rg

SAYS = "(?i)inference|clone"


def inference(*shape: int, seed: int = 5) -> Tensor:
    with torch.inference_mode():
        return torch.randn(
            *(shape or (5, 4)), dtype=torch.double, generator=torch.Generator().manual_seed(seed)
        )


class Function(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        y = self.one(x)
        return self.two(torch.tanh(y if condition is None else y + condition))


class Conditioned(nn.Module):
    """The condition is only added, as a frozen encoder's output may be."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(rg.Additive(Function(), Function()) for _ in range(2))

    def forward(self, a: Tensor, b: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            a, b = block(a, b, condition=condition)
        return a, b


class Target(nn.Module):
    """The first stream is only added to."""

    def __init__(self) -> None:
        super().__init__()
        self.weave = Weave(Function, 2)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.weave(a, b)


class Biased(Function):
    """A buffer that is an inference tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", inference(4))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(x, self.table)


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True], ids=["first", "late"])
@pytest.mark.parametrize("plan", ["default", "inverted", "recomputed", "kept"])
def test_an_inference_tensor_as_a_condition(plan: str, late: bool) -> None:
    model, plain = made_twice(Conditioned)
    a, b = two_streams()
    ordinary = inference().clone()
    net = rg.trace(model, a, b, ordinary)
    (net.plan,) = plans(net, plan)
    if late:
        follow(net, plain, (a, b, ordinary), 12)
    with right_or_refused("condition", "'blocks.", says=SAYS):
        follow(net, plain, (a, b, inference()), 3)
    follow(net, plain, (a, b, ordinary), 2)


@pytest.mark.parametrize("plan", ["default", "inverted", "recomputed"])
def test_an_inference_tensor_as_a_stream(plan: str) -> None:
    model, plain = made_twice(Target)
    a, b = two_streams()
    net = rg.trace(model, a.detach(), b)
    (net.plan,) = plans(net, plan)
    with right_or_refused("'a'", "weave", says=SAYS):
        follow(net, plain, (inference(), b), 3)


@pytest.mark.parametrize("given", ["inference", "ordinary"])
def test_a_trace_with_an_inference_tensor_as_the_example(given: str) -> None:
    model, plain = made_twice(Conditioned)
    a, b = two_streams()
    condition = inference() if given == "inference" else inference().clone()
    with right_or_refused("condition", "'blocks.", "inference", says=SAYS):
        net = rg.trace(model, a, b, inference())
        net.plan = rg.decide(net.graph, {})
        follow(net, plain, (a, b, condition), 3)


@pytest.mark.parametrize("examples", ["inference", "ordinary"])
def test_a_trace_in_inference_mode(examples: str) -> None:
    model, plain = made_twice(lambda: Weave(Function))
    a, b = two_streams()
    with right_or_refused("inference_mode", says=SAYS):
        with torch.inference_mode():
            given = (a, b) if examples == "ordinary" else (inference(), inference(seed=6))
            net = rg.trace(model, *given)
        net.plan = rg.decide(net.graph, {})
        follow(net, plain, (a, b), 9)
    with torch.no_grad():
        assert all(torch.equal(one, two) for one, two in zip(model(a, b), plain(a, b), strict=True))


def test_a_net_called_in_inference_mode_and_trained_afterwards() -> None:
    model, plain = made_twice(lambda: Weave(Function))
    inputs = two_streams()
    net = rg.trace(model, *inputs)
    for _ in range(3):
        with torch.inference_mode():
            found, expected = net(*inputs), plain(*inputs)
            assert all(each.is_inference() for each in found)
            assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
        follow(net, plain, inputs, 5)


def test_training_inside_a_stretch_of_inference_mode() -> None:
    model, plain = made_twice(lambda: Weave(Function))
    inputs = two_streams()
    net = rg.trace(model, *inputs)
    net.plan = rg.decide(net.graph, {})
    with torch.inference_mode():
        net(*inputs)
        with torch.inference_mode(False), torch.enable_grad():
            follow(net, plain, inputs, 9)


def test_a_model_made_in_inference_mode_runs_without_gradients() -> None:
    with torch.inference_mode():
        model, plain = made_twice(lambda: Weave(Function))
    inputs = [each.detach() for each in two_streams()]
    with right_or_refused("'fs.", "inference", says=SAYS), torch.no_grad():
        net = rg.trace(model, *inputs)
        assert all(torch.equal(one, two) for one, two in zip(net(*inputs), plain(*inputs), strict=True))


@pytest.mark.parametrize("plan", ["default", "inverted"])
def test_an_inference_tensor_as_a_buffer(plan: str) -> None:
    model, plain = made_twice(lambda: Weave(Biased), None)
    model, plain = (m.double() for m in (model, plain))
    for m in (model, plain):
        for f in m.fs:
            f.table = inference(4)
    inputs = two_streams()
    with right_or_refused("'fs.", "table", "inference", says=SAYS):
        net = rg.trace(model, *inputs)
        (net.plan,) = plans(net, plan)
        follow(net, plain, inputs, 9)


@pytest.mark.parametrize("late", [False, True], ids=["first", "late"])
def test_an_inference_tensor_in_place_of_a_parameter(late: bool) -> None:
    """A bias is not saved, so plain autograd takes one for it."""
    model, plain = made_twice(lambda: Weave(Function))
    inputs = two_streams()
    net = rg.trace(model, *inputs)
    net.plan = rg.decide(net.graph, {})
    if late:
        follow(net, plain, inputs, 12)
    others: dict[str, Tensor] = {
        name: inference(4) if name.endswith("bias") else parameter.detach().requires_grad_()
        for name, parameter in plain.named_parameters()
    }
    leaves = [*inputs, *(each for each in others.values() if each.requires_grad)]
    expected = torch.autograd.grad(loss_of(functional_call(plain, others, inputs)), leaves)
    with right_or_refused("'fs.", says="(?i)inference|clone|functional_call|parameter"):
        found = torch.autograd.grad(loss_of(functional_call(net, others, inputs)), leaves)
        assert_close(found, expected, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["plan", "measure", "check"])
def test_planning_and_measuring_in_inference_mode(what: str) -> None:
    """They differentiate, so they leave the mode, or say that it is in the way."""
    model, plain = made_twice(lambda: Weave(Function))
    inputs = two_streams()
    net = rg.trace(model, *inputs)
    calls: dict[str, Any] = {
        "plan": lambda: rg.plan(net.graph),
        "measure": lambda: rg.measure(net, *inputs),
        "check": lambda: rg.check(net, *inputs),
    }
    with torch.inference_mode(), right_or_refused("inference", says=SAYS):
        calls[what]()
    follow(net, plain, inputs, 3)


def test_backward_in_inference_mode() -> None:
    model, plain = made_twice(lambda: Weave(Function))
    inputs = two_streams()
    net = rg.trace(model, *inputs)
    net.plan = rg.decide(net.graph, {})
    results = []
    with right_or_refused("'fs.", says=SAYS):
        for run in (plain, net):
            loss = loss_of(run(*inputs))
            with torch.inference_mode():
                results.append(torch.autograd.grad(loss, leaves_of(run, inputs)))
        assert_close(*results, 1e-9)
