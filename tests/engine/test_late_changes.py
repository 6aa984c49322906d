"""What changes from one step to the next, after a net has run long enough to settle on a leaner path.

Twelve ordinary steps come first. Then something changes between two steps, never between forward and
backward, and the net goes on as the plain model does, or says what is in the way.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine.kinds import (
    Weave,
    bytes_of_a_step,
    follow,
    made_twice,
    plans,
    right_or_refused,
    settle,
    two_streams,
)
from engine.samples import assert_close
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import revgraph as rg
from revgraph.measuring import activation_bytes


class Function(rg.Boundary):
    """Not looked into; reads attributes that may change."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.drop, self.norm, self.two = (
            nn.Linear(4, 4),
            nn.Dropout(0.0),
            nn.BatchNorm1d(4),
            nn.Linear(4, 4),
        )
        self.scale, self.moves = 1.0, False
        self.norm.eval()
        self.register_buffer("mean", torch.zeros(4))

    def train(self, mode: bool = True) -> Function:
        norm = self.norm.training
        super().train(mode)
        self.norm.train(norm)
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.drop(torch.tanh(self.one(x) - self.mean)))
        if self.moves:
            self.mean.data.lerp_(x.detach().mean(0), 0.1)
        return self.two(y) * self.scale


def each(change: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A change of every function of a model."""

    def do(model: Any) -> None:
        for f in model.fs:
            change(f)

    return do


def doubles(module: Any, args: Any, output: Tensor) -> Tensor:
    return output * 2


def before(module: Any, args: Any) -> Any:
    return (args[0] * 0.5,)


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).t()


def tie(model: Any) -> None:
    model.fs[1].one.weight = model.fs[0].one.weight


def make_parameter(f: Any) -> None:
    mean = f.mean
    del f.mean
    f.mean = nn.Parameter(mean + 0.1)


def swap(model: Any) -> None:
    model.fs[0].one, model.fs[1].two = model.fs[1].two, model.fs[0].one


CHANGES: dict[str, Callable[[Any], Any]] = {
    "dropout begins": each(lambda f: setattr(f.drop, "p", 0.5)),
    "a norm begins to train": each(lambda f: f.norm.train()),
    "evaluation": lambda m: m.eval(),
    "one function in evaluation": lambda m: m.fs[1].eval(),
    "a buffer begins to move": each(lambda f: setattr(f, "moves", True)),
    "an attribute": each(lambda f: setattr(f, "scale", 0.5)),
    "an attribute becomes a tensor": each(lambda f: setattr(f, "scale", f.one.weight.new_tensor(0.5))),
    "weights frozen": each(lambda f: f.one.weight.requires_grad_(False)),
    "a function frozen": lambda m: m.fs[1].requires_grad_(False),
    "all frozen": lambda m: m.requires_grad_(False),
    "a forward hook": each(lambda f: f.one.register_forward_hook(doubles)),
    "a forward hook before": each(lambda f: f.one.register_forward_pre_hook(before)),
    "a hook on a function": lambda m: m.fs[1].register_forward_hook(doubles),
    "a backward hook": each(lambda f: f.two.register_full_backward_hook(lambda m, i, o: (i[0] * 3,))),
    "a gradient hook": each(lambda f: f.one.weight.register_hook(lambda grad: grad * 3)),
    "a bias less": each(lambda f: f.one.register_parameter("bias", None)),
    "a layer replaced": each(lambda f: setattr(f, "drop", nn.Tanh())),
    "a layer with fewer saved tensors": each(lambda f: setattr(f, "drop", nn.Identity())),
    "layers swapped": swap,
    "weights tied": tie,
    "weights replaced": each(
        lambda f: setattr(f.one, "weight", nn.Parameter(f.one.weight.detach() * 0.5 + 0.1))
    ),
    "data replaced": each(lambda f: setattr(f.one.weight, "data", f.one.weight.data * 0.5 + 0.1)),
    "data edited": each(lambda f: f.one.weight.data.mul_(0.5)),
    "state loaded": lambda m: m.load_state_dict({k: v * 0.5 for k, v in m.state_dict().items()}),
    "state assigned": lambda m: m.load_state_dict(
        {k: v * 0.5 for k, v in m.state_dict().items()}, assign=True
    ),
    "a buffer replaced": each(lambda f: setattr(f, "mean", f.mean + 0.5)),
    "a buffer that is a parameter now": each(make_parameter),
    "parametrized": each(lambda f: parametrize.register_parametrization(f.one, "weight", Symmetric())),
    "spectral norm": each(lambda f: parametrizations.spectral_norm(f.one)),
    "pruned": each(lambda f: prune.l1_unstructured(f.one, "weight", amount=0.5)),
    "a forward of one's own": each(lambda f: setattr(f.drop, "forward", torch.sigmoid)),
}  # fmt: skip


def settled(plan: str) -> tuple[Any, Any, tuple[Tensor, Tensor]]:
    model, plain = made_twice(lambda: Weave(Function))
    inputs = two_streams(6, 4)
    net = rg.trace(model, *inputs)
    (net.plan,) = plans(net, plan)
    settle(net, plain, inputs)
    return net, plain, inputs


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_between_steps_is_followed(name: str) -> None:
    net, plain, inputs = settled("inverted")
    for model in (net, plain):
        torch.manual_seed(1)
        CHANGES[name](model)
    with right_or_refused("'fs."):
        follow(net, plain, inputs, 3)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["default", "inverted"])
def test_hooks_that_come_and_go(plan: str) -> None:
    net, plain, inputs = settled(plan)
    for _ in range(3):
        handles = [m.fs[1].one.register_forward_hook(doubles) for m in (net, plain)]
        follow(net, plain, inputs, 2)
        for handle in handles:
            handle.remove()
        follow(net, plain, inputs, 2)


@pytest.mark.parametrize("plan", ["default", "inverted"])
def test_inputs_of_other_sizes_flags_and_types(plan: str) -> None:
    net, plain, inputs = settled(plan)
    a, b = inputs
    follow(net, plain, two_streams(2, 4), 2)
    follow(net, plain, (a.detach(), b), 2)
    follow(net, plain, (a, b.detach()), 2)
    follow(net, plain, (a.detach(), b.detach()), 2)
    follow(net, plain, (a * 2, b.sin()), 2)
    follow(net, plain, (a, a), 2)
    follow(net, plain, (a, a[:]), 2)
    with right_or_refused("'a'", "'b'", "fs."):
        follow(net, plain, two_streams(0, 4), 1)
    follow(net, plain, inputs, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_net_moved_to_another_type(dtype: torch.dtype) -> None:
    net, plain, _ = settled("recomputed")  # streams in half precision drift when they are inverted
    net.to(dtype), plain.to(dtype)
    with right_or_refused("fs.", "bfloat16", "half"):
        follow(net, plain, two_streams(6, 4, dtype=dtype), 3, tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["default", "inverted"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_a_settled_net_is_a_net_of_its_own(how: str, plan: str) -> None:
    net, plain, inputs = settled(plan)
    other = copy.deepcopy(net) if how == "deepcopy" else pickle.loads(pickle.dumps(net))
    other_plain = copy.deepcopy(plain)
    CHANGES["an attribute"](other), CHANGES["an attribute"](other_plain)
    follow(other, other_plain, inputs, 3)
    follow(net, plain, inputs, 3)


def test_plans_that_change_every_step() -> None:
    net, plain, inputs = settled("inverted")
    choices = [*plans(net, "default"), *plans(net, "mixed"), *plans(net, "kept"), *plans(net, "results")]
    for number in range(12):
        net.plan = choices[number % len(choices)]
        follow(net, plain, inputs, 1, first_seed=number)


def test_steps_without_gradients_between_steps() -> None:
    net, plain, inputs = settled("inverted")
    for mode in (torch.no_grad, torch.inference_mode, torch.no_grad):
        with mode():
            assert all(torch.equal(one, two) for one, two in zip(net(*inputs), plain(*inputs), strict=True))
        follow(net, plain, inputs, 2)


def test_gradients_that_add_up_over_steps() -> None:
    net, plain, inputs = settled("inverted")
    for model in (net, plain):
        for number in range(20):
            torch.manual_seed(number)
            sum(model(*inputs)).pow(2).sum().backward()
            if number % 7 == 6:
                model.zero_grad(set_to_none=number == 6)
    for one, two in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize("function", [Function, nn.Identity])
def test_a_settled_net_holds_no_more_than_at_first(function: Callable[[], nn.Module]) -> None:
    model, _ = made_twice(lambda: Weave(lambda: nn.Sequential(nn.Linear(4, 4), function(), nn.Tanh())))
    inputs = two_streams(64, 4)
    net = rg.trace(model, *inputs)
    net.plan = rg.decide(net.graph, {})
    steps = [bytes_of_a_step(net, *inputs) for _ in range(20)]
    assert all(step[0] == steps[0][0] and step[2] == steps[0][2] for step in steps)
    assert max(step[1] for step in steps) == steps[0][1]


def test_an_exception_in_a_late_step_leaves_the_net_usable() -> None:
    class Fuse(Function):
        blown = False

        def forward(self, x: Tensor) -> Tensor:
            if self.blown:
                raise ZeroDivisionError
            return super().forward(x)

    model, plain = made_twice(lambda: Weave(Fuse))
    inputs = two_streams(6, 4)
    net: Any = rg.trace(model, *inputs)
    net.plan = rg.decide(net.graph, {})
    follow(net, plain, inputs, 12)
    for when in ("forward", "backward"):
        loss = sum(net(*inputs)).sum()
        net.fs[1].blown = True
        with pytest.raises(ZeroDivisionError):
            net(*inputs) if when == "forward" else loss.backward()
        net.fs[1].blown = False
        follow(net, plain, inputs, 3)


@pytest.mark.slow
def test_a_hook_that_is_taken_off_again_leaves_no_trace() -> None:
    """A function that was called as a module for its hook's sake is inlined again: bytes are as predicted."""
    net = rg.load("revnet-38", batch=2)
    images = torch.randn(2, 3, 32, 32)
    handles = [each.register_forward_hook(lambda *_: None) for each in net.modules() if each is not net]
    for _ in range(10):
        net(images).sum().backward()
    for handle in handles:
        handle.remove()
    assert activation_bytes(net, images) == (net.plan.peak_bytes, net.plan.held_bytes)
    for _ in range(10):
        net(images).sum().backward()
    assert activation_bytes(net, images) == (net.plan.peak_bytes, net.plan.held_bytes)


class GivesItsInputBack(nn.Module):
    """The second half-step saves nothing, and gives back the input that the first one's function reads."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a = a + torch.tanh(self.f(b))
        return b + a


def test_inputs_that_the_caller_lets_go_of_come_back_from_silent_couplings_too() -> None:
    model, plain = made_twice(GivesItsInputBack)
    a, b = two_streams()
    net = rg.trace(model, a, b)
    net.plan = rg.decide(net.graph, {})
    found, expected = [
        torch.autograd.grad(run(a * 1.0, b * 1.0).pow(2).sum(), [a, b, *run.parameters()])
        for run in (net, plain)
    ]
    assert_close(found, expected, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["output", "input", "found", "given", "loss"])
def test_a_module_may_be_called_as_the_engine_calls_its_own(name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Linear(4, 4))

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return a + torch.tanh(getattr(self, name)(b)), b

    model, plain = made_twice(Net)
    a, b = two_streams()
    net = rg.trace(model, a, b)
    net.plan = rg.decide(net.graph, {})
    follow(net, plain, (a, b), 10)
    back = net.inverse(*net(a, b))
    assert_close([each.detach() for each in back], [a.detach(), b.detach()], 1e-9)


class Recorder(rg.Boundary):
    """Puts hooks on its layers in its first forward, as libraries do that give hidden states on request."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.seen: list[Tensor] | None = None

    def note(self, _: nn.Module, __: Any, result: Tensor) -> None:
        if self.seen is not None:
            self.seen.append(result)

    def forward(self, x: Tensor) -> Tensor:
        if not self.layers[0]._forward_hooks:
            for layer in self.layers:
                layer.register_forward_hook(self.note)
        return self.layers(x)


def test_hooks_that_a_nodes_own_forward_puts_on_do_not_hinder_its_replay() -> None:
    model, plain = made_twice(lambda: nn.Sequential(Recorder(), nn.Tanh()))
    x = torch.randn(3, 4, dtype=torch.double)
    net = rg.trace(model, x)
    for layer in model[0].layers:  # pyright: ignore
        layer._forward_hooks.clear()
    net.plan = rg.decide(net.graph, {node.name: "recompute" for node in net.graph.planned})
    for _ in range(2):
        net(x).sum().backward()
        plain(x).sum().backward()
    assert_close([each.grad for each in model.parameters()], [each.grad for each in plain.parameters()])
